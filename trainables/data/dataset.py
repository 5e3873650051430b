"""Dataset: ids, crystals and targets, checked; how rows are collected, and the reader of Matbench tables."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.crystals import Crystal, CrystalTable, Trait
from trainables.data.bad_structures import BadStructure
from trainables.data.columns import number_of
from trainables.data.matbench_file import read_matbench_file
from trainables.data.structures import read_crystal
from trainables.data.tasks import Task
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
        groups: of each row, what keeps it on one side of a split with others; None for its reduced formula.
        outer: (n,) test fold of each row where the caller has fixed it, -1 for rows that are never tested; else None.
        left_out: ids of the rows whose sources say more than a crystal does, by what it is; no part of the digest.
    """

    ids: tuple[str, ...]
    structures: CrystalTable
    targets: NDArray[np.float64]
    task: Task
    official_row: NDArray[np.int64] | None = None
    groups: tuple[str, ...] | None = None
    outer: NDArray[np.int8] | None = None
    left_out: Mapping[Trait, tuple[str, ...]] = field(default_factory=dict)

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
        if self.groups is not None:
            sha.update(json.dumps(["groups", *self.groups]).encode())
        if self.outer is not None:
            sha.update(b"outer" + self.outer.astype(np.int8).tobytes())
        return sha.hexdigest()

    @property
    def group_names(self) -> Sequence[str]:
        """Return the group of every row."""
        return self.structures.reduced_formulas if self.groups is None else self.groups

    def take(self, rows: NDArray[np.int64]) -> "Dataset":
        """Return these rows, in this order."""
        official = None if self.official_row is None else self.official_row[rows]
        ids = tuple(self.ids[int(row)] for row in rows)
        groups = None if self.groups is None else tuple(self.groups[int(row)] for row in rows)
        outer = None if self.outer is None else self.outer[rows]
        kept = set(ids)
        left_out = {trait: tuple(row for row in there if row in kept) for trait, there in self.left_out.items()}
        return Dataset(
            ids, self.structures.take(rows), self.targets[rows], self.task, official, groups, outer,
            {trait: there for trait, there in left_out.items() if there},
        )  # fmt: skip

    def limit(self, n_rows: int | None, seed: int = 0) -> "Dataset":
        """Return a seeded random choice of `n_rows` rows in table order, or the whole table."""
        if n_rows is None or n_rows >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), n_rows, replace=False)
        return self.take(np.sort(chosen))


MOST_IDS = 10  # of a kind of bad rows, in a message


class BadRows(UserError):
    """Rows that cannot be used: their ids, by the kind of problem."""

    def __init__(self, source: str, kinds: Mapping[str, Sequence[str]]) -> None:
        told = "; ".join(f"{kind}: {listed(ids, MOST_IDS)}" for kind, ids in kinds.items())
        super().__init__(f"{source} has rows that cannot be used (correct or remove them): {told}")
        self.kinds = kinds


class RowCollector:
    """Collects good rows, and what is wrong with the others.

    Attributes:
        ids: of all rows.
        problems: of the bad ones, by their place.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self._source, self._folder = source, folder
        self.ids: list[str] = []
        self.problems: dict[int, str] = {}
        self._crystals: list[Crystal] = []
        self._targets: list[float] = []

    def add(self, row_id: str, structure: Any, value: float, *, problem: str = "") -> None:
        """Add a row.

        Args:
            problem: of its target.
        """
        self.ids.append(row_id)
        if problem:
            self.problems[len(self.ids) - 1] = problem
            return
        try:
            self._crystals.append(read_crystal(structure, self._folder))
            self._targets.append(value)
        except BadStructure as bad:
            self.problems[len(self.ids) - 1] = bad.kind

    @property
    def places(self) -> NDArray[np.int64]:
        """Return which of all rows are good, (n,)."""
        return np.array([place for place in range(len(self.ids)) if place not in self.problems], dtype=np.int64)

    def usable(self, task: Task) -> Dataset:
        """Return the good rows."""
        ids = tuple(self.ids[place] for place in self.places)
        left_out: dict[Trait, list[str]] = defaultdict(list)
        for row_id, crystal in zip(ids, self._crystals, strict=True):
            for trait in sorted(crystal.left_out):
                left_out[trait].append(row_id)
        told = {trait: tuple(rows) for trait, rows in sorted(left_out.items())}
        return Dataset(ids, CrystalTable.pack(self._crystals), np.array(self._targets), task, left_out=told)

    def finish(self, task: Task, official_row: Iterable[int] | None = None) -> Dataset:
        """Return all rows.

        Raises:
            UserError: some are bad, or have the same id (ids listed), or there are none.
        """
        bad: dict[str, list[str]] = defaultdict(list)
        for place, problem in self.problems.items():
            bad[problem].append(self.ids[place])
        doubles = [row_id for row_id, count in Counter(self.ids).items() if count > 1]
        if doubles:
            bad["duplicate ids"] = doubles
        if bad:
            raise BadRows(self._source, bad)
        if not self.ids:
            raise UserError(f"{self._source} has no rows; at least one structure is needed")
        rows = None if official_row is None else np.array(list(official_row), dtype=np.int64)
        return replace(self.usable(task), official_row=rows)


def read_matbench(path: Path, task: Task, progress: Progress = silent) -> Dataset:
    """Read a whole or partial Matbench table; its index is the official row.

    Raises:
        UserError: damaged file, wrong columns, rows outside the task, or unusable rows (ids listed).
    """
    builder = RowCollector(str(path), path.parent)
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
    builder: RowCollector, task: Task, index: list[Any], number: int, value: Any, columns: tuple[int, int], path: Path
) -> None:
    official, n_rows = index[number] if number < len(index) else None, task.official_rows or 0
    if not isinstance(official, int) or not 0 <= official < n_rows:
        raise UserError(f"{path}: index entry {official!r} is not an official row of {task.name} (0 to {n_rows - 1})")
    if not isinstance(value, list) or len(value) <= max(columns):
        raise UserError(f"{path}: row {number} is not a list of structure and target")
    target = number_of(value[columns[1]])
    problem = "" if np.isfinite(target) else "missing or non-finite targets"
    builder.add(task.mbid(official), value[columns[0]], target, problem=problem)
