"""The converter against chgnet's own: the same bonds in the same order, the same angles."""

from itertools import pairwise

import numpy as np
import pytest
from chgnet.graph import CrystalGraphConverter
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.spatial.transform import Rotation

from trainables.crystals import Crystal
from trainables.graphs.convert import ConversionError, Cutoffs, Graph, _pair_directions, convert, ragged_ranges


def directed_bonds(graph: Graph) -> NDArray[np.int64]:
    """Centre, neighbour and image of every bond of the search, (2 * n_bonds, 5), in the search's order."""
    bond, end = graph.directed >> 1, graph.directed & 1
    image = graph.bond_image[bond] * np.where(end == 0, 1, -1)[:, None]
    return np.column_stack([graph.bond_atoms[bond, end], graph.bond_atoms[bond, 1 - end], image])


def place_of_half(graph: Graph) -> NDArray[np.int64]:
    """Place in the search of every half-bond."""
    place = np.empty(len(graph.directed), dtype=np.int64)
    place[graph.directed] = np.arange(len(graph.directed))
    return place


def angles(graph: Graph) -> NDArray[np.int64]:
    """Rows of chgnet's bond graph, (n_angles, 5): centre, left bond, left place, right bond, right place."""
    half = 2 * graph.short_bond[graph.angle_halves >> 1] + (graph.angle_halves & 1)
    place = place_of_half(graph)
    center = graph.bond_atoms[half[:, 0] >> 1, half[:, 0] & 1]
    return np.column_stack([center, half[:, 0] >> 1, place[half[:, 0]], half[:, 1] >> 1, place[half[:, 1]]])


def sorted_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.lexsort(rows.T)]


def assert_equals_stock(structure: Structure, atom_cutoff: float, bond_cutoff: float = 3.0) -> Graph:
    stock = CrystalGraphConverter(
        atom_graph_cutoff=atom_cutoff, bond_graph_cutoff=bond_cutoff, on_isolated_atoms="ignore"
    )(structure)
    graph = convert(Crystal.from_structure(structure), Cutoffs(atom_cutoff, bond_cutoff))
    stock_bonds = np.column_stack([stock.atom_graph.numpy().reshape(-1, 2), stock.neighbor_image.numpy()])
    np.testing.assert_array_equal(directed_bonds(graph), stock_bonds)
    np.testing.assert_array_equal(graph.directed >> 1, stock.directed2undirected.numpy())
    np.testing.assert_array_equal(place_of_half(graph)[0::2], stock.undirected2directed.numpy())
    np.testing.assert_array_equal(
        sorted_rows(angles(graph)), sorted_rows(stock.bond_graph.numpy().reshape(-1, 5).astype(np.int64))
    )
    return graph


@pytest.mark.parametrize("atom_cutoff", [5.0, 6.0])
def test_made_crystals_give_the_bonds_and_angles_of_stock(made: dict[str, Structure], atom_cutoff: float) -> None:
    seen = [assert_equals_stock(structure, atom_cutoff) for structure in made.values()]
    assert sum(len(graph.angle_halves) for graph in seen) > 1000


def test_real_crystals_give_the_bonds_and_angles_of_stock(real_bulk: list[Structure]) -> None:
    seen = [assert_equals_stock(structure, 6.0) for structure in real_bulk]
    assert len(seen) >= 60
    assert sum(len(graph.angle_halves) for graph in seen) > 10_000


def test_real_crystals_give_the_bonds_and_angles_of_stock_at_5_angstrom(real_bulk: list[Structure]) -> None:
    seen = [assert_equals_stock(structure, 5.0) for structure in real_bulk[::4]]
    assert sum(len(graph.angle_halves) for graph in seen) > 2_000


def test_real_2d_layers_give_the_bonds_and_angles_of_stock(real_layers: list[Structure]) -> None:
    for structure in real_layers:
        assert len(assert_equals_stock(structure, 6.0).bond_atoms) > 0


def test_another_angle_cutoff_gives_the_angles_of_stock(made: dict[str, Structure]) -> None:
    few = assert_equals_stock(made["perovskite"], 6.0, 2.0)
    many = assert_equals_stock(made["perovskite"], 6.0, 4.0)
    assert 0 < len(few.angle_halves) < len(many.angle_halves)


def test_a_bond_of_exactly_the_cutoff_is_short_but_ends_no_angle_on_the_right(made: dict[str, Structure]) -> None:
    graph = convert(Crystal.from_structure(made["exactly 3 A, one atom"]), Cutoffs(6.0, 3.0))
    assert len(graph.short_bond) == 3  # the three axes: d <= 3
    assert len(graph.angle_halves) == 0  # none with d < 3


def test_bonds_that_round_to_either_side_of_the_cutoff_give_the_angles_of_stock(made: dict[str, Structure]) -> None:
    exact = made["exactly 3 A, rocksalt"]
    seen = []
    for rotation in Rotation.random(12, rng=np.random.default_rng(0)):
        lattice = exact.lattice.matrix @ rotation.as_matrix().T
        seen.append(assert_equals_stock(Structure(lattice, exact.species, exact.frac_coords + 0.1), 6.0))
    assert sum(len(graph.angle_halves) for graph in seen) > 0  # some bonds came out below 3 A
    assert any(len(graph.short_bond) < 24 for graph in seen)  # and some above it


def bond_keys(graph: Graph) -> set[tuple[int, ...]]:
    return set(map(tuple, directed_bonds(graph).tolist()))


def angle_keys(graph: Graph) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Angles as pairs of (centre, neighbour, image), whatever the numbering."""
    bonds = list(map(tuple, directed_bonds(graph).tolist()))
    return {(bonds[left], bonds[right]) for _, _, left, _, right in angles(graph).tolist()}


def test_a_skin_holds_every_bond_and_angle_of_the_plain_graph_and_more(made: dict[str, Structure]) -> None:
    for name in ("rocksalt", "perovskite", "triclinic", "layer in vacuum", "exactly 3 A, turned"):
        crystal = Crystal.from_structure(made[name])
        plain, skinned = convert(crystal, Cutoffs(6.0, 3.0)), convert(crystal, Cutoffs(6.0, 3.0, skin=0.5))
        assert bond_keys(plain) <= bond_keys(skinned)
        assert angle_keys(plain) <= angle_keys(skinned)
        assert bond_keys(skinned) == bond_keys(convert(crystal, Cutoffs(6.5, 3.5)))
        assert angle_keys(skinned) == angle_keys(convert(crystal, Cutoffs(6.5, 3.5)))
    assert len(skinned.bond_atoms) > 0
    assert len(skinned.angle_halves) > len(plain.angle_halves)  # the 3 A bonds are well inside now


def test_angles_are_sorted_by_their_left_half(made: dict[str, Structure]) -> None:
    graph = convert(Crystal.from_structure(made["perovskite"]), Cutoffs())
    assert all(before <= after for before, after in pairwise(graph.angle_halves[:, 0]))


def test_atoms_without_neighbours_are_counted(made: dict[str, Structure]) -> None:
    counts = {name: convert(Crystal.from_structure(cell), Cutoffs()).n_isolated for name, cell in made.items()}
    assert {name: count for name, count in counts.items() if count} == {"one isolated atom": 1, "no bonds at all": 1}


def test_a_bond_found_from_one_end_only_is_a_conversion_error() -> None:
    both = np.array([0, 1]), np.array([1, 0]), np.array([[0, 0, 1], [0, 0, -1]])
    first, second = _pair_directions(*both, 2)
    assert (first.tolist(), second.tolist()) == ([0], [1])
    for center, neighbor, image in (
        ([0], [1], [[0, 0, 1]]),
        ([0, 1], [1, 0], [[0, 0, 1], [0, 0, 1]]),  # another image: not the same bond
        ([0, 0], [1, 1], [[0, 0, 1], [0, 0, 1]]),  # twice the same direction
    ):
        with pytest.raises(ConversionError):
            _pair_directions(np.array(center), np.array(neighbor), np.array(image), 2)


def test_ragged_ranges_is_the_concatenation_of_aranges() -> None:
    starts, counts = np.array([5, 0, 9, 2]), np.array([3, 0, 1, 4])
    assert ragged_ranges(starts, counts).tolist() == [5, 6, 7, 9, 2, 3, 4, 5]
    assert ragged_ranges(starts[:0], counts[:0]).tolist() == []
