"""Crystals to predict, in whatever form a caller has them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trainables.errors import UserError
from trainables.progress import Progress, silent

if TYPE_CHECKING:
    from trainables.data.tasks import Task
    from trainables.data.to_predict import ToPredict


def crystals_of(data: Any, task: "Task", progress: Progress = silent) -> "ToPredict":
    """Read one crystal, several, or what a path or a DataFrame holds.

    Raises:
        UserError: it is none of these, or nothing in it can be read.
    """
    from trainables.data.to_predict import read_structures, structures_of_frame

    if isinstance(data, pd.DataFrame):
        return structures_of_frame(data, task)
    if isinstance(data, os.PathLike) or (isinstance(data, str) and not _is_text(data)):
        return read_structures(Path(data), task, progress=progress)
    if _is_one(data):
        data = [data]
    if not isinstance(data, Iterable):
        raise UserError(f"`data` of type {type(data).__name__}: a path, a DataFrame or Structures were expected")
    crystals = list(data)
    if crystals and all(isinstance(each, str | os.PathLike) and _is_there(each) for each in crystals):
        return read_structures([Path(each) for each in crystals], task, progress=progress)
    return structures_of_frame(pd.DataFrame({"structure": pd.Series(crystals, dtype=object)}), task)


def _is_text(data: str) -> bool:
    """Return whether it is a crystal's text, not a path."""
    from trainables.data.structure_text import looks_like_text

    return looks_like_text(data.strip())


def _is_one(data: Any) -> bool:
    """Return whether it is one crystal: a dictionary, text, or an object of pymatgen, ASE or JARVIS."""
    objects = ("sites", "get_positions", "lattice_mat", "structure")  # an attribute of each
    return isinstance(data, str | Mapping) or any(hasattr(data, name) for name in objects)


def _is_there(data: "str | os.PathLike[str]") -> bool:
    return (isinstance(data, os.PathLike) or not _is_text(data)) and Path(data).exists()
