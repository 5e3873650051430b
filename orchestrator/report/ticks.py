"""Ticks of an axis: round values that fit beside each other, and texts that tell neighbours apart."""

import math
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import MaxNLocator, NullLocator

_TINY = 1e-3  # below it 2e-4 is easier to read than 0.0002
_HUGE = 1e7  # from which 2e7 is
_LONG = 9  # characters from which a shorter way of writing is looked for
_ERROR = 0.1  # of the distance to the neighbour, by which a text may differ from its value
_DIGITS = 17  # which tell any two floats apart
_SUBS: tuple[tuple[float, ...], ...] = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of a decade, densest first
_STEPS = (1, 2, 2.5, 5, 10)  # between ticks of a linear axis, times a power of ten
_CHARACTER = 0.64  # mean width of a digit or sign, as a share of the font size


def tick_texts(values: Sequence[float], *, own_digits: bool = False) -> list[str]:
    """Texts of finite values; different values never share one.

    Args:
        own_digits: whether each value has digits of its own (1e-4, 0.002, 3), which suits a logarithmic axis; otherwise
            all have the same decimals.
    """
    if not values:
        return []
    errors = _errors(values)
    significant = _significant(values, errors)
    if own_digits or max(map(abs, values)) < _TINY:
        return significant
    fixed = _fixed(values, errors) or significant
    return fixed if _longest(fixed) <= max(_LONG, _longest(significant)) else significant


def tick_values(low: float, high: float, most: int, *, log: bool = False, integer: bool = False) -> list[float]:
    """Round values from low to high, about as many as `most` and seldom fewer than two."""
    values = _log_values(low, high, most) if log and low > 0 else []
    if integer:
        values = [value for value in values if value == round(value)]
    if len(values) < 2:
        ticks = MaxNLocator(max(1, most - 1), steps=_STEPS, integer=integer, min_n_ticks=1).tick_values(low, high)
        values = [float(value) for value in ticks if low <= value <= high]
    return list(dict.fromkeys(values))


def set_ticks(axis: Axis, most: int, *, integer: bool = False) -> None:
    """Ticks and their texts for the limits that the axis has; on a horizontal one as many as have room."""
    low, high = sorted(map(float, axis.get_view_interval()))
    log = axis.get_scale() == "log"
    for count in range(most, 0, -1):
        values = tick_values(low, high, count, log=log, integer=integer)
        texts = tick_texts(values, own_digits=log)
        if not isinstance(axis, XAxis) or _have_room(axis, values, texts, log):
            break
    fix_ticks(axis, values, texts)


def fix_ticks(axis: Axis, values: Sequence[float], texts: Sequence[str]) -> None:
    """These ticks and no others."""
    axis.set_ticks(values, texts)
    axis.set_minor_locator(NullLocator())


def _log_values(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for subs in _SUBS:
        values = [float(f"{sub}e{decade}") for decade in range(first, last + 1) for sub in subs]
        values = [value for value in values if low <= value <= high]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]


def _errors(values: Sequence[float]) -> dict[float, float]:
    """How far the text of each value may be from it."""
    ordered = sorted(set(values))
    if len(ordered) == 1:
        return {ordered[0]: 1e-3 * abs(ordered[0])}
    gaps = [math.inf, *(high - low for low, high in pairwise(ordered)), math.inf]
    return {value: _ERROR * min(around) for value, around in zip(ordered, pairwise(gaps), strict=True)}


def _significant(values: Sequence[float], errors: dict[float, float]) -> list[str]:
    sizes = [abs(value) for value in values if value] or [1.0]
    plain = range(-2 if min(sizes) < _TINY else -3, 4 if max(sizes) >= _HUGE else 7)
    for digits in range(3, _DIGITS + 1):
        texts = [_text(value, digits, plain) for value in values]
        if _faithful(texts, values, errors):
            break
    return texts


def _text(value: float, digits: int, plain: range) -> str:
    """As 0.0012, 1,200 or 1.2e-5; `plain`: the powers of ten that are written without an exponent."""
    number = Decimal(f"{value:.{digits - 1}e}").normalize()
    exponent = number.adjusted()
    if not number:
        return "0"
    return f"{number:,f}" if exponent in plain else f"{number.scaleb(-exponent):f}e{exponent}"


def _fixed(values: Sequence[float], errors: dict[float, float]) -> list[str]:
    """All with the same decimals; nothing where no decimals do."""
    for decimals in range(_DIGITS):
        texts = [f"{value:z,.{decimals}f}" for value in values]
        if _faithful(texts, values, errors):
            return texts
    return []


def _faithful(texts: Sequence[str], values: Sequence[float], errors: dict[float, float]) -> bool:
    apart = len(set(texts)) == len(set(values))
    read = [float(text.replace(",", "")) for text in texts]
    return apart and all(abs(one - value) <= errors[value] for one, value in zip(read, values, strict=True))


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts))


def _have_room(axis: XAxis, values: Sequence[float], texts: Sequence[str], log: bool) -> bool:
    """Whether the texts stand beside each other without touching."""
    size = float(axis.get_tick_params().get("labelsize", 10))
    low, high = map(float, axis.get_view_interval())
    scaled = [math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low) for value in values]
    places = [share * axis.axes.bbox.width for share in scaled]
    halves = [_CHARACTER * size * len(text) / 2 for text in texts]
    pairs = zip(pairwise(places), pairwise(halves), strict=True)
    return all(abs(right - left) >= one + other + _CHARACTER * size for (left, right), (one, other) in pairs)
