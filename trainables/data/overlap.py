"""The leak guard of multi-task training: rows of another task that are crystals of the test fold.

A row of an auxiliary task is taken for the crystal of a test row when

(a) both have the same reduced formula, space group number and number of sites, or
(b) both have the same reduced formula and pymatgen's StructureMatcher calls them equal.

Either is enough, and doubt counts as a match: a row too many costs a little data, a row too few makes the benchmark
worthless. The answer depends on the crystals only, not on targets, order of rows or number of processes.
"""

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.errors import UserError
from trainables.files import write_atomically
from trainables.processes import n_cores, spawned_pool
from trainables.progress import Progress, silent

if TYPE_CHECKING:
    from pymatgen.core.structure_matcher import StructureMatcher

RULE_VERSION = 1  # raise it with every change of the answer: it is part of a cached answer's name
SYMPREC = 0.1  # A, Matbench's own tolerance
ANGLE_TOLERANCE = 5.0  # degrees, what Matbench's numbers were computed with
UNKNOWN_GROUP = 0
# pymatgen's default tolerances. Volumes are scaled to each other first: two tasks may hold the same crystal from two
# relaxations, and a compressed copy gives a test label away as well as an exact one.
_LENGTHS, _SITES, _ANGLES = 0.2, 0.3, 5
_PARALLEL_FROM = 1500  # crystals; below, starting workers costs more than it saves
_CHUNK = 16  # crystals or rows a worker takes at a time

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Name = TypeVar("Name")
Cell = tuple[str, int]  # reduced formula, number of sites


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which auxiliary rows are crystals of the test rows.

    Attributes:
        matched: (n_auxiliary,) True where a row must not be trained on.
        n_by_key: rows with a test row's reduced formula, space group and number of sites.
        n_by_structure: rows that only StructureMatcher found.
    """

    matched: NDArray[np.bool_]
    n_by_key: int
    n_by_structure: int

    def describe(self) -> str:
        """One line for the person who waits."""
        return (
            f"{int(self.matched.sum())} of {len(self.matched)} auxiliary rows are crystals of the test rows "
            f"({self.n_by_key} by formula, space group and number of sites, {self.n_by_structure} by structure alone)"
        )


def find_overlap(
    auxiliary: CrystalTable,
    test: CrystalTable,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Overlap:
    """Find the auxiliary rows that are crystals of test rows.

    A crystal whose space group spglib cannot tell agrees with every space group. A crystal that StructureMatcher
    cannot reduce or compare counts as equal to all it would have been compared with.

    Args:
        workers: comparing processes; by default one a core.
        cache: a folder that keeps answers by what they depend on, or None.

    Raises:
        UserError: a comparing process was killed, or the cache cannot be written.
    """
    path = None if cache is None else cache / f"{_address(auxiliary, test)}.npy"
    found = None if path is None else _read(path, len(auxiliary))
    if found is None:
        found = _compare(auxiliary, test, workers or n_cores(), progress)
        if path is not None:
            _write(path, found)
    return Overlap(found[0] | found[1], int(found[0].sum()), int(found[1].sum()))


def key(crystal: Crystal) -> tuple[str, int, int]:
    """Reduced formula (elements in alphabetical order), space group number, number of sites."""
    return CrystalTable.pack([crystal]).reduced_formulas[0], space_group(crystal), len(crystal.numbers)


def space_group(crystal: Crystal) -> int:
    """International number at Matbench's tolerance, or 0 where spglib finds none."""
    cell = crystal.lattice.tolist(), crystal.frac.tolist(), crystal.numbers.tolist()
    try:
        found = spglib.get_symmetry_dataset(cell, symprec=SYMPREC, angle_tolerance=ANGLE_TOLERANCE)
    except (spglib.SpglibError, TypeError):
        return UNKNOWN_GROUP
    return UNKNOWN_GROUP if found is None else int(found.number)


def _address(auxiliary: CrystalTable, test: CrystalTable) -> str:
    """Return the name of these tables' cached answer."""
    content = {"auxiliary": auxiliary.digest, "test": test.digest, "rule": RULE_VERSION}
    content |= {"groups": [SYMPREC, ANGLE_TOLERANCE], "matcher": [_LENGTHS, _SITES, _ANGLES]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path, n_rows: int) -> NDArray[np.bool_] | None:
    """Return a cached answer, (2, n_rows), or None where there is no whole one."""
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.bool_ and found.shape == (2, n_rows) else None


def _write(path: Path, found: NDArray[np.bool_]) -> None:
    def fill(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # np.save would add .npy to a path
            np.save(handle, found)

    try:
        write_atomically(path, fill)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free space there or choose another folder"
        ) from None


def _compare(auxiliary: CrystalTable, test: CrystalTable, workers: int, progress: Progress) -> NDArray[np.bool_]:
    """(2, n_auxiliary): found by key; found by structure only."""
    formulas = set(auxiliary.reduced_formulas) & set(test.reduced_formulas)
    rows, test_rows = (_rows_of(formulas, table.reduced_formulas) for table in (auxiliary, test))
    found = np.zeros((2, len(auxiliary)), dtype=bool)
    try:
        with _processes(workers, len(rows) + len(test_rows)) as pool:
            found[0] = _same_key(auxiliary, test, pool, progress)
            rows = [row for row in rows if not found[0, row]]
            found[1, rows] = _same_structure(auxiliary, rows, test, pool, progress)
    except BrokenProcessPool:
        raise UserError("a comparing process was killed (out of memory, most likely); run the command again") from None
    return found


def _rows_of(wanted: set[Name], names: list[Name]) -> list[int]:
    return [row for row, name in enumerate(names) if name in wanted]


def _same_key(
    auxiliary: CrystalTable, test: CrystalTable, pool: Executor | None, progress: Progress
) -> NDArray[np.bool_]:
    """(n_auxiliary,) True where a test row has the same formula, number of sites and space group."""
    cells, test_cells = _cells(auxiliary), _cells(test)
    shared = set(cells) & set(test_cells)
    rows, test_rows = _rows_of(shared, cells), _rows_of(shared, test_cells)
    crystals = [*(auxiliary[row] for row in rows), *(test[row] for row in test_rows)]
    groups = _shown(progress, "find space groups", space_group, crystals, pool)
    of_test: dict[Cell, set[int]] = defaultdict(set)
    for row, group in zip(test_rows, groups[len(rows) :], strict=True):
        of_test[test_cells[row]].add(group)
    same = np.zeros(len(auxiliary), dtype=bool)
    for row, group in zip(rows, groups, strict=False):
        same[row] = group == UNKNOWN_GROUP or not of_test[cells[row]].isdisjoint((group, UNKNOWN_GROUP))
    return same


def _cells(table: CrystalTable) -> list[Cell]:
    return list(zip(table.reduced_formulas, table.n_atoms.tolist(), strict=True))


def _same_structure(
    auxiliary: CrystalTable, rows: list[int], test: CrystalTable, pool: Executor | None, progress: Progress
) -> list[bool]:
    """For each auxiliary row of `rows`, whether StructureMatcher calls it equal to a test row of its formula."""
    formulas = [auxiliary.reduced_formulas[row] for row in rows]
    test_rows = _rows_of(set(formulas), test.reduced_formulas)
    crystals = [*(auxiliary[row] for row in rows), *(test[row] for row in test_rows)]
    reduced = _shown(progress, "reduce crystals", _primitive, crystals, pool)
    of_test: dict[str, list[Crystal | None]] = defaultdict(list)
    for row, primitive in zip(test_rows, reduced[len(rows) :], strict=True):
        of_test[test.reduced_formulas[row]].append(primitive)
    work = [_candidates(primitive, of_test[formula]) for primitive, formula in zip(reduced, formulas, strict=False)]
    with progress.stage("compare crystals", sum(len(others) for _, others in work), "pairs") as bar:
        same = []
        for answer, (_, others) in zip(_mapped(_equals_any, work, pool), work, strict=True):
            same.append(answer)
            bar.advance(len(others))
    return same


Comparison = tuple[Crystal | None, list[Crystal | None]]


def _candidates(crystal: Crystal | None, others: list[Crystal | None]) -> Comparison:
    """Return a primitive cell and those of the same formula it can be equal to: cells of other sizes never match."""
    if crystal is None:
        return None, others[:1]
    n_sites = len(crystal.numbers)
    return crystal, [other for other in others if other is None or len(other.numbers) == n_sites]


def _primitive(crystal: Crystal) -> Crystal | None:
    """Return the cell StructureMatcher compares (Niggli-reduced, then primitive), or None where it cannot be found."""
    try:
        return Crystal.from_structure(crystal.to_structure().get_reduced_structure().get_primitive_structure())
    except Exception:  # whatever goes wrong in there: the caller counts it as a match
        return None


def _equals_any(comparison: Comparison) -> bool:
    """Whether a primitive cell equals one of the others; True where one of them is None or a comparison fails."""
    crystal, others = comparison
    if crystal is None or any(other is None for other in others):
        return True
    try:
        cell = crystal.to_structure()
        return any(_equal(cell, other.to_structure()) for other in others if other is not None)
    except Exception:  # the safe side
        return True


def _equal(first: Structure, second: Structure) -> bool:
    """StructureMatcher's answer in either order: it is not quite symmetric."""
    matcher = _matcher()
    return bool(
        matcher.fit(first, second, skip_structure_reduction=True)
        or matcher.fit(second, first, skip_structure_reduction=True)
    )


@cache
def _matcher() -> "StructureMatcher":
    from pymatgen.core.structure_matcher import StructureMatcher  # a second to import, for joint training alone

    return StructureMatcher(ltol=_LENGTHS, stol=_SITES, angle_tol=_ANGLES, primitive_cell=True, scale=True)


@contextlib.contextmanager
def _processes(workers: int, n_crystals: int) -> Iterator[Executor | None]:
    """Yield a pool of workers, or None where so few crystals are compared here."""
    if workers == 1 or n_crystals < _PARALLEL_FROM:
        yield None
        return
    with spawned_pool(workers) as pool:
        yield pool


def _shown(
    progress: Progress,
    stage: str,
    function: Callable[[Crystal], Answer],
    crystals: list[Crystal],
    pool: Executor | None,
) -> list[Answer]:
    """Return the answer for every crystal, with a bar of its own."""
    found = []
    with progress.stage(stage, len(crystals), "crystals") as bar:
        for answer in _mapped(function, crystals, pool):
            found.append(answer)
            bar.advance(1)
    return found


def _mapped(function: Callable[[Item], Answer], items: Iterable[Item], pool: Executor | None) -> Iterable[Answer]:
    """Return the answers in the order of the items."""
    return map(function, items) if pool is None else pool.map(function, items, chunksize=_CHUNK)
