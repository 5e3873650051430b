"""One crystal from what a table may hold: an object, a dictionary, text, or the path of a structure file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymatgen.core import IStructure, Structure

from trainables.crystals import Crystal
from trainables.data.bad_structures import OVERLAP_ANGSTROM, BadStructure, checked
from trainables.data.structure_dicts import crystal_of_dict
from trainables.data.structure_files import read_structure_file
from trainables.data.structure_text import crystal_of_atoms, crystal_of_structure, crystal_of_text, looks_like_text
from trainables.data.table_files import decoded

__all__ = ["OVERLAP_ANGSTROM", "BadStructure", "checked", "read_crystal"]


def read_crystal(value: Any, folder: Path) -> Crystal:
    """Read one table cell; relative paths are taken from `folder`.

    Raises:
        BadStructure: with the kind of problem.
    """
    return checked(_crystal(value, folder))


def _crystal(value: Any, folder: Path) -> Crystal:
    if isinstance(value, Crystal):
        return value
    if isinstance(value, BadStructure):  # of a file that could not be read
        raise value
    if isinstance(value, Mapping):
        return crystal_of_dict(value)
    if isinstance(value, Structure | IStructure):
        return crystal_of_structure(value)
    if isinstance(value, bytes):  # text, of Parquet
        value = decoded(value)
    if isinstance(value, str | Path) and str(value).strip():
        text = str(value)
        return crystal_of_text(text) if looks_like_text(text.strip()) else _in_file(text.strip(), folder)
    if value is None or isinstance(value, str | float):  # an empty cell
        raise BadStructure("no structure")
    if hasattr(value, "get_positions") and hasattr(value, "cell"):  # ASE's Atoms
        return crystal_of_atoms(value)
    if hasattr(value, "lattice_mat") and hasattr(value, "to_dict"):  # JARVIS' Atoms
        return crystal_of_dict(value.to_dict())
    if hasattr(value, "structure"):  # pymatgen's ComputedStructureEntry
        return _crystal(value.structure, folder)
    raise BadStructure(f"{type(value).__name__} instead of a pymatgen Structure, its dictionary or CIF text")


def _in_file(name: str, folder: Path) -> Crystal:
    try:
        places = [folder / name, Path(name).expanduser(), folder / name.replace("\\", "/")]
        path = next((place for place in places if place.exists()), folder / name)
        if path.is_file():
            return read_structure_file(path)
        if path.is_dir():
            raise BadStructure("a folder, where a structure file was expected")
    except (OSError, RuntimeError) as error:  # text that is too long to be a name; no such home
        raise BadStructure("neither a structure's text nor the path of a file") from error
    if path.suffix or "/" in name or "\\" in name:
        raise BadStructure(f"a structure file that does not exist (looked in {folder.absolute()})")
    raise BadStructure("neither a structure's text nor the path of a file")
