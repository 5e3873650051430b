"""Crystals as flat arrays: nothing of pymatgen's structure is lost."""

from dataclasses import replace
from math import gcd

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from trainables.crystals import SYMBOLS, Crystal, CrystalTable


@pytest.fixture
def table(made: dict[str, Structure]) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())


def test_a_structure_survives_the_way_there_and_back(made: dict[str, Structure]) -> None:
    for structure in made.values():
        again = Crystal.from_structure(structure).to_structure()
        np.testing.assert_array_equal(again.lattice.matrix, structure.lattice.matrix)
        np.testing.assert_array_equal(again.frac_coords, structure.frac_coords)
        assert again.species == structure.species


def test_cartesian_coordinates_are_pymatgens_to_the_last_bit(made: dict[str, Structure]) -> None:
    for structure in made.values():
        sites = np.array([site.coords for site in structure])
        assert Crystal.from_structure(structure).cartesian().tobytes() == sites.tobytes()


def test_a_site_with_two_species_is_refused() -> None:
    alloy = Structure(Lattice.cubic(3.0), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(AttributeError):
        Crystal.from_structure(alloy)


def test_symbols_are_indexed_by_atomic_number() -> None:
    assert (SYMBOLS[1], SYMBOLS[8], SYMBOLS[94], SYMBOLS[118]) == ("H", "O", "Pu", "Og")


def test_a_packed_table_gives_every_crystal_back(made: dict[str, Structure], table: CrystalTable) -> None:
    assert len(table) == len(made)
    assert table.n_atoms.tolist() == [len(structure) for structure in made.values()]
    for packed, structure in zip(table, made.values(), strict=True):
        expected = Crystal.from_structure(structure)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(packed, expected, strict=True))


def test_rows_are_counted_from_both_ends_and_sliced_like_a_list(table: CrystalTable) -> None:
    whole = list(table)
    assert np.array_equal(table[-1].frac, whole[-1].frac)
    assert [len(row.numbers) for row in table[2:9:3]] == [len(row.numbers) for row in whole[2:9:3]]
    assert [len(row.numbers) for row in table.take(np.array([4, 0, 4]))] == [len(whole[k].numbers) for k in (4, 0, 4)]
    for outside in (len(table), -len(table) - 1):
        with pytest.raises(IndexError):
            table[outside]


def test_an_empty_table_is_a_table() -> None:
    empty = CrystalTable.pack([])
    assert len(empty) == 0
    assert empty.composition.shape == (0, 119)
    assert empty.reduced_formulas == []


def test_composition_holds_atomic_fractions(made: dict[str, Structure], table: CrystalTable) -> None:
    np.testing.assert_allclose(table.composition.sum(axis=1), 1.0)
    for fractions, structure in zip(table.composition, made.values(), strict=True):
        expected = structure.composition.fractional_composition.as_dict()
        assert {SYMBOLS[z]: fractions[z] for z in np.flatnonzero(fractions)} == pytest.approx(expected)


def test_formulas_are_the_same_for_a_cell_and_its_supercell_and_no_others(made: dict[str, Structure]) -> None:
    cells = list(made.values())
    plain = CrystalTable.pack(map(Crystal.from_structure, cells)).reduced_formulas
    doubled = CrystalTable.pack(Crystal.from_structure(cell * (1, 2, 3)) for cell in cells).reduced_formulas
    assert doubled == plain
    ratios = []
    for cell in cells:
        amounts = {str(element): int(amount) for element, amount in cell.composition.items()}
        ratios.append(frozenset((name, amount // gcd(*amounts.values())) for name, amount in amounts.items()))
    for formula, ratio in zip(plain, ratios, strict=True):
        assert [other == formula for other in plain] == [other == ratio for other in ratios]
    assert plain[list(made).index("perovskite")] == "O3SrTi"


def test_the_digest_sees_every_array(table: CrystalTable) -> None:
    variants = [
        table,
        replace(table, lattices=table.lattices * (1 + 1e-15)),
        replace(table, numbers=table.numbers[::-1]),
        replace(table, frac=table.frac[::-1]),
        replace(table, offsets=np.delete(table.offsets, 3)),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert CrystalTable.pack(table).digest == table.digest


def test_a_lattice_in_columns_is_taken_over_in_rows_as_compiled_code_wants_it() -> None:
    from pymatgen.core import Lattice, Structure

    from trainables.data.structures import read_crystal

    matrix = np.asfortranarray([[4.0, 0.1, 0.0], [0.0, 4.2, 0.2], [0.3, 0.0, 4.4]])
    structure = Structure(Lattice(matrix), ["Na", "Cl"], np.asfortranarray([[0.0, 0.0, 0.0], [0.5, 0.5, 0.4]]))
    structure.lattice._matrix = matrix  # as a strain leaves it
    crystal = read_crystal(structure, None)
    assert crystal.lattice.flags.c_contiguous
    assert crystal.frac.flags.c_contiguous
    assert np.array_equal(crystal.lattice, matrix)
