"""Properties of whole cells: twice the cell has twice the value, and training finds them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_data import rocksalts
from table_data import refusal

import crystaltune as ct
from orchestrator.inputs.source import Source, check_source
from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import custom_task
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import open_or_build
from trainables.levers import ModelConfig
from trainables.model.chgnet import configured_model
from trainables.training.predict import predict


@pytest.mark.parametrize("head", ["plain", "hurdle"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_supercell_has_as_many_times_the_value_as_it_has_cells(tmp_path: Path, pooling: str, head: str) -> None:
    cells = rocksalts(4)
    crystals = [cell * (1, 1, size) for cell in cells for size in (1, 2, 3)]
    table = CrystalTable.pack(map(Crystal.from_structure, crystals))
    store = open_or_build(table, Cutoffs(), tmp_path / "graphs", workers=1)
    config = ModelConfig.model_validate({"pooling": pooling, "head": head})
    model = configured_model(config, custom_task("mine", "y", "", "property_per_cell"), 1)
    assert model.head is not None
    model.head.set_scale(torch.tensor([1.0, 2.0, 4.0]))
    with torch.no_grad():
        for parameter in model.head.mlp[-1].parameters():
            parameter.fill_(0.3)  # beyond the hurdle
    values = predict(model, store, np.arange(len(crystals))).reshape(4, 3)
    assert np.ptp(values[:, 0]) > 1e-3
    np.testing.assert_allclose(values, values[:, :1] * [1, 2, 3], rtol=1e-4)


@pytest.mark.trains
def test_training_learns_a_sum_over_atoms(tmp_path: Path) -> None:
    """With `per_cell`, cells of 2 to 8 atoms are one law; the mean over atoms cannot tell them apart."""
    cells = [cell * (1, 1, 1 + place % 4) for place, cell in enumerate(rocksalts(60))]
    frame = pd.DataFrame({"structure": cells, "y": [10.0 * len(cell) + cell.volume / 50 for cell in cells]})
    settings = {"optim.epochs": 4, "optim.batch_size": 8, "model.start": "scratch", "model.width": 8}
    maes = {}
    for per_cell in (True, False):
        run = ct.train(
            frame, target="y", per_cell=per_cell, folds=[0], settings=settings, out=tmp_path / str(per_cell),
            device="cpu", progress=False,
        )  # fmt: skip
        assert run.scores.mean is not None
        maes[per_cell] = run.scores.mean.mae
    assert maes[True] < maes[False] / 5
    predicted = ct.load(tmp_path / "True", "cpu").predict([cells[0], cells[0] * (1, 1, 2)])
    assert predicted[1] == pytest.approx(2 * predicted[0], rel=1e-3)


def test_energies_of_cells_are_asked_for_in_another_way() -> None:
    told = refusal(lambda: check_source(Source("mine", Path(__file__), "y", energy=True, per_cell=True)))
    assert "energies of whole cells are `total_energy=True`" in told
