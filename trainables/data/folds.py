"""Which rows train, which validate, which test. The only place where test rows are told apart."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainables.data.dataset import Dataset
from trainables.data.tasks import N_FOLDS, Task
from trainables.errors import UserError, listed

# Matbench v0.1, structure regression: KFold(5, shuffle=True, random_state=18012019) in table order
# (Dunn et al., npj Comput. Mater. 6, 138, 2020; checked against matbench's own split file in the tests).
MATBENCH_SEED = 18012019
_LARGEST_FOLD = 0.4  # share of the rows that a fold of whole formulas may have before folds are balanced by size


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one role: their ids, targets and places in the dataset (and so in the graph store)."""

    ids: tuple[str, ...]
    rows: NDArray[np.int64]  # (n,)
    targets: NDArray[np.float64]  # (n,)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, mask: NDArray[np.bool_]) -> "Part":
        """Return the rows for which the mask (n,) is true."""
        ids = tuple(row_id for row_id, kept in zip(self.ids, mask, strict=True) if kept)
        return Part(ids, self.rows[mask], self.targets[mask])

    @staticmethod
    def join(first: "Part", second: "Part") -> "Part":
        """Return the rows of both parts, one after the other."""
        return Part(
            first.ids + second.ids,
            np.concatenate([first.rows, second.rows]),
            np.concatenate([first.targets, second.targets]),
        )


@dataclass(frozen=True, eq=False)
class FoldSplit:
    """One outer fold. `fit` and every search take it `without_test()`."""

    fold: int
    train: Part
    val: Part
    test: Part | None

    def without_test(self) -> "FoldSplit":
        """Return the split without its test rows."""
        return replace(self, test=None)


def official_test_folds(n_rows: int) -> NDArray[np.int8]:
    """Return the test fold of every row of a whole Matbench structure regression task, (n_rows,)."""
    return _kfold(n_rows, MATBENCH_SEED)


def _kfold(n_rows: int, seed: int) -> NDArray[np.int8]:
    """scikit-learn's KFold(N_FOLDS, shuffle=True, random_state=seed), as a fold number a row."""
    order = np.random.RandomState(seed).permutation(n_rows)  # the official folds are this generator's
    sizes = np.full(N_FOLDS, n_rows // N_FOLDS)
    sizes[: n_rows % N_FOLDS] += 1
    fold = np.empty(n_rows, dtype=np.int8)
    fold[order] = np.repeat(np.arange(N_FOLDS), sizes)
    return fold


def fold_of_rows(dataset: Dataset, seed: int = 0) -> NDArray[np.int8]:
    """Return the test fold of every row, (n,): official for Matbench rows, seeded by group for other tables.

    A table of one's own is split so that all rows of one group (by default a reduced formula) share a fold. Rows that
    are never tested have -1, which only folds that the caller has fixed can have.
    """
    task: Task = dataset.task
    if task.official_rows is not None and dataset.official_row is not None:
        return official_test_folds(task.official_rows)[dataset.official_row]
    if dataset.outer is not None:
        return dataset.outer
    if len(dataset) < 2 * N_FOLDS:
        raise UserError(f"{task.name} has {len(dataset)} rows; {N_FOLDS} folds need at least {2 * N_FOLDS}")
    groups = dataset.group_names
    rank = _seeded_rank(sorted(set(groups)), f"folds:{seed}")
    folds = np.array([rank[group] % N_FOLDS for group in groups], dtype=np.int8)
    if dataset.groups is None and np.bincount(folds, minlength=N_FOLDS).max() <= _LARGEST_FOLD * len(dataset):
        return folds
    return _balanced(groups, rank)


def _balanced(groups: Sequence[str], rank: Mapping[str, int]) -> NDArray[np.int8]:
    """Return folds of about as many rows each: groups by size, the largest first, each into the smallest fold."""
    sizes, filled, fold_of = Counter(groups), np.zeros(N_FOLDS, dtype=np.int64), {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], rank[name])):
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int8)


def _seeded_rank(names: list[str], salt: str) -> dict[str, int]:
    """Return a seeded shuffle of `names` that doesn't depend on any library's generator."""
    shuffled = sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).digest())
    return {name: place for place, name in enumerate(shuffled)}


def _too_few(dataset: Dataset) -> str:
    """Return why a part of the rows is empty, and what to do."""
    if dataset.official_row is not None:
        return f"({len(dataset)} rows in all); provide more rows"
    if dataset.outer is not None:
        tested = sorted(set(dataset.outer[dataset.outer >= 0].tolist()))
        return (
            f"(what is tested is fixed, by `test` or `fold_column`: folds {listed(tested)}); choose others by `folds`"
        )
    n_groups = len(set(dataset.group_names))
    kind = "formula" if dataset.groups is None else "group"
    there = f"{len(dataset)} rows of {n_groups} {kind}{'s' * (n_groups != 1)}"
    return f"({there}, and rows of one {kind} share a fold); provide more {kind}s"


def make_split(dataset: Dataset, fold: int, *, val_share: float, seed: int) -> FoldSplit:
    """Split off one official test fold, then an inner validation part of the rest.

    All rows of one group (by default a reduced formula) fall on the same side of the inner split, which depends on
    `seed`, `fold` and the groups only.

    Raises:
        UserError: the fold does not exist, or one of the parts would be empty.
    """
    if not 0 <= fold < N_FOLDS:
        raise UserError(f"fold {fold} does not exist; folds are 0 to {N_FOLDS - 1}")
    folds = fold_of_rows(dataset)
    outer = np.flatnonzero(folds != fold)
    val = _validation_mask([dataset.group_names[int(row)] for row in outer], val_share, fold, seed)
    split = FoldSplit(
        fold, _part(dataset, outer[~val]), _part(dataset, outer[val]), _part(dataset, np.flatnonzero(folds == fold))
    )
    for role, part in (("training", split.train), ("validation", split.val), ("test", split.test)):
        if part is not None and len(part) == 0 and (role != "test" or (folds >= 0).any()):  # else nothing is tested
            raise UserError(f"fold {fold} of {dataset.task.name} has no {role} rows {_too_few(dataset)}")
    return split


def inner_split(
    dataset: Dataset, fold: int, inner: int, n_inner: int, *, val_share: float, seed: int
) -> tuple[FoldSplit, Part]:
    """Split the training rows of an outer fold for an out-of-fold teacher.

    The training rows (inner validation included) fall into `n_inner` parts by group. Part `inner` is held
    out; of the others a validation part is split off as make_split does.

    Returns:
        The teacher's split, without test rows; and the rows that it may label, none of which is in the split.

    Raises:
        UserError: as make_split, or an inner fold without rows.
    """
    held, rest = _inner_part(dataset, fold, inner, n_inner, seed)
    if not len(held) or len(rest) < 2:
        raise UserError(_too_few_parts(dataset, fold, len(held) + len(rest), n_inner, "distil.inner_folds"))
    val = _validation_mask([dataset.group_names[int(row)] for row in rest], val_share, fold, seed)
    split = FoldSplit(fold, _part(dataset, rest[~val]), _part(dataset, rest[val]), None)
    return split, _part(dataset, held)


def validated_part(dataset: Dataset, fold: int, inner: int, n_inner: int, *, seed: int) -> FoldSplit:
    """Split the training rows of an outer fold for a member in parts: part `inner` validates, all others train.

    The parts are those of inner_split.

    Raises:
        UserError: a part without rows.
    """
    held, rest = _inner_part(dataset, fold, inner, n_inner, seed)
    if not len(held) or not len(rest):
        raise UserError(_too_few_parts(dataset, fold, len(held) + len(rest), n_inner, "ensemble.inner_folds"))
    return FoldSplit(fold, _part(dataset, rest), _part(dataset, held), None)


def _inner_part(
    dataset: Dataset, fold: int, inner: int, n_inner: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of one of `n_inner` parts of a fold's training rows, which keep groups together, and the rest."""
    known = np.flatnonzero(fold_of_rows(dataset) != fold)
    groups = [dataset.group_names[int(row)] for row in known]
    rank = _seeded_rank(sorted(set(groups)), f"inner:{seed}:{fold}:{n_inner}")
    held = np.array([rank[group] % n_inner == inner for group in groups], dtype=bool)
    return known[held], known[~held]


def _too_few_parts(dataset: Dataset, fold: int, n_rows: int, n_inner: int, setting: str) -> str:
    return (
        f"fold {fold} of {dataset.task.name} has {n_rows} training rows, too few for {n_inner} inner folds: set "
        f"{setting} lower, or provide more rows"
    )


def _validation_mask(groups: list[str], share: float, fold: int, seed: int) -> NDArray[np.bool_]:
    """Return True for about `share` of the rows: whole groups in a seeded order until the share is reached."""
    rank = _seeded_rank(sorted(set(groups)), f"validation:{seed}:{fold}")
    place = np.array([rank[group] for group in groups], dtype=np.int64)
    wanted = max(1, round(share * len(groups)))
    rows_up_to = np.cumsum(np.bincount(place))
    last = int(np.searchsorted(rows_up_to, wanted))
    return place <= last


def _part(dataset: Dataset, rows: NDArray[np.int64]) -> Part:
    return Part(tuple(dataset.ids[row] for row in rows), rows.astype(np.int64), dataset.targets[rows])
