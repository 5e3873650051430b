"""Folded graphs: the same energies and gradients from fewer rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs import quotient as quotient_module
from trainables.graphs.batch import Batch, collate
from trainables.graphs.convert import Cutoffs, convert
from trainables.graphs.quotient import fold, gap_classes, geometry, unfolded
from trainables.graphs.store import open_or_build
from trainables.graphs.view import full_view
from trainables.model.chgnet import build_model, cutoffs_of

ENERGY, PROPERTY = TASKS["matbench_mp_e_form"], TASKS["matbench_mp_gap"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def both_batches(structures: Sequence[Structure], folder: Path, cutoffs: Cutoffs) -> tuple[Batch, Batch]:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)
    store, rows = open_or_build(table, cutoffs, folder), np.arange(len(table))
    return collate(store, rows), full_view(store, rows).batch()


def test_gap_classes_split_where_sorted_values_lie_apart() -> None:
    values = np.array([2.0, 1.00009, 1.0, 1.00018, 3.0, 2.00005])
    classes, widest = gap_classes(values, 1e-4)
    assert classes.tolist() == [1, 0, 0, 0, 2, 1]
    assert widest == pytest.approx(1.8e-4)
    assert gap_classes(values, 1e-4, np.array([0, 0, 0, 1, 1, 1]))[0].tolist() == [1, 0, 0, 2, 4, 3]
    assert gap_classes(np.empty(0))[0].tolist() == []


@pytest.mark.parametrize("start", ["0.3.0", "r2scan", "0.2.0", "scratch"])
@pytest.mark.parametrize("pooling", ["energy", "mean", "attention"])
def test_folded_graphs_give_the_full_graphs_prediction_and_gradient(
    start: str, pooling: str, made: dict[str, Structure], folder: Path
) -> None:
    task = ENERGY if pooling == "energy" else PROPERTY
    head = "mean" if pooling == "energy" else pooling
    model = build_model(start, task, pooling=head, seed=3).double()  # type: ignore[arg-type]
    found, gradients = [], []
    for batch in both_batches(list(made.values()), folder, cutoffs_of(start)):  # type: ignore[arg-type]
        model.zero_grad()
        prediction = model(batch)
        (prediction * torch.linspace(-1, 1, len(batch))).sum().backward()
        found.append(prediction.detach().numpy())
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-9, rtol=0)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-8


def test_folded_real_crystals_have_the_full_graphs_energies(
    real_bulk: list[Structure], real_layers: list[Structure], folder: Path
) -> None:
    model = build_model("0.3.0", ENERGY)
    folded, full = both_batches([*real_bulk[::2], *real_layers], folder, Cutoffs())
    with torch.no_grad():
        assert float((model(folded) - model(full)).abs().max()) <= 3e-5
    assert len(folded.receiver) < 0.6 * len(full.receiver)


def test_symmetric_crystals_fold_to_their_orbits(made: dict[str, Structure]) -> None:
    for name, n_orbits in (("rocksalt", 2), ("perovskite", 3), ("hcp", 1)):
        crystal = Crystal.from_structure(made[name])
        folded = fold(crystal, convert(crystal, Cutoffs()))
        assert len(folded.atom) == n_orbits, name
        assert folded.atom_count.sum() == len(crystal.numbers)


def test_a_crystal_without_symmetry_keeps_its_full_graph(made: dict[str, Structure]) -> None:
    crystal = Crystal.from_structure(made["triclinic"])
    graph = convert(crystal, Cutoffs())
    folded = fold(crystal, graph)
    assert folded.counts[0] == graph.n_atoms
    assert set(folded.angle_count) <= {1}


def test_a_chain_of_small_gaps_is_not_folded(made: dict[str, Structure], monkeypatch: pytest.MonkeyPatch) -> None:
    crystal = Crystal.from_structure(made["rocksalt"])
    graph = convert(crystal, Cutoffs())
    monkeypatch.setattr(quotient_module, "gap_classes", lambda values, *_: (np.zeros(len(values), dtype=np.int64), 1.0))
    folded = fold(crystal, graph)
    assert folded.counts == unfolded(graph, *geometry(crystal, graph)).counts
    assert len(folded.bond) == len(graph.bond_atoms)
    assert folded.edge_count.sum() == 2 * len(graph.bond_atoms)


def test_a_partition_that_is_not_equitable_is_refused(
    made: dict[str, Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    crystal = Crystal.from_structure(made["perovskite"])
    graph = convert(crystal, Cutoffs())
    wrong = np.zeros(graph.n_atoms, dtype=np.int64)
    wrong[-1] = 1

    def one_atom_apart(*_: object) -> tuple[np.ndarray, ...]:
        return wrong, np.zeros(len(graph.bond_atoms), dtype=np.int64), np.zeros(len(graph.angle_halves), dtype=np.int64)

    monkeypatch.setattr(quotient_module, "refine", one_atom_apart)
    assert fold(crystal, graph).counts[0] == graph.n_atoms
