"""CHGNet's atom graph and bond graph of one crystal, in whole-array numpy.

The result holds the bonds of chgnet.graph.CrystalGraphConverter in its own order and the same set of angles;
the tests compare them on real crystals. What makes stock slow is one Python object a bond, not the search.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from trainables.crystals import Crystal

_PERIODIC = np.ones(3, dtype=np.int64)
_NUMERICAL_TOL = 1e-8  # what chgnet passes to the neighbour search


class ConversionError(ValueError):
    """A crystal whose graph cannot be built."""


@dataclass(frozen=True)
class Cutoffs:
    """Radii in angstrom.

    Attributes:
        atom: bonds of the atom graph (6 for CHGNet 0.3.0 and r2scan, 5 for 0.2.0).
        bond: bonds that take part in angles (3).
        skin: added to both, so that strained and displaced views need no new search. Bonds beyond the
            cutoffs change nothing: every message carries a radial basis that is 0 there.
    """

    atom: float = 6.0
    bond: float = 3.0
    skin: float = 0.0


@dataclass(frozen=True, eq=False)
class Graph:
    """One crystal's graph.

    A half-bond is a bond seen from one of its ends: half 2u is bond u from `bond_atoms[u, 0]`, half 2u + 1
    from `bond_atoms[u, 1]`. Angles join two halves of short bonds at their common atom and are counted in
    both orders, as CHGNet does.
    """

    bond_atoms: NDArray[np.int64]  # (n_bonds, 2) atoms at the two ends
    bond_image: NDArray[np.int64]  # (n_bonds, 3) cell of the second end, lattice vectors
    short_bond: NDArray[np.int64]  # (n_short,) bonds within the bond cutoff (or on it)
    angle_halves: NDArray[np.int64]  # (n_angles, 2) halves: 2 * place in short_bond + end
    directed: NDArray[np.int64]  # (2 * n_bonds,) half of each bond of the search, in the search's order
    n_isolated: int  # atoms without any bond
    n_atoms: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Atoms, bonds, short bonds, angles."""
        return self.n_atoms, len(self.bond_atoms), len(self.short_bond), len(self.angle_halves)


def convert(crystal: Crystal, cutoffs: Cutoffs) -> Graph:
    """Build the graph of one crystal.

    Raises:
        ConversionError: the neighbour search did not find every bond from both ends.
    """
    coords = crystal.cartesian()
    center, neighbor, offset, distance = find_points_in_spheres(
        coords,
        coords,
        r=cutoffs.atom + cutoffs.skin,
        pbc=_PERIODIC,
        lattice=np.ascontiguousarray(crystal.lattice),
        tol=_NUMERICAL_TOL,
    )
    other = np.flatnonzero((center != neighbor) | (distance > _NUMERICAL_TOL))
    center, neighbor, distance = center[other], neighbor[other], distance[other]
    image = offset.astype(np.int64)[other]
    first, second = _pair_directions(center, neighbor, image, len(coords))
    half = np.empty(len(center), dtype=np.int64)
    half[first] = 2 * np.arange(len(first))
    half[second] = half[first] + 1
    limit = cutoffs.bond + cutoffs.skin
    # Stock takes a bond with d <= cutoff as the left leg of an angle and d < cutoff as the right one, and asks
    # for the right leg's own direction: at exactly the cutoff the two directions may round to either side.
    left_leg, right_leg = distance[first] <= limit, distance < limit
    short_bond = np.flatnonzero(left_leg | right_leg[second])
    angle_halves = _angles(center, half, left_leg, right_leg, short_bond, len(coords))
    bond_atoms = np.empty((len(first), 2), dtype=np.int64)
    bond_atoms[:, 0], bond_atoms[:, 1] = center[first], neighbor[first]
    return Graph(
        bond_atoms=bond_atoms,
        bond_image=image[first],
        short_bond=short_bond,
        angle_halves=angle_halves,
        directed=half,
        n_isolated=int((np.bincount(center, minlength=len(coords)) == 0).sum()),
        n_atoms=len(coords),
    )


def _pair_directions(
    center: NDArray[np.int64], neighbor: NDArray[np.int64], image: NDArray[np.int64], n_atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices of the two directions of every bond; bonds in order of their first appearance."""
    reach = int(np.abs(image).max(initial=0))
    base = 2 * reach + 1
    code = (image[:, 0] * base + image[:, 1]) * base + image[:, 2]  # > 0 where the first non-zero entry is
    forward = (center < neighbor) | ((center == neighbor) & (code > 0))
    low, high = np.where(forward, center, neighbor), np.where(forward, neighbor, center)
    key = (low * n_atoms + high) * base**3 + np.where(forward, code, -code)
    order = np.argsort(key, kind="stable")
    pairs = order.reshape(-1, 2) if len(order) % 2 == 0 else np.empty((0, 2), dtype=np.int64)
    same_bond = key[pairs[:, 0]] == key[pairs[:, 1]]
    opposite = forward[pairs[:, 0]] != forward[pairs[:, 1]]
    if 2 * len(pairs) != len(order) or not (same_bond & opposite).all():
        raise ConversionError("a bond was found from one of its ends only")
    pairs = pairs[np.argsort(pairs[:, 0])]
    return pairs[:, 0], pairs[:, 1]


def _angles(
    center: NDArray[np.int64],
    half: NDArray[np.int64],
    left_leg: NDArray[np.bool_],
    right_leg: NDArray[np.bool_],
    short_bond: NDArray[np.int64],
    n_atoms: int,
) -> NDArray[np.int64]:
    """All ordered pairs of different short half-bonds at one atom, (n_angles, 2), sorted by the left half."""
    place = np.full(len(left_leg), -1, dtype=np.int64)
    place[short_bond] = np.arange(len(short_bond))
    at = np.flatnonzero(right_leg)  # sorted by centre, as the search is
    right = 2 * place[half[at] >> 1] + (half[at] & 1)
    partners = np.bincount(center[at], minlength=n_atoms)  # right legs at each atom, which lie side by side
    at = np.flatnonzero(left_leg[half >> 1])
    left = 2 * place[half[at] >> 1] + (half[at] & 1)
    left_atom = center[at]
    by_half = np.argsort(left)
    left, left_atom = left[by_half], left_atom[by_half]
    count, begin = partners[left_atom], (np.cumsum(partners) - partners)[left_atom]
    first, second = np.repeat(left, count), right[ragged_ranges(begin, count)]
    different = np.flatnonzero(first != second)
    pairs = np.empty((len(different), 2), dtype=np.int64)
    pairs[:, 0], pairs[:, 1] = first[different], second[different]
    return pairs


def ragged_ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate arange(start, start + count) of every pair, without a Python loop."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)
