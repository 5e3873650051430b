"""Processes: how many, what ends them, and how they hold memory."""

import contextlib
import ctypes
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any


def n_cores() -> int:
    """Cores this process may use: not all of the machine's, under a scheduler or in a container with a quota."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    quota = min(_quotas(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")), default=math.inf)
    return max(1, min(cores, math.ceil(quota))) if math.isfinite(quota) else cores


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    """CPU quotas, in cores, of this process's control group and of those around it (Linux; none elsewhere)."""
    lines = _text(membership).splitlines()
    for hierarchy, controllers, name in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        here = PurePosixPath(name.lstrip("/"))
        if hierarchy == "0":  # version 2
            for group in (here, *here.parents):
                most, _, period = _text(root / group / "cpu.max").partition(" ")
                yield from _ratio(most, period)
        elif "cpu" in controllers.split(","):
            for group in (here, *here.parents):
                folder = root / "cpu" / group
                yield from _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def memory_limit() -> float:
    """Return the bytes that the container allows (Linux control groups); infinite where nothing limits them."""
    limits = [math.inf]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError):  # "max", or no such file
            limits.append(float(int(_text(Path(file)))))
    return min(limits)


def _ratio(most: str, period: str) -> Iterator[float]:
    with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no such file
        quota = int(most) / int(period)
        if quota > 0:  # version 1 says -1 where there is none
            yield quota


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of handing it back to the system (glibc only, this process).

    A training step frees and takes the same few hundred megabytes again; given back each time, every page of them is
    mapped and zeroed anew, which took up to a third of a step.
    """
    _set_malloc(_KEEP | {_ARENA_MAX: 1})


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the C library keep freed memory meanwhile (see `keep_freed_memory`), in a process that is the caller's.

    Afterwards what was kept is handed back, and blocks of any size come from where they came before: the threshold is
    the one at which glibc's own adjustment ends in a process that has used large blocks (mallopt(3)).
    """
    _set_malloc(_KEEP)
    try:
        yield
    finally:
        _set_malloc(_USUAL)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set_malloc(options: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
_USUAL = {_MMAP_MAX: 2**16, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17, _MMAP_THRESHOLD: 2**25}


@contextlib.contextmanager
def spawned_pool(
    workers: int, begin: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that never see Ctrl-C, and end at once with an error here or with this process.

    They are spawned: a fork would copy torch's thread pools in an unknown state.

    Args:
        begin: called in each process before its first job, with these arguments.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (begin, arguments)) as pool:
        with ignored_by_children(), _without_main_module():
            for _ in range(workers):  # a process is started with every job that finds none idle
                pool.submit(int)
        try:
            yield pool
        except BaseException:
            processes = list((getattr(pool, "_processes", None) or {}).values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Let processes that are started meanwhile not run the caller's script again.

    A spawned process imports the main module; nothing of it is needed here, and a script without
    `if __name__ == "__main__":` would start itself anew in each.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    if "__file__" in hidden:
        del main.__file__
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _begin_worker(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if begin is not None:
        begin(*arguments)


@contextlib.contextmanager
def ignored_by_children() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started meanwhile, even while they import: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no thread but the main one may say what signals do
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent() -> None:
    """Let this worker end when its parent is killed: it must not go on writing once the command may run again."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
