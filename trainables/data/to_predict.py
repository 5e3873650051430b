"""Structures to predict: the usable ones as a Dataset, and what is wrong with each of the others."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from trainables.data.columns import structure_column
from trainables.data.dataset import Dataset, RowCollector, read_matbench
from trainables.data.gather import Rows, gather
from trainables.data.matbench_file import is_matbench_layout
from trainables.data.own_table import TableOptions, ids_of, with_ids
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.progress import Progress, silent

_USUAL = TableOptions()


@dataclass(frozen=True, eq=False)
class ToPredict:
    """Rows to predict.

    Attributes:
        ids: of all rows, in their order; where two have the same, both are kept.
        dataset: the usable ones; its targets are NaN, or a Matbench table's own.
        places: (n,) of the usable ones among all rows.
        problems: of each row that cannot be used, by its place among all rows.
    """

    ids: tuple[str, ...]
    dataset: Dataset
    places: np.ndarray
    problems: dict[int, str]


def read_structures(
    paths: Path | Iterable[Path], task: Task, options: TableOptions = _USUAL, progress: Progress = silent
) -> ToPredict:
    """Read whatever `gather` reads, or a table of a Matbench task.

    Raises:
        UserError: nothing is there, or a file that cannot be read at all.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    if len(given) == 1 and given[0].is_file() and is_matbench_layout(given[0]) and task.is_matbench:
        dataset = read_matbench(given[0], task, progress)
        return ToPredict(dataset.ids, dataset, np.arange(len(dataset)), {})
    return _of_rows(gather(given, progress), task, options, progress)


def structures_of_frame(table: pd.DataFrame, task: Task, options: TableOptions = _USUAL) -> ToPredict:
    """Read a table that is in memory; without a column of ids, the index has them.

    Raises:
        UserError: no column of structures, or no rows.
    """
    return _of_rows(Rows(with_ids(table, options), Path(), "the table"), task, options, silent)


def _of_rows(rows: Rows, task: Task, options: TableOptions, progress: Progress) -> ToPredict:
    ids = ids_of(rows, options)
    structures = structure_column(rows.table, options.structure, rows.source)
    collector = RowCollector(rows.source, rows.folder)
    with progress.stage(f"read {Path(rows.source).name}", len(ids), "rows") as bar:
        for row_id, cell in zip(ids, rows.table[structures], strict=True):
            collector.add(row_id, cell, float("nan"))
            bar.advance(1)
    if not ids:
        raise UserError(f"{rows.source} has no rows; at least one structure is needed")
    return ToPredict(tuple(ids), collector.usable(task), collector.places, collector.problems)
