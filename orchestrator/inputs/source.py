"""What a command is about, checked by its names before anything heavy is imported: task, file, target, folder.

Only the standard library and light modules of trainables are used here.
"""

import csv
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.data.formats import HEADERLESS, holds_rows
from trainables.data.matbench_file import is_matbench_layout, open_text
from trainables.data.tasks import N_FOLDS, SAMPLE_TASK, TASKS, Task, find_task, full_name
from trainables.errors import UserError, listed
from trainables.files import obstacle
from trainables.hints import closest

_LONGEST_NAME = 100
MARKERS = {  # the file that says what a folder of ours is
    "run.json": "a training run",
    "study.json": "a search",
    "ablation.json": "an ablation",
}
_BESIDE = (".log", ".out", ".err", ".sh", ".slurm", ".yaml", ".yml")  # what people put into a run's folder beforehand


_OWN_ONLY = ("id", "structure", "drop_missing", "total_energy", "per_cell", "folds_by", "fold_column", "test")


@dataclass(frozen=True)
class Source:
    """Where rows come from: a task's name, and perhaps a file.

    Attributes:
        frame: a pandas DataFrame instead of a file.
        target, unit, energy: of a table of one's own only.
        id, structure: columns of such a table, where they have other names than the usual ones.
        drop_missing: leave out rows without a target.
        total_energy: the target is the energy of the whole cell; it is divided by the number of atoms.
        per_cell: the target is a property of the whole cell, which grows with it.
        folds_by: what keeps rows in one fold: a name of trainables.data.grouping, or a column.
        fold_column: column with the test fold of each row.
        test: file of the rows to test on; the others are trained on. Or `test_frame`, a DataFrame of them.
        limit: keep a seeded random number of rows.
    """

    task: str
    file: Path | None = None
    target: str | None = None
    unit: str = ""
    energy: bool = False
    limit: int | None = None
    id: str | None = None
    structure: str | None = None
    drop_missing: bool = False
    total_energy: bool = False
    per_cell: bool = False
    folds_by: str | None = None
    fold_column: str | None = None
    test: Path | None = None
    frame: Any = field(default=None, compare=False, repr=False)
    test_frame: Any = field(default=None, compare=False, repr=False)

    def keywords(self) -> dict[str, Any]:
        """Return the arguments of crystaltune.train that name the same rows; `data` is the first one."""
        names = ("target", "unit", "energy", "limit", *_OWN_ONLY)
        given = {name: getattr(self, name) for name in names} | {"test": str(self.test) if self.test else None}
        told = {name: value for name, value in given.items() if value}
        if self.frame is not None:
            return {"data": None, "name": self.task, **told}
        if self.file is None:
            return {"data": self.task, **told}
        if full_name(self.task) in TASKS:
            return {"data": self.task, "file": str(self.file), **told}
        return {"data": str(self.file), "name": self.task, **told}

    @property
    def is_own_table(self) -> bool:
        """Return whether rows come with the caller, not from Matbench's own files."""
        return self.file is not None or self.frame is not None

    @property
    def has_test_rows(self) -> bool:
        """Return whether the rows to test on are given apart."""
        return self.test is not None or self.test_frame is not None


def name_of_file(file: Path) -> str:
    """Return the name of a table of one's own where none was chosen: that of its file or folder."""
    named = file.parent if glob.has_magic(file.name) else file
    return re.sub(r"[^\w.+-]+", "_", named.absolute().resolve().name.split(".")[0]).strip("_-") or "table"


def known_task(name: str) -> Task | None:
    """Return the Matbench task or the sample of this name, or None where the name is free for a table of one's own.

    Raises:
        UserError: the name begins with matbench_ and there is no such task.
    """
    if full_name(name) in (*TASKS, SAMPLE_TASK.name) or name.lower().startswith("matbench_"):
        return find_task(name)
    return None


def check_source(source: Source) -> None:
    """Check everything that can be seen from names, options and the head of a file.

    Raises:
        UserError: with what came, what was expected, and what to do.
    """
    check_name(source.task)
    if source.limit is not None and (not isinstance(source.limit, int) or source.limit < 1):
        raise UserError(f"`limit={source.limit}`: must be a whole number of at least 1")
    if not isinstance(source.unit, str):
        raise UserError(f"`unit={source.unit}`: text was expected, such as 'eV/atom'")
    if not isinstance(source.energy, bool):
        raise UserError(f"`energy={source.energy}`: True or False was expected")
    if source.total_energy and source.unit not in ("", "eV", "eV/atom"):
        raise UserError(f"`unit={source.unit}`: with `total_energy=True`, targets are in eV, which become eV/atom")
    if source.energy and not source.total_energy and source.unit not in ("", "eV/atom"):
        raise UserError(
            f"`unit={source.unit}`: with `energy=True`, targets are in eV/atom: convert them if they are not"
        )
    if source.per_cell and (source.energy or source.total_energy):
        raise UserError("`per_cell=True` is for other properties: energies of whole cells are `total_energy=True`")
    _check_split(source)
    task = known_task(source.task) if source.is_own_table else find_task(source.task)
    if source.file is not None:
        _check_file(source.file)
    if task is not None and source.frame is not None:
        raise UserError(f"`name={source.task}` is a task of its own; use another `name` for your table")
    if task is None:
        if source.file is not None and source.target is not None:
            _check_target_column(source.file, source.target)
        return
    if source.file is not None:
        _check_official_file(source.task, task, source.file)
    _validate_target(source, task)


def _check_split(source: Source) -> None:
    chosen = [name for name in ("folds_by", "fold_column") if getattr(source, name)]
    chosen += ["test"] if source.has_test_rows else []
    if len(chosen) > 1:
        raise UserError(f"`{chosen[0]}` and `{chosen[1]}` both say which rows are tested: use one of them")
    if source.test is not None and not source.test.exists():
        raise UserError(f"`test={source.test}`: there is no such file")


def folds_to_run(source: Source, folds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the folds to run: with a fixed test set there is one, unless others are asked for by number."""
    return (0,) if source.has_test_rows and folds == tuple(range(N_FOLDS)) else folds


def check_name(name: str) -> None:
    """Reject a task name that cannot be a folder's name, or would be a folder elsewhere.

    Raises:
        UserError: with what is wrong with it.
    """
    shown = name if name.isprintable() else ascii(name)[1:-1]
    if not name.strip():
        raise UserError("the task's name is empty: give a Matbench task, or a name for your own table")
    if name in (".", "..") or any(mark in name for mark in "/\\"):
        raise UserError(
            f"task name '{shown}' is a path: use a plain name such as my_gaps (`out` is the folder of the results, "
            "`data` a table)"
        )
    if not name.isprintable():
        raise UserError(f"task name '{shown}' has characters that cannot be printed: use letters, digits, _ and -")
    if name.startswith("-"):
        raise UserError(f"task name '{shown}' begins with '-', as options do: begin it with a letter or a digit")
    if len(name) > _LONGEST_NAME:
        raise UserError(f"the task's name has {len(name)} characters; at most {_LONGEST_NAME} are allowed")


def _check_file(file: Path) -> None:
    if file.is_dir():
        if not holds_rows(file):
            raise UserError(
                f"{file} is a folder without structure files (CIF, POSCAR, extxyz, ...), and without one table; "
                "either was expected"
            )
        return
    if not file.exists() and glob.has_magic(str(file)):
        if not glob.glob(str(file), recursive=True):  # noqa: PTH207 - absolute patterns, too
            raise UserError(f"{file} matches no file")
        return
    if not file.exists():
        raise UserError(f"{file}: {_why_no_file(file)}")
    if not file.is_file():
        raise UserError(f"{file} is not a regular file; save its content to a file and use that")
    try:
        with file.open("rb") as handle:
            empty = not handle.read(1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    if empty:
        raise UserError(f"{file} is empty; a table with structures and targets was expected")


def _why_no_file(file: Path) -> str:
    """Return why a file is not there, with what may be meant."""
    if re.match(r"\w+:/", str(file)):
        return "an address cannot be read; download the file and name it"
    near = _nearest_file(file) or closest(str(file), [name.removeprefix("matbench_") for name in TASKS])
    return "there is no such file" + (f" (did you mean {near}?)" if near else "")


def _nearest_file(file: Path) -> Path | None:
    try:
        names = [entry.name for entry in file.parent.iterdir() if entry.is_file()]
    except OSError:
        return None
    near = closest(file.name, names, cutoff=0.8)
    return file.with_name(near) if near else None


def _check_official_file(name: str, task: Task, file: Path) -> None:
    if task.synthetic:
        raise UserError(f"'{name}' is the name of the synthetic sample; give your table another task name")
    if not is_matbench_layout(file):
        raise UserError(
            f"{file} is not a Matbench table (json.gz with index, columns and data); for a table of your own choose a "
            f"task name that is not Matbench's '{task.name}'"
        )


def _validate_target(source: Source, task: Task) -> None:
    """Reject a target, unit or kind that differs from what a known task predicts; saying the same is no mistake."""
    wrong = []
    if source.target is not None and source.target != task.target:
        wrong.append(f"`target={source.target}`")
    if source.unit and source.unit != task.unit:
        wrong.append(f"`unit={source.unit}`")
    if source.energy and task.quantity != "energy_per_atom":
        wrong.append("`energy=True`")
    own = [f"`{name}={value}`" for name in _OWN_ONLY if (value := getattr(source, name))]
    if wrong:
        raise UserError(
            f"{' '.join(wrong)}: {task.name} predicts '{task.target}' ({task.unit}), which cannot be changed; leave "
            "it out, or use a table of your own with `data` and a different task name"
        )
    if own:
        raise UserError(
            f"{' '.join(own)}: the rows and folds of {task.name} are fixed, so that scores can be compared; leave it "
            "out, or use a table of your own with `data` and a different task name"
        )


def _check_target_column(file: Path, target: str) -> None:
    """Compare the target with a CSV's header; other files are read by whoever can."""
    if file.name.lower().removesuffix(".gz").rsplit(".", 1)[-1] != "csv":
        return
    try:
        with open_text(file) as lines:
            header = next((row for row in csv.reader(lines) if row), [])
    except (OSError, EOFError, ValueError, csv.Error):
        return  # damaged: reading it says how
    columns = [name.removeprefix("\ufeff") for name in header]
    if len(columns) < 2 or file.name.lower() in HEADERLESS:  # other separators, or no names
        return
    if target in columns or len(set(columns)) < len(columns) or "" in columns:  # pandas names those by itself
        return
    near = closest(target, columns)
    hint = f" (did you mean '{near}'?)" if near else ""
    raise UserError(f"{file}: there is no column '{target}'{hint}, but {listed(columns, 30)}")


def auxiliary_sources(texts: Sequence[str]) -> dict[str, Source]:
    """Read auxiliary tasks given as NAME or NAME=FILE and check them; by their whole names.

    Raises:
        UserError: as check_source, or a name given twice.
    """
    found: dict[str, Source] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not name or (equals and not file):
            raise UserError(f"`auxiliary={text}`: NAME or NAME=FILE was expected, for example `auxiliary=mp_gap`")
        if full_name(name) in found:
            raise UserError(f"`auxiliary={name}` is given twice")
        found[full_name(name)] = Source(name, Path(file) if equals else None)
        check_source(found[full_name(name)])
    return found


def parse_folds(text: str) -> tuple[int, ...]:
    """Read "0-4", "0" or "0,2".

    Raises:
        UserError: anything else, or folds that do not exist.
    """
    folds: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise UserError(f"`folds={text}`: a range or list such as 0-4, 0 or 0,2 was expected")
        if max(int(first), int(last or first)) >= N_FOLDS:
            raise UserError(f"`folds={text}`: folds are 0 to {N_FOLDS - 1}")
        folds |= set(range(int(first), int(last or first) + 1))
    if not folds:
        raise UserError(f"`folds={text}`: the range is empty; folds are 0 to {N_FOLDS - 1}, the smaller number first")
    return tuple(sorted(folds))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def default_folder(prefix: str, task: str) -> Path:
    """Return where a command's results go by default, runs/PREFIX + TASK.

    A known task keeps the form it was typed in, with or without matbench_, but not its capitals and dashes.
    """
    known = full_name(task) in (*TASKS, SAMPLE_TASK.name)
    return Path("runs") / f"{prefix}{task.lower().replace('-', '_') if known else task}"


def check_folder(out: Path, *, marker: str) -> None:
    """Reject a folder for results that holds something else.

    Args:
        marker: the file of MARKERS that says that a folder is this command's.

    Raises:
        UserError: `out` is a file, or holds files that are not ours or are another command's.
    """
    try:
        there = out.exists()
    except OSError as error:
        raise UserError(f"`out={str(out)[:60]}...`: {error.strerror}; use another folder") from None
    if there and not out.is_dir():
        raise UserError(f"`out={out}` is a file; the name of a folder was expected")
    if not there and (reason := obstacle(out)):
        raise UserError(f"`out={out}` cannot be created ({reason}); use another folder")
    if not there or (out / marker).exists():
        return
    try:
        names = sorted(entry.name for entry in out.iterdir())
    except OSError as error:
        raise UserError(f"`out={out}` cannot be read ({error.strerror}); use another folder") from None
    other = next((what for file, what in MARKERS.items() if file in names), None)
    if other is not None:
        raise UserError(f"`out={out}` already contains {other}: use another folder")
    foreign = [name for name in names if not name.startswith(".") and not name.lower().endswith(_BESIDE)]
    if foreign and not _was_begun(out, marker):
        raise UserError(
            f"`out={out}` contains other files ({listed(foreign, 3)}): use a new folder, for example "
            f"{out / 'crystaltune'}"
        )


def config_file(path: Path) -> Path:
    """Return the file of settings that a path names: of a search's folder its best configuration.

    Raises:
        UserError: the folder of a search that has none yet.
    """
    best = path / "best.yaml"
    if best.is_file():
        return best
    if (path / "study.json").is_file():
        raise UserError(f"{path} has no best.yaml yet: no trial of this search is complete")
    if path.is_dir():
        raise UserError(f"{path} is a folder without best.yaml: a YAML file, or a search's folder, was expected")
    return path


def _was_begun(out: Path, marker: str) -> bool:
    """Return True where a command of ours began there and was stopped before it wrote its marker."""
    try:
        if (out / ".lock").read_text(encoding="utf-8").startswith("process "):
            return True
    except (OSError, UnicodeDecodeError):
        pass
    if marker == "study.json":
        return (out / "journal.jsonl").exists()
    return marker == "ablation.json" and any((out / "runs").glob("fold*-seed*"))
