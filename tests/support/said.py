"""What people are told: progress that keeps it, and refusals."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from trainables.errors import UserError
from trainables.progress import Bar, silent


class Said:
    """Keeps the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, total: float | None, unit: str) -> AbstractContextManager[Bar]:
        return silent.stage(name, total, unit)

    def message(self, text: str) -> None:
        self.lines.append(text)


def refusal(function: Callable[..., object], *arguments: object) -> str:
    """What a UserError of the call says, in one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
