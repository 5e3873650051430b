"""Losses: one function each, and their registry."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from trainables.config import LossConfig

# Each takes (prediction, target, delta), both (n,), and returns the sum over crystals.
LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "l1": lambda prediction, target, delta: F.l1_loss(prediction, target, reduction="sum"),
    "huber": lambda prediction, target, delta: F.huber_loss(prediction, target, reduction="sum", delta=delta),
    "mse": lambda prediction, target, delta: F.mse_loss(prediction, target, reduction="sum"),
}


def batch_loss(config: LossConfig, prediction: Tensor, target: Tensor, *, scale: Tensor, batch_size: int) -> Tensor:
    """Summed loss in units of `scale`, divided by the nominal batch size.

    Batches are equal in cost, not in number; dividing by a constant gives every crystal the same weight in an
    epoch, where a mean would favour the large crystals that share a batch with few others.
    """
    return LOSSES[config.name](prediction / scale, target / scale, config.delta) / batch_size
