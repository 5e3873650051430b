"""Why a crystal cannot be used, and what every crystal is checked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from trainables.crystals import MAX_ATOMIC_NUMBER, Crystal

OVERLAP_ANGSTROM = 0.5  # pymatgen's own Structure.DISTANCE_TOLERANCE
VACUUM_ANGSTROM = 6.0  # CHGNet's longest cutoff: images further apart than that do not see each other


class BadStructure(ValueError):
    """Why one structure cannot be used; `kind` is what such rows are grouped by."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def checked(crystal: Crystal) -> Crystal:
    """Return the crystal if CHGNet can take it.

    Raises:
        BadStructure: wrong shapes, non-finite numbers, elements beyond CHGNet's, overlapping atoms.
    """
    n_atoms = len(crystal.numbers)
    if n_atoms == 0:
        raise BadStructure("no atoms")
    if crystal.lattice.shape != (3, 3) or crystal.frac.shape != (n_atoms, 3):
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


def not_periodic_enough(crystal: Crystal, pbc: Any) -> None:
    """Accept a layer, wire or molecule in a cell whose vacuum is wider than CHGNet sees: its graph is the periodic one.

    Args:
        pbc: a truth value for all directions, or three.

    Raises:
        BadStructure: in a direction that is not periodic, images would see each other.
    """
    periodic = np.broadcast_to(np.array(pbc, dtype=bool), 3)
    if periodic.all() or not len(crystal.frac):
        return
    vacuum = min(width for width, closed in zip(vacuum_widths(crystal), periodic, strict=True) if not closed)
    if vacuum < VACUUM_ANGSTROM:
        raise BadStructure(
            f"not periodic in all three directions, with less than {VACUUM_ANGSTROM:g} A of vacuum between images"
        )


def vacuum_widths(crystal: Crystal) -> NDArray[np.float64]:
    """Return how far images are apart along each lattice direction, (3,), in A."""
    heights = abs(np.linalg.det(crystal.lattice)) / np.array(
        [np.linalg.norm(np.cross(crystal.lattice[(k + 1) % 3], crystal.lattice[(k + 2) % 3])) for k in range(3)]
    )
    wrapped = np.sort(crystal.frac % 1.0, axis=0)
    gaps = np.diff(np.vstack([wrapped, wrapped[:1] + 1.0]), axis=0)
    return np.asarray(gaps.max(axis=0) * heights)
