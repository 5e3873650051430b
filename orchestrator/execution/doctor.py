"""What a machine has for crystaltune, and what stands in its way, each with its cure."""

import getpass
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.ray_environment import asked_address, check_address, temporary_folder
from trainables.data.cache import cache_home, cache_note
from trainables.data.locate import data_home, task_file
from trainables.data.tasks import TASKS
from trainables.errors import UserError
from trainables.processes import memory_limit, n_cores

_PACKAGES = ("torch", "chgnet", "pymatgen", "ray", "optuna", "numpy", "pandas")
_LEAST_MEMORY, _LEAST_DISK = 4e9, 5e9  # bytes: jdft2d with two processes takes 2.2 GB, a search keeps checkpoints
_NO_HIDING = ("", "-1", "NoDevFiles")


class Level(StrEnum):
    """How a finding matters: as it should be, slower or smaller than it could be, or nothing will run."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        found: what there is, in a sentence.
        cure: what to do, where something is to be done.
    """

    name: str
    level: Level
    found: str
    cure: str = ""


def examine(results: Path = Path("runs")) -> Iterator[Finding]:
    """Look at everything, the quick things first; a check that fails itself is a finding too.

    Args:
        results: where runs will be written.
    """
    checks: tuple[Callable[[], Finding], ...] = (
        _python, _cores, _memory, _compiler, _cache, partial(_disk, results), _data, _ray_sockets, _ray_address,
        _matbench, _gpu,
    )  # fmt: skip
    for check in checks:
        try:
            yield check()
        except Exception as error:  # one that cannot be made must not hide the others
            name = getattr(check, "__name__", "_disk").strip("_").replace("_", " ")
            yield Finding(name, Level.WARNING, f"this could not be checked ({type(error).__name__}: {error})")


def _python() -> Finding:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    found = f"Python {platform.python_version()} ({sys.executable}); crystaltune {version('crystaltune')}, {packages}"
    return Finding("versions", Level.OK, found)


def _cores() -> Finding:
    usable, there = n_cores(), os.cpu_count() or 1
    if usable < there:
        return Finding("cores", Level.OK, f"{usable} of {there}: an affinity or the container's quota allows no more")
    return Finding("cores", Level.OK, f"{usable}")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = min(total, memory_limit())
    limited = "" if usable == total else f" (the container's limit; the machine has {total / 1e9:.1f} GB)"
    found = f"{usable / 1e9:.1f} GB{limited}"
    if usable < _LEAST_MEMORY:
        return Finding("memory", Level.WARNING, found, "train one model at a time: `processes=1`")
    return Finding("memory", Level.OK, found)


def _compiler() -> Finding:
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        cure = "install one (g++ or clang) to train long runs a third faster; everything works without"
        return Finding("compiler", Level.WARNING, "no C++ compiler is installed", cure)
    return Finding("compiler", Level.OK, str(shutil.which(compiler)))


def _cache() -> Finding:
    folder = cache_home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror})"
        return Finding("cache", Level.PROBLEM, reason, "set CRYSTALTUNE_CACHE to a folder of yours")
    note = cache_note()
    return Finding("cache", Level.WARNING if note else Level.OK, note or str(folder))


def _disk(results: Path) -> Finding:
    there = next(folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists())
    places = {place: shutil.disk_usage(place).free for place in (there, cache_home()) if place.exists()}
    found = ", ".join(f"{free / 1e9:.1f} GB free at {place}" for place, free in places.items())
    if min(places.values()) < _LEAST_DISK:
        cure = "free some space, or use another `out` and CRYSTALTUNE_CACHE"
        return Finding("disk", Level.WARNING, found, cure)
    return Finding("disk", Level.OK, found)


def _data() -> Finding:
    here = [name.removeprefix("matbench_") for name, task in TASKS.items() if task_file(task) is not None]
    where = "MATMINER_DATA" if os.environ.get("MATMINER_DATA") else "the cache"
    if here:
        found = f"{', '.join(here)} (in {where}: {data_home()}); other tasks are downloaded when they are named"
        return Finding("Matbench data", Level.OK, found)
    if not data_home().is_dir() and os.environ.get("MATMINER_DATA"):
        cure = "correct MATMINER_DATA, or unset it"
        return Finding("Matbench data", Level.PROBLEM, f"{data_home()} does not exist", cure)
    found = f"none yet in {data_home()}; a task is downloaded when it is named"
    return Finding("Matbench data", Level.OK, found)


def _ray_sockets() -> Finding:
    try:
        folder = temporary_folder()
    except UserError as error:
        return Finding("Ray's folder", Level.PROBLEM, str(error))
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"
    if folder == usual:
        return Finding("Ray's folder", Level.OK, str(folder))
    owner = f"it belongs to {usual.owner()}" if usual.exists() else "its path is too long for sockets, or it is closed"
    if usual.exists() and usual.owner() == getpass.getuser():
        owner = "its path is too long for sockets"
    return Finding("Ray's folder", Level.OK, f"{folder}, because {usual} cannot be used ({owner})")


def _ray_address() -> Finding:
    told, address = asked_address(None)
    if os.environ.get("RAY_AUTH_MODE") == "token" and not _has_token():
        found = "RAY_AUTH_MODE=token, and there is no token (RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        return Finding("Ray", Level.PROBLEM, found, "copy the cluster's token there, or unset RAY_AUTH_MODE")
    if address is None:
        return Finding("Ray", Level.OK, "started on this machine when it is needed (RAY_ADDRESS is not set)")
    try:
        check_address(None)
    except UserError as error:
        found, _, cure = str(error).partition("; ")
        return Finding("Ray", Level.PROBLEM, found, cure)
    return Finding("Ray", Level.OK, f"a cluster answers at {address} ({told})")


def _has_token() -> bool:
    """Return whether Ray would find a token, where it looks for one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False


def _matbench() -> Finding:
    from orchestrator.record.matbench import INSTALL_MATBENCH

    try:
        return Finding("matbench", Level.OK, f"{version('matbench')}: records are validated with it, too")
    except PackageNotFoundError:
        found = "not installed, and not needed: records are checked by crystaltune"
        return Finding("matbench", Level.OK, found, f"to have them validated by it, too: {INSTALL_MATBENCH}")


def _gpu() -> Finding:
    import torch

    from orchestrator.execution.gpu_check import unused_gpu

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)
        return Finding("GPU", Level.OK, f"{names}; PyTorch {torch.__version__} uses it")
    if reason := unused_gpu():
        found, _, cure = reason.rpartition(": ")
        return Finding("GPU", Level.PROBLEM, found, cure)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in _NO_HIDING:
        return Finding("GPU", Level.OK, f"hidden by CUDA_VISIBLE_DEVICES={hidden}: runs on the CPU")
    return Finding("GPU", Level.OK, "none: runs on the CPU")
