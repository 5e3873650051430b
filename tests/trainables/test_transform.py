"""Targets learnt under a logarithm or asinh, and by a robust scale."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from small_data import lever_run

from trainables.config import RunConfig, validate_for_task
from trainables.data.tasks import TASKS, custom_task
from trainables.errors import UserError
from trainables.levers import LossConfig, ModelConfig
from trainables.model.chgnet import configured_model
from trainables.model.heads import Outputs, PropertyHead
from trainables.model.transform import TargetTransform, location_and_spread
from trainables.training.losses import supervised
from trainables.training.predict import load_model, predict

KINDS: tuple[Literal["log", "asinh"], ...] = ("log", "asinh")
MANY_SIZES = torch.tensor([2e-3, 0.04, 1.0, 30.0, 5e3], dtype=torch.float64)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_gives_targets_back(kind: Literal["log", "asinh"]) -> None:
    transform = TargetTransform(kind).double()
    transform.fit(MANY_SIZES)
    assert torch.allclose(transform.inverse(transform(MANY_SIZES)), MANY_SIZES, rtol=1e-12)
    assert bool(torch.isfinite(transform.inverse(torch.tensor([-1e4, 1e4]))).all())


def test_asinh_is_linear_below_its_unit_and_takes_any_sign() -> None:
    transform = TargetTransform("asinh").double()
    transform.fit(torch.tensor([0.0, 0.0, -8.0, 10.0, 12.0], dtype=torch.float64))
    assert float(transform.unit) == 10.0
    small = torch.tensor([-0.01, 0.0, 0.02], dtype=torch.float64)
    assert torch.allclose(transform(small), small / 10, rtol=1e-5)
    large = torch.tensor([1e5, -1e6], dtype=torch.float64)
    assert torch.allclose(transform(large), torch.sign(large) * torch.log(2 * large.abs() / 10), rtol=1e-8)


def test_a_robust_scale_is_not_moved_by_an_outlier_and_is_that_of_a_normal() -> None:
    drawn = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, 20_001))
    middle, spread = location_and_spread(drawn, robust=True)
    assert (middle, spread) == (pytest.approx(3.0, abs=0.05), pytest.approx(2.0, rel=0.03))
    drawn[0] = 1e9
    assert location_and_spread(drawn, robust=True) == (pytest.approx(middle, abs=1e-3), pytest.approx(spread, rel=1e-3))
    assert location_and_spread(drawn, robust=False)[1] > 1e6


def test_a_robust_scale_of_mostly_equal_targets_is_the_standard_one() -> None:
    mostly_zero = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0])
    assert location_and_spread(mostly_zero, robust=True) == location_and_spread(mostly_zero, robust=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_standardises_what_it_learns_and_answers_in_the_targets_unit(kind: Literal["log", "asinh"]) -> None:
    head = PropertyHead(8).double()
    head.transform = TargetTransform(kind).double()
    head.set_scale(MANY_SIZES)
    learnt = head.transform(MANY_SIZES)
    assert float(head.mean) == pytest.approx(float(learnt.mean()))
    assert float(head.std) == pytest.approx(float(learnt.std(correction=0)))
    outputs = Outputs(learnt, transform=head.transform)
    assert torch.allclose(outputs.decided(), MANY_SIZES)
    assert torch.allclose(outputs.expected(), MANY_SIZES)
    assert torch.equal(outputs.expected_as_learnt(), learnt)


def test_the_loss_is_the_distance_of_logarithms_in_the_heads_scale() -> None:
    transform = TargetTransform("log").double()
    outputs = Outputs(torch.log(2 * MANY_SIZES), transform=transform)
    loss = supervised(LossConfig(), outputs, MANY_SIZES, torch.tensor(0.5))
    assert loss.tolist() == pytest.approx([np.log(2) / 0.5] * 5)


def test_a_hurdle_learns_the_logarithm_of_what_is_above_zero(graphs: Path) -> None:
    transform = TargetTransform("log").double()
    value, logit = torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    target = torch.tensor([0.0, np.e], dtype=torch.float64)
    supervised(LossConfig(), Outputs(value, logit, transform), target, torch.ones(())).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, -1.0]


@pytest.mark.trains
@pytest.mark.parametrize(
    "levers",
    [
        {"model__transform": "log"},
        {"model__transform": "asinh", "model__scale": "robust", "distil__weight": 0.5},
        {"model__transform": "log", "model__head": "hurdle", "task": "gap"},
        {"model__scale": "robust", "data__refit": True},
    ],
)
def test_a_run_learns_under_it_and_its_model_predicts_in_the_targets_unit(
    levers: dict[str, object], graphs: Path, tmp_path: Path
) -> None:
    changes = dict(levers)
    run = lever_run(graphs, str(changes.pop("task", "property")), optim__epochs=6, optim__lr=3e-3, **changes)
    if changes.get("model__transform") == "log":
        for part in (run.split.train, run.split.val):
            part.targets[:] = np.abs(part.targets) + (0.0 if "model__head" in changes else 1e-3)
    result = run.fit(tmp_path / "run")
    assert result.status == "finished"
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.model is not None
    model, config, _ = load_model(result.model)
    assert config.model == run.config.model
    again = np.abs(predict(model, run.store, run.split.val.rows) - run.split.val.targets).mean()
    if not config.data.refit:
        assert again == pytest.approx(result.best_val_mae, rel=1e-5)
    assert again < 3 * np.ptp(run.dataset.targets)


@pytest.mark.trains
def test_a_logarithm_of_zero_is_refused_before_anything_is_trained(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, "property", model__transform="log")
    run.split.train.targets[0] = 0.0
    with pytest.raises(UserError, match=r"above zero; .* has .*: use model.transform=asinh"):
        run.fit(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("changes", [{"transform": "log"}, {"transform": "asinh"}, {"scale": "robust"}])
def test_energies_refuse_what_would_do_nothing_for_them(changes: dict[str, str]) -> None:
    energy = TASKS["matbench_mp_e_form"]
    config = RunConfig.model_validate({"task": energy.name, "model": changes})
    with pytest.raises(UserError, match="is an energy"):
        validate_for_task(config, energy)


def test_a_property_of_the_whole_cell_is_a_sum_and_has_no_logarithm() -> None:
    task = custom_task("mine", "y", "", "property_per_cell")
    with pytest.raises(UserError, match="a property of the whole cell"):
        validate_for_task(RunConfig.model_validate({"task": "mine", "model": {"transform": "log"}}), task)
    validate_for_task(RunConfig.model_validate({"task": "mine", "model": {"scale": "robust"}}), task)


def test_runs_without_them_are_written_as_before() -> None:
    assert not {"transform", "scale"} & set(ModelConfig().model_dump())
    assert ModelConfig(transform="log").model_dump()["transform"] == "log"
    assert "head.transform.unit" not in configured_model(ModelConfig(), TASKS["matbench_mp_gap"]).state_dict()
