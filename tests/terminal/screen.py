"""A command in a real pseudo-terminal, and what stands on its screen."""

import codecs
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

_SCROLLBACK = 20_000  # lines


class Terminal:
    """Runs a command under a pseudo-terminal of its own, with job control, as a terminal emulator does.

    Args:
        argv: the command and its arguments.
        env: added to this process's environment; a value of None takes a variable out.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 40,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=_SCROLLBACK, ratio=0.5)
        self._stream = pyte.Stream(self._screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._lock, self._raw = threading.Lock(), bytearray()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=_environment(env or {}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # so that Ctrl-C comes as SIGINT
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        os.close(self._master)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, keys: str) -> None:
        r"""Type; "\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def expect(self, text: str, timeout: float = 120.0) -> None:
        """Wait until the text stands anywhere on the screen or above it.

        Raises:
            AssertionError: it does not come; with what stands there.
        """
        end = time.monotonic() + timeout
        while text not in self.text():
            if time.monotonic() > end or (self._process.poll() is not None and text not in self._settled()):
                raise AssertionError(f"'{text}' is not on the screen:\n{self.text()}")
            time.sleep(0.05)

    def wait(self, timeout: float = 300.0) -> int:
        """The exit code, once the command has ended and everything it wrote is on the screen."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the command has not ended after {timeout:g} s:\n{self.text()}") from None
        self._reader.join(timeout=5)
        return code

    def screen(self) -> list[str]:
        """The visible lines, without trailing blanks."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        """Everything that stands on the screen and in the scrollback above it, without blank lines at the end."""
        with self._lock:
            width = self._screen.columns
            above = ["".join(row[x].data for x in range(width)).rstrip() for row in self._screen.history.top]
            return "\n".join([*above, *(line.rstrip() for line in self._screen.display)]).rstrip()

    @property
    def raw(self) -> bytes:
        """Every byte that was written, control sequences included."""
        with self._lock:
            return bytes(self._raw)

    def _settled(self) -> str:
        self._reader.join(timeout=5)
        return self.text()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                return
            if not data:
                return
            with self._lock:
                self._raw += data
                self._stream.feed(self._decoder.decode(data))


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """That of a terminal: nothing a test runner or CI sets to make programs speak as into a file."""
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    env |= {"TERM": "xterm-256color"}
    for name, value in changes.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env
