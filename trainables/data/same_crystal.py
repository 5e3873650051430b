"""Which crystals are the same one: rotated, shifted, in another cell, with its atoms in another order, or as rounded.

Two crystals are taken for the same when they have one reduced formula and agree in numbers that no choice of cell,
origin, axes or order of atoms changes: the volume of an atom, and, over the atoms of each element, mean, extremes
and a quantile of the distances to some of the nearest atoms (Widdowson, Mosca, Pulido, Cooper and Kurlin, MATCH 87, 529
(2022)) and of a smooth density of all within reach, weighted by element (a radial symmetry function of Behler, J. Chem.
Phys. 134, 074106 (2011)). None changes by more than the coordinates do, so that rounded ones agree; snapshots of one
compound do not. Mirror images are the same.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from trainables.crystals import Crystal, CrystalTable
from trainables.progress import Progress, silent

_RADIUS = 5.0  # A
_NEAREST = (0, 1, 2, 4, 7)  # which of the nearest atoms, counted from 0
# Tolerances, the first two relative, the third in A: coordinates rounded to 0.0005 A agree, an atom displaced by 0.01 A
# does not.
_VOLUME, _DENSITY, _DISTANCE = 5e-4, 5e-4, 2e-3
_NOTHING = 1e-2  # added to a density, whose logarithm is taken
_WEIGHTS = np.random.default_rng(7).uniform(0.5, 1.5, size=119)  # that tell elements apart
# The ends, and irrational ones between them: at others a supercell could fall on either side of a step.
_LEVELS = np.array([0.0, 1 / np.sqrt(2), 1 - 1e-12])
_SEARCHED = 4  # numbers that a search tree looks at; trees of many dimensions look at every pair


@dataclass(frozen=True, eq=False)
class CrystalSet:
    """What identifies n crystals.

    Attributes:
        numbers: of each crystal, as many as its formula has; a difference of 1 is the tolerance.
    """

    formulas: tuple[str, ...]
    numbers: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, structures: CrystalTable, progress: Progress = silent) -> "CrystalSet":
        """Look at crystals; some thousands a second."""
        found = []
        with progress.stage("identify crystals", len(structures), "crystals") as bar:
            for crystal in structures:
                found.append(_numbers(crystal))
                bar.advance(1)
        return cls(tuple(structures.reduced_formulas), tuple(found))

    def take(self, rows: Sequence[int]) -> "CrystalSet":
        """Return these rows."""
        return CrystalSet(tuple(self.formulas[row] for row in rows), tuple(self.numbers[row] for row in rows))

    def groups(self) -> NDArray[np.int64]:
        """Return for each crystal the first that is the same, (n,)."""
        first = np.arange(len(self.formulas))
        for rows in _by_formula(self.formulas).values():
            if len(rows) > 1:
                pairs = _pairs(self._of(rows))
                links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(rows), len(rows)))
                _, group = connected_components(links, directed=False)
                _, place = np.unique(group, return_index=True)
                first[rows] = rows[place[group]]
        return first

    def holds(self, others: "CrystalSet") -> NDArray[np.bool_]:
        """Return which of the others are here, (n_others,)."""
        found, here = np.zeros(len(others.formulas), dtype=bool), _by_formula(self.formulas)
        for formula, rows in _by_formula(others.formulas).items():
            if formula in here:
                own, new = self._of(here[formula]), others._of(rows)
                near = KDTree(own[:, _spread_out(own)]).query_ball_point(new[:, _spread_out(own)], 1.0, p=np.inf)
                found[rows] = [
                    bool((np.abs(own[places] - each).max(axis=1) <= 1.0).any()) if places else False
                    for places, each in zip(near, new, strict=True)
                ]
        return found

    def _of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the numbers of rows of one formula, (rows, numbers)."""
        return np.stack([self.numbers[row] for row in rows])


def _pairs(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the pairs of rows that agree in all numbers, (pairs, 2)."""
    tree = KDTree(numbers[:, _spread_out(numbers)])
    pairs = np.asarray(tree.query_pairs(1.0, p=np.inf, output_type="ndarray"), dtype=np.int64)
    return pairs[np.abs(numbers[pairs[:, 0]] - numbers[pairs[:, 1]]).max(axis=1) <= 1.0] if len(pairs) else pairs


def _spread_out(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the numbers in which rows differ most."""
    return np.argsort(-np.ptp(numbers, axis=0), kind="stable")[:_SEARCHED]


def same_crystals(structures: CrystalTable) -> NDArray[np.int64]:
    """Return for each crystal the first that is the same, (n,); only formulas that are there twice are looked at."""
    formulas = structures.reduced_formulas
    count = Counter(formulas)
    rows = np.array([row for row, formula in enumerate(formulas) if count[formula] > 1], dtype=np.int64)
    first = np.arange(len(structures))
    if len(rows):
        first[rows] = rows[CrystalSet.of(structures.take(rows)).groups()]
    return first


def _by_formula(formulas: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, formula in enumerate(formulas):
        rows[formula].append(row)
    return {formula: np.array(each, dtype=np.int64) for formula, each in rows.items()}


def _numbers(crystal: Crystal) -> NDArray[np.float32]:
    """Return a crystal's numbers: one, and for each element four of each distance and of the density."""
    coords = crystal.frac @ crystal.lattice
    lattice = np.ascontiguousarray(crystal.lattice)
    first, second, _, distance = find_points_in_spheres(
        coords, coords, r=_RADIUS, pbc=np.ones(3, dtype=np.int64), lattice=lattice, tol=1e-8
    )
    apart = distance > 1e-8
    first, second, distance = first[apart], second[apart], distance[apart]
    order = np.lexsort((distance, first))
    first, second, distance = first[order], second[order], distance[order]
    n_atoms = len(crystal.numbers)
    near = np.full((n_atoms, len(_NEAREST)), _RADIUS)
    start, count = np.searchsorted(first, np.arange(n_atoms)), np.bincount(first, minlength=n_atoms)
    for column, place in enumerate(_NEAREST):
        there = count > place
        near[there, column] = distance[start[there] + place]
    smooth = _WEIGHTS[crystal.numbers][second] * (1 - (distance / _RADIUS) ** 2) ** 3
    density = np.log(np.bincount(first, weights=smooth, minlength=n_atoms) + _NOTHING)
    each = np.column_stack([near / _DISTANCE, density / _DENSITY])  # (n_atoms, numbers)
    found = [_quantiles(each[crystal.numbers == z]).ravel() for z in np.unique(crystal.numbers)]
    volume = np.log(abs(np.linalg.det(crystal.lattice)) / n_atoms) / _VOLUME
    return np.concatenate([[volume], *found]).astype(np.float32)


def _quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column, and its step function at all levels: what a supercell shares, (4, columns)."""
    levels = np.sort(values, axis=0)[np.floor(_LEVELS * len(values)).astype(np.int64)]
    return np.vstack([values.mean(axis=0), levels])
