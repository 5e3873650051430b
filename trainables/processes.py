"""Worker processes: how many, and what ends them."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def n_cores() -> int:
    """Cores this process may use (not all of the machine's, under a scheduler or in a container)."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def end_with_parent() -> None:
    """Let this worker end when its parent is killed: it must not go on writing once the command may run again."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
