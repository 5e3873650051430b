"""Numbers as reports print them."""

import math


def four_digits(value: float | None) -> int:
    """Return the decimals that give a value four significant digits, at most 9."""
    return min(9, max(0, 3 - math.floor(math.log10(abs(value))))) if value and math.isfinite(value) else 4


def number_text(value: float, decimals: int | None = None) -> str:
    """Return a number with four significant digits, or with that many decimals."""
    return f"{value:.{four_digits(value) if decimals is None else decimals}f}"


def readable(seconds: float) -> str:
    """Return a time such as 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
