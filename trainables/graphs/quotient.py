"""Quotient graphs: symmetry-equivalent atoms, bonds and angles folded into one row each.

CHGNet gives equivalent atoms, bonds and angles equal features in every layer, so one row a class with the number of
messages it stands for computes the same energy. Classes come from colour refinement to an equitable partition
(Weisfeiler-Leman on the graph CHGNet passes messages over), which needs no symmetry search and finds at least the
orbits of the space group. Equal distances and angles are told by gaps between sorted values, not by rounding, which
would split equal values at the edges of its bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.crystals import Crystal
from trainables.graphs.convert import Graph

# Measured on 600 crystals each of mp_e_form and jdft2d: with 1e-4 folded energies are up to 6e-5 eV/atom from the full
# graph's, with 3e-5 up to 2e-5, at the same compression (4.4 times) on mp_e_form.
GAP = 3e-5  # A or rad; a new class begins where sorted values lie further apart
PAYS_BELOW = 0.9  # share of the full graph's edges; a fold that keeps more gains nothing worth its approximation
WIDEST_CLASS = 1e-4  # A or rad; a wider one is a chain of small gaps: that crystal keeps its full graph
_COSINE_SHRINK = 1 - 1e-6  # as chgnet.model.encoders.AngleEncoder: angles near pi are compared as the model sees them

_ROUNDS_A_COUNT = 2

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Quotient:
    """One crystal's folded graph: a atoms, b bonds, e edges, s short bonds, g angles.

    An edge is a directed bond as an atom class receives it; `edge_count` and `angle_count` say how many equal messages
    a row stands for. The full graph is the quotient by the finest partition, with all counts 1.
    """

    atom: Ints  # (a,) a representative's place in the crystal
    atom_count: Ints  # (a,) atoms in the class
    bond: Ints  # (b,) a representative's place among the graph's bonds
    edge: Ints  # (e, 3) receiving atom class, sending atom class, bond class
    edge_count: Ints  # (e,)
    short: Ints  # (s,) bond classes that take part in angles
    angle: Ints  # (g, 3) left short class (which receives), right short class, class of the common atom
    angle_count: Ints  # (g,)
    angle_halves: Ints  # (g, 2) a representative's half-bonds, as in Graph.angle_halves
    length: NDArray[np.float64]  # (b,) A, the representatives'
    cosine: NDArray[np.float64]  # (g,) the representatives'

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Rows: atoms, bonds, edges, short bonds, angles."""
        return len(self.atom), len(self.bond), len(self.edge), len(self.short), len(self.angle)


def fold(crystal: Crystal, graph: Graph, alike: Sequence[Crystal] = (), *, gap: float = GAP) -> Quotient:
    """Return the coarsest equitable partition's quotient, or the full graph where folding fails or does not pay.

    Args:
        alike: the same atoms at other positions (graphs.symmetry.probes): rows fold only where they are equal there
            too, so that the quotient holds for every crystal that is changed without losing symmetry.
        gap: A or rad; 0 folds nothing.
    """
    length, cosine = geometry(crystal, graph)
    length_class = np.zeros(len(length), dtype=np.int64)
    theta_class = np.zeros(len(cosine), dtype=np.int64)
    width = 0.0 if gap > 0 else np.inf
    for positions in (crystal, *alike):
        lengths, cosines = geometry(positions, graph)
        # Angles near pi are compared as the model sees them: shrunk.
        theta = np.arccos(np.clip(cosines, -1, 1) * _COSINE_SHRINK)
        length_class, length_width = gap_classes(lengths, gap, length_class)
        theta_class, theta_width = gap_classes(theta, gap, theta_class)
        width = max(width, length_width, theta_width)
    if width <= WIDEST_CLASS:
        colours = refine(crystal.numbers.astype(np.int64), graph, length_class, theta_class)
        folded = _divide(graph, *colours, length, cosine)
        if folded is not None and len(folded.edge) < PAYS_BELOW * 2 * len(graph.bond_atoms):
            return folded
    return unfolded(graph, length, cosine)


def unfolded(graph: Graph, length: NDArray[np.float64], cosine: NDArray[np.float64]) -> Quotient:
    """Return the full graph in the quotient's form: every atom, bond and angle is its own class."""
    atom, bond, angle = (np.arange(n) for n in (graph.n_atoms, len(graph.bond_atoms), len(graph.angle_halves)))
    full = _divide(graph, atom, bond, angle, length, cosine)
    if full is None:
        raise AssertionError("the finest partition is equitable")
    return full


def geometry(crystal: Crystal, graph: Graph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bond lengths (n_bonds,) in A and angle cosines (n_angles,)."""
    vectors = bond_vectors(crystal, graph)
    length = np.linalg.norm(vectors, axis=1)
    unit = vectors[graph.short_bond] / length[graph.short_bond, None]
    halves = np.stack([unit, -unit], axis=1).reshape(-1, 3)
    return length, (halves[graph.angle_halves[:, 0]] * halves[graph.angle_halves[:, 1]]).sum(axis=1)


def bond_vectors(crystal: Crystal, graph: Graph) -> NDArray[np.float64]:
    """Vectors from the second to the first end of every bond, (n_bonds, 3) A."""
    first, second = graph.bond_atoms.T
    return (crystal.frac[first] - crystal.frac[second] - graph.bond_image) @ crystal.lattice


def gap_classes(values: NDArray[np.float64], gap: float = GAP, within: Ints | None = None) -> tuple[Ints, float]:
    """Class of each value, and the width of the widest class; a class ends where the next value is over `gap` away.

    Args:
        within: classes to divide further.
    """
    if len(values) == 0:
        return np.empty(0, dtype=np.int64), 0.0
    order = np.argsort(values, kind="stable") if within is None else np.lexsort((values, within))
    ordered = values[order]
    begins = np.concatenate([[True], np.diff(ordered) > gap])
    if within is not None:
        begins[1:] |= np.diff(within[order]) > 0
    number = np.cumsum(begins) - 1
    classes = np.empty(len(values), dtype=np.int64)
    classes[order] = number
    first = np.flatnonzero(begins)
    last = np.concatenate([first[1:], [len(values)]]) - 1
    return classes, float((ordered[last] - ordered[first]).max())


def refine(atom: Ints, graph: Graph, length_class: Ints, theta_class: Ints) -> tuple[Ints, Ints, Ints]:
    """Refine colours of atoms, bonds and angles until no class splits; returns dense colours of each.

    What an atom receives are its edges' bonds and senders; what a short bond receives are the angles it is the left
    leg of, with their right legs and common atoms; an angle's next feature depends on its two legs and its atom.
    """
    center = graph.bond_atoms.T.reshape(-1)  # (2 n_bonds,) both directions
    neighbor = graph.bond_atoms[:, ::-1].T.reshape(-1)
    of_edge = np.tile(np.arange(len(graph.bond_atoms)), 2)
    short_of = graph.short_bond[graph.angle_halves >> 1]  # (n_angles, 2) bonds of the two legs
    middle = _half_atoms(graph)[graph.angle_halves[:, 0]]  # (n_angles,) common atom
    left, right = short_of[:, 0].copy(), short_of[:, 1].copy()
    by_center, by_left = _Owners(center, len(atom)), _Owners(left, len(graph.bond_atoms))
    colours = _mix(atom, 1), _mix(length_class, 2), _mix(theta_class, 3)  # of atoms, bonds, angles
    n_classes: tuple[int, ...] = ()
    while True:
        # Counting classes costs as much as a round, so a few rounds go by between counts.
        for _ in range(_ROUNDS_A_COUNT):
            atoms, bonds, angles = colours
            received = by_center.sum(_scramble(_mix(bonds, 4)[of_edge] + _mix(atoms, 5)[neighbor]))
            other_leg = _mix(bonds, 6)[right] + _mix(atoms, 7)[middle]
            heard = by_left.sum(_scramble(other_leg + _mix(angles, 8)))
            legs = _scramble(other_leg + _mix(bonds, 9)[left])
            colours = _scramble(_mix(atoms, 10) + received), _scramble(_mix(bonds, 11) + heard), _mix(angles, 12) + legs
        before, n_classes = n_classes, tuple(len(np.unique(colour)) for colour in colours)
        if n_classes == before:
            return _dense(colours[0]), _dense(colours[1]), _dense(colours[2])


def _half_atoms(graph: Graph) -> Ints:
    """Atom of every short half-bond, (2 n_short,)."""
    return graph.bond_atoms[graph.short_bond].reshape(-1)


def _divide(
    graph: Graph, atom: Ints, bond: Ints, angle: Ints, length: NDArray[np.float64], cosine: NDArray[np.float64]
) -> Quotient | None:
    """Return the quotient by given colours, or None where the partition proves not to be equitable."""
    n_atom, n_bond = (int(colour.max(initial=-1)) + 1 for colour in (atom, bond))
    atom_count = np.bincount(atom, minlength=n_atom)
    bond_count = np.bincount(bond, minlength=n_bond)
    ends = graph.bond_atoms.T
    rows = np.stack(
        [atom[ends.reshape(-1)], atom[ends[::-1].reshape(-1)], np.tile(bond, 2)], axis=1
    )  # (2 n_bonds, 3) receiver, sender, bond
    key = (rows[:, 0] * max(n_atom, 1) + rows[:, 1]) * max(n_bond, 1) + rows[:, 2]
    _, place, edge_total = np.unique(key, return_index=True, return_counts=True)
    edge = rows[place]
    short_classes, short_number = np.unique(bond[graph.short_bond], return_inverse=True)
    left, right = short_number[graph.angle_halves >> 1].T
    _, angle_place, angle_total = np.unique(angle, return_index=True, return_counts=True)
    middle = atom[_half_atoms(graph)[graph.angle_halves[angle_place, 0]]]
    legs = np.stack([left[angle_place], right[angle_place], middle], axis=1).reshape(-1, 3)
    edge_count, edge_rest = np.divmod(edge_total, atom_count[edge[:, 0]])
    angle_count, angle_rest = np.divmod(angle_total, bond_count[short_classes[legs[:, 0]]])
    if edge_rest.any() or angle_rest.any():
        return None
    _, atom_place = np.unique(atom, return_index=True)
    _, bond_place = np.unique(bond, return_index=True)
    return Quotient(
        atom=atom_place,
        atom_count=atom_count,
        bond=bond_place,
        edge=edge,
        edge_count=edge_count,
        short=short_classes,
        angle=legs,
        angle_count=angle_count,
        angle_halves=graph.angle_halves[angle_place],
        length=length[bond_place],
        cosine=cosine[angle_place],
    )


def _dense(colour: NDArray[np.uint64]) -> Ints:
    return np.unique(colour, return_inverse=True)[1].astype(np.int64)


class _Owners:
    """Sums over the rows that share an owner, the order of owners found once."""

    def __init__(self, owner: Ints, n_owners: int) -> None:
        self._order = np.argsort(owner, kind="stable")
        self._present, self._begin = np.unique(owner[self._order], return_index=True)
        self._n_owners = n_owners

    def sum(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Sum modulo 2**64 of the values of each owner: equal for equal multisets."""
        total = np.zeros(self._n_owners, dtype=np.uint64)
        if len(values):
            total[self._present] = np.add.reduceat(values[self._order], self._begin)
        return total


def _mix(colour: NDArray[np.generic], role: int) -> NDArray[np.uint64]:
    """Return a 64-bit number for a colour in a role."""
    return _scramble(colour.astype(np.uint64) + np.uint64((role * 0x9E3779B97F4A7C15) % 2**64))


def _scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection that looks random."""
    mixed = values >> np.uint64(30)
    mixed ^= values
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
