"""The folder for what can be made again: graphs, the sample, downloads, compiled code."""

import os
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """CRYSTALTUNE_CACHE where it is set, else crystaltune in the user's cache folder.

    Where that cannot be made (a container's user without a home, for one) it lies among the temporary files.
    """
    base = os.environ.get("CRYSTALTUNE_CACHE")
    if base:
        return Path(base).expanduser().resolve()  # trials run in other folders
    folder = _users_cache()
    if folder is not None and _can_be_made(folder):
        return (folder / "crystaltune").resolve()
    return Path(tempfile.gettempdir()).resolve() / f"crystaltune-{os.getuid()}"


def cache_note() -> str:
    """Why the cache is not where it should be, for whoever begins something long; empty where it is."""
    folder = _users_cache()
    if os.environ.get("CRYSTALTUNE_CACHE") or (folder is not None and _can_be_made(folder)):
        return ""
    where = "no home folder is known" if folder is None else f"{folder} cannot be written"
    return f"{where}: graphs are kept in {cache_home()} (set CRYSTALTUNE_CACHE to choose the folder)"


def _users_cache() -> Path | None:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # there is no home
        return None


def _can_be_made(folder: Path) -> bool:
    """Return True where it is there to be written, or can be made in a folder that is: homes are not made here."""
    there = folder if folder.exists() else folder.parent
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
