"""Perturbations that keep the symmetry, on folded graphs: exact against the full graphs of the same crystals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.convert import Cutoffs, convert
from trainables.graphs.perturb import needed_skin, perturbed, project_displacement, project_strain
from trainables.graphs.quotient import fold, geometry
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.symmetry import MANDEL, probes, site_symmetry
from trainables.graphs.view import folded_view, full_view, trimmed
from trainables.model.chgnet import build_model

STRAIN, DISPLACEMENT = 0.01, 0.03
SKIN = needed_skin(6.0, displacement=3 * DISPLACEMENT, strain=4 * STRAIN)


def store_of(structures: list[Structure], folder: Path) -> GraphStore:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)
    return open_or_build(table, Cutoffs(skin=SKIN), folder)


def draws(n_crystals: int, n_atoms: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    strain = torch.randn(n_crystals, 3, 3, dtype=torch.float64, generator=generator)
    displacement = torch.randn(n_atoms, 3, dtype=torch.float64, generator=generator)
    return STRAIN * strain / 3, DISPLACEMENT * displacement.clamp(-1.5, 1.5)


def energies(store: GraphStore, *, kinds: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Of the folded view, of the full view moved the same way, and of the clean crystals."""
    model, rows = build_model("0.3.0", TASKS["matbench_mp_e_form"]).to(dtype), np.arange(len(store))
    folded, full = folded_view(store, rows), full_view(store, rows)
    strain, displacement = draws(len(rows), len(full.frac))
    symmetry = folded.symmetry
    assert symmetry is not None
    moves = {
        "strain": strain if "strain" in kinds else None,
        "displacement": displacement if "displacement" in kinds else None,
    }
    if "isotropic" in kinds:
        moves["strain"] = 0.01 * torch.eye(3, dtype=torch.float64).expand(len(rows), 3, 3)
    kept = {
        "strain": None if moves["strain"] is None else project_strain(symmetry, moves["strain"]),
        "displacement": None if moves["displacement"] is None else project_displacement(symmetry, displacement),
    }
    with torch.no_grad():
        found = model(perturbed(folded, store.cutoffs, **moves).batch())
        expected = model(perturbed(full, store.cutoffs, **kept).batch())
        return found, expected, model(full.batch())


@pytest.mark.parametrize("kinds", ["isotropic", "strain", "displacement", "strain displacement"])
def test_a_folded_view_has_the_energy_of_the_full_graph_of_the_same_perturbed_crystal(
    kinds: str, made: dict[str, Structure], tmp_path: Path
) -> None:
    found, expected, clean = energies(store_of(list(made.values()), tmp_path), kinds=kinds, dtype=torch.float64)
    assert float((found - expected).abs().max()) <= 1e-10
    assert float((found - clean).abs().max()) > 1e-4


def test_real_crystals_agree_within_float32(
    real_bulk: list[Structure], real_layers: list[Structure], tmp_path: Path
) -> None:
    store = store_of([*real_bulk[::2], *real_layers], tmp_path)
    found, expected, clean = energies(store, kinds="strain displacement", dtype=torch.float32)
    assert float((found - expected).abs().max()) <= 3e-5
    assert float((found - clean).abs().max()) > 1e-3
    assert store.cost.sum() < 0.6 * store.full_cost.sum()


@pytest.mark.parametrize("folded", [True, False])
def test_trimming_changes_nothing_but_the_number_of_rows(
    folded: bool, made: dict[str, Structure], tmp_path: Path
) -> None:
    store, rows = store_of(list(made.values()), tmp_path), np.arange(len(made))
    model = build_model("0.3.0", TASKS["matbench_mp_e_form"]).double()
    view = folded_view(store, rows) if folded else full_view(store, rows)
    strain, displacement = draws(len(rows), len(view.frac))
    view = perturbed(view, store.cutoffs, strain=strain, displacement=displacement)
    whole, small = view.batch(), view.batch(trim=store.cutoffs)
    with torch.no_grad():
        assert float((model(whole) - model(small)).abs().max()) <= 1e-10
    assert len(small.bond) < len(whole.bond)
    assert float(small.length.max()) < 6.0
    assert float(small.length[small.short].max()) < 3.0
    assert torch.equal(trimmed(small, store.cutoffs).bond, small.bond)


def test_views_of_one_gather_share_their_indices(made: dict[str, Structure], tmp_path: Path) -> None:
    store, rows = store_of(list(made.values()), tmp_path), np.arange(3)
    view = folded_view(store, rows)
    strain, _ = draws(3, 1)
    first, second = view.batch(), perturbed(view, store.cutoffs, strain=strain).batch()
    assert first.receiver is second.receiver
    assert first.left is second.left
    assert not torch.equal(first.length, second.length)
    with pytest.raises(ValueError, match="one perturbation"):
        perturbed(perturbed(view, store.cutoffs, strain=strain), store.cutoffs, strain=strain)


def test_the_clean_folded_view_is_the_clean_batch(made: dict[str, Structure], tmp_path: Path) -> None:
    store, rows = store_of(list(made.values()), tmp_path), np.arange(len(made))
    view = folded_view(store, rows)
    np.testing.assert_allclose(view.batch().length, view.rows.length, atol=1e-12)
    np.testing.assert_allclose(view.batch().cosine, view.rows.cosine, atol=1e-12)


def test_a_store_without_a_skin_has_no_folded_views(made: dict[str, Structure], tmp_path: Path) -> None:
    table = CrystalTable.pack([Crystal.from_structure(made["rocksalt"])])
    with pytest.raises(ValueError, match="skin"):
        folded_view(open_or_build(table, Cutoffs(), tmp_path), np.arange(1))


@pytest.mark.parametrize(
    ("name", "strains", "movable"), [("rocksalt", 1, 0), ("perovskite", 1, 0), ("hcp", 2, 0), ("triclinic", 6, None)]
)
def test_invariant_strains_and_displacements_are_those_of_the_point_and_site_groups(
    name: str, strains: int, movable: int | None, made: dict[str, Structure]
) -> None:
    """One free strain in a cubic crystal, two in a hexagonal one, six without symmetry (Nye, Physical Properties)."""
    crystal = Crystal.from_structure(made[name])
    found = site_symmetry(crystal)
    assert np.trace(found.strain) == pytest.approx(strains)
    np.testing.assert_allclose(found.strain @ found.strain, found.strain, atol=1e-9)
    first = np.arange(len(crystal.numbers)) == found.site
    freedom = np.trace(found.motion[first].sum(axis=0))
    assert freedom == pytest.approx(3 * len(crystal.numbers) if movable is None else movable, abs=1e-9)


def test_mandel_tensors_are_orthonormal() -> None:
    np.testing.assert_allclose(np.einsum("kij,lij->kl", MANDEL, MANDEL), np.eye(6), atol=1e-15)


def test_distances_that_are_equal_by_accident_are_told_apart() -> None:
    """A tetragonal crystal with a = c: the clean fold may take its axes for equal, one for strains may not."""
    structure = Structure(np.diag([4.0, 4.0, 4.0]), ["Na", "Cl", "Cl"], [[0, 0, 0], [0.5, 0.5, 0], [0, 0, 0.5]])
    crystal = Crystal.from_structure(structure)
    graph, symmetry = convert(crystal, Cutoffs(skin=SKIN)), site_symmetry(crystal)
    assert np.trace(symmetry.strain) == pytest.approx(2)
    folded = fold(crystal, graph, probes(crystal, symmetry))
    assert len(folded.edge) > len(fold(crystal, graph).edge)
    strained = Crystal(crystal.lattice @ np.diag([1.01, 1.01, 1.0]), crystal.numbers, crystal.frac)
    lengths, _ = geometry(strained, graph)
    received = np.repeat(
        lengths[folded.bond][folded.edge[:, 2]], folded.edge_count * folded.atom_count[folded.edge[:, 0]]
    )
    np.testing.assert_allclose(np.sort(received), np.sort(np.repeat(lengths, 2)), atol=1e-9)


def test_a_crystal_spglib_cannot_read_has_no_symmetry(made: dict[str, Structure]) -> None:
    crystal = Crystal.from_structure(made["rocksalt"])
    twice = Crystal(crystal.lattice, crystal.numbers, np.zeros_like(crystal.frac))
    found = site_symmetry(twice)
    np.testing.assert_allclose(found.strain, np.eye(6), atol=1e-12)
    np.testing.assert_array_equal(found.site, np.arange(len(twice.numbers)))
