"""Where a Matbench task's file is, and fetching it where there is a network."""

import os
from importlib.util import find_spec
from pathlib import Path

from trainables.data.cache import cache_home
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import sha256_of_file, write_atomically
from trainables.progress import Progress, silent

_TIMEOUT_SECONDS = 20
_DOWNLOADS = "https://ml.materialsproject.org/projects"
# Of each task's json.gz, as matminer lists them; tests compare this table with matminer's.
_SHA256 = {
    "matbench_mp_e_form": "dedcb1d4ba2e3e50dbdd45ba5bc647a00e9c2bcf8f8bf556dc8e92caa39eb21f",
    "matbench_mp_gap": "58b65746bd88329986ed66031a2ac1369c7c522f7bc9f9081528e07097c2c057",
    "matbench_perovskites": "4641e2417f8ec8b50096d2230864468dfa08278dc9d257c327f65d0305278483",
    "matbench_log_gvrh": "098af941f4c663270f1fe21abf20ffad6fb85ecbfcba5786ceac03983ac29da7",
    "matbench_log_kvrh": "44b113ddb7e23aa18731a62c74afa7e5aa654199e0db5f951c8248a00955c9cd",
    "matbench_dielectric": "83befa09bc2ec2f4b6143afc413157827a90e5e2e42c1eb507ccfa01bf26a1d6",
    "matbench_phonons": "4db551f21ec5f577e6202725f10e34dfc509aa7df3a6bdaac497da7f6dbbb9b3",
    "matbench_jdft2d": "26057dc4524e193e32abffb296ce819b58b6e11d1278cae329a2f97817a4eddf",
}


def data_home() -> Path:
    """MATMINER_DATA where it is set, else crystaltune's own cache folder."""
    return Path(os.environ.get("MATMINER_DATA") or cache_home() / "matbench").expanduser()


def task_file(task: Task) -> Path | None:
    """Return the task's json.gz where it is already there: in data_home(), or in matminer's own folder."""
    places = (folder / f"{task.name}.json.gz" for folder in (data_home(), *_matminer_folders()))
    return next((path for path in places if path.is_file()), None)


def matbench_file(task: Task, progress: Progress = silent) -> Path:
    """Return the task's json.gz: in data_home(), in matminer's own folder, or downloaded into data_home().

    A file that is already there is taken as it is; only a download is compared with the published hash.

    Raises:
        UserError: there is no file and it cannot be fetched, with the place to put it by hand.
    """
    if (there := task_file(task)) is not None:
        return there
    named = os.environ.get("MATMINER_DATA")
    if named and not data_home().is_dir():
        what = "is not a folder" if data_home().exists() else "does not exist"
        raise UserError(f"MATMINER_DATA={named} {what}: set it to the folder of Matbench's files, or unset it")
    name = f"{task.name}.json.gz"
    path, url = data_home() / name, f"{_DOWNLOADS}/{name}"
    try:
        write_atomically(path, lambda temporary: _download(url, _SHA256[task.name], temporary, progress))
    except (OSError, _BadDownload) as error:  # what requests raises is an OSError, too
        reason = str(error) if isinstance(error, _BadDownload) else type(error).__name__
        raise UserError(
            f"{name} is not here and could not be downloaded ({reason}): fetch {url} by hand and put it "
            f"at {path}, or set MATMINER_DATA to the folder that holds it"
        ) from None
    return path


class _BadDownload(Exception):
    """What arrived is not the published file."""


def _matminer_folders() -> list[Path]:
    """Where matminer keeps what it has downloaded, if it is installed; found without importing it."""
    spec = find_spec("matminer")
    return [Path(folder) / "datasets" for folder in (spec.submodule_search_locations or ())] if spec else []


def _download(url: str, sha256: str, path: Path, progress: Progress) -> None:
    import requests  # a tenth of a second, and a file is fetched once

    with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as reply:
        reply.raise_for_status()
        size = int(reply.headers.get("Content-Length") or 0) or None
        with progress.stage("download", size, "bytes") as bar, path.open("wb") as out:
            for chunk in reply.iter_content(1 << 18):
                out.write(chunk)
                bar.advance(len(chunk))
    if sha256_of_file(path) != sha256:
        raise _BadDownload("the downloaded file's hash is not the published one")
