"""Where a Matbench task's file is, and fetching it where there is a network."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import requests

from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import sha256_of_file, write_atomically
from trainables.progress import Progress, silent

_TIMEOUT_SECONDS = 20


def data_home() -> Path:
    """MATMINER_DATA where it is set, else crystaltune's own cache folder."""
    return Path(os.environ.get("MATMINER_DATA") or cache_home() / "matbench").expanduser()


def cache_home() -> Path:
    """CRYSTALTUNE_CACHE where it is set, else crystaltune in the user's cache folder."""
    base = os.environ.get("CRYSTALTUNE_CACHE")
    if base:
        return Path(base).expanduser().resolve()  # trials run in other folders
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crystaltune"


def matbench_file(task: Task, progress: Progress = silent) -> Path:
    """The task's json.gz: in data_home(), in matminer's own folder, or downloaded into data_home().

    A file that is already there is taken as it is; only a download is compared with matminer's hash.

    Raises:
        UserError: there is no file and it cannot be fetched, with the place to put it by hand.
    """
    name = f"{task.name}.json.gz"
    for folder in (data_home(), Path(str(files("matminer.datasets")))):
        if (folder / name).is_file():
            return folder / name
    path = data_home() / name
    source = _matminer_entry(task.name)
    try:
        write_atomically(path, lambda temporary: _download(source, temporary, progress))
    except (requests.RequestException, OSError, _BadDownload) as error:
        reason = str(error) if isinstance(error, _BadDownload) else type(error).__name__
        raise UserError(
            f"{name} is not here and could not be downloaded ({reason}): fetch {source['url']} by hand and put it "
            f"at {path}, or set MATMINER_DATA to the folder that holds it"
        ) from None
    return path


class _BadDownload(Exception):
    """What arrived is not what matminer lists."""


def _matminer_entry(name: str) -> dict[str, Any]:
    """matminer's own record of a dataset: url and sha256."""
    text = files("matminer.datasets").joinpath("dataset_metadata.json").read_text(encoding="utf-8")
    entry: dict[str, Any] = json.loads(text)[name]
    return entry


def _download(source: dict[str, Any], path: Path, progress: Progress) -> None:
    with requests.get(source["url"], stream=True, timeout=_TIMEOUT_SECONDS) as reply:
        reply.raise_for_status()
        size = int(reply.headers.get("Content-Length") or 0) or None
        with progress.stage("download", size, "bytes") as bar, path.open("wb") as out:
            for chunk in reply.iter_content(1 << 18):
                out.write(chunk)
                bar.advance(len(chunk))
    if sha256_of_file(path) != source["hash"]:
        raise _BadDownload("the downloaded file's hash is not the one matminer lists")
