"""Folders that one process at a time may work in."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.errors import UserError

LOCK = ".lock"


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
