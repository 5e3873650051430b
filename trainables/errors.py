"""The one exception type whose message is meant for the person at the keyboard."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: what came, what was wanted, what to do, in one line (exit code 2)."""


class CannotWrite(UserError):
    """A file could not be written (a full disk, most likely): nothing is wrong with what was being done."""


def listed(items: Iterable[object], most: int = 50) -> str:
    """Join at most `most` items with commas and say how many were left out."""
    everything = [str(item) for item in items]
    shown = ", ".join(everything[:most])
    left_out = len(everything) - most
    return f"{shown} (+{left_out} more)" if left_out > 0 else shown
