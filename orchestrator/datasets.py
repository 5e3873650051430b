"""From what the user typed to a checked Dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from trainables.data.dataset import Dataset, read_matbench, read_table
from trainables.data.locate import cache_home, matbench_file
from trainables.data.matbench_file import is_matbench_layout
from trainables.data.sample import load_sample
from trainables.data.tasks import SAMPLE_TASK, TASKS, find_task
from trainables.errors import UserError
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model.chgnet import Start, cutoffs_of
from trainables.model.folding import fold_check
from trainables.progress import Progress


@dataclass(frozen=True)
class Source:
    """Where rows come from: a task's name, and perhaps a file.

    Attributes:
        target, unit, energy: of a table of one's own only.
        limit: keep a seeded random number of rows.
    """

    task: str
    file: Path | None = None
    target: str | None = None
    unit: str = ""
    energy: bool = False
    limit: int | None = None


def load_dataset(source: Source, progress: Progress) -> Dataset:
    """Read and check the rows.

    Raises:
        UserError: unknown task, missing or damaged file, or rows that cannot be used (ids listed).
    """
    if source.limit is not None and source.limit < 1:
        raise UserError(f"--limit {source.limit}: a number of rows from 1 on was wanted")
    dataset = _read(source, progress)
    return dataset.limit(source.limit)


def _read(source: Source, progress: Progress) -> Dataset:
    if source.file is None:
        task = find_task(source.task)
        if task.synthetic:
            return load_sample(progress)
        return read_matbench(matbench_file(task, progress), task, progress)
    if not source.file.is_file():
        raise UserError(f"--data {source.file}: there is no such file")
    if source.task in (SAMPLE_TASK.name, "sample"):
        raise UserError(f"'{source.task}' names the synthetic sample; give your table another task name")
    official = source.task in TASKS or f"matbench_{source.task}" in TASKS or source.task.startswith("matbench_")
    if official:
        task = find_task(source.task)
        if not is_matbench_layout(source.file):
            raise UserError(
                f"{source.file} is not a Matbench table (json.gz with index, columns and data); for a table of your "
                f"own choose a task name that is not Matbench's '{task.name}'"
            )
        return read_matbench(source.file, task, progress)
    return read_table(source.file, source.task, source.target, unit=source.unit, energy=source.energy)


def graph_store(dataset: Dataset, start: Start, progress: Progress, *, skin: float = 0.0) -> GraphStore:
    """The dataset's packed graphs for these weights, from this machine's cache or built into it and checked.

    Args:
        skin: A added to the cutoffs, for views that are strained and displaced (training.augment.skin_of).
    """
    folder, cutoffs = cache_home() / "graphs", replace(cutoffs_of(start), skin=skin)
    return open_or_build(dataset.structures, cutoffs, folder, check=fold_check(start), progress=progress)


def full_name(name: str) -> str:
    """A known task's whole name where it was given in short; other names as they are."""
    if name == "sample":
        return SAMPLE_TASK.name
    return f"matbench_{name}" if f"matbench_{name}" in TASKS else name


def load_auxiliary(texts: Sequence[str], progress: Progress) -> dict[str, Dataset]:
    """Read auxiliary tasks given as NAME or NAME=FILE; by their whole names.

    Raises:
        UserError: as load_dataset, or a name given twice.
    """
    found: dict[str, Dataset] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not name or (equals and not file):
            raise UserError(f"--aux {text}: NAME or NAME=FILE was wanted, for example --aux mp_gap")
        if full_name(name) in found:
            raise UserError(f"--aux {name} is given twice")
        found[full_name(name)] = load_dataset(Source(name, Path(file) if equals else None), progress)
    return found


def prepare_data(source: Source, start: str, progress: Progress) -> str:
    """Read, check and convert; returns what there is, in one line.

    Raises:
        UserError: as load_dataset, or unknown weights.
    """
    if start not in get_args(Start):
        raise UserError(f"--start {start}: one of {', '.join(get_args(Start))} was wanted")
    dataset = load_dataset(source, progress)
    store = graph_store(dataset, cast(Start, start), progress)
    official = f" of {dataset.task.official_rows:,} official ones (PARTIAL)" if dataset.partial else ""
    odd = f"; {int(store.failed.sum())} without a graph, {int((store.n_isolated > 0).sum())} with isolated atoms"
    return (
        f"{dataset.task.name}: {len(dataset):,} rows{official}, {dataset.structures.n_atoms.mean():.1f} atoms, "
        f"{2 * store.counts[:, 1].mean():.0f} bonds, {store.counts[:, 3].mean():.0f} angles a crystal{odd}; "
        f"graphs: {store.n_bytes / 1e6:.0f} MB in {store.folder}"
    )
