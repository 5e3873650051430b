"""Axes of a study's parameters and values, for the pictures: logarithmic where it helps, categories by name."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.report.ticks import fix_ticks, set_ticks, tick_texts

_SAME = 1e-9  # values that differ by less, as a share of their size, are drawn as if they were equal
_WIDE = 4  # largest / smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Dimension:
    """A parameter as an axis.

    Attributes:
        low, high: ends of the axis; of categories the first and last index.
        choices: categories in order, empty for numbers.
    """

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()

    def value(self, chosen: Any) -> float:
        """The number that stands for a chosen value."""
        return float(self.choices.index(shown(chosen))) if self.choices else float(chosen)

    def place(self, chosen: Any) -> float:
        """From 0 to 1 along the axis."""
        low, high, value = self.low, self.high, self.value(chosen)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places from 0 to 1 with their texts."""
        if self.choices:
            return [(self.place_of_index(i), text) for i, text in enumerate(self.choices)]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if self.integer:
            middle = round(middle)
        values = list(dict.fromkeys((self.low, middle, self.high)))
        texts = [f"{value:,.0f}" for value in values] if self.integer else tick_texts(values, own_digits=True)
        return [(self.place(value), text) for value, text in zip(values, texts, strict=True)]

    def place_of_index(self, index: int) -> float:
        return index / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5


def dimension(name: str, one: BaseDistribution) -> Dimension:
    if isinstance(one, CategoricalDistribution):
        return Dimension(name, 0, len(one.choices) - 1, choices=tuple(map(shown, one.choices)))
    assert isinstance(one, FloatDistribution | IntDistribution)
    return Dimension(name, one.low, one.high, one.log, isinstance(one, IntDistribution))


def shown(value: Any) -> str:
    """A chosen value in words."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        text = f"{value:.4g}"
        return (text if float(text) == value else repr(value)).replace("e-0", "e-").replace("e+", "e")
    return str(value)


def wrapped(name: str, width: int) -> str:
    """A name in lines, broken behind underscores and dots, not within numbers."""
    lines = [""]
    for part in re.findall(r"(?:[^._ ]|(?<=\d)\.(?=\d))+[._ ]?|[._ ]", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def set_scale(axis: Axis, values: Iterable[float]) -> None:
    """Limits that hold the values, logarithmic where these are positive and far apart."""
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return
    low, high = min(found), max(found)
    limits = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
    if low > 0 and high > _WIDE * low:
        set_log(axis)
        share = (high / low) ** 0.06
        limits(low / share, high * share)
    else:
        margin = 0.06 * (high - low) if high - low > _SAME * abs(high) else 0.05 * abs(high) or 1.0
        limits(low - margin, high + margin)


def set_log(axis: Axis) -> None:
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")


def has_long_choices(one: Dimension) -> bool:
    """Whether the names of the choices must be turned to stand beside each other below a slice."""
    return sum(max(map(len, wrapped(choice, 10).split("\n"))) + 2 for choice in one.choices) > 34


def parameter_axis(axes: Axes, one: Dimension) -> None:
    """The x axis of a slice."""
    if one.choices:
        lines, turned = [wrapped(choice, 10) for choice in one.choices], has_long_choices(one)
        axes.set_xticks(range(len(lines)), lines, rotation=40 if turned else 0, ha="right" if turned else "center")
        axes.set_xlim(-0.5, len(lines) - 0.5)
    elif one.log:
        set_log(axes.xaxis)
        share = (one.high / one.low) ** 0.05 if one.high > one.low else 1.5
        axes.set_xlim(one.low / share, one.high * share)
    else:
        margin = 0.05 * (one.high - one.low) if one.high > one.low else 0.5 * abs(one.high) or 1.0
        axes.set_xlim(one.low - margin, one.high + margin)
    if not one.choices and one.high > one.low:
        set_ticks(axes.xaxis, 5, integer=one.integer)
    elif not one.choices:
        fix_ticks(axes.xaxis, [one.low], tick_texts([one.low]))
