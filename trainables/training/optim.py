"""Parameter groups, the learning-rate course, and averaged weights."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainables.config import OptimConfig
from trainables.model.chgnet import TRAINING_PARTS, CrystalModel
from trainables.torch_internals import move_towards

_MOMENTUM = 0.9
Tensors = tuple[Tensor, ...] | list[Tensor]
OPTIMISERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
    "adam": lambda groups, lr: torch.optim.Adam(groups, lr=lr, fused=True),
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM),
}


def part_of(name: str) -> str:
    """Return the freezable part a parameter belongs to."""
    layer = re.match(r"(atom_conv_layers|bond_conv_layers|angle_layers)\.(\d+)\.", name)
    if layer:
        return f"block_{int(layer.group(2)) + 1}"
    if name.startswith("composition_model."):
        return "reference"
    if "basis_expansion" in name:
        return "basis"
    if name.startswith(("mlp.", "head.", "readout_norm.", "site_wise.", *TRAINING_PARTS)):
        return "head"
    return "embedding"


def freeze(model: CrystalModel, parts: Iterable[str]) -> None:
    """Keep the weights of these parts as they are; what serves training alone is fresh and always learns."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = part_of(name) not in set(parts) or name.startswith(TRAINING_PARTS)


def make_optimiser(model: CrystalModel, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser over all trainable parameters, grouped by learning rate and weight decay.

    A group's `scale` multiplies the learning rate: layer_decay ** (blocks between it and the head). Matrices that an
    Anchor holds do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = _decays(name, parameter) and not (config.towards_start and _is_pretrained(name))
            groups[(_scale(model, name, config), config.weight_decay if decays else 0.0)].append(parameter)
    described = [
        {"params": parameters, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return OPTIMISERS[config.name](described, config.lr)


class Anchor:
    """Pulls pretrained matrices towards where they are now, by `towards_start` times the learning rate a step.

    Li, Grandvalet and Davoine, Explicit inductive bias for transfer learning with convolutional networks (ICML 2018),
    decoupled from the gradient as AdamW's weight decay is (Loshchilov and Hutter, ICLR 2019).
    """

    def __init__(self, model: CrystalModel, config: OptimConfig) -> None:
        """Remember the weights of a model that is about to be trained."""
        self._strength, self._groups = config.towards_start, defaultdict[float, list[nn.Parameter]](list)
        for name, parameter in model.named_parameters() if self._strength else ():
            if parameter.requires_grad and _decays(name, parameter) and _is_pretrained(name):
                self._groups[_scale(model, name, config)].append(parameter)
        self._starts = {scale: [weight.detach().clone() for weight in group] for scale, group in self._groups.items()}

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """Move the weights after a step at this learning rate (of the head)."""
        for scale, weights in self._groups.items():
            move_towards(weights, self._starts[scale], min(1.0, rate * scale * self._strength))


def _scale(model: CrystalModel, name: str, config: OptimConfig) -> float:
    return float(config.layer_decay ** (model.n_conv + 1 - _depth(part_of(name), model.n_conv)))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and part_of(name) not in ("reference", "basis")


def _is_pretrained(name: str) -> bool:
    return not name.startswith(("head.", *TRAINING_PARTS))


def _depth(part: str, n_blocks: int) -> int:
    """0 for the inputs, k for block k, one past the last block for head and reference."""
    if part.startswith("block_"):
        return int(part.removeprefix("block_"))
    return 0 if part in ("embedding", "basis") else n_blocks + 1


def learning_rate(config: OptimConfig, done: float) -> float:
    """Return the learning rate after the share `done` (0 to 1) of all steps: linear warm-up, then the schedule."""
    if done < config.warmup:
        return config.lr * done / config.warmup
    if config.schedule == "constant":
        return config.lr
    course = (done - config.warmup) / (1 - config.warmup)
    left = 0.5 * (1 + math.cos(math.pi * course)) if config.schedule == "cosine" else 1 - course
    lowest = min(config.final_lr, config.lr)
    return lowest + (config.lr - lowest) * left


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, by group of parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def averaged_weights(model: CrystalModel, config: OptimConfig, n_steps: int) -> AveragedModel:
    """Return the weights that are validated and kept: averaged over the steps of training.

    `ema`: an exponential moving average that forgets faster in its first steps. The decay is
    min(decay, (1 + t) / (10 + t)) at step t, so that a fresh head's random start is not averaged in for the first
    1 / (1 - decay) steps; decay is ema_decay or, with a half-life h, 0.5 ** (1 / (h n_steps)). `swa`: the plain mean
    of the weights after every step from the share `swa_from` on (Izmailov et al., UAI 2018); before it, and with
    `none` or decay 0, a copy of the weights.

    Args:
        n_steps: of the whole training.
    """
    first_of_swa, decay = int(config.swa_from * n_steps), config.ema_decay
    if config.ema_half_life > 0:
        decay = 0.5 ** (1 / (config.ema_half_life * n_steps))

    def share_of_new(step: float) -> float:
        if config.averaging == "ema":
            return 1 - min(decay, (1 + step) / (10 + step))
        return 1.0 if config.averaging == "none" or step < first_of_swa else 1 / (step - first_of_swa + 1)

    def average(kept: Tensors, new: Tensors, n_averaged: Tensor | int) -> None:
        move_towards(list(kept), list(new), share_of_new(float(n_averaged)))

    return AveragedModel(model, multi_avg_fn=average)
