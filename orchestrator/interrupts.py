"""Ctrl-C: the first one lets a command put everything in order and say so, the second one ends it on the spot."""

import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 130  # exit code of a command that was stopped by Ctrl-C


def handle_interrupts() -> None:
    """Let the first Ctrl-C interrupt, and the next one not wait for anything."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _stop_now)
    raise KeyboardInterrupt


def _stop_now(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\nstopped at once\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
