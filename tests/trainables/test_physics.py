"""Heads that read what the untrained potential says: whose numbers they are, and what a head begins with."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_data import lever_run, rocksalts

import crystaltune as ct
from trainables.config import RunConfig, parse_config, validate_for_task
from trainables.data.tasks import custom_task
from trainables.errors import UserError
from trainables.graphs.batch import collate
from trainables.graphs.view import full_view
from trainables.levers import ModelConfig
from trainables.model.chgnet import CrystalModel
from trainables.model.heads import HurdleHead, PropertyHead, _ridge
from trainables.model.readout_names import readout_names
from trainables.training.predict import load_model, predict, with_readouts

CPU = torch.device("cpu")


def test_batches_and_views_come_with_the_read_outs_of_their_crystals(tmp_path: Path) -> None:
    run = lever_run(tmp_path, "property")
    assert collate(run.store, np.array([1, 0])).readouts.shape == (2, 0)
    known = with_readouts(ModelConfig(), run.store, CPU)
    assert known.readouts is not None
    rows = np.array([4, 1, 4])
    expected = known.readouts[rows]
    assert expected.shape == (3, len(readout_names(phonons=False)))
    assert expected.isfinite().all()
    torch.testing.assert_close(collate(known, rows).readouts, expected)
    torch.testing.assert_close(full_view(known, rows).batch().readouts, expected)
    assert run.store.readouts is None


def test_a_head_begins_with_a_regression_on_read_outs() -> None:
    rng = torch.Generator().manual_seed(0)
    readouts = torch.randn(400, 3, generator=rng) * torch.tensor([1.0, 100.0, 1e-3]) + 7.0
    targets = (2.0 * (readouts[:, 1] - 7.0) + 5.0).double()
    head = PropertyHead(4, n_readouts=3)
    head.set_scale(targets)
    head.fit_readouts(readouts, targets)
    assert head.readouts is not None
    said = head.readouts.linear(head.readouts(readouts))[:, 0] * head.std + head.mean
    assert float((said - targets).detach().abs().mean()) < 0.15 * float((targets - targets.mean()).abs().mean())
    before = head.readouts.linear.weight.clone()
    head.fit_readouts(readouts, -targets)  # what was learnt jointly, for one, stays
    torch.testing.assert_close(head.readouts.linear.weight, before)
    far = head.readouts(readouts[:1] * 1e6)
    assert float(far.abs().max()) <= 5.0
    assert float(head.readouts(torch.full((1, 3), torch.nan)).abs().max()) == 0.0


def test_read_outs_that_tell_nothing_of_the_training_rows_are_not_read() -> None:
    rng = torch.Generator().manual_seed(0)
    readouts, targets = torch.randn(100, 5, generator=rng), torch.randn(100, generator=rng).double()
    head = PropertyHead(4, n_readouts=5)
    head.set_scale(targets)
    head.fit_readouts(readouts, targets)
    assert head.readouts is not None
    assert not head.readouts(readouts).any()
    assert not head.readouts.linear.weight.any()


def test_errors_on_rows_left_out_are_those_of_regressions_without_them() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=rng).double()
    y = x @ torch.tensor([1.0, 2.0, 0.0]).double() + torch.randn(30, generator=rng).double()
    told, errors = _ridge(x, y), []
    for row in range(30):
        rest = torch.arange(30) != row
        # The strength is that of all rows, and so is the mean: what a row has of it is left out below.
        centred, level = x[rest] - x[rest].mean(dim=0), y[rest].mean()
        slope = torch.linalg.solve(centred.T @ centred + 3.0 * torch.eye(3).double(), centred.T @ (y[rest] - level))
        errors.append(float((y[row] - level - (x[row] - x[rest].mean(dim=0)) @ slope).abs()))
    dummy = float((y - y.mean()).abs().mean())
    assert told.share_of_error * dummy == pytest.approx(np.mean(errors), rel=1e-6)


def test_a_hurdle_learns_the_size_of_what_is_above_zero() -> None:
    readouts = torch.linspace(-1, 1, 200)[:, None]
    targets = torch.where(readouts[:, 0] > 0, 10.0 * readouts[:, 0], 0.0).double()
    head = HurdleHead(4, n_readouts=1)
    head.set_scale(targets)
    head.fit_readouts(readouts, targets)
    assert head.readouts is not None
    weight = head.readouts.linear.weight.detach()
    assert float(weight[0, 0]) > 0.5
    assert float(weight[1, 0]) == 0.0


@pytest.mark.trains
@pytest.mark.parametrize("changes", [{}, {"model__head": "hurdle"}, {"model__freeze": "trunk"}, {"tta__views": 3}])
def test_a_model_with_read_outs_trains_and_predicts_the_same_when_it_is_loaded(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    if changes.get("model__freeze"):
        changes = {"model__freeze": ["embedding", "basis", "block_1", "block_2", "block_3", "block_4"]}
    kind = "gap" if "model__head" in changes else "property"
    run = lever_run(tmp_path / "graphs", kind, model__physics=True, optim__epochs=2, **changes)
    result = run.fit(tmp_path / "run")
    assert result.status == "finished"
    model, _, _ = load_model(tmp_path / "run" / "model")
    assert isinstance(model, CrystalModel)
    assert model.readouts_of is not None
    said = predict(model, run.store, run.split.val.rows)
    assert np.abs(said - run.split.val.targets).mean() == pytest.approx(result.best_val_mae, rel=1e-5)
    plain = lever_run(tmp_path / "graphs", kind, optim__epochs=2, **changes).fit(tmp_path / "plain")
    assert plain.history[0].train_loss != result.history[0].train_loss


@pytest.mark.trains
def test_physics_is_a_setting_of_a_run_and_of_its_predictions(tmp_path: Path) -> None:
    cells = rocksalts(30)
    frame = pd.DataFrame({"structure": cells, "y": [cell.volume for cell in cells]})
    settings = {"model.physics": True, "optim.epochs": 2, "optim.batch_size": 8, "tta.views": 2}
    run = ct.train(frame, target="y", settings=settings, folds=[0], out=tmp_path / "run", device="cpu", progress=False)
    own = run.predictions.set_index("id")["prediction"]
    again = run.predict(pd.DataFrame({"structure": cells}), device="cpu", progress=False)["prediction"]
    np.testing.assert_allclose([again.iloc[int(row)] for row in own.index], own, rtol=1e-4)


def test_physics_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"model\.start=scratch has none"):
        parse_config({"task": "t", "model": {"physics": True, "start": "scratch"}}, "configuration")
    energies = custom_task("mine", "y", "eV/atom", "energy_per_atom")
    with pytest.raises(UserError, match="mine is an energy"):
        validate_for_task(RunConfig(task="mine").changed({"model.physics": True}), energies)
