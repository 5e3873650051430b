"""A headless Chromium, spoken to over its debugging pipe: pages at any width, light or dark, and what they compute."""

import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_PATIENCE_SECONDS = 60
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def installed() -> str | None:
    """The path of a Chromium, if there is any."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One tab. Commands and answers are JSON ended by a zero byte, on the browser's descriptors 3 and 4."""

    def __init__(self, program: str, profile: Path) -> None:
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        given = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (reads, writes)]  # neither is 3 or 4 itself
        command = [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "bash", *command],
            pass_fds=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (reads, writes, *given):
            os.close(one)
        self._received = b""
        self._n_sent, self._session = 0, ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._n_sent += 1
        wanted = {"id": self._n_sent, "method": method, "params": params}
        message = wanted | ({"sessionId": self._session} if self._session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _answer(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._in], [], [], _PATIENCE_SECONDS)[0], "Chromium does not answer"
            more = os.read(self._in, 1 << 16)
            assert more, "Chromium has ended"
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))

    def show(self, page: Path, width: int, scheme: str, media: str = "screen") -> None:
        """Lay the page out: a telephone's or a screen's width in pixels, scheme "light" or "dark", or as printed."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self.send("Page.navigate", url=page.as_uri())
        ready = "new Promise(done => document.readyState == 'complete' ? done(1) : addEventListener('load', done))"
        self.value(f"{ready}.then(() => 1)")

    def value(self, script: str) -> Any:
        """What a script's expression or promise comes to in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")
