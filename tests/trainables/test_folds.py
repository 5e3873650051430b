"""Which rows train, which validate, which test: the honesty of every number rests on this."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from trainables.crystals import Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.folds import N_FOLDS, FoldSplit, Part, fold_of_rows, make_split, official_test_folds
from trainables.data.tasks import TASKS, Task, custom_task
from trainables.errors import UserError

JDFT2D = TASKS["matbench_jdft2d"]
OWN = custom_task("mine", "y", "eV", "property")


def dataset_of(task: Task, rows: Iterable[int], seed: int = 0) -> Dataset:
    """Crystals of few formulas, many to a formula and some of them supercells, with random targets."""
    rng, places = np.random.default_rng(seed), list(rows)
    crystals = []
    for _ in places:
        kinds = rng.integers(1, 13, size=2)
        numbers = np.repeat(kinds, rng.integers(1, 3)).astype(np.uint8)  # AB or A2B2: one formula
        crystals.append(Crystal(np.eye(3) * 5, numbers, rng.random((len(numbers), 3))))
    ids = tuple(task.mbid(row) for row in places) if task.is_matbench else tuple(f"row-{row}" for row in places)
    official = np.array(places) if task.is_matbench else None
    return Dataset(ids, CrystalTable.pack(crystals), rng.normal(size=len(places)), task, official)


@pytest.fixture
def whole() -> Dataset:
    return dataset_of(JDFT2D, range(636))


@pytest.fixture
def own() -> Dataset:
    return dataset_of(OWN, range(400))


def formulas(dataset: Dataset, part: Part) -> set[str]:
    return {dataset.structures.reduced_formulas[row] for row in part.rows}


def parts(split: FoldSplit) -> tuple[Part, Part, Part]:
    assert split.test is not None
    return split.train, split.val, split.test


@pytest.mark.parametrize("name", ["matbench_jdft2d", "matbench_mp_e_form", "matbench_dielectric"])
def test_official_folds_are_those_of_matbenchs_own_split_file(name: str) -> None:
    from matbench.metadata import mbv01_validation

    task = TASKS[name]
    fold = official_test_folds(task.official_rows or 0)
    for number in range(N_FOLDS):
        official = mbv01_validation["splits"][name][f"fold_{number}"]
        assert {task.mbid(row) for row in np.flatnonzero(fold == number)} == set(official["test"])
        assert {task.mbid(row) for row in np.flatnonzero(fold != number)} == set(official["train"])


def test_a_split_of_a_matbench_task_tests_the_official_rows(whole: Dataset) -> None:
    fold = official_test_folds(636)
    for number in range(N_FOLDS):
        test = make_split(whole, number, val_share=0.1, seed=0).test
        assert test is not None
        assert set(test.ids) == {JDFT2D.mbid(row) for row in np.flatnonzero(fold == number)}


def test_a_part_of_a_matbench_task_keeps_the_official_folds_of_its_rows(whole: Dataset) -> None:
    rows = np.random.default_rng(1).permutation(636)[:200]
    part = whole.take(rows)
    assert part.partial
    np.testing.assert_array_equal(fold_of_rows(part), fold_of_rows(whole)[rows])


@pytest.mark.parametrize("kind", ["whole", "own"])
@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_train_val_and_test_are_disjoint_and_complete(kind: str, fold: int, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    split = make_split(dataset, fold, val_share=0.1, seed=0)
    assert split.fold == fold
    rows = np.concatenate([part.rows for part in parts(split)])
    assert sorted(rows.tolist()) == list(range(len(dataset)))
    for part in parts(split):
        assert part.ids == tuple(dataset.ids[row] for row in part.rows)
        np.testing.assert_array_equal(part.targets, dataset.targets[part.rows])


@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_no_formula_is_in_both_training_and_validation(whole: Dataset, fold: int) -> None:
    split = make_split(whole, fold, val_share=0.15, seed=4)
    assert not formulas(whole, split.train) & formulas(whole, split.val)


@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_a_table_of_ones_own_shares_no_formula_between_test_and_the_rest(own: Dataset, fold: int) -> None:
    train, val, test = parts(make_split(own, fold, val_share=0.1, seed=0))
    assert not formulas(own, test) & (formulas(own, train) | formulas(own, val))
    assert not formulas(own, train) & formulas(own, val)


def test_every_row_of_a_table_of_ones_own_is_tested_once(own: Dataset) -> None:
    tested = [make_split(own, fold, val_share=0.1, seed=0).test for fold in range(N_FOLDS)]
    assert sorted(row_id for part in tested if part is not None for row_id in part.ids) == sorted(own.ids)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_validation_takes_about_the_wanted_share(whole: Dataset, share: float) -> None:
    split = make_split(whole, 0, val_share=share, seed=0)
    outer = len(split.train) + len(split.val)
    largest_formula = max(np.bincount(np.unique(whole.structures.reduced_formulas, return_inverse=True)[1]))
    assert share * outer - 1 <= len(split.val) <= share * outer + largest_formula


def test_a_share_of_nothing_still_validates_on_something(whole: Dataset) -> None:
    assert len(make_split(whole, 0, val_share=0.0, seed=0).val) > 0


def test_the_inner_split_is_blind_to_every_target(whole: Dataset) -> None:
    other = replace(whole, targets=np.random.default_rng(9).normal(size=len(whole)))
    for fold in range(N_FOLDS):
        first, second = (make_split(dataset, fold, val_share=0.1, seed=0) for dataset in (whole, other))
        assert (first.train.ids, first.val.ids) == (second.train.ids, second.val.ids)


def test_the_inner_split_is_blind_to_the_test_rows(whole: Dataset) -> None:
    """Without a single test row in the table, the same rows validate."""
    full = make_split(whole, 2, val_share=0.1, seed=0)
    assert full.test is not None
    some_test_rows = np.sort(np.concatenate([full.train.rows, full.val.rows, full.test.rows[:1]]))
    fewer = make_split(whole.take(some_test_rows), 2, val_share=0.1, seed=0)
    assert fewer.val.ids == full.val.ids
    assert fewer.train.ids == full.train.ids


def test_a_split_follows_from_its_seed(whole: Dataset) -> None:
    def validation(seed: int, fold: int = 0) -> tuple[str, ...]:
        return make_split(whole, fold, val_share=0.1, seed=seed).val.ids

    first = validation(3)
    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    assert validation(3) == first
    assert validation(4) != first
    assert make_split(whole, 0, val_share=0.1, seed=4).test.ids == make_split(whole, 0, val_share=0.1, seed=3).test.ids  # type: ignore[union-attr]


def test_folds_validate_on_different_formulas(whole: Dataset) -> None:
    chosen = [formulas(whole, make_split(whole, fold, val_share=0.1, seed=0).val) for fold in range(N_FOLDS)]
    assert len({frozenset(names) for names in chosen}) == N_FOLDS


def test_the_order_of_the_table_does_not_change_the_split(own: Dataset) -> None:
    turned = own.take(np.arange(len(own))[::-1])
    first, second = (make_split(dataset, 1, val_share=0.1, seed=0) for dataset in (own, turned))
    for mine, other in zip(parts(first), parts(second), strict=True):
        assert set(mine.ids) == set(other.ids)


def test_a_split_without_test_holds_no_test_row(whole: Dataset) -> None:
    split = make_split(whole, 1, val_share=0.1, seed=0)
    assert split.test is not None
    blind = split.without_test()
    assert blind.test is None
    assert (blind.fold, blind.train, blind.val) == (split.fold, split.train, split.val)
    held = {*blind.train.ids, *blind.val.ids}
    assert not held & set(split.test.ids)
    assert split.test not in vars(blind).values()


@pytest.mark.parametrize("fold", [-1, 5, 17])
def test_a_fold_that_does_not_exist_is_one_line(whole: Dataset, fold: int) -> None:
    with pytest.raises(UserError, match=f"fold {fold} does not exist; folds are 0 to 4"):
        make_split(whole, fold, val_share=0.1, seed=0)


def test_too_few_rows_are_one_line(own: Dataset, whole: Dataset) -> None:
    with pytest.raises(UserError, match="mine has 9 rows; 5 folds need at least 10"):
        make_split(own.take(np.arange(9)), 0, val_share=0.1, seed=0)
    one = whole.take(np.arange(1))
    its_fold = int(official_test_folds(636)[0])
    for fold in range(N_FOLDS):
        missing = "training" if fold == its_fold else "training|test"
        with pytest.raises(
            UserError, match=rf"fold {fold} of matbench_jdft2d has no ({missing}) rows \(1 rows in all\)"
        ):
            make_split(one, fold, val_share=0.1, seed=0)


def test_validation_may_not_swallow_the_training_rows(whole: Dataset) -> None:
    with pytest.raises(UserError, match="has no training rows"):
        make_split(whole, 0, val_share=1.0, seed=0)


def test_a_part_of_one_fold_only_says_that_test_rows_are_missing(whole: Dataset) -> None:
    rows = np.flatnonzero(official_test_folds(636) != 3)
    with pytest.raises(UserError, match="fold 3 of matbench_jdft2d has no test rows"):
        make_split(whole.take(rows), 3, val_share=0.1, seed=0)


def part_of(rows: NDArray[np.int64]) -> Part:
    return Part(tuple(f"id-{row}" for row in rows), rows, rows / 10)


def test_parts_join_and_filter_row_by_row() -> None:
    first, second = part_of(np.array([4, 2])), part_of(np.array([9]))
    both = Part.join(first, second)
    assert (both.ids, both.rows.tolist(), both.targets.tolist()) == (
        ("id-4", "id-2", "id-9"),
        [4, 2, 9],
        [0.4, 0.2, 0.9],
    )
    kept = both.keep(np.array([True, False, True]))
    assert (kept.ids, kept.rows.tolist(), kept.targets.tolist()) == (("id-4", "id-9"), [4, 9], [0.4, 0.9])
    assert len(kept) == 2
