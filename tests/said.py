"""Progress that keeps what it is told."""

from contextlib import AbstractContextManager

from trainables.progress import Bar, silent


class Said:
    """Keeps the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, total: float | None, unit: str) -> AbstractContextManager[Bar]:
        return silent.stage(name, total, unit)

    def message(self, text: str) -> None:
        self.lines.append(text)
