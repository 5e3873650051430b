"""The same crystal is known however it is written; crystals that differ are told apart."""

from collections.abc import Callable

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.operations import SymmOp
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from trainables.crystals import Crystal, CrystalTable
from trainables.data.same_crystal import CrystalSet, same_crystals


def spinel() -> Structure:
    return Structure.from_spacegroup(
        "Fd-3m", Lattice.cubic(8.09), ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.2624] * 3]
    )


def layers() -> Structure:
    """A polar, low-symmetry crystal."""
    rng = np.random.default_rng(2)
    lattice = Lattice.from_parameters(4.3, 5.1, 6.7, 83, 97, 104)
    return Structure(lattice, ["Ti", "S", "S", "O", "Na"], [[0.1, 0.2, 0.1], *(rng.uniform(0, 1, (4, 3)) * 0.3 + [
        [0.5, 0.0, 0.4], [0.0, 0.5, 0.6], [0.6, 0.6, 0.0], [0.5, 0.5, 0.65]])])  # fmt: skip


def turned(cell: Structure) -> Structure:
    return cell.copy().apply_operation(SymmOp.from_axis_angle_and_translation([1, 2, 3], 37.0))


def shifted(cell: Structure) -> Structure:
    return cell.copy().translate_sites(range(len(cell)), [0.13, 0.41, 0.77])


def shuffled(cell: Structure) -> Structure:
    return Structure.from_sites([cell[place] for place in np.random.default_rng(0).permutation(len(cell))])


def rounded(cell: Structure) -> Structure:
    return Structure(Lattice(np.round(cell.lattice.matrix, 4)), cell.species, np.round(cell.frac_coords, 4))


def primitive(cell: Structure) -> Structure:
    return SpacegroupAnalyzer(cell, symprec=1e-3).get_primitive_standard_structure()


WRITTEN: dict[str, Callable[[Structure], Structure]] = {
    "turned": turned,
    "shifted": shifted,
    "atoms in another order": shuffled,
    "rounded": rounded,
    "supercell": lambda cell: cell * (2, 1, 1),
    "sheared supercell": lambda cell: cell * [[1, 1, 0], [0, 1, 1], [1, 0, 2]],
    "reduced": lambda cell: cell.get_reduced_structure(),
    "primitive": primitive,
    "as CIF": lambda cell: Structure.from_str(cell.to(fmt="cif"), fmt="cif"),
    "as POSCAR": lambda cell: Structure.from_str(cell.to(fmt="poscar"), fmt="poscar"),
    "noise of 1e-5 A": lambda cell: cell.copy().perturb(1e-5),
}


@pytest.mark.parametrize("crystal", [spinel, layers])
@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_crystal_is_known_however_it_is_written(crystal: Callable[[], Structure], how: str) -> None:
    cell = crystal()
    table = CrystalTable.pack(map(Crystal.from_structure, [cell, WRITTEN[how](cell)]))
    assert same_crystals(table).tolist() == [0, 0]
    one, other = CrystalSet.of(table).take([0]), CrystalSet.of(table).take([1])
    assert one.holds(other).tolist() == [True]


def stacked(layers: str) -> Structure:
    """SiC of a stacking such as ABC: a = 3.08 A, 2.52 A a layer."""
    place, height = {"A": (0, 0), "B": (1 / 3, 2 / 3), "C": (2 / 3, 1 / 3)}, len(layers)
    sites = [(*place[layer], k / height) for k, layer in enumerate(layers)]
    lattice = Lattice.hexagonal(3.08, 2.52 * height)
    return Structure(
        lattice, ["Si"] * height + ["C"] * height, sites + [(x, y, z + 0.75 / height) for x, y, z in sites]
    )


OTHERS: dict[str, tuple[Structure, Structure]] = {
    "displaced by 0.03 A": (spinel(), spinel().perturb(0.03)),
    "one atom of 56 displaced": (spinel(), spinel().translate_sites([20], [0.03, 0, 0], frac_coords=False)),
    "strained by 0.2 %": (layers(), layers().apply_strain(0.002)),
    "two elements exchanged": (
        layers(), Structure(layers().lattice, ["O", "S", "S", "Ti", "Na"], layers().frac_coords)
    ),
    "inverse spinel": (
        spinel(),
        Structure(spinel().lattice, ["Al", "Mg"] * 8 + ["Mg"] * 8 + ["O"] * 32, spinel().frac_coords),
    ),
    "2H and 3C": (stacked("AB"), stacked("ABC")),
    "4H and 6H": (stacked("ABCB"), stacked("ABCACB")),
    "6H and 3C": (stacked("ABCACB"), stacked("ABC")),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_crystals_that_differ_are_told_apart(what: str) -> None:
    table = CrystalTable.pack(map(Crystal.from_structure, OTHERS[what]))
    assert table.reduced_formulas[0] == table.reduced_formulas[1]
    assert same_crystals(table).tolist() == [0, 1]
    numbers = CrystalSet.of(table)
    assert not numbers.take([0]).holds(numbers.take([1])).any()


def test_snapshots_of_one_compound_are_many_crystals() -> None:
    primitive = spinel().get_primitive_structure()
    cells = [primitive.copy().perturb(0.05) for _ in range(60)]
    table = CrystalTable.pack(map(Crystal.from_structure, cells))
    assert same_crystals(table).tolist() == list(range(60))


def test_a_crystal_of_another_formula_is_not_looked_for() -> None:
    cell = layers()
    other = Structure(cell.lattice, ["Zr", "S", "S", "O", "Na"], cell.frac_coords)
    numbers = [CrystalSet.of(CrystalTable.pack([Crystal.from_structure(each)])) for each in (cell, other)]
    assert not numbers[0].holds(numbers[1]).any()
    assert numbers[0].holds(CrystalSet.of(CrystalTable.pack([]))).tolist() == []


def test_atoms_without_neighbours_are_compared_by_their_cells() -> None:
    alone = [Structure(Lattice.cubic(size), ["Ar"], [[0, 0, 0]]) for size in (20.0, 20.0, 30.0)]
    assert same_crystals(CrystalTable.pack(map(Crystal.from_structure, alone))).tolist() == [0, 0, 2]
