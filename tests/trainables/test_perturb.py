"""Perturbed views equal a true rebuild of the perturbed crystals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.convert import Cutoffs
from trainables.graphs.perturb import SkinTooThin, needed_skin, perturbed
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.view import full_view
from trainables.model.chgnet import build_model

STRAIN, DISPLACEMENT = 0.01, 0.03  # spectral norm; A


@pytest.fixture
def crystals(made: dict[str, Structure]) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())


def skinned(crystals: CrystalTable, folder: Path) -> GraphStore:
    skin = needed_skin(6.0, displacement=DISPLACEMENT, strain=STRAIN)
    return open_or_build(crystals, Cutoffs(skin=skin), folder)


def draws(crystals: CrystalTable) -> tuple[torch.Tensor, torch.Tensor]:
    """Strains and displacements at their bounds, in random directions."""
    torch.manual_seed(0)
    strain = torch.randn(len(crystals), 3, 3, dtype=torch.float64)
    strain = strain + strain.mT
    strain *= STRAIN / torch.linalg.matrix_norm(strain, ord=2)[:, None, None]
    displacement = torch.randn(int(crystals.n_atoms.sum()), 3, dtype=torch.float64)
    displacement *= DISPLACEMENT / displacement.norm(dim=1, keepdim=True)
    return strain, displacement


@pytest.mark.parametrize("kind", ["strain", "displacement", "both"])
def test_a_perturbed_view_has_the_energy_of_the_rebuilt_crystal(
    kind: str, crystals: CrystalTable, tmp_path: Path
) -> None:
    model, store = build_model("0.3.0", TASKS["matbench_mp_e_form"]).double(), skinned(crystals, tmp_path)
    strain, displacement = draws(crystals)
    strain = strain if kind != "displacement" else torch.zeros_like(strain)
    displacement = displacement if kind != "strain" else torch.zeros_like(displacement)
    rebuilt, begin = [], 0
    for crystal, epsilon in zip(crystals, strain.numpy(), strict=True):
        lattice = crystal.lattice @ (np.eye(3) + epsilon)
        moved = displacement[begin : begin + len(crystal.numbers)].numpy() @ np.linalg.inv(lattice)
        rebuilt.append(Crystal(lattice, crystal.numbers, crystal.frac + moved))
        begin += len(crystal.numbers)
    rows = np.arange(len(crystals))
    again = open_or_build(CrystalTable.pack(rebuilt), Cutoffs(), tmp_path)
    with torch.no_grad():
        view = perturbed(full_view(store, rows), store.cutoffs, strain=strain, displacement=displacement)
        found, expected = model(view.batch()), model(full_view(again, rows).batch())
        clean = model(full_view(store, rows).batch())
    assert float((found - expected).abs().max()) <= 1e-10
    assert float((found - clean).abs().max()) > 1e-4


def test_no_perturbation_is_the_clean_view(crystals: CrystalTable, tmp_path: Path) -> None:
    store, rows = skinned(crystals, tmp_path), np.arange(len(crystals))
    view = full_view(store, rows)
    still = perturbed(
        view, store.cutoffs, strain=torch.zeros(len(rows), 3, 3), displacement=torch.zeros_like(view.frac)
    )
    assert torch.equal(still.batch().length, view.batch().length)
    assert torch.equal(still.batch().cosine, view.batch().cosine)


def test_a_thin_skin_is_refused(crystals: CrystalTable, tmp_path: Path) -> None:
    store, rows = open_or_build(crystals, Cutoffs(skin=0.02), tmp_path), np.arange(len(crystals))
    strain, displacement = draws(crystals)
    with pytest.raises(SkinTooThin, match="need a skin"):
        perturbed(full_view(store, rows), store.cutoffs, strain=strain)
    with pytest.raises(SkinTooThin, match="need a skin"):
        perturbed(full_view(store, rows), store.cutoffs, displacement=displacement)


def test_the_skin_bound_is_the_written_formula() -> None:
    assert needed_skin(6.0, displacement=0.0, strain=0.0) == 0
    assert needed_skin(6.0, displacement=0.05, strain=0.01) == pytest.approx(6.1 / 0.99 - 6)
    with pytest.raises(ValueError, match="bound nothing"):
        needed_skin(6.0, displacement=0.0, strain=1.0)
