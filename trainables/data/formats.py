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


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return plain_name(path).endswith(SUFFIXES)


def is_structure_file(path: Path) -> bool:
    """Return whether a file holds crystals by its name, and is no table."""
    name = plain_name(path)
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
    stem = name[: len(name) - len(suffix)]
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


def holds_rows(folder: Path) -> bool:
    """Return whether a folder has what can be read as rows, by the names in it."""
    if any((folder / name).is_file() for name in HEADERLESS) or structure_files(folder):
        return True
    return sum(is_table(file) for file in folder.iterdir() if file.is_file()) == 1
