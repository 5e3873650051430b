"""The `crystaltune` program: Ctrl-C is answered from the first instant on, while the commands are still imported."""

import os
import signal
import sys
from types import FrameType

from orchestrator.interrupts import INTERRUPTED


def main() -> None:
    """Run the command."""
    signal.signal(signal.SIGINT, _stop)
    from orchestrator.cli import main as run  # takes longer than the way from a key to this process

    run()


def _stop(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\nstopped before anything had begun\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)
