"""One structure from what a table may hold: a pymatgen dictionary, CIF text, or the path of a CIF file."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import DummySpecies, Element, Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

from trainables.crystals import MAX_ATOMIC_NUMBER, Crystal

OVERLAP_ANGSTROM = 0.5  # pymatgen's own Structure.DISTANCE_TOLERANCE


class BadStructure(ValueError):
    """Why one structure cannot be used; `kind` is what such rows are grouped by."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def read_crystal(value: Any, folder: Path) -> Crystal:
    """Read one table cell; relative CIF paths are taken from `folder`.

    Raises:
        BadStructure: with the kind of problem.
    """
    if isinstance(value, dict):
        crystal = _from_dict(value)
    elif isinstance(value, Structure):
        crystal = _from_structure(value)
    elif isinstance(value, str) and value.strip():
        crystal = _from_text(value.strip(), folder)
    elif value is None or isinstance(value, str | float):  # an empty cell
        raise BadStructure("no structure")
    else:
        raise BadStructure(f"a {type(value).__name__}, not a pymatgen Structure, its dictionary or CIF text")
    return checked(crystal)


def checked(crystal: Crystal) -> Crystal:
    """Return the crystal if CHGNet can take it.

    Raises:
        BadStructure: wrong shapes, non-finite numbers, elements beyond CHGNet's, overlapping atoms.
    """
    n_atoms = len(crystal.numbers)
    if n_atoms == 0 or crystal.lattice.shape != (3, 3) or crystal.frac.shape != (n_atoms, 3):
        raise BadStructure("wrong shapes (expected a 3 x 3 lattice and 3 coordinates per atom)")
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac).all()):
        raise BadStructure("non-finite lattice or coordinates")
    if abs(np.linalg.det(crystal.lattice)) < 1e-3:
        raise BadStructure("a lattice without volume")
    if crystal.numbers.max() > MAX_ATOMIC_NUMBER or crystal.numbers.min() < 1:
        raise BadStructure(f"elements CHGNet does not know (beyond Z = {MAX_ATOMIC_NUMBER})")
    if _overlaps(crystal):
        raise BadStructure(f"overlapping atoms (closer than {OVERLAP_ANGSTROM} A)")
    return crystal


def _overlaps(crystal: Crystal) -> bool:
    coords = crystal.cartesian()
    pairs = find_points_in_spheres(
        coords, coords, r=OVERLAP_ANGSTROM, pbc=np.ones(3, dtype=np.int64), lattice=crystal.lattice, tol=1e-8
    )
    return len(pairs[0]) > len(coords)  # every atom finds itself


def _from_structure(structure: Structure) -> Crystal:
    if not structure.is_ordered:
        raise BadStructure("partial occupancy")
    if any(isinstance(site.specie, DummySpecies) for site in structure):
        raise BadStructure("elements CHGNet does not know (no such element)")
    return Crystal.from_structure(structure)


def _from_dict(content: dict[str, Any]) -> Crystal:
    """Read a pymatgen Structure dictionary without building its objects (forty times faster)."""
    lattice, sites = content.get("lattice"), content.get("sites")
    if not isinstance(lattice, dict) or "matrix" not in lattice or not isinstance(sites, list):
        raise BadStructure("not a pymatgen structure dictionary (lattice.matrix and sites are required)")
    if not np.all(lattice.get("pbc", True)):
        raise BadStructure("not periodic in all three directions")
    numbers, frac = [], []
    try:
        for site in sites:
            species = site.get("species") or []
            if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
                raise BadStructure("partial occupancy")
            numbers.append(_atomic_number(str(species[0].get("element", ""))))
            frac.append(site.get("abc"))
    except (AttributeError, TypeError, KeyError):
        raise BadStructure("not a pymatgen structure dictionary (a site without species and abc)") from None
    try:
        return Crystal(
            np.array(lattice["matrix"], dtype=np.float64),
            np.array(numbers, dtype=np.uint8),
            np.array(frac, dtype=np.float64),
        )
    except (TypeError, ValueError):
        raise BadStructure("wrong shapes (expected a 3 x 3 lattice and 3 coordinates per atom)") from None


def _atomic_number(symbol: str) -> int:
    try:
        return int(Element(symbol).Z)
    except ValueError:
        raise BadStructure("elements CHGNet does not know (no such element)") from None


def _from_text(text: str, folder: Path) -> Crystal:
    if text.startswith("{"):
        try:
            return _from_dict(json.loads(text))
        except json.JSONDecodeError:
            raise BadStructure("structure text that is not valid JSON") from None
    return _from_cif(text if "\n" in text else _read_cif_file(text, folder))


def _read_cif_file(name: str, folder: Path) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # absent, a folder, or text too long to be a name
        raise BadStructure(f"a structure file that does not exist (looked in {folder.absolute()})") from None


def _from_cif(text: str) -> Crystal:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            structure = Structure.from_str(text, fmt="cif")
        except Exception:  # pymatgen's CIF reader raises what its parser happens to meet
            raise BadStructure("a CIF pymatgen cannot read") from None
    # Most warnings are of rounded coordinates; these two mean that atoms were left out or occupancies rescaled.
    if any(
        "missing elements" in text or "occupanc" in text for text in (str(warning.message).lower() for warning in told)
    ):
        raise BadStructure("a CIF with sites pymatgen leaves out or rescales")
    return _from_structure(structure)
