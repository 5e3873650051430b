"""Learning-rate course, parameter groups, freezing, averaged weights, losses."""

import pytest
import torch

from trainables.config import LossConfig, OptimConfig
from trainables.data.tasks import find_task
from trainables.model.chgnet import build_model
from trainables.training.losses import LOSSES, batch_loss
from trainables.training.optim import averaged_weights, freeze, learning_rate, make_optimiser, part_of


def test_learning_rate_rises_then_falls_to_its_end() -> None:
    config = OptimConfig(lr=1e-3, warmup=0.1, final_lr=1e-5)
    assert learning_rate(config, 0.0) == 0
    assert learning_rate(config, 0.05) == pytest.approx(5e-4)
    assert learning_rate(config, 0.1) == pytest.approx(1e-3)
    assert learning_rate(config, 0.55) == pytest.approx(1e-5 + (1e-3 - 1e-5) / 2)
    assert learning_rate(config, 1.0) == pytest.approx(1e-5)
    linear = config.model_copy(update={"schedule": "linear"})
    assert learning_rate(linear, 0.325) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.75)
    assert learning_rate(config.model_copy(update={"schedule": "constant"}), 1.0) == 1e-3


def test_every_parameter_belongs_to_a_part_and_to_one_group() -> None:
    model = build_model("0.3.0", find_task("mp_e_form"))
    assert {part_of(name) for name, _ in model.named_parameters()} == {
        "embedding", "basis", "block_1", "block_2", "block_3", "block_4", "head", "reference",
    }  # fmt: skip
    groups = make_optimiser(model, OptimConfig(layer_decay=0.5)).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["scale"] for group in groups} == {0.5**k for k in range(6)}
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.dim() > 1 and part_of(name) not in ("reference", "basis")
        assert (id(parameter) in decayed) == expected, name


def test_frozen_parts_are_no_part_of_the_optimiser() -> None:
    model = build_model("0.3.0", find_task("mp_e_form"))
    freeze(model, ["embedding", "block_1", "reference"])
    held = {id(p) for group in make_optimiser(model, OptimConfig()).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in held) == (part_of(name) not in {"embedding", "block_1", "reference"})


def test_averaged_weights_follow_the_written_decay() -> None:
    model = build_model("0.3.0", find_task("mp_e_form"))
    averaged = averaged_weights(model, 0.9)
    weight = model.mlp.layers[0].weight
    expected = weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            weight.add_(1.0)
        averaged.update_parameters(model)
        decay = 0.0 if step == 0 else min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    assert torch.allclose(averaged.module.mlp.layers[0].weight, expected, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_match_their_formula(name: str) -> None:
    prediction, target = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.5, 2.0, 1.0])
    delta, scale = 0.1, 2.0
    d = (prediction - target).abs() / scale
    wanted = {
        "l1": d.sum(),
        "mse": (d**2).sum(),
        "huber": torch.where(d < delta, 0.5 * d**2, delta * (d - 0.5 * delta)).sum(),
    }[name]
    loss = batch_loss(LossConfig(name=name), prediction, target, scale=torch.tensor(scale), batch_size=4)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(float(wanted) / 4)
