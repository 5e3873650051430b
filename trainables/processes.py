"""Processes: how many, what ends them, and how they hold memory."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import threading


def n_cores() -> int:
    """Cores this process may use (not all of the machine's, under a scheduler or in a container)."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of handing it back to the system (glibc only, this process).

    A training step frees and takes the same few hundred megabytes again; given back each time, every page of them is
    mapped and zeroed anew, which took up to a third of a step.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26), (_ARENA_MAX, 1)):
            mallopt(option, value)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # of malloc.h


def end_with_parent() -> None:
    """Let this worker end when its parent is killed: it must not go on writing once the command may run again."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
