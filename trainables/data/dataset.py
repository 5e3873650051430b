"""Dataset: ids, crystals and targets, checked; and its readers for Matbench tables and the user's own."""

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.crystals import Crystal, CrystalTable
from trainables.data.matbench_file import is_matbench_layout, open_text, read_matbench_file
from trainables.data.structures import BadStructure, read_crystal
from trainables.data.tasks import Task, custom_task
from trainables.errors import UserError, listed
from trainables.progress import Progress, silent

ID_COLUMNS = ("id", "material_id", "mbid", "name")
STRUCTURE_COLUMNS = ("structure", "cif", "cif_path", "path")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked table.

    Attributes:
        ids: unique, in table order; official mbids for Matbench tasks.
        structures: the crystals, packed.
        targets: (n,) finite, in the task's unit.
        official_row: (n,) 0-based rows of the whole Matbench task, or None outside Matbench.
    """

    ids: tuple[str, ...]
    structures: CrystalTable
    targets: NDArray[np.float64]
    task: Task
    official_row: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def partial(self) -> bool:
        """True where the task is a Matbench one and some of its rows are missing."""
        return self.task.official_rows is not None and len(self) != self.task.official_rows

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, crystals, targets and what the task says of them."""
        sha = hashlib.sha256(self.structures.digest.encode())
        sha.update(
            json.dumps([self.task.name, self.task.target, self.task.quantity, self.task.unit, *self.ids]).encode()
        )
        sha.update(np.ascontiguousarray(self.targets).tobytes())
        return sha.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> "Dataset":
        """Return these rows, in this order."""
        official = None if self.official_row is None else self.official_row[rows]
        ids = tuple(self.ids[int(row)] for row in rows)
        return Dataset(ids, self.structures.take(rows), self.targets[rows], self.task, official)

    def limit(self, n_rows: int | None, seed: int = 0) -> "Dataset":
        """Return a seeded random choice of `n_rows` rows in table order, or the whole table."""
        if n_rows is None or n_rows >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), n_rows, replace=False)
        return self.take(np.sort(chosen))


_MOST_IDS = 10  # of a kind of bad rows, in a message


class _Builder:
    """Collects good rows and the ids of bad ones, by kind."""

    def __init__(self, source: str, folder: Path) -> None:
        self._source, self._folder = source, folder
        self.ids: list[str] = []
        self._crystals: list[Crystal] = []
        self._targets: list[float] = []
        self._bad: dict[str, list[str]] = defaultdict(list)

    def add(self, row_id: str, structure: Any, target: Any, *, needs_target: bool = True) -> None:
        self.ids.append(row_id)
        value = _number(target)
        if needs_target and not np.isfinite(value):
            self._bad["missing or non-finite targets"].append(row_id)
            return
        try:
            self._crystals.append(read_crystal(structure, self._folder))
            self._targets.append(value)
        except BadStructure as problem:
            self._bad[problem.kind].append(row_id)

    def finish(self, task: Task, official_row: Iterable[int] | None = None) -> Dataset:
        doubles = [row_id for row_id, count in Counter(self.ids).items() if count > 1]
        if doubles:
            self._bad["duplicate ids"] = doubles
        if self._bad:
            kinds = "; ".join(f"{kind}: {listed(ids, _MOST_IDS)}" for kind, ids in self._bad.items())
            raise UserError(f"{self._source} has rows that cannot be used (correct or remove them): {kinds}")
        if not self.ids:
            raise UserError(f"{self._source} has no rows; at least one structure is needed")
        rows = None if official_row is None else np.array(list(official_row), dtype=np.int64)
        return Dataset(tuple(self.ids), CrystalTable.pack(self._crystals), np.array(self._targets), task, rows)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def read_matbench(path: Path, task: Task, progress: Progress = silent) -> Dataset:
    """Read a whole or partial Matbench table; its index is the official row.

    Raises:
        UserError: damaged file, wrong columns, rows outside the task, or unusable rows (ids listed).
    """
    builder = _Builder(str(path), path.parent)
    header: dict[str, list[Any]] = {}
    rows: list[Any] = []
    columns: tuple[int, int] | None = None
    with progress.stage(f"read {path.name}", task.official_rows, "rows") as bar:
        for key, value in read_matbench_file(path):
            if key != "row":
                header[key] = value
                continue
            if "index" not in header or "columns" not in header:
                rows.append(value)  # the data came first: keep them until the header is known
                continue
            columns = columns or _structure_and_target(header["columns"], task, path)
            _add_row(builder, task, header["index"], len(builder.ids), value, columns, path)
            bar.advance(1)
        columns = columns or _structure_and_target(header["columns"], task, path)
        for number, value in enumerate(rows):
            _add_row(builder, task, header["index"], number, value, columns, path)
    if len(builder.ids) != len(header["index"]):
        raise UserError(f"{path} has {len(header['index'])} index entries but {len(builder.ids)} rows")
    return builder.finish(task, header["index"])


def _structure_and_target(columns: list[Any], task: Task, path: Path) -> tuple[int, int]:
    if "structure" not in columns or task.target not in columns:
        raise UserError(f"{path} has columns {listed(columns)}; {task.name} requires 'structure' and '{task.target}'")
    return columns.index("structure"), columns.index(task.target)


def _add_row(
    builder: _Builder, task: Task, index: list[Any], number: int, value: Any, columns: tuple[int, int], path: Path
) -> None:
    official, n_rows = index[number] if number < len(index) else None, task.official_rows or 0
    if not isinstance(official, int) or not 0 <= official < n_rows:
        raise UserError(f"{path}: index entry {official!r} is not an official row of {task.name} (0 to {n_rows - 1})")
    if not isinstance(value, list) or len(value) <= max(columns):
        raise UserError(f"{path}: row {number} is not a list of structure and target")
    builder.add(task.mbid(official), value[columns[0]], value[columns[1]])


def read_table(path: Path, name: str, target: str | None = None, *, unit: str = "", energy: bool = False) -> Dataset:
    """Read the user's own CSV or JSON table: an id, a structure and a target column.

    The structure is CIF text, the path of a CIF file, or a pymatgen dictionary. Without `target`, the one
    numeric column that is neither id nor structure is the target.

    Args:
        energy: the target is an energy in eV/atom, so CHGNet's energy head fits it.

    Raises:
        UserError: unreadable file, missing columns, or unusable rows (ids listed).
    """
    return _dataset_of(read_frame(path), str(path), path.parent, name, target, unit=unit, energy=energy)


def dataset_of_frame(
    table: pd.DataFrame, name: str, target: str | None = None, *, unit: str = "", energy: bool = False
) -> Dataset:
    """Read a table that is in memory: as `read_table`, whose structures may also be pymatgen Structures.

    Without a column of ids, the index has them. Paths of CIF files are taken from the current folder.

    Raises:
        UserError: missing columns, or unusable rows (ids listed).
    """
    return _dataset_of(with_ids(table), "the table", Path(), name, target, unit=unit, energy=energy)


def with_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a column of ids: its own, or its index."""
    doubles = [str(name) for name in table.columns[table.columns.duplicated()].unique()]
    if doubles:
        raise UserError(f"the table has several columns named {listed(doubles)}: rename or drop all but one of each")
    if any(name in table.columns for name in ID_COLUMNS):
        return table
    if table.index.nlevels > 1:
        ids = ["-".join(map(str, levels)) for levels in table.index]
        return table.assign(**{ID_COLUMNS[0]: ids})
    return table.assign(**{ID_COLUMNS[0]: table.index.astype(str)})


def _dataset_of(
    table: pd.DataFrame, source: str, folder: Path, name: str, target: str | None, *, unit: str, energy: bool
) -> Dataset:
    id_column = _column(table, ID_COLUMNS, "id", source)
    structure_column = _column(table, STRUCTURE_COLUMNS, "structure", source)
    target = _target_column(table, target, {id_column, structure_column}, source)
    task = custom_task(name, target, unit, "energy_per_atom" if energy else "property")
    builder = _Builder(source, folder)
    for row_id, structure, value in _cells(table, source, id_column, structure_column, target):
        builder.add(row_id, structure, value)
    return builder.finish(task)


def read_structures(path: Path, task: Task) -> Dataset:
    """Read structures to predict: a table (its targets, if any, become NaN), a Matbench table, or one CIF file.

    Raises:
        UserError: unreadable file, missing columns, or unusable structures (ids listed).
    """
    builder = _Builder(str(path), path.parent)
    if path.suffix.lower() == ".cif":
        builder.add(path.stem, path.name, None, needs_target=False)
        return builder.finish(task)
    if is_matbench_layout(path):
        if not task.is_matbench:
            raise UserError(f"{path} is a Matbench table, the model predicts '{task.name}'; give a CSV or JSON table")
        return read_matbench(path, task)
    return _structures_of(read_frame(path), builder, str(path), task)


def structures_of_frame(table: pd.DataFrame, task: Task) -> Dataset:
    """Read structures to predict from a table that is in memory; without a column of ids, the index has them.

    Raises:
        UserError: missing columns, or unusable structures (ids listed).
    """
    return _structures_of(with_ids(table), _Builder("the table", Path()), "the table", task)


def _structures_of(table: pd.DataFrame, builder: _Builder, source: str, task: Task) -> Dataset:
    id_column = _column(table, ID_COLUMNS, "id", source)
    structure_column = _column(table, STRUCTURE_COLUMNS, "structure", source)
    for row_id, structure, _ in _cells(table, source, id_column, structure_column, id_column):
        builder.add(row_id, structure, None, needs_target=False)
    return builder.finish(task)


def _cells(table: pd.DataFrame, path: str, *columns: str) -> Iterator[tuple[str, Any, Any]]:
    ids = table[columns[0]]
    nameless = np.flatnonzero(ids.isna() | (ids.astype(str).str.strip() == ""))
    if len(nameless):
        raise UserError(f"{path} has no id in rows {listed(nameless)} (counted from 0): give every row an id")
    for row_id, structure, value in zip(*(table[column] for column in columns), strict=True):
        yield str(row_id), structure, value


def read_frame(path: Path) -> pd.DataFrame:
    """Read CSV or JSON (a list of records, or a mapping of columns), plain or gzipped."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; a CSV or JSON table was expected")
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".csv"):
            # Words such as NA are ids like others; as targets they are no numbers, and so refused by their ids.
            return pd.read_csv(path, dtype=dict.fromkeys(ID_COLUMNS, str), keep_default_na=False)
        with open_text(path) as handle:
            return pd.DataFrame(json.load(handle))
    except (ValueError, EOFError, OSError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} is truncated or not a CSV/JSON table: {reason}") from None


def _column(table: pd.DataFrame, names: tuple[str, ...], what: str, path: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    there = listed(column for column in table.columns if column not in ID_COLUMNS) or "none"
    raise UserError(f"{path} has no column of {what}s (its columns: {there}); name one {' or '.join(names)}")


def _target_column(table: pd.DataFrame, target: str | None, taken: set[str], path: str) -> str:
    if target is not None:
        if target not in table.columns:
            raise UserError(f"{path} has no column '{target}'; it has {listed(table.columns)}")
        if target in taken:
            raise UserError(f"{path}: column '{target}' cannot be the target, it has the ids or structures")
        if len(table) and not pd.to_numeric(table[target], errors="coerce").notna().any():
            first = repr(table[target].iloc[0])[:60]
            raise UserError(
                f"{path}: column '{target}' has no numbers (its first value is {first}); choose another target"
            )
        return target
    left = [column for column in table.columns if column not in taken]
    if "target" in left:
        return "target"
    numeric = [column for column in left if pd.to_numeric(table[column], errors="coerce").notna().any()]
    if len(numeric) != 1:
        raise UserError(f"{path} has {len(numeric)} numeric columns ({listed(numeric)}); choose one with `target`")
    return str(numeric[0])
