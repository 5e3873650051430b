"""Ctrl-C: the first one lets a command put everything in order and say so, the second one ends it on the spot."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code of a command that was stopped by Ctrl-C


class Interrupted(Exception):
    """Ctrl-C in a command that is continued by another one than itself."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self.command = list(command)


@contextmanager
def continued_by(command: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Let Ctrl-C say that this command, asked for then, continues what it stops.

    Raises:
        Interrupted: on Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(command()) from None


def handle_interrupts() -> None:
    """Let the first Ctrl-C interrupt, and the next one not wait for anything."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _stop_now)
    raise KeyboardInterrupt


def _stop_now(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\nstopped at once; rerun the command to continue (a search with --resume)\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
