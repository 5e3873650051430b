"""Draws of strains and displacements: seeded, bounded, within the skin, and of the symmetry they promise."""

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import spglib
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.spatial.transform import Rotation

from trainables.config import RunConfig
from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.convert import Cutoffs
from trainables.graphs.perturb import SkinTooThin, project_displacement, project_strain
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.symmetry import MANDEL
from trainables.graphs.view import View, symmetry_of
from trainables.levers import AugmentConfig, PerturbConfig
from trainables.model.chgnet import build_model
from trainables.training.augment import (
    Perturbation,
    draw,
    gathered,
    has_moved,
    largest,
    moved,
    skin_for,
    skin_of,
    view_cost,
)
from trainables.training.predict import predict

KINDS = [
    kinds
    for kinds in product(("none", "isotropic", "symmetry", "free"), ("none", "symmetry", "free"))
    if kinds != ("none", "none")
]
DISTRIBUTIONS = ("normal", "uniform")
ENERGY = TASKS["matbench_mp_e_form"]
NAMES = ("rocksalt", "perovskite", "hcp", "triclinic", "layer in vacuum", "one atom, bcc", "outside the cell")


def perturb(strain: str, displacement: str, distribution: str = "normal", **changes: float) -> PerturbConfig:
    sizes = {"strain_size": 5e-3, "displacement_size": 0.01} | changes
    return PerturbConfig(strain=strain, displacement=displacement, distribution=distribution, **sizes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def table(made: dict[str, Structure]) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(made[name]) for name in NAMES)


def store_for(config: PerturbConfig, table: CrystalTable, folder: Path) -> GraphStore:
    return open_or_build(table, Cutoffs(skin=skin_of(config, Cutoffs())), folder, workers=1)


def drawn(config: PerturbConfig, store: GraphStore, seed: int = 0, **options: float) -> Perturbation:
    return draw(config, store.counts[:, 0], np.random.default_rng(seed), **options)


def arrays(change: Perturbation) -> list[NDArray[np.float64]]:
    return [array for array in (change.strain, change.displacement) if array is not None]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_draws_follow_from_the_generator_alone(distribution: str) -> None:
    config, n_atoms = perturb("free", "free", distribution), np.array([3, 1, 4])
    first, again, other = (draw(config, n_atoms, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(again), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(other), strict=True))
    assert [array.shape for array in arrays(first)] == [(3, 3, 3), (8, 3)]


@pytest.mark.parametrize("kinds", [("free", "free"), ("none", "free"), ("symmetry", "none")])
def test_parts_of_a_draw_joined_again_are_the_draw(kinds: tuple[str, str]) -> None:
    n_atoms = np.array([3, 1, 4, 2, 7])
    whole = draw(perturb(*kinds), n_atoms, np.random.default_rng(0))
    for cuts in ([0, 5], [0, 1, 2, 3, 4, 5], [0, 2, 5]):
        parts = [whole.part(begin, end) for begin, end in pairwise(cuts)]
        assert all(part.first_atom[0] == 0 for part in parts)
        again = Perturbation.join(parts)
        assert all(np.array_equal(a, b) for a, b in zip(arrays(again), arrays(whole), strict=True))
        assert np.array_equal(again.first_atom, whole.first_atom)
    assert np.array_equal(np.diff(whole.part(1, 3).first_atom), [1, 4])


@pytest.mark.parametrize("kinds", [("symmetry", "symmetry"), ("symmetry", "free"), ("free", "none")])
def test_a_crystal_is_moved_alike_in_the_whole_batch_and_in_a_part_of_it(
    kinds: tuple[str, str], table: CrystalTable, folder: Path
) -> None:
    config = perturb(*kinds)
    store, rows = store_for(config, table, folder), np.arange(len(table))
    change = drawn(config, store)
    whole = moved(config, store, rows, gathered(config, store, rows), change)
    parts = []
    for begin, end in ((0, 3), (3, 4), (4, len(rows))):
        part = rows[begin:end]
        parts.append(moved(config, store, part, gathered(config, store, part), change.part(begin, end)))
    for name in ("lattice", "frac"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    lengths = torch.cat([part.batch().length for part in parts])
    np.testing.assert_allclose(lengths, whole.batch().length, atol=1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("kinds", KINDS)
def test_no_draw_is_larger_than_the_bound(kinds: tuple[str, str], distribution: str) -> None:
    config, n = perturb(*kinds, distribution), 20_000
    strain, displacement = largest(config)
    change = draw(config, np.ones(n, dtype=np.int64), np.random.default_rng(0))
    assert (change.strain is None, change.displacement is None) == (strain == 0, displacement == 0)
    if change.strain is not None:
        found = np.linalg.norm(change.strain, 2, axis=(1, 2)).max()
        assert 0.75 * strain <= found <= strain * (1 + 1e-12)  # a bound that is hardly met would waste skin
    if change.displacement is not None:
        found = np.linalg.norm(change.displacement, axis=1).max()
        assert 0.9 * displacement <= found <= displacement * (1 + 1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_no_projection_makes_a_draw_larger(distribution: str, table: CrystalTable, folder: Path) -> None:
    config = perturb("symmetry", "symmetry", distribution)
    store = store_for(config, table, folder)
    rows = np.tile(np.arange(len(table)), 300)
    change = draw(config, store.counts[rows, 0], np.random.default_rng(0))
    assert change.strain is not None
    assert change.displacement is not None
    symmetry, (strain, displacement) = symmetry_of(store, rows), largest(config)
    kept = project_strain(symmetry, torch.from_numpy(change.strain)).numpy()
    assert np.linalg.norm(kept, 2, axis=(1, 2)).max() <= strain * (1 + 1e-9)
    still = project_displacement(symmetry, torch.from_numpy(change.displacement)).numpy()
    assert np.linalg.norm(still, axis=1).max() <= displacement * (1 + 1e-9)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("kinds", KINDS)
def test_the_skin_covers_every_draw(
    kinds: tuple[str, str], distribution: str, table: CrystalTable, folder: Path
) -> None:
    config = perturb(*kinds, distribution, displacement_size=0.02)
    store = store_for(config, table, folder)
    rows = np.tile(np.arange(len(table)), 40)
    view = gathered(config, store, rows)
    for seed in range(3):
        moved(config, store, rows, view, draw(config, store.counts[rows, 0], np.random.default_rng(seed)))
    strain, displacement = largest(config)
    change = at_the_bound(draw(config, store.counts[rows, 0], np.random.default_rng(9)), strain, displacement)
    assert moved(config, store, rows, view, change).moved


def at_the_bound(change: Perturbation, strain: float, displacement: float) -> Perturbation:
    """The draw with everything in it as large as it may be."""
    longest = change.strain, change.displacement
    if change.strain is not None:
        norm = np.linalg.norm(change.strain, 2, axis=(1, 2), keepdims=True)
        longest = change.strain / norm * strain, longest[1]
    if change.displacement is not None:
        norm = np.linalg.norm(change.displacement, axis=1, keepdims=True)
        longest = longest[0], change.displacement / norm * displacement
    return Perturbation(*longest, change.first_atom)


def nearly_fourfold(places: NDArray[np.float64]) -> Structure:
    """A crystal whose fourfold axis holds to spglib's tolerance only: its turns are not quite orthogonal."""
    x, y, z = places
    sites = [[x, y, z], [-y, x, z], [-x, -y, z], [y, -x, z]]
    return Structure(np.diag([6.0, 6.008, 5.0]), ["Si"] * 4, sites)


def test_the_skin_covers_draws_that_an_inexact_symmetry_lengthens(folder: Path) -> None:
    config = perturb("none", "symmetry")  # 0.01 A: without a margin, exactly a multiple of the skins' step
    structure = nearly_fourfold(np.array([0.2, 0.31, 0.1]))
    store = store_for(config, CrystalTable.pack([Crystal.from_structure(structure)]), folder)
    rows, bound = np.zeros(500, dtype=np.int64), largest(config)
    change = at_the_bound(draw(config, store.counts[rows, 0], np.random.default_rng(0)), *bound)
    assert change.displacement is not None
    kept = project_displacement(symmetry_of(store, rows), torch.from_numpy(change.displacement))
    assert float(kept.norm(dim=1).max()) > 1.001 * bound[1]  # else this crystal tests nothing
    assert moved(config, store, rows, gathered(config, store, rows), change).moved


def test_real_crystals_lengthen_no_draw_beyond_the_margin(real_bulk: list[Structure], folder: Path) -> None:
    config = perturb("symmetry", "symmetry")
    store = store_for(config, CrystalTable.pack(Crystal.from_structure(s) for s in real_bulk), folder)
    rows = np.tile(np.arange(len(store)), 5)
    change = at_the_bound(draw(config, store.counts[rows, 0], np.random.default_rng(0)), *largest(config))
    assert moved(config, store, rows, gathered(config, store, rows), change).moved


def test_a_skin_of_smaller_draws_is_refused_not_silently_wrong(table: CrystalTable, folder: Path) -> None:
    small, large = perturb("free", "none", strain_size=1e-4), perturb("free", "none", strain_size=0.03)
    store, rows = store_for(small, table, folder), np.arange(len(table))
    with pytest.raises(SkinTooThin):
        moved(large, store, rows, gathered(large, store, rows), drawn(large, store))


def test_one_store_serves_training_and_prediction() -> None:
    changes = {"augment.strain": "free", "augment.strain_size": 1e-3, "tta.views": 2, "tta.strain_size": 0.01}
    config = RunConfig(task="t").changed(changes)
    assert skin_for(config, Cutoffs()) == skin_of(config.tta, Cutoffs()) > skin_of(config.augment, Cutoffs()) > 0
    assert skin_for(config.changed({"tta.views": 1}), Cutoffs()) == skin_of(config.augment, Cutoffs())
    assert skin_for(RunConfig(task="t"), Cutoffs()) == 0
    assert skin_for(config.changed({"tta.views": 1, "augment.strain_size": 0}), Cutoffs()) == 0


def test_normal_strains_prefer_no_direction() -> None:
    """The covariance of a strain's components in Mandel's notation is that of the turned strains."""
    config, n = perturb("free", "none", strain_size=0.01), 20_000
    strain = draw(config, np.ones(n, dtype=np.int64), np.random.default_rng(3)).strain
    assert strain is not None
    turn = Rotation.random(rng=np.random.default_rng(4)).as_matrix()
    for tensors in (strain, turn @ strain @ turn.T):
        components = np.einsum("nij,kij->nk", tensors, MANDEL) / config.strain_size
        np.testing.assert_allclose(components.mean(axis=0), 0, atol=0.04)
        np.testing.assert_allclose(np.cov(components.T), np.eye(6), atol=0.05)
    np.testing.assert_array_equal(strain, strain.swapaxes(1, 2))


def test_sizes_are_the_standard_deviation_of_normal_and_the_half_width_of_uniform_draws() -> None:
    n_atoms = np.full(2000, 10)
    for distribution, deviation in (("normal", 0.01), ("uniform", 0.01 / np.sqrt(3))):
        config = perturb("isotropic", "free", distribution, strain_size=0.01, displacement_size=0.01)
        change = draw(config, n_atoms, np.random.default_rng(0))
        assert change.strain is not None
        assert change.displacement is not None
        assert change.displacement.std() == pytest.approx(deviation, rel=0.02)
        assert change.strain[:, 0, 0].std() == pytest.approx(deviation, rel=0.05)


def test_isotropic_strains_are_multiples_of_one() -> None:
    change = draw(perturb("isotropic", "none"), np.full(50, 2), np.random.default_rng(0))
    assert change.strain is not None
    np.testing.assert_array_equal(change.strain, change.strain[:, :1, :1] * np.eye(3))
    assert len(np.unique(change.strain[:, 0, 0])) == 50


def test_about_the_share_asked_for_is_moved(table: CrystalTable, folder: Path) -> None:
    config = perturb("free", "free")
    store = store_for(config, table, folder)
    rows = np.tile(np.arange(len(table)), 150)
    view = gathered(config, store, rows)
    change = draw(config, store.counts[rows, 0], np.random.default_rng(0), probability=0.3)
    after = moved(config, store, rows, view, change)
    share = has_moved(view, after).double()
    assert float(share.mean()) == pytest.approx(0.3, abs=0.05)
    still = ~share.bool()
    assert torch.equal(after.lattice[still], view.lattice[still])
    assert torch.equal(after.frac[still[view.atom_owner]], view.frac[still[view.atom_owner]])
    assert change.strain is not None
    assert np.array_equal(np.any(change.strain != 0, axis=(1, 2)), share.bool().numpy())  # of both kinds or of none


def test_what_symmetry_leaves_in_place_has_not_moved(table: CrystalTable, folder: Path) -> None:
    config = perturb("none", "symmetry")
    store, rows = store_for(config, table, folder), np.arange(len(table))
    view = gathered(config, store, rows)
    found = has_moved(view, moved(config, store, rows, view, drawn(config, store))).tolist()
    assert dict(zip(NAMES, found, strict=True)) == dict.fromkeys(NAMES, False) | {
        "triclinic": True, "outside the cell": True, "layer in vacuum": True,
    }  # fmt: skip


def space_group(view: View, store: GraphStore, row: int) -> int:
    atoms = (view.atom_owner == row).numpy()
    numbers = np.array(store.arrays["numbers"])[atoms]
    found = spglib.get_spacegroup((view.lattice[row].numpy(), view.frac.numpy()[atoms], numbers), symprec=1e-4)
    return int(found.split("(")[1].rstrip(")"))


@pytest.mark.parametrize("kinds", [("isotropic", "none"), ("symmetry", "none"), ("symmetry", "symmetry")])
def test_symmetry_draws_keep_the_space_group(kinds: tuple[str, str], table: CrystalTable, folder: Path) -> None:
    config = perturb(*kinds, strain_size=0.02, displacement_size=0.03)
    store, rows = store_for(config, table, folder), np.arange(len(table))
    view = gathered(config, store, rows)
    assert view.symmetry is not None
    after = moved(config, store, rows, view, drawn(config, store))
    assert bool(has_moved(view, after).all())
    groups = [space_group(view, store, row) for row in rows]
    assert [space_group(after, store, row) for row in rows] == groups
    assert len(set(groups)) > 3


def test_free_draws_break_the_space_group(table: CrystalTable, folder: Path) -> None:
    for kinds in (("free", "none"), ("none", "free")):
        config = perturb(*kinds, strain_size=0.02, displacement_size=0.03)
        store, rows = store_for(config, table, folder), np.arange(len(table))
        after = moved(config, store, rows, gathered(config, store, rows), drawn(config, store))
        assert space_group(after, store, NAMES.index("perovskite")) < 16


def test_beside_free_displacements_a_strain_still_keeps_the_symmetry(table: CrystalTable, folder: Path) -> None:
    config = perturb("symmetry", "free", strain_size=0.02)
    store, rows = store_for(config, table, folder), np.arange(len(table))
    view = gathered(config, store, rows)
    assert view.symmetry is None  # all rows of the full graph move
    change = drawn(config, store)
    after = moved(config, store, rows, view, change)
    kept = project_strain(symmetry_of(store, rows), torch.from_numpy(change.strain))
    one = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(after.lattice, view.lattice @ (one + kept), atol=1e-12, rtol=0)
    cubic = after.lattice[NAMES.index("perovskite")]
    torch.testing.assert_close(cubic, cubic[0, 0] * one, atol=1e-12, rtol=0)
    cartesian = torch.bmm((after.frac - view.frac)[:, None], after.lattice[view.atom_owner])[:, 0]
    np.testing.assert_allclose(cartesian.numpy(), change.displacement, atol=1e-12)


def test_beside_free_strains_a_displacement_still_keeps_the_symmetry(table: CrystalTable, folder: Path) -> None:
    config = perturb("free", "symmetry", displacement_size=0.03)
    store, rows = store_for(config, table, folder), np.arange(len(table))
    view = gathered(config, store, rows)
    after = moved(config, store, rows, view, drawn(config, store))
    displaced = (after.frac - view.frac).abs().amax(dim=1)
    cubic, triclinic = (view.atom_owner == NAMES.index(name) for name in ("perovskite", "triclinic"))
    assert float(displaced[cubic].max()) < 1e-12  # its sites are fixed
    assert float(displaced[triclinic].min()) > 1e-5


def test_costs_are_of_the_graphs_that_are_computed(table: CrystalTable, folder: Path) -> None:
    for kinds in KINDS:
        config = perturb(*kinds)
        store, rows = store_for(config, table, folder), np.arange(len(table))
        rows_of_edges = len(gathered(config, store, rows).rows.bond)
        expected = store.counts[:, 6].sum() if config.keeps_symmetry else 2 * store.counts[:, 1].sum()
        assert rows_of_edges == expected
        assert view_cost(config, store).sum() >= rows_of_edges


@pytest.mark.parametrize("kinds", KINDS)
def test_moved_by_zeros_a_view_predicts_what_the_plain_batch_does(
    kinds: tuple[str, str], table: CrystalTable, folder: Path
) -> None:
    config, rows = AugmentConfig(**dict(perturb(*kinds))), np.arange(len(table))
    store = store_for(config, table, folder)
    none = drawn(config, store, probability=0.0)
    assert all(not array.any() for array in arrays(none))
    model = build_model("0.3.0", ENERGY).eval()
    view = moved(config, store, rows, gathered(config, store, rows), none)
    assert not has_moved(gathered(config, store, rows), view).any()
    with torch.no_grad():
        found = model(view.batch(trim=replace(store.cutoffs, skin=0.0))).double().numpy()
    plain = predict(model, open_or_build(table, Cutoffs(), folder, workers=1), rows)
    np.testing.assert_allclose(found, plain, atol=1e-5)
