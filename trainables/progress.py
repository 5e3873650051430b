"""How long jobs report: stages that advance, and lines worth keeping. What shows them lives elsewhere."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running stage."""

    def advance(self, amount: float, note: str = "") -> None:
        """Advance the stage; the note is shown beside it."""


class Progress(Protocol):
    """Shows stages and messages; `silent` here, bars and lines in orchestrator.report.progress."""

    def stage(self, name: str, total: float | None, unit: str) -> AbstractContextManager[Bar]:
        """Show a stage while the block runs."""

    def message(self, text: str) -> None:
        """Show a line that is worth keeping."""


class _SilentBar:
    def advance(self, amount: float, note: str = "") -> None:
        """Do nothing."""


class _Silent:
    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator[Bar]:
        yield _SilentBar()

    def message(self, text: str) -> None:
        """Say nothing."""


silent = _Silent()
