"""Ctrl-C: before work begins it ends the process, then it lets the work put everything in order; twice, it ends all.

SIGTERM, with which a batch system announces the end of its time, is answered in the same way.

Libraries swallow KeyboardInterrupt now and then while they are imported, and the command would go on. So nothing is
raised before there is something to put in order.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code of a command that was stopped by Ctrl-C
_exit_code = INTERRUPTED
_CONTINUED = ("train", "ensemble", "ablate", "quickstart", "prepare")  # by the same command


def _same_command() -> Sequence[str] | None:
    words = sys.argv[1:]
    name = next((word for word in words if not word.startswith("-")), "")
    return ["crystaltune", *words] if name in _CONTINUED else None


_working = False
_continuation: Callable[[], Sequence[str] | None] = _same_command


@contextmanager
def continued_by(command: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Meanwhile another command than this one, asked for then, continues what Ctrl-C stops."""
    global _continuation
    before, _continuation = _continuation, command
    try:
        yield
    except KeyboardInterrupt:
        told_interrupted()
        raise SystemExit(exit_code()) from None
    finally:
        _continuation = before


@contextmanager
def interruptible() -> Iterator[None]:
    """Meanwhile Ctrl-C raises KeyboardInterrupt: there is something to put in order."""
    global _working
    before, _working = _working, True
    try:
        yield
    finally:
        _working = before


def handle_interrupts() -> None:
    """Answer Ctrl-C as this module says."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)


def exit_code() -> int:
    """Return the exit code of a command that was stopped: 128 and the signal's number."""
    return _exit_code


def _stop(number: int, frame: FrameType | None) -> None:
    global _exit_code
    _exit_code = 128 + number
    if not _working:
        told_interrupted()
        _leave()
    signal.signal(number, _stop_now)
    raise KeyboardInterrupt


def _stop_now(number: int, frame: FrameType | None) -> None:
    print("\nstopped at once; rerun the command to continue (a search with --resume)", file=sys.stderr)
    _leave()


def _leave() -> None:
    sys.stderr.flush()
    os._exit(exit_code())


def told_interrupted() -> None:
    """Say how to continue what Ctrl-C has stopped."""
    again = _continuation()
    told = "stopped" if again is None else f"stopped; what is finished is kept. Continue with: {shlex.join(again)}"
    print(f"\n{told}", file=sys.stderr)
