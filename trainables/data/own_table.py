"""The user's own rows: a table in a file or in memory, structure files that tell their properties, folders of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.data.bad_structures import BadStructure
from trainables.data.columns import (
    ID,
    STRUCTURE_COLUMNS,
    id_column,
    is_missing,
    number_of,
    numbers_of,
    same_name,
    structure_column,
    target_column,
)
from trainables.data.dataset import MOST_IDS, BadRows, Dataset, RowCollector
from trainables.data.gather import Rows, gather
from trainables.data.grouping import GROUPINGS
from trainables.data.tasks import N_FOLDS, Quantity, Task, custom_task
from trainables.errors import UserError, listed
from trainables.hints import closest
from trainables.progress import Progress, silent

_FLOAT32 = 3e38  # the largest number that training can hold
_OBJECTS = 9  # of the names of columns with structures; the others may be names of files beside them


@dataclass(frozen=True)
class TableOptions:
    """How a table of one's own is read.

    Attributes:
        id, structure: columns of the ids and the structures; by default the first that has one of the usual names.
        drop_missing: leave out rows whose target is empty, NaN, None or the like, and say how many.
        total_energy: targets are energies of whole cells, which are divided by the number of atoms.
        per_cell: the target is a property of the whole cell, which grows with it.
        group: column whose cells keep rows on one side of a split.
        fold: column with the test fold of each row, 0 to 4; empty for rows that are never tested.
    """

    id: str | None = None
    structure: str | None = None
    drop_missing: bool = False
    total_energy: bool = False
    per_cell: bool = False
    group: str | None = None
    fold: str | None = None


_USUAL = TableOptions()


@dataclass(frozen=True)
class _Target:
    """What is to be predicted: its column (None: the only one with numbers), and the task that it makes."""

    name: str
    column: str | None
    unit: str
    energy: bool
    per_cell: bool

    def task(self, column: str) -> Task:
        kind: Quantity = "property_per_cell" if self.per_cell else "property"
        return custom_task(self.name, column, self.unit, "energy_per_atom" if self.energy else kind)


def read_table(
    paths: Path | Iterable[Path],
    name: str,
    target: str | None = None,
    *,
    unit: str = "",
    energy: bool = False,
    options: TableOptions = _USUAL,
    progress: Progress = silent,
) -> Dataset:
    """Read a table, structure files that tell their properties, or a folder (see `gather`).

    Without `target`, the one numeric column that is neither id nor structure is the target. Rows without ids are
    numbered.

    Args:
        energy: the target is an energy in eV/atom, so CHGNet's energy head fits it.

    Raises:
        UserError: unreadable file, missing columns, or unusable rows (ids listed).
    """
    rows = gather([paths] if isinstance(paths, Path) else paths, progress)
    return _dataset_of(rows, _Target(name, target, unit, energy, options.per_cell), options, progress)


def dataset_of_frame(
    table: pd.DataFrame,
    name: str,
    target: str | None = None,
    *,
    unit: str = "",
    energy: bool = False,
    options: TableOptions = _USUAL,
    progress: Progress = silent,
) -> Dataset:
    """Read a table that is in memory: as `read_table`, whose structures may also be objects of pymatgen, ASE or JARVIS.

    Without a column of ids, the index has them. Paths of structure files are taken from the current folder.

    Raises:
        UserError: missing columns, or unusable rows (ids listed).
    """
    rows = Rows(with_ids(table, options), Path(), "the table")
    return _dataset_of(rows, _Target(name, target, unit, energy, options.per_cell), options, progress)


def with_ids(table: pd.DataFrame, options: TableOptions = _USUAL) -> pd.DataFrame:
    """Return a table with a column of ids: its own, or its index."""
    table = table.rename(columns=str)
    doubles = [str(name) for name in table.columns[table.columns.duplicated()].unique()]
    if doubles:
        raise UserError(f"the table has several columns named {listed(doubles)}: rename or drop all but one of each")
    if id_column(table, options.id, "the table") is not None:
        return table
    if table.index.nlevels > 1:
        return table.assign(**{ID: ["-".join(map(str, levels)) for levels in table.index]})
    return table.assign(**{ID: table.index.astype(str)})


def ids_of(rows: Rows, options: TableOptions) -> list[str]:
    """Return the rows' ids as they were written; numbers from 0 where there is no column of ids.

    Raises:
        UserError: rows without an id.
    """
    name = id_column(rows.table, options.id, rows.source)
    if name is None:
        return [str(place) for place in range(len(rows.table))]
    ids = rows.table[name]
    empty = [cell is None or (isinstance(cell, float) and np.isnan(cell)) or not str(cell).strip() for cell in ids]
    if any(empty):
        raise UserError(
            f"{rows.source} has no id in rows {listed(np.flatnonzero(empty))} (counted from 0): give every row an id"
        )
    names = [str(cell) for cell in ids]
    odd = [ascii(name) for name in names if any("\ud800" <= mark <= "\udfff" for mark in name)]
    if odd:
        raise UserError(f"{rows.source} has ids with broken characters, which no file can hold: {listed(odd, 5)}")
    return names


def _dataset_of(rows: Rows, asked: _Target, options: TableOptions, progress: Progress) -> Dataset:
    ids, table = ids_of(rows, options), rows.table
    if not ids:
        raise UserError(f"{rows.source} has no rows; structures with their targets were expected")
    structures = structure_column(table, options.structure, rows.source)
    taken = {structures, *filter(None, [id_column(table, options.id, rows.source), options.group, options.fold])}
    _require_some(rows, ids, table[structures])
    target = target_column(table, asked.column, taken, rows.source)
    values = numbers_of(table[target], bool(table.attrs.get("decimal_comma")))
    missing = [is_missing(cell) for cell in table[target]]
    kept = [place for place in range(len(ids)) if not (missing[place] and options.drop_missing)]
    if len(kept) < len(ids):
        dropped = [row_id for row_id, empty in zip(ids, missing, strict=True) if empty]
        progress.message(f"{len(dropped):,} rows without '{target}' are left out: {listed(dropped, MOST_IDS)}")
    if not kept:
        raise UserError(f"{rows.source}: no row is left, as none has a '{target}'")
    others = [name for name in table.columns if name != structures and same_name(name) in STRUCTURE_COLUMNS[:_OBJECTS]]
    if others:
        progress.message(f"structures are those of column '{structures}', not of {listed(others, 3)}")
    collector, cells = RowCollector(rows.source, rows.folder), list(table[structures])
    with progress.stage(f"read {Path(rows.source).name}", len(kept), "rows") as bar:
        for place in kept:
            problem = _problem(values[place], missing[place])
            collector.add(ids[place], cells[place], values[place], problem=problem)
            bar.advance(1)
    dataset = collector.finish(asked.task(target))
    if options.total_energy:
        dataset = replace(dataset, targets=dataset.targets / dataset.structures.n_atoms)
    return _with_split(dataset, table.iloc[kept], options, rows.source)


def _require_some(rows: Rows, ids: Sequence[str], cells: Iterable[Any]) -> None:
    """Say what is wrong with structure files of which none can be read: what they tell of a target is not known.

    Raises:
        BadRows: with the reasons.
    """
    there = list(cells)
    if all(isinstance(cell, BadStructure) for cell in there):
        kinds: dict[str, list[str]] = {}
        for row_id, cell in zip(ids, there, strict=True):
            kinds.setdefault(cell.kind, []).append(row_id)
        raise BadRows(rows.source, kinds)


def _problem(value: float, missing: bool) -> str:
    """Return what is wrong with a target, or an empty string."""
    if missing:
        return "missing targets (`drop_missing=True` leaves such rows out)"
    if np.isnan(value):
        return "targets that are no numbers"
    if np.isinf(value):
        return "infinite targets"
    return f"targets beyond {_FLOAT32:.0e}" if abs(value) > _FLOAT32 else ""


def _with_split(dataset: Dataset, table: pd.DataFrame, options: TableOptions, source: str) -> Dataset:
    """Take over what the table itself says of groups and folds."""
    if options.group is not None:
        cells = _cells(table, options.group, source, GROUPINGS)
        # A row without a group stands for itself.
        groups = [
            f"row {row_id}" if is_missing(cell) else str(cell) for row_id, cell in zip(dataset.ids, cells, strict=True)
        ]
        dataset = replace(dataset, groups=tuple(groups))
    if options.fold is not None:
        dataset = replace(dataset, outer=_folds(_cells(table, options.fold, source), dataset.ids, options.fold))
    return dataset


def _cells(table: pd.DataFrame, column: str, source: str, others: Sequence[str] = ()) -> Sequence[Any]:
    """Return a column's cells; `others` are words that could be meant instead."""
    if column in table.columns:
        return list(table[column])
    near = closest(column.lower(), [*others, *(str(name) for name in table.columns)])
    there = listed(table.columns, 12)
    wanted = f"; {', '.join(others)} or a column ({there}) was expected" if others else f", but {there}"
    raise UserError(f"{source}: there is no column '{column}'" + (f" (did you mean '{near}'?)" if near else wanted))


def _folds(cells: Sequence[Any], ids: Sequence[str], column: str) -> NDArray[np.int8]:
    numbers = [-1.0 if is_missing(cell) else number_of(cell) for cell in cells]
    wrong = [row_id for row_id, number in zip(ids, numbers, strict=True) if number not in range(-1, N_FOLDS)]
    if wrong:
        raise UserError(
            f"column '{column}' has to hold the test fold of each row, 0 to {N_FOLDS - 1} (empty: never tested), which "
            f"it does not for {listed(wrong, MOST_IDS)}"
        )
    if all(number < 0 for number in numbers):
        raise UserError(f"column '{column}' names no fold: at least one row has to be tested")
    return np.array(numbers, dtype=np.int8)
