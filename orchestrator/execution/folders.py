"""Folders that one process at a time may work in."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.errors import UserError

LOCK = ".lock"
_HOLDER = re.compile(r"process (\d+) on (\S+) since")


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Hold `out` for this process.

    Raises:
        UserError: another process works there, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is using {out} ({_holder(out)}); wait for it to finish, or use another `out`"
        ) from None
    except OSError as error:
        raise UserError(f"`out={out}` cannot be written ({error.strerror}); use another folder") from None
    with lock:
        (out / LOCK).write_text(
            f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n", encoding="utf-8"
        )
        try:
            yield
        finally:
            lock.release()


def _holder(out: Path) -> str:
    try:
        return (out / LOCK).read_text(encoding="utf-8").strip() or "unknown process"
    except (OSError, UnicodeDecodeError):
        return "unknown process"


@contextmanager
def wait_for_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a folder (one whose parent was just killed, for example), and hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        yield


def last_holder(out: Path) -> tuple[bool | None, str]:
    """Return whether the process that last held a folder still runs (as is_alive), and its name."""
    found = _HOLDER.search(_holder(out))
    return (is_alive(int(found[1]), found[2]), f"process {found[1]} on {found[2]}") if found else (False, "")


def is_alive(pid: int, host: str) -> bool | None:
    """Return whether a process runs; None where it is another machine's."""
    if host != platform.node():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True
