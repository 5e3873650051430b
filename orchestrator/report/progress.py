"""What a person sees of long jobs: bars on a terminal, lines elsewhere, and the relay from worker processes."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from multiprocessing.queues import Queue
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from trainables.progress import Bar, Progress

console = Console(stderr=True, highlight=False, markup=False)
_SECONDS_BETWEEN_LINES = 10.0
_SHARE_BETWEEN_LINES = 0.1  # of the time a stage has taken: the log of a long job grows ever more slowly
_SECONDS_BETWEEN_FRAMES = 0.25
_SECONDS_BETWEEN_TAKES = 0.5
_MOST_ENDED_BARS = 6
# Columns that a name and a bar may take, by the terminal's own from which on they may.
_NAMES: Mapping[int, int | None] = {110: None, 72: 25, 0: 14}
_BARS: Mapping[int, int | None] = {110: 24, 72: 10, 0: None}


class _Rate(ProgressColumn):
    """Throughput, for example 173 structures/s or 28 s/trial."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(rate_text(speed, task.fields["unit"]) if speed else "")


def rate_text(speed: float, unit: str) -> str:
    """Units a second or, where that is less than one, seconds a unit: 173 structures/s, 28 s/trial."""
    if speed >= 10:
        return f"{speed:,.0f} {unit}/s"
    if speed >= 1:
        return f"{speed:.1f} {unit}/s"
    one = unit.removesuffix("s")
    return f"{1 / speed:,.0f} s/{one}" if speed <= 0.1 else f"{1 / speed:.1f} s/{one}"


class _Time(ProgressColumn):
    """Time left or, of a stage that has ended, the time it took."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(clock(task.finished_time or 0.0), style="dim")
        return Text("" if task.time_remaining is None else f"ETA {clock(task.time_remaining)}")


def clock(seconds: float) -> str:
    """For example 0:07, 12:40, 3:05:00 or 2d 3:05:00."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _of_width(widths: Mapping[int, int | None]) -> int | None:
    return next(width for least, width in widths.items() if console.width >= least)


class BarDisplay:
    """Live bars with throughput and ETA.

    Everything is drawn under one lock: rich computes how far to move up before it writes, so that of two threads that
    draw at once one would erase a line too many.
    """

    def __init__(self, spell: Callable[[str], str] = str) -> None:
        self._spell = spell
        self._ended: list[TaskID] = []
        self._drawing, self._over = threading.RLock(), threading.Event()
        self._refresher = threading.Thread(target=self._refresh_again_and_again, daemon=True)
        name = Column(no_wrap=True, overflow="ellipsis", max_width=_of_width(_NAMES))
        note = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # what the numbers leave
        numbers = Column(no_wrap=True)
        bar = _of_width(_BARS)
        self._bars = _Bars(
            TextColumn("{task.description}", markup=False, table_column=name),
            *([BarColumn(bar, table_column=numbers)] if bar else []),
            TextColumn("{task.percentage:>3.0f}%", table_column=numbers),
            _Rate(table_column=numbers),
            _Time(table_column=numbers),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=note),
            console=console,
            expand=True,
            auto_refresh=False,
        )

    def __enter__(self) -> "BarDisplay":
        with self._drawing:
            self._bars.start()
        self._refresher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._refresher.join()
        with self._drawing:
            self._bars.stop()

    def _refresh_again_and_again(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_FRAMES):
            with self._drawing:
                self._bars.refresh()

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator[Bar]:
        """Show a stage while the block runs."""
        with self._drawing:
            key = self._bars.add_task(name, total=total, unit=unit, note="")
        try:
            yield _RichBar(self._bars, key)
        finally:
            with self._drawing:
                self._put_away(key, at_once=name.startswith("read ") or name.endswith(("predict", "predict views")))

    def _put_away(self, key: TaskID, at_once: bool) -> None:
        """Take ended bars off the screen: short ones at once, others when there are many."""
        if at_once:
            self._bars.remove_task(key)
            return
        self._ended.append(key)
        if len(self._ended) > _MOST_ENDED_BARS:
            self._bars.remove_task(self._ended.pop(0))

    def message(self, text: RenderableType) -> None:
        """Show a line that is worth keeping."""
        with self._drawing:
            self._bars.console.print(self._spell(text) if isinstance(text, str) else text)

    def above(self, shown: RenderableType) -> None:
        """Keep this above the bars, in place of what was there."""
        with self._drawing:
            self._bars.shown_above = shown
            self._bars.refresh()


class _Bars(RichProgress):
    """Bars with something above them."""

    shown_above: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.shown_above is not None:
            yield self.shown_above
        # Not to the last column: "^C" would fall onto another line, and the next frame begin a line too low.
        yield Constrain(self.make_tasks_table(self.tasks), console.width - 3)


class _RichBar:
    def __init__(self, bars: RichProgress, key: TaskID) -> None:
        self._bars, self._key = bars, key

    def advance(self, amount: float, note: str = "") -> None:
        changes: dict[str, Any] = {"note": note} if note else {}
        self._bars.update(self._key, advance=amount, **changes)


class LineDisplay:
    """For logs and pipes: a line now and then instead of a bar, and no tables."""

    above = None

    def __init__(self, spell: Callable[[str], str] = str) -> None:
        self._spell = spell

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator[Bar]:
        """Show a stage while the block runs."""
        bar = _LineBar(name, total, unit)
        yield bar
        bar.close()

    def message(self, text: RenderableType) -> None:
        """Show a line that is worth keeping."""
        if isinstance(text, str):
            console.print(self._spell(text), soft_wrap=True)
        else:
            console.print(text)


class _LineBar:
    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._begin = self._last = time.monotonic()
        self._first: float | None = None  # what a resumed stage had already done: no part of the speed
        self._done = 0.0
        self._printed = -1.0
        self._note = ""

    def advance(self, amount: float, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        if self._first is None:
            self._first = self._done if amount else 0.0
        now = time.monotonic()
        if now - self._last >= max(_SECONDS_BETWEEN_LINES, _SHARE_BETWEEN_LINES * (now - self._begin)):
            self._last = now
            self._print()

    def close(self) -> None:
        if time.monotonic() - self._begin >= 1.0 and self._printed != self._done:
            self._print()

    def _print(self) -> None:
        self._printed = self._done
        seconds = time.monotonic() - self._begin
        speed = (self._done - (self._first or 0.0)) / max(seconds, 1e-9)
        parts = [self._name, f"{self._done:,.0f} {self._unit}", *([rate_text(speed, self._unit)] if speed > 0 else [])]
        if self._total:
            parts[1] = f"{self._done / self._total:.0%} of {self._total:,.0f} {self._unit}"
            if 0 < self._done < self._total and speed > 0:
                parts.append(f"ETA {clock((self._total - self._done) / speed)}")
        console.print(" | ".join([*parts, *([self._note] if self._note else [])]), soft_wrap=True)


def display(spell: Callable[[str], str] = str) -> "BarDisplay | LineDisplay":
    """Return bars where a person watches, lines where a file does or the terminal cannot move its cursor.

    Args:
        spell: how messages name parameters (see trainables.errors); by default as they are.
    """
    if console.is_jupyter:
        moves = find_spec("ipywidgets") is not None  # without, rich warns again at every frame
    else:
        moves = console.is_terminal and not console.is_dumb_terminal
    return BarDisplay(spell) if moves else LineDisplay(spell)


class EventQueue(Protocol):
    """Takes events to whoever replays them."""

    def put(self, event: tuple[Any, ...], /) -> None:
        """Add an event."""


class QueueProgress:
    """A worker process's progress: sends events that `relay` replays in the parent."""

    def __init__(self, queue: EventQueue, owner: str) -> None:
        self._queue, self._owner, self._count = queue, owner, 0

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator[Bar]:
        """Show a stage while the block runs."""
        self._count += 1
        key = (self._owner, self._count)
        self._queue.put(("begin", key, f"{self._owner} {name}", total, unit))
        try:
            yield _QueueBar(self._queue, key)
        finally:
            self._queue.put(("end", key))

    def message(self, text: str) -> None:
        """Show a line that is worth keeping."""
        self._queue.put(("message", f"{self._owner}: {text}"))


class _QueueBar:
    def __init__(self, queue: EventQueue, key: tuple[str, int]) -> None:
        self._queue, self._key = queue, key

    def advance(self, amount: float, note: str = "") -> None:
        self._queue.put(("advance", self._key, amount, note))


class NamedProgress:
    """Progress of a job in this process, its stages prefixed with the job's name."""

    def __init__(self, inner: Progress, owner: str) -> None:
        self._inner, self._owner = inner, owner

    def stage(self, name: str, total: float | None, unit: str) -> AbstractContextManager[Bar]:
        """Show a stage while the block runs."""
        return self._inner.stage(f"{self._owner} {name}", total, unit)

    def message(self, text: str) -> None:
        """Show a line that is worth keeping."""
        self._inner.message(f"{self._owner}: {text}")


@contextmanager
def relay(queue: "Queue[Any]", shown: Progress) -> Iterator[None]:
    """Replay worker processes' events on `shown` until the block ends."""
    thread = threading.Thread(target=_replay, args=(queue, shown), daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)
        queue.cancel_join_thread()  # a killed worker may hold the pipe: never wait for it


@contextmanager
def replaying(take: Callable[[], Iterable[tuple[Any, ...]]], shown: Progress) -> Iterator[None]:
    """Replay events of workers elsewhere on `shown` until the block ends.

    Args:
        take: returns what came since it was called last.
    """
    over = threading.Event()
    thread = threading.Thread(target=_take_and_replay, args=(take, shown, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def _take_and_replay(take: Callable[[], Iterable[tuple[Any, ...]]], shown: Progress, over: threading.Event) -> None:
    stages: dict[tuple[str, int], tuple[AbstractContextManager[Bar], Bar]] = {}
    last = False
    while not last:
        last = over.wait(_SECONDS_BETWEEN_TAKES)
        with suppress(Exception):
            for event in take():
                with suppress(Exception):
                    _show_event(event, stages, shown)
    for stage, _ in stages.values():  # of workers that were lost
        with suppress(Exception):
            stage.__exit__(None, None, None)


def _replay(queue: "Queue[Any]", shown: Progress) -> None:
    stages: dict[tuple[str, int], tuple[AbstractContextManager[Bar], Bar]] = {}
    while (event := queue.get()) is not None:
        with suppress(Exception):  # whatever the display does, the queue must be drained: workers wait on it
            _show_event(event, stages, shown)


def _show_event(
    event: tuple[Any, ...], stages: dict[tuple[str, int], tuple[AbstractContextManager[Bar], Bar]], shown: Progress
) -> None:
    kind, *rest = event
    if kind == "begin":
        if rest[0] in stages:  # of a worker that was lost in the middle
            stages.pop(rest[0])[0].__exit__(None, None, None)
        stage = shown.stage(*rest[1:])
        stages[rest[0]] = (stage, stage.__enter__())
    elif kind == "advance":
        stages[rest[0]][1].advance(*rest[1:])
    elif kind == "end":
        stages.pop(rest[0])[0].__exit__(None, None, None)
    else:
        shown.message(*rest)
