"""Targets as a property head learns them: their logarithm or inverse hyperbolic sine, by a standard or robust scale."""

from typing import Literal

import torch
from torch import Tensor, nn

_LARGEST = 80.0  # exp of it is still a float32
_SMALLEST = 1e-30  # of a target whose logarithm is taken: a hurdle's zeros have one too, which no loss uses
_MAD_OF_A_NORMAL = 1.4826  # standard deviations in a median absolute deviation


class TargetTransform(nn.Module):
    """A monotone function that targets are learnt under, and its inverse for predictions.

    Medians are kept by it, so an absolute loss still asks for the median; distances become relative ones where targets
    are large (Box and Cox, J. R. Stat. Soc. B 26, 211 (1964), for the logarithm).

    Attributes:
        unit: what targets are divided by for asinh, which is linear below it and a logarithm above; 1 for log.
    """

    unit: Tensor

    def __init__(self, kind: Literal["log", "asinh"]) -> None:
        """Take the function's name."""
        super().__init__()
        self.kind = kind
        self.register_buffer("unit", torch.ones(()))

    def fit(self, targets: Tensor) -> None:
        """Set the unit: the median size of the targets that are not zero."""
        sizes = targets[targets != 0].abs()
        if self.kind == "asinh" and len(sizes):
            self.unit.fill_(float(sizes.median()))

    def forward(self, targets: Tensor) -> Tensor:
        """Return targets as they are learnt, (n,)."""
        if self.kind == "log":
            return torch.log(targets.clamp(min=_SMALLEST))
        return torch.asinh(targets / self.unit)

    def inverse(self, values: Tensor) -> Tensor:
        """Return values in the target's unit, (n,); finite, whatever an untrained head says."""
        bounded = values.clamp(-_LARGEST, _LARGEST)
        return torch.exp(bounded) if self.kind == "log" else torch.sinh(bounded) * self.unit


def location_and_spread(values: Tensor, *, robust: bool) -> tuple[float, float]:
    """Return mean and standard deviation of (n,) values, or median and scaled median absolute deviation.

    The robust spread estimates the standard deviation of normal values and is 0 where more than half of them are equal;
    then the standard deviation is returned.
    """
    if robust:
        middle = values.median()
        spread = _MAD_OF_A_NORMAL * float((values - middle).abs().median())
        if spread > 0:
            return float(middle), spread
    return float(values.mean()), float(values.std(correction=0))
