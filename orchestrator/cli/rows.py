"""The options that say which rows a command is about, declared once: commands get the Source that they make."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from orchestrator.cli.options import (
    DataFile,
    DropMissing,
    Energy,
    FoldColumn,
    FoldsBy,
    IdColumn,
    Limit,
    PerCell,
    StructureColumn,
    Target,
    TaskName,
    TestFile,
    TotalEnergy,
    Unit,
)
from orchestrator.inputs.source import Source, name_of_file
from trainables.errors import UserError

# By the name of the Source's field: its option and its default.
_OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "task": (TaskName, None),
    "file": (DataFile, None),
    "target": (Target, None),
    "unit": (Unit, ""),
    "energy": (Energy, False),
    "limit": (Limit, None),
    "id": (IdColumn, None),
    "structure": (StructureColumn, None),
    "drop_missing": (DropMissing, False),
    "total_energy": (TotalEnergy, False),
    "per_cell": (PerCell, False),
    "folds_by": (FoldsBy, None),
    "fold_column": (FoldColumn, None),
    "test": (TestFile, None),
}
LOOKED_AT = ("target", "unit", "energy", "limit", "id", "structure", "drop_missing", "total_energy", "per_cell")


def takes_rows(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put the options of a Source's fields in the place of a command's parameter `source`.

    Args:
        fields: by default all that have an option; without `task`, the Source's own is "table".
    """
    chosen = fields or tuple(_OPTIONS)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)

        @wraps(command)
        def run(**given: Any) -> None:
            named = {name: given.pop(name) for name in chosen}
            command(source=Source(**{**named, "task": _task_of(named)}), **given)

        kept = [each for each in signature.parameters.values() if each.name != "source"]
        parameters = [_parameter(name) for name in chosen] + [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in kept
        ]
        # What typer reads a command's options from.
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        return run

    return decorate


def _task_of(named: Mapping[str, Any]) -> str:
    """Return the task that was named, or a name for the caller's own table."""
    if "task" not in named:
        return "table"
    if named["task"] is not None:
        return str(named["task"])
    if named.get("file") is None:
        raise UserError("Missing argument 'TASK': a Matbench task, or your own rows with `data=FILE`")
    return name_of_file(named["file"])


def _parameter(name: str) -> inspect.Parameter:
    annotation, default = _OPTIONS[name]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
