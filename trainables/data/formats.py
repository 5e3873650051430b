"""Tables and structure files by their names. Light: commands look at names before anything heavy is imported."""

import re
from pathlib import Path

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".xls")
HEADERLESS = ("id_prop.csv", "targets.csv")  # of CGCNN, ALIGNN and MatDeepLearn: an id and a value a line, no names
TEXT = (".cif", ".vasp", ".poscar", ".contcar")
PYMATGEN = (".cssr", ".yaml", ".yml", ".mson")
# What ASE reads by these endings: one crystal, or (of a relaxation) the last one.
_ONE = (".xsf", ".gen", ".res", ".cell", ".castep", ".cfg", ".struct", ".in", ".pwi", ".pwo", ".abi", ".fdf", ".json")
SEVERAL = (".extxyz", ".xyz", ".traj", ".db", ".xdatcar")
POSCAR_NAME = re.compile(r"(poscar|contcar)(?![a-z])", re.IGNORECASE)
VASP_RUN = re.compile(r"vasprun.*\.xml", re.IGNORECASE)
OUTCAR = re.compile(r"outcar", re.IGNORECASE)
_ENDING = re.compile(r"(?<=.)\.[A-Za-z]\w{0,5}$")
# Files that one calculation of VASP leaves, the one that says most of its crystal first.
_OF_A_CALCULATION = ("vasprun.xml", "outcar", "contcar", "poscar", "xdatcar")


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return plain_name(path).endswith(SUFFIXES)


def is_structure_file(path: Path) -> bool:
    """Return whether a file holds crystals by its name, and is no table."""
    name = plain_name(path)
    if name.endswith(SUFFIXES):  # such as poscars.csv
        return False
    return (
        name.endswith((*TEXT, *PYMATGEN[:1], *_ONE[:-1], *SEVERAL))
        or bool(POSCAR_NAME.match(name))
        or bool(VASP_RUN.fullmatch(name))
        or bool(OUTCAR.match(name))
        or name.startswith("xdatcar")
    )


def plain_name(path: Path) -> str:
    """Return a file's name in small letters, without .gz."""
    return path.name.lower().removesuffix(".gz")


def id_of(path: Path) -> str:
    """Return the id that a file's name gives: without its ending and, where it says nothing else, its folder's."""
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    suffix = next((each for each in (*TEXT, *PYMATGEN, *_ONE, *SEVERAL, ".xml") if name.lower().endswith(each)), "")
    unknown = _ENDING.search(name) if not suffix else None
    stem = name[: unknown.start()] if unknown else name[: len(name) - len(suffix)]
    nameless = stem.lower() in ("poscar", "contcar", "vasprun", "outcar", "xdatcar", "structure", "geometry")
    return path.absolute().parent.name if nameless else stem


def structure_files(folder: Path) -> list[Path]:
    """Return the structure files of a folder and those below it, in the order of their paths."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_structure_file(path)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def one_a_calculation(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return files with one of each folder that VASP ran in, and those that are left out for it.

    A vasprun.xml or OUTCAR has the relaxed crystal and its energy, CONTCAR the crystal alone, POSCAR that before.
    """
    there: dict[Path, list[Path]] = {}
    for file in files:
        if plain_name(file) in _OF_A_CALCULATION:
            there.setdefault(file.parent, []).append(file)
    left_out = {
        other
        for each in there.values()
        for other in sorted(each, key=lambda f: _OF_A_CALCULATION.index(plain_name(f)))[1:]
    }
    return [file for file in files if file not in left_out], sorted(left_out)


def table_beside(folder: Path) -> Path | None:
    """Return the table of a folder whose ids name structure files in it (id_prop.csv, targets.csv, or their gz)."""
    names = (f"{name}{packed}" for name in HEADERLESS for packed in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def holds_rows(folder: Path) -> bool:
    """Return whether a folder has what can be read as rows, by the names in it."""
    if table_beside(folder) is not None or structure_files(folder):
        return True
    return sum(is_table(file) for file in folder.iterdir() if file.is_file()) == 1
