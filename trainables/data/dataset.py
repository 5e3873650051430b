"""Dataset: ids, crystals and targets, checked; and its readers for Matbench tables and the user's own."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.crystals import Crystal, CrystalTable
from trainables.data.bad_structures import BadStructure
from trainables.data.columns import ID, id_column, is_missing, number_of, structure_column, target_column
from trainables.data.gather import Rows, gather
from trainables.data.matbench_file import is_matbench_layout, read_matbench_file
from trainables.data.structures import read_crystal
from trainables.data.tasks import Task, custom_task
from trainables.errors import UserError, listed
from trainables.progress import Progress, silent


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
_FLOAT32 = 3e38  # the largest number that training can hold


@dataclass(frozen=True)
class Columns:
    """Columns by name, where the caller names them.

    Attributes:
        id, structure: of the ids and the structures; by default the first that has one of the usual names.
    """

    id: str | None = None
    structure: str | None = None


class _Builder:
    """Collects good rows and the ids of bad ones, by kind."""

    def __init__(self, source: str, folder: Path) -> None:
        self._source, self._folder = source, folder
        self.ids: list[str] = []
        self._crystals: list[Crystal] = []
        self._targets: list[float] = []
        self._bad: dict[str, list[str]] = defaultdict(list)

    def add(self, row_id: str, structure: Any, value: float, *, problem: str = "") -> None:
        """Add a row.

        Args:
            problem: of its target.
        """
        self.ids.append(row_id)
        if problem:
            self._bad[problem].append(row_id)
            return
        try:
            self._crystals.append(read_crystal(structure, self._folder))
            self._targets.append(value)
        except BadStructure as bad:
            self._bad[bad.kind].append(row_id)

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
    target = number_of(value[columns[1]])
    problem = "" if np.isfinite(target) else "missing or non-finite targets"
    builder.add(task.mbid(official), value[columns[0]], target, problem=problem)


def read_table(
    paths: Path | Iterable[Path],
    name: str,
    target: str | None = None,
    *,
    unit: str = "",
    energy: bool = False,
    columns: Columns = Columns(),
    drop_missing: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Read the user's own rows: a table, structure files that tell their properties, or a folder (see `gather`).

    Without `target`, the one numeric column that is neither id nor structure is the target. Rows without ids are
    numbered.

    Args:
        energy: the target is an energy in eV/atom, so CHGNet's energy head fits it.
        drop_missing: leave out rows whose target is empty, NaN, None or the like, and say how many.

    Raises:
        UserError: unreadable file, missing columns, or unusable rows (ids listed).
    """
    rows = gather([paths] if isinstance(paths, Path) else paths, progress)
    return _dataset_of(rows, name, target, unit, energy, columns, drop_missing, progress)


def dataset_of_frame(
    table: pd.DataFrame,
    name: str,
    target: str | None = None,
    *,
    unit: str = "",
    energy: bool = False,
    columns: Columns = Columns(),
    drop_missing: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Read a table that is in memory: as `read_table`, whose structures may also be pymatgen Structures.

    Without a column of ids, the index has them. Paths of structure files are taken from the current folder.

    Raises:
        UserError: missing columns, or unusable rows (ids listed).
    """
    rows = Rows(with_ids(table, columns), Path(), "the table")
    return _dataset_of(rows, name, target, unit, energy, columns, drop_missing, progress)


def with_ids(table: pd.DataFrame, columns: Columns = Columns()) -> pd.DataFrame:
    """Return a table with a column of ids: its own, or its index."""
    doubles = [str(name) for name in table.columns[table.columns.duplicated()].unique()]
    if doubles:
        raise UserError(f"the table has several columns named {listed(doubles)}: rename or drop all but one of each")
    table = table.rename(columns=str)
    if id_column(table, columns.id, "the table") is not None:
        return table
    if table.index.nlevels > 1:
        return table.assign(**{ID: ["-".join(map(str, levels)) for levels in table.index]})
    return table.assign(**{ID: table.index.astype(str)})


def _dataset_of(
    rows: Rows,
    name: str,
    target: str | None,
    unit: str,
    energy: bool,
    columns: Columns,
    drop_missing: bool,
    progress: Progress,
) -> Dataset:
    ids, table = _ids(rows, columns), rows.table
    structures = structure_column(table, columns.structure, rows.source)
    target = target_column(table, target, {structures, *filter(None, [_id_name(rows, columns)])}, rows.source)
    task = custom_task(name, target, unit, "energy_per_atom" if energy else "property")
    comma = bool(table.attrs.get("decimal_comma"))
    missing = np.array([is_missing(cell) for cell in table[target]], dtype=bool)
    if drop_missing and missing.any():
        dropped = [ids[place] for place in np.flatnonzero(missing)]
        progress.message(f"{len(dropped):,} rows without '{target}' are left out: {listed(dropped, _MOST_IDS)}")
    builder = _Builder(rows.source, rows.folder)
    with progress.stage(f"read {Path(rows.source).name}", len(ids), "rows") as bar:
        for row_id, structure, cell, empty in zip(ids, table[structures], table[target], missing, strict=True):
            if not (empty and drop_missing):
                value = number_of(cell, comma)
                builder.add(row_id, structure, value, problem=_problem(value, empty))
            bar.advance(1)
    return builder.finish(task)


def _problem(value: float, missing: bool) -> str:
    """Return what is wrong with a target, or an empty string."""
    if missing:
        return "missing targets (`drop_missing=True` leaves such rows out)"
    if np.isnan(value):
        return "targets that are no numbers"
    if np.isinf(value):
        return "infinite targets"
    return f"targets beyond {_FLOAT32:.0e}" if abs(value) > _FLOAT32 else ""


def read_structures(paths: Path | Iterable[Path], task: Task, columns: Columns = Columns()) -> Dataset:
    """Read structures to predict: whatever `gather` reads (targets, if any, become NaN), or a Matbench table.

    Raises:
        UserError: unreadable file, missing columns, or unusable structures (ids listed).
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    if len(given) == 1 and given[0].is_file() and is_matbench_layout(given[0]) and task.is_matbench:
        return read_matbench(given[0], task)
    rows = gather(given)
    return _structures_of(rows, task, columns)


def structures_of_frame(table: pd.DataFrame, task: Task, columns: Columns = Columns()) -> Dataset:
    """Read structures to predict from a table that is in memory; without a column of ids, the index has them.

    Raises:
        UserError: missing columns, or unusable structures (ids listed).
    """
    return _structures_of(Rows(with_ids(table, columns), Path(), "the table"), task, columns)


def _structures_of(rows: Rows, task: Task, columns: Columns) -> Dataset:
    builder = _Builder(rows.source, rows.folder)
    structures = structure_column(rows.table, columns.structure, rows.source)
    for row_id, structure in zip(_ids(rows, columns), rows.table[structures], strict=True):
        builder.add(row_id, structure, float("nan"))
    return builder.finish(task)


def _id_name(rows: Rows, columns: Columns) -> str | None:
    return id_column(rows.table, columns.id, rows.source)


def _ids(rows: Rows, columns: Columns) -> list[str]:
    """Return the rows' ids as they were written; numbers from 0 where there is no column of ids."""
    name = _id_name(rows, columns)
    if name is None:
        return [str(place) for place in range(len(rows.table))]
    ids = rows.table[name]
    nameless = np.flatnonzero(
        [cell is None or (isinstance(cell, float) and np.isnan(cell)) or not str(cell).strip() for cell in ids]
    )
    if len(nameless):
        raise UserError(f"{rows.source} has no id in rows {listed(nameless)} (counted from 0): give every row an id")
    return [str(cell) for cell in ids]
