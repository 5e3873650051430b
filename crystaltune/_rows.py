"""What a caller names as data: a task, a file, or a table in memory."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd

from orchestrator.inputs.source import Source, check_source, config_file, known_task, name_of_file, parse_folds
from orchestrator.report.progress import display
from trainables.config import RunConfig, dotted_names, for_task, load_config, merged
from trainables.data.formats import holds_rows, is_structure_file, is_table
from trainables.data.tasks import N_FOLDS, TASKS, full_name
from trainables.errors import UserError
from trainables.hints import closest, meant
from trainables.progress import Progress, silent

Data = str | os.PathLike[str] | pd.DataFrame
_TABLE = ("target", "unit", "energy", "limit", "id", "structure", "drop_missing", "total_energy", "per_cell")
_OF_ROWS = (*_TABLE, "folds_by", "fold_column")


class RowOptions(TypedDict, total=False):
    """How rows are read.

    Attributes:
        name: of a table of one's own, for its folder and reports; by default the file's, or the target's.
        target: column to predict; by default the only numeric one.
        unit: of the target, for tables and reports.
        energy: the target is an energy in eV/atom, which CHGNet's energy head fits.
        limit: use this many rows, chosen at random with a fixed seed.
        file: a local copy of a Matbench task's file, whole or partial.
        id, structure: columns of a table of one's own, where they have none of the usual names.
        drop_missing: leave out rows without a target.
        total_energy: the target is the energy of the whole cell in eV: it is divided by the number of atoms.
        per_cell: the target is a property of the whole cell, which grows with it.
        folds_by: what keeps rows in one fold: "formula", "chemical-system", "composition", "random" or a column.
        fold_column: column with the test fold of each row, 0 to 4; empty: never tested.
        test: a file or a DataFrame with the rows to test on; all others are trained on.
    """

    name: str
    target: str
    unit: str
    energy: bool
    limit: int
    file: str | os.PathLike[str]
    id: str
    structure: str
    drop_missing: bool
    total_energy: bool
    per_cell: bool
    folds_by: str
    fold_column: str
    test: str | os.PathLike[str] | pd.DataFrame


def source_of(data: Data, options: RowOptions) -> Source:
    """Return where rows come from.

    Args:
        data: the name of a Matbench task (or "synthetic_sample"), the path of a table, of a structure file or of a
            folder of them, or a DataFrame with a column `structure` of pymatgen Structures, ASE Atoms, dictionaries,
            text or paths of structure files; ids are in a column `id` or in the index.

    Raises:
        UserError: with what came and what was expected.
    """
    if not isinstance(data, str | os.PathLike | pd.DataFrame):
        raise UserError(
            f"`data` of type {type(data).__name__} cannot be read: use a task's name, the path of a table, or a pandas "
            "DataFrame with a column `structure` and one for the target"
        )
    named = picked(options, *_OF_ROWS)
    if isinstance(options.get("test"), pd.DataFrame):
        named["test_frame"] = options["test"]
    elif "test" in options:
        named["test"] = path_of(options["test"], "test")
    name, file = options.get("name"), options.get("file")
    if isinstance(data, pd.DataFrame):
        source = Source(name or _safe_name(options.get("target")), frame=data, **named)
    elif _is_table(data):
        path = Path(data)
        source = Source(name or name_of_file(path), path, **named)
    else:
        source = Source(str(data), None if file is None else Path(file), **named)
    check_source(source)
    return source


def _safe_name(target: object) -> str:
    """Return a name for a table in memory: its target column's, without what a folder's name cannot have."""
    return re.sub(r"[^A-Za-z0-9]+", "_", str(target or "")).strip("_") or "table"


def path_of(value: object, name: str) -> Path:
    """Return a path that was given as an argument.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"`{name}` of type {type(value).__name__}: a path was expected")
    return Path(value)


def names_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return names that were given as a list, or as one text with commas."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else tuple(value)


def picked(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of the options that were given."""
    return {name: options[name] for name in names if name in options}


def _is_table(data: str | os.PathLike[str]) -> bool:
    """Return whether it is a path: a Path, the name of a file that is there, or a name that ends as tables do."""
    if not isinstance(data, str):
        return True
    if full_name(data) in TASKS:
        return False
    path = Path(data)
    named = is_table(path) or is_structure_file(path) or glob.has_magic(data)
    return named or ((path.is_file() or (path.is_dir() and holds_rows(path))) and known_task(data) is None)


def chosen_settings(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str] | None,
    settings: Mapping[str, Any] | None,
    task: str,
    progress: Progress,
) -> dict[str, Any]:
    """Return the settings of a configuration for a task, with `settings` (nested or dotted keys) over them."""
    if not isinstance(settings or {}, Mapping):
        raise UserError(
            f"`settings` of type {type(settings).__name__}: a dictionary was expected, such as {{'optim.lr': 3e-4}}"
        )
    if config is None:
        content: Mapping[str, Any] = {}
    elif isinstance(config, RunConfig):
        content = config.model_dump(mode="json")
    elif isinstance(config, Mapping):
        content = config
    else:
        content = load_config(config_file(path_of(config, "config")))
    chosen, note = for_task(content, task, "`config`" if isinstance(config, RunConfig | Mapping) else str(config))
    if note:
        progress.message(note)
    for key, chosen_by in (("task", "the first argument"), ("fold", "`folds` or `fold`")):
        if key in (settings or {}):
            raise UserError(f"settings['{key}']: it is chosen by {chosen_by}")
    return merged({}, chosen, settings or {})


def folds_of(folds: int | str | Iterable[int]) -> tuple[int, ...]:
    """Return which folds are meant, in order: 0, [0, 1], or text as of the command line, "0-4".

    Raises:
        UserError: others than 0 to 4, or none.
    """
    if isinstance(folds, str):
        return parse_folds(folds)
    if isinstance(folds, bool) or not isinstance(folds, int | Iterable):
        raise UserError(f"`folds={folds}`: a number or a list of numbers was expected, such as [0, 1]")
    chosen: list[Any] = [folds] if isinstance(folds, int) else list(dict.fromkeys(folds))
    if not chosen:
        raise UserError("`folds` is empty: name at least one fold, 0 to 4")
    if not all(isinstance(fold, int) and 0 <= fold < N_FOLDS for fold in chosen):
        raise UserError(f"`folds={folds}`: folds are 0 to {N_FOLDS - 1}")
    return tuple(sorted(chosen))


@contextmanager
def shown(progress: bool | Progress) -> Iterator[Progress]:
    """Show progress: bars in terminals and notebooks, lines elsewhere; nothing for False."""
    if not isinstance(progress, bool) and not hasattr(progress, "message"):
        raise UserError(f"`progress={progress!r}`: True, False or an object with `message` and `stage` was expected")
    if progress is True:
        with display() as bars:
            yield bars
    else:
        yield silent if progress is False else progress


def reject_unknown_keywords(function: Callable[..., Any], given: Mapping[str, Any], options: type) -> None:
    """Raise a TypeError for keywords that a function's TypedDict of options does not have, with what may be meant."""
    named = [name for name in signature(function).parameters if name != "options"]
    known = [*named, *sorted(options.__annotations__)]
    for name in given:
        if name not in options.__annotations__:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{_meant(name, known)}")


def _meant(name: str, known: Sequence[str]) -> str:
    near = closest(name, known, cutoff=0.85)
    setting = name in {key.rpartition(".")[2] for key in dotted_names()}
    if near is None and setting and "settings" in known:
        return f": it is a setting, so use settings={{'{meant(name, list(dotted_names()))[0]}': ...}}"
    near = near or closest(name, known, cutoff=0.7)
    return f" (did you mean '{near}'?)" if near else f"; it takes {', '.join(known)}"
