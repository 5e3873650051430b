"""Writing files so that a reader never sees half of one."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing them takes seconds in every worker
    import numpy as np
    import pandas as pd


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling of `path`, flush it to disk, then rename it into place.

    The file gets the mode that the umask gives, whoever made it.

    Raises:
        OSError: about `path`, whatever the temporary file was called.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors' own files, for one, could be read by their owner only
        write(temporary)
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary.name not in str(error) and (error.filename is not None or error.errno is None):
            raise
        reason = error.strerror or str(error).replace(str(temporary), str(path)).replace(temporary.name, path.name)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from None
    finally:
        with suppress(OSError):  # the reason above says more
            temporary.unlink(missing_ok=True)


def obstacle(path: Path) -> str:
    """Why no file or folder can be made at a path, or nothing: the nearest folder that is there is tried."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        return f"{above} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=above):
            return ""
    except OSError as error:
        return f"nothing can be created in {above}: {error.strerror}"


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: _write_utf8(temporary, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as Parquet, whole or not at all."""
    write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def write_array(path: Path, array: "np.ndarray[Any, Any]") -> None:
    """Write an array as a .npy file."""

    def save(temporary: Path) -> None:
        import numpy as np

        with temporary.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)

    write_atomically(path, save)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
