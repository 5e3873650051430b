"""Numbers as reports print them."""

import math


def four_digits(value: float | None) -> int:
    """Return the decimals that give a value four significant digits, at most 9."""
    return min(9, max(0, 3 - math.floor(math.log10(abs(value))))) if value and math.isfinite(value) else 4


def number_text(value: float, decimals: int | None = None) -> str:
    """Return a number with four significant digits, or with that many decimals."""
    return f"{value:.{four_digits(value) if decimals is None else decimals}f}"


_NONE, _FEW = 20, 100  # rows, below which they decide nothing, or little


def few_rows(n: int, kind: str) -> list[str]:
    """Return a sentence where so few rows of a kind ("test") cannot decide what a report says; else nothing."""
    if n >= _FEW:
        return []
    much = "nothing" if n < _NONE else "little"
    rows = f"{n:,} {kind} row{'s' * (n != 1)} decide{'s' * (n == 1)}"
    return [f"Few rows: {rows} {much}, for other rows of the same kind could turn every comparison."]


def readable(seconds: float) -> str:
    """Return a time such as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
