"""What a person points at becomes rows: a table, a structure file, a folder, a pattern, or several of these."""

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from trainables.data.bad_structures import BadStructure
from trainables.data.columns import ID, ID_COLUMNS, STRUCTURE, STRUCTURE_COLUMNS, matched
from trainables.data.formats import (
    HEADERLESS,
    id_of,
    is_structure_file,
    is_table,
    one_a_calculation,
    plain_name,
    structure_files,
    table_beside,
)
from trainables.data.matbench_file import is_matbench_layout
from trainables.data.structure_files import Found, structures_in
from trainables.data.table_files import known_elsewhere, read_frame
from trainables.errors import UserError, listed
from trainables.progress import Progress, silent


@dataclass(frozen=True)
class Rows:
    """Rows as they were found.

    Attributes:
        table: a row a crystal.
        folder: from where relative paths in it are taken.
        source: how messages name it.
    """

    table: pd.DataFrame
    folder: Path
    source: str


def expanded(paths: Iterable[Path]) -> list[Path]:
    """Return paths with patterns such as cifs/*.cif replaced by what they match, in order.

    Raises:
        UserError: nothing is there.
    """
    found: list[Path] = []
    for path in paths:
        if path.exists() or not glob.has_magic(str(path)):
            found.append(path)
            continue
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - absolute patterns, too
        if not matches:
            raise UserError(f"{path} matches no file")
        found += matches
    return found


def gather(paths: Iterable[Path], progress: Progress = silent) -> Rows:
    """Read the rows of files, folders and patterns.

    A table has its own rows; a structure file has a row a crystal, with what it says of it as columns. A folder with
    id_prop.csv (CGCNN, ALIGNN) or targets.csv (MatDeepLearn) is that table, whose structures lie beside it; any other
    has the crystals of all its structure files, also of those below it.

    Raises:
        UserError: nothing is there, or a file that is neither; tables among several files.
    """
    given = expanded(paths)
    if len(given) == 1:
        return _of_path(given[0], progress)
    tables = [path for path in given if path.is_file() and not is_structure_file(path)]
    if tables:
        raise UserError(
            f"several files were given, of which {listed(tables, 3)} are tables: give one table, or structures"
        )
    files = [file for path in given for file in (_chosen(structure_files(path), progress) if path.is_dir() else [path])]
    return Rows(_of_files(files, None, progress), Path(), f"the {len(files):,} files")


def _of_path(path: Path, progress: Progress) -> Rows:
    if path.is_dir():
        return _of_folder(path, progress)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if plain_name(path) in HEADERLESS:
        return _beside(path, read_frame(path), progress)
    if is_structure_file(path) or not (is_table(path) or _reads_as_table(path)):
        table = _of_files([path], None, progress)
        if not is_structure_file(path) and len(table) == 1 and isinstance(table[STRUCTURE][0], BadStructure):
            raise UserError(f"{path} is neither a table nor a structure file that pymatgen or ASE can read")
        return Rows(table, path.parent, str(path))
    frame = read_frame(path)
    if matched(frame.columns, STRUCTURE_COLUMNS) is None and _names_files(frame, path.parent):
        return _beside(path, frame, progress)
    return Rows(frame, path.parent, str(path))


def _names_files(table: pd.DataFrame, folder: Path) -> bool:
    """Return whether the ids of a table without structures are the names of structure files beside it."""
    column = matched(table.columns, ID_COLUMNS)
    return column is not None and len(table) > 0 and str(table[column].iloc[0]) in _files_by_id(folder)


def _chosen(files: list[Path], progress: Progress) -> list[Path]:
    """Return one file of each calculation, and say what is left out."""
    chosen, left_out = one_a_calculation(files)
    if left_out:
        progress.message(
            f"{len(left_out):,} files of VASP are left out for another of the same folder, in the order vasprun.xml, "
            f"OUTCAR, CONTCAR, POSCAR, XDATCAR: {listed(left_out, 3)}"
        )
    return chosen


def _reads_as_table(path: Path) -> bool:
    """Return whether a file without a known ending is a table: text whose first line names a column of structures.

    Whatever it is instead, the readers of structure files look at it, and say what they make of it.
    """
    if known_elsewhere(path):  # archives, pickles and the like are refused by the reader of tables
        return True
    try:
        return matched(read_frame(path).columns, STRUCTURE_COLUMNS) is not None
    except UserError:
        return False


def _of_folder(folder: Path, progress: Progress) -> Rows:
    beside = table_beside(folder)
    if beside is not None:
        return _beside(beside, read_frame(beside), progress)
    files = _chosen(structure_files(folder), progress)
    tables = sorted(file for file in folder.iterdir() if file.is_file() and is_table(file))
    if files:
        if tables:
            names = listed((each.name for each in tables), 4)
            progress.message(f"the structure files of {folder} are read, not {names}: name a table to read it")
        return Rows(_of_files(files, folder, progress), folder, str(folder))
    if len(tables) == 1 and not is_matbench_layout(tables[0]):
        return Rows(read_frame(tables[0]), folder, str(tables[0]))
    what = f"several tables ({listed((each.name for each in tables), 4)}): name one" if tables else "no structure files"
    raise UserError(f"{folder} has {what}; a table, or files such as CIF, POSCAR or extxyz, were expected")


def _of_files(files: list[Path], folder: Path | None, progress: Progress) -> pd.DataFrame:
    """Return a row a crystal, ids by name: where two files share one, by their paths."""
    found: list[tuple[Path, Found]] = []
    with progress.stage("read files", len(files), "files") as bar:
        for file in files:
            found += [(file, each) for each in structures_in(file)]
            bar.advance(1)
    ids = _distinct(found, folder)
    names = {name for _, each in found for name in each.properties} - {ID, STRUCTURE}
    columns = {name: [each.properties.get(name) for _, each in found] for name in sorted(names)}
    return pd.DataFrame({ID: ids, STRUCTURE: pd.Series([each.crystal for _, each in found], dtype=object), **columns})


def _distinct(found: list[tuple[Path, Found]], folder: Path | None) -> list[str]:
    """Return ids of which no two are the same, as far as the files' paths can tell them apart."""
    ids = [each.id for _, each in found]
    if len(set(ids)) == len(ids):
        return ids
    names = [str(path.relative_to(folder)) if folder else str(path) for path, _ in found]
    if len(set(names)) == len(names):
        return names
    seen: dict[str, int] = {}
    numbered = []
    for name in ids:
        seen[name] = seen.get(name, -1) + 1
        numbered.append(f"{name}-{seen[name]}" if seen[name] else name)
    return numbered


def _beside(path: Path, table: pd.DataFrame, progress: Progress) -> Rows:
    """Read a table such as id_prop.csv: ids name files beside it, with or without their endings.

    Raises:
        UserError: there is no file for an id.
    """
    column = matched(table.columns, ID_COLUMNS)
    ids = [str(value) for value in table[table.columns[0] if column is None else column]]
    by_id = _files_by_id(path.parent, progress)
    missing = [value for value in ids if value not in by_id]
    if missing:
        raise UserError(
            f"{path} names {len(missing):,} ids without a structure file beside it ({listed(missing, 5)}): files such "
            f"as {missing[0]}.cif were expected"
        )
    files = [str(by_id[value]) for value in ids]
    several = Counter(id_of(file) for file in set(by_id.values()))
    doubtful = [f"{Path(file).name} for {value}" for value, file in zip(ids, files, strict=True) if several[value] > 1]
    if doubtful:
        progress.message(f"warning: some ids have several files, of which one is taken: {listed(doubtful, 3)}")
    unused = sorted({file for file in by_id.values() if is_structure_file(file)} - set(map(Path, files)))
    if unused:
        progress.message(f"{len(unused):,} structure files are not named in {path.name}: {listed(unused, 3)}")
    return Rows(table.assign(**{STRUCTURE: files}), Path(), str(path))


def _files_by_id(folder: Path, progress: Progress = silent) -> dict[str, Path]:
    below = [file for each in sorted(folder.iterdir()) if each.is_dir() for file in sorted(each.iterdir())]
    files = [*sorted(folder.iterdir()), *_chosen(below, progress)]
    kinds: Iterator[Callable[[Path], str]] = iter((lambda file: file.name, id_of, lambda file: file.stem))
    usable = [file for file in files if file.is_file() and (is_structure_file(file) or file.suffix.lower() == ".json")]
    found: dict[str, Path] = {}
    for name_of in kinds:
        for file in usable:
            found.setdefault(name_of(file), file)
            found.setdefault(name_of(file).removeprefix("POSCAR-"), file)
    return found
