"""Matbench's own file layout: {"index": [...], "columns": [...], "data": [[structure, target], ...]} in json.gz.

Rows are parsed one by one from the stream, so the 132,752 structures of mp_e_form never stand in memory as
dictionaries at once.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from trainables.errors import UserError

_CHUNK = 1 << 20
_WHITESPACE = " \t\r\n"


class _Stream:
    """A cursor over a JSON text that decodes one value at a time."""

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0

    def _read_more(self) -> bool:
        chunk = self._handle.read(_CHUNK)
        if chunk:
            self._buffer = self._buffer[self._at :] + chunk
            self._at = 0
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is no white space."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _WHITESPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                raise EOFError

    def take(self, expected: str) -> None:
        if self.peek() not in expected:
            raise ValueError(f"'{self._buffer[self._at]}' where one of '{expected}' was expected")
        self._at += 1

    def value(self) -> Any:
        """Decode the value at the cursor, reading on until it is complete."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._read_more():
                    raise EOFError from error
                continue
            if end + 2 >= len(self._buffer) and self._read_more():
                continue  # a number may go on in the next chunk: 1 as 1.5 or 1e-5
            self._at = end
            return value

    def end(self) -> None:
        """Read to the end (a gzip file is checked there) and refuse anything but white space."""
        try:
            self.peek()
        except EOFError:
            return
        raise ValueError("there is more after its closing bracket")

    def items(self) -> Iterator[Any]:
        """Yield the items of the array at the cursor."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.take("]")
                return
            self.take(",")


def open_text(path: Path) -> TextIO:
    """Open a plain or gzipped text file, told by its first two bytes."""
    with path.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8") if zipped else path.open("r", encoding="utf-8")


def is_matbench_layout(path: Path) -> bool:
    """Return True where the file is a JSON object that begins with one of the layout's keys."""
    try:
        with open_text(path) as handle:
            head = handle.read(200).lstrip()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return False
    return head.startswith("{") and any(head[1:].lstrip().startswith(f'"{k}"') for k in ("index", "columns", "data"))


def read_matbench_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("index", list), ("columns", list) and, one by one, ("row", list) in the file's order.

    Raises:
        UserError: the file is truncated, is no JSON, or lacks one of the three keys.
    """
    seen: set[str] = set()
    try:
        with open_text(path) as handle:
            stream = _Stream(handle)
            stream.take("{")
            while True:
                key = str(stream.value())
                stream.take(":")
                seen.add(key)
                if key == "data":
                    for row in stream.items():
                        yield "row", row
                else:
                    value = stream.value()
                    if key in ("index", "columns") and not isinstance(value, list):
                        raise ValueError(f"its {key} is not a list")
                    yield key, value
                if stream.peek() == "}":
                    break
                stream.take(",")
            stream.take("}")
            stream.end()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path} is truncated or damaged (it ends inside its data): fetch or write it again") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Matbench table: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    missing = {"index", "columns", "data"} - seen
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}; a Matbench table has index, columns and data")
