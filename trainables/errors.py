"""The one exception type whose message is meant for the person at the keyboard.

Messages name a parameter in backticks, with its value where that matters: "`folds=7`: folds are 0 to 4", "use another
`out`". A caller in Python reads them as they are; the command line shows the option instead ("--folds 7", "--out"), so
no message outside orchestrator/cli names one.
"""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can fix: what was given, what was expected, what to do, in one line (exit code 2)."""


class CannotWrite(UserError):
    """A file could not be written (a full disk, most likely): nothing is wrong with what was being done."""


_LONGEST = 120  # characters of an item


def listed(items: Iterable[object], most: int = 50) -> str:
    """Join at most `most` items with commas and say how many were left out; long ones are cut."""
    everything = [text if len(text := str(item)) <= _LONGEST else f"{text[:_LONGEST]}..." for item in items]
    shown = ", ".join(everything[:most])
    left_out = len(everything) - most
    return f"{shown} (+{left_out} more)" if left_out > 0 else shown
