"""Losses of single crystals: one function each, and their registry."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from trainables.config import LossConfig
from trainables.model.heads import Outputs

# Each takes (prediction, target, delta), both (n,), and returns one loss a crystal.
LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "l1": lambda prediction, target, delta: F.l1_loss(prediction, target, reduction="none"),
    "huber": lambda prediction, target, delta: F.huber_loss(prediction, target, reduction="none", delta=delta),
    "mse": lambda prediction, target, delta: F.mse_loss(prediction, target, reduction="none"),
}


def distance(config: LossConfig, prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """One loss a crystal, (n,), in units of `scale`."""
    return LOSSES[config.name](prediction / scale, target / scale, config.delta)


def supervised(config: LossConfig, outputs: Outputs, target: Tensor, scale: Tensor) -> Tensor:
    """One loss a crystal, (n,): the distance to the target.

    A hurdle pays for the wrong side of zero (cross-entropy) and, where the target is above zero, for the distance.
    """
    wanted = outputs.as_learnt(target)
    if outputs.logit is None:
        return distance(config, outputs.value, wanted, scale)
    above = (target > 0).to(outputs.logit.dtype)
    side = F.binary_cross_entropy_with_logits(outputs.logit, above, reduction="none")
    return side + above * distance(config, outputs.value, wanted, scale)
