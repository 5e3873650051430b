"""Graph stores on a cluster: built once, by the driver; a node that does not see them gets one copy of each.

A store's folder is named by what it holds, so that a store of that name anywhere is the right one.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock

from orchestrator.execution.job import Job
from trainables.data.cache import cache_home
from trainables.errors import UserError
from trainables.graphs.store import is_whole
from trainables.training.trial import TrialData

_PART_BYTES = 32 * 1024**2
_KEPT = (".bin", ".json", ".npy")

Fetch = Callable[[Path], Path]  # a store's folder on the driver's machine -> where it is here


class StoreKeeper:
    """An actor on the driver's machine that reads stores for nodes which do not share its cache."""

    def files(self, folder: Path) -> dict[str, int]:
        """Return the sizes in bytes of a store's files, by name; of what is just being written or waited for, none."""
        files = (file for file in sorted(folder.iterdir()) if file.suffix in _KEPT and not file.name.startswith("."))
        return {file.name: file.stat().st_size for file in files}

    def read(self, file: Path, offset: int) -> bytes:
        """Return a part of a file."""
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(_PART_BYTES)


def fetch_from(keeper: Any) -> Fetch:
    """Return what finds a store on this node, or copies it here from an actor of StoreKeeper."""

    def files(folder: Path) -> dict[str, int]:
        sizes: dict[str, int] = ray.get(keeper.files.remote(folder))
        return sizes

    def read(file: Path, offset: int) -> bytes:
        part: bytes = ray.get(keeper.read.remote(file, offset))
        return part

    return lambda folder: found_or_copied(folder, files, read)


def found_or_copied(
    folder: Path, files: Callable[[Path], dict[str, int]], read: Callable[[Path, int], bytes], root: Path | None = None
) -> Path:
    """Return where a store is on this machine: where the driver has it, or in this machine's own cache.

    Args:
        files, read: as those of StoreKeeper.
        root: of this machine's stores; by default the cache's.

    Raises:
        UserError: it cannot be copied.
    """
    if is_whole(folder):
        return folder
    here = (root or cache_home() / "graphs") / folder.name
    if is_whole(here):
        return here
    try:
        here.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(here.parent / f"{folder.name}.lock"):  # the node's other workers want it as well
            if not is_whole(here):
                _copy(folder, here, files, read)
    except OSError as error:
        raise UserError(
            f"graphs cannot be copied to {here} ({error.strerror or error}): free space there, or set "
            "CRYSTALTUNE_CACHE to a folder that all nodes share"
        ) from None
    return here


def _copy(
    folder: Path, here: Path, files: Callable[[Path], dict[str, int]], read: Callable[[Path, int], bytes]
) -> None:
    """Copy into a temporary sibling and rename it: no reader sees half a store."""
    temporary = here.with_name(f".{here.name}.copy.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(here, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, size in files(folder).items():
            with (temporary / name).open("wb") as file:
                while file.tell() < size:
                    part = read(folder / name, file.tell())
                    if not part:
                        raise OSError(f"{folder / name} ended early")
                    file.write(part)
        temporary.rename(here)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def localised(job: Job, fetch: Fetch) -> Job:
    """Return a job with its stores where they are on this node."""
    return replace(
        job,
        store=fetch(job.store),
        skinned=None if job.skinned is None else fetch(job.skinned),
        views=tuple((way, None if path is None else fetch(path)) for way, path in job.views),
        auxiliary=tuple(replace(rows, store=fetch(rows.store)) for rows in job.auxiliary),
    )


def localised_trials(data: TrialData, fetch: Fetch) -> TrialData:
    """Return what trials share with its stores where they are on this node."""
    return replace(
        data,
        stores={key: fetch(store) for key, store in data.stores.items()},
        auxiliary=tuple((task, part, fetch(store)) for task, part, store in data.auxiliary),
    )
