"""Learning-rate course, parameter groups, freezing, averaged weights, losses."""

import math

import pytest
import torch

from trainables.config import LossConfig, OptimConfig
from trainables.data.tasks import custom_task, find_task
from trainables.model.chgnet import build_model
from trainables.model.heads import Outputs
from trainables.training.losses import LOSSES, distance, supervised
from trainables.training.optim import Anchor, averaged_weights, freeze, learning_rate, make_optimiser, part_of


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
    averaged = averaged_weights(model, OptimConfig(ema_decay=0.9), 4)
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
        "l1": d,
        "mse": d**2,
        "huber": torch.where(d < delta, 0.5 * d**2, delta * (d - 0.5 * delta)),
    }[name]
    loss = distance(LossConfig(name=name), prediction, target, torch.tensor(scale))  # type: ignore[arg-type]
    assert torch.allclose(loss, wanted)


def test_swa_is_the_mean_of_the_last_weights() -> None:
    model = build_model("0.3.0", find_task("mp_e_form"))
    averaged = averaged_weights(model, OptimConfig(averaging="swa", swa_from=0.5), 6)
    weight, seen = model.mlp.layers[0].weight, []
    for _ in range(6):
        with torch.no_grad():
            weight.add_(1.0)
        averaged.update_parameters(model)
        seen.append(weight.detach().clone())
    assert torch.allclose(averaged.module.mlp.layers[0].weight, torch.stack(seen[3:]).mean(0), atol=1e-5)


def test_a_hurdle_pays_for_the_side_and_above_zero_for_the_distance() -> None:
    outputs = Outputs(torch.tensor([1.0, 9.0]), torch.tensor([2.0, -1.0]))
    loss = supervised(LossConfig(), outputs, torch.tensor([1.5, 0.0]), torch.ones(()))
    assert float(loss[0]) == pytest.approx(math.log1p(math.exp(-2.0)) + 0.5)
    assert float(loss[1]) == pytest.approx(math.log1p(math.exp(-1.0)))  # what is below zero pays for its side only
    assert outputs.decided().tolist() == [1.0, 0.0]


def test_an_anchor_pulls_pretrained_matrices_back_and_nothing_else() -> None:
    task = custom_task("mine", "y", "", "property")
    model = build_model("0.3.0", task)
    config = OptimConfig(towards_start=0.5, layer_decay=0.5)
    freeze(model, ["block_1"])
    anchor, start = Anchor(model, config), {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    anchor.pull(0.1)
    scale = {id(p): group["scale"] for group in make_optimiser(model, config).param_groups for p in group["params"]}
    pulled = 0
    for name, parameter in model.named_parameters():
        held = (
            parameter.dim() > 1
            and not name.startswith("head.")
            and part_of(name) not in ("reference", "basis", "block_1")
        )
        share = 0.1 * 0.5 * scale[id(parameter)] if held else 0.0
        torch.testing.assert_close(parameter.detach(), start[name] + (1 - share), atol=1e-6, rtol=1e-5)
        pulled += held
    assert pulled > 20
    decays = {
        id(p) for group in make_optimiser(model, config).param_groups if group["weight_decay"] for p in group["params"]
    }
    assert decays == {id(p) for name, p in model.named_parameters() if name.startswith("head.") and p.dim() > 1}


def test_without_an_anchor_nothing_is_remembered() -> None:
    model = build_model("0.3.0", find_task("mp_e_form"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    Anchor(model, OptimConfig()).pull(1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_half_life_is_a_share_of_the_run() -> None:
    model, moved = build_model("0.3.0", find_task("mp_e_form")), []
    for n_steps in (1_000, 10_000):
        averaged = averaged_weights(model, OptimConfig(ema_half_life=0.01), n_steps)
        averaged.n_averaged.fill_(n_steps)  # far beyond the first steps
        with torch.no_grad():
            for parameter in averaged.module.parameters():
                parameter.zero_()
            for parameter in model.parameters():
                parameter.fill_(1.0)
        averaged.update_parameters(model)
        moved.append(1 - float(next(averaged.module.parameters()).detach().flatten()[0]))
    assert moved[0] ** 10 == pytest.approx(0.5, rel=1e-3)
    assert moved[1] ** 100 == pytest.approx(0.5, rel=1e-3)
