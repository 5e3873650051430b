"""Intervals cover what they say, bad rows keep their place, and what was trained on is told."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_data import tiny_dataset

from orchestrator.inputs.crystals import keep_crystals, kept_crystals
from orchestrator.predict.intervals import ByFold, TestErrors, conformal_half_width, read_experience
from trainables.data.composition import CompositionModel
from trainables.progress import silent


@pytest.mark.parametrize("coverage", [0.5, 0.9])
@pytest.mark.parametrize("n", [20, 200])
def test_an_interval_covers_new_rows_as_often_as_it_says(coverage: float, n: int) -> None:
    """Over many runs: at least the coverage, and less than 1 / (n + 1) more (Lei et al. 2018, theorem 2.2)."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(3000):
        errors = rng.standard_t(3, size=n + 1)
        covered.append(abs(errors[-1]) <= conformal_half_width(errors[:-1], coverage))
    spread = 3 * math.sqrt(coverage * (1 - coverage) / 3000)
    assert coverage - spread < np.mean(covered) < coverage + 1 / (n + 1) + spread


def test_too_few_rows_tell_no_interval() -> None:
    assert math.isnan(conformal_half_width(np.ones(8), 0.9))
    assert conformal_half_width(np.arange(9.0), 0.9) == 8


def drawn_errors(rng: np.random.Generator, n: int, spread: bool) -> TestErrors:
    size, fold = np.abs(rng.normal(size=n)), rng.integers(0, 5, n)
    return TestErrors(size, fold, rng.gamma(2.0, size=n) if spread else np.full(n, np.nan))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("deployed", [False, True])
@pytest.mark.parametrize("n", [9, 40, 301])
def test_the_ends_are_the_ranks_of_all_errors_laid_around_all_folds(n: int, spread: bool, deployed: bool) -> None:
    rng = np.random.default_rng(n)
    errors = drawn_errors(rng, n, spread)
    folds = (None,) if deployed else tuple(range(5))
    value = rng.normal(size=(len(folds), 7))
    apart = rng.gamma(2.0, size=value.shape) if spread else np.full(value.shape, np.nan)
    low, high = errors.interval(ByFold(folds, value, apart), 0.8)
    middle = np.median(errors.size) if spread else 0.0
    place = np.zeros(n, dtype=int) if deployed else errors.fold
    for crystal in range(7):
        unit = (apart[place, crystal] + middle) / (errors.spread + middle) if spread else np.ones(n)
        rank = math.ceil((n + 1) * 0.8)
        above = np.sort(value[place, crystal] + errors.size * unit)
        below = np.sort(value[place, crystal] - errors.size * unit)
        assert high[crystal] == pytest.approx(above[rank - 1], rel=1e-9)
        assert low[crystal] == pytest.approx(below[n - rank], rel=1e-9)


def folds_of_ridge(rng: np.random.Generator, n: int, n_new: int) -> tuple[TestErrors, ByFold, np.ndarray]:
    """Five ridge regressions on four fifths of n rows each, their errors on the rest, and what they say of new ones."""
    weight, x, new = rng.normal(size=8), rng.normal(size=(n, 8)), rng.normal(size=(n_new, 8))
    noise = np.abs(x[:, 0]) + 0.2
    y, fold, size, value = x @ weight + noise * rng.normal(size=n), np.arange(n) % 5, np.empty(n), np.empty((5, n_new))
    for k in range(5):
        a, b = x[fold != k], y[fold != k]
        found = np.linalg.solve(a.T @ a + 0.1 * np.eye(8), a.T @ b)
        size[fold == k], value[k] = np.abs(x[fold == k] @ found - y[fold == k]), new @ found
    target = new @ weight + (np.abs(new[:, 0]) + 0.2) * rng.normal(size=n_new)
    errors = TestErrors(size, fold, np.abs(x[:, 0]) + 0.1)
    return errors, ByFold(tuple(range(5)), value, np.tile(np.abs(new[:, 0]) + 0.1, (5, 1))), target


def test_five_folds_cover_new_rows_as_often_as_they_say_with_a_spread_and_without() -> None:
    rng, covered, widths = np.random.default_rng(3), {True: [], False: []}, {True: [], False: []}
    for _ in range(150):
        errors, found, target = folds_of_ridge(rng, 100, 20)
        for spread in (True, False):
            told = errors if spread else TestErrors(errors.size, errors.fold, np.full(100, np.nan))
            low, high = told.interval(found)
            covered[spread].append((low <= target) & (target <= high))
            widths[spread].append(high - low)
    for spread in (True, False):
        assert 0.885 < np.mean(covered[spread]) < 0.93
    # Told how noisy each row is, intervals follow it: narrow ones for the quiet, and the same coverage of all.
    assert np.std(widths[True]) > 2 * np.std(widths[False])


def test_an_interval_is_wide_where_folds_disagree() -> None:
    errors = TestErrors(np.full(50, 0.1), np.arange(50) % 5, np.full(50, np.nan))
    agreed, apart = np.zeros((5, 1)), np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    for value, half in ((agreed, 0.1), (apart, 2.1)):
        low, high = errors.interval(ByFold(tuple(range(5)), value, np.full((5, 1), np.nan)))
        assert (low[0], high[0]) == (pytest.approx(-half), pytest.approx(half))


def test_a_spread_that_only_one_side_knows_is_not_used() -> None:
    rng = np.random.default_rng(0)
    errors = drawn_errors(rng, 60, True)
    found = ByFold(tuple(range(5)), rng.normal(size=(5, 3)), np.full((5, 3), np.nan))
    without = TestErrors(errors.size, errors.fold, np.full(60, np.nan))
    np.testing.assert_array_equal(errors.interval(found), without.interval(found))


def test_too_few_errors_tell_no_ends() -> None:
    errors = TestErrors(np.ones(8), np.zeros(8, dtype=int), np.full(8, np.nan))
    low, high = errors.interval(ByFold((0,), np.zeros((1, 2)), np.full((1, 2), np.nan)))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def written(run: Path, n_fallback: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    target = rng.normal(500, 50, size=100)
    rows = pd.DataFrame(
        {"id": [f"r{k}" for k in range(100)], "target": target, "fallback": np.arange(100) < n_fallback}
    )
    rows["fold"], rows["std"] = np.arange(100) % 5, np.nan
    rows["prediction"] = target + rng.normal(0, 1, size=100) * np.where(rows["fallback"], 30, 1)
    run.mkdir(exist_ok=True)
    rows.to_parquet(run / "predictions.parquet")
    return rows


@pytest.mark.parametrize("n_fallback", [2, 20])
def test_rows_without_a_graph_have_wide_intervals_and_no_small_std(tmp_path: Path, n_fallback: int) -> None:
    rows = written(tmp_path, n_fallback)
    known = read_experience(tmp_path)
    assert known.half_width == pytest.approx(1.7, abs=0.4)
    assert known.fallback_half_width > 10 * known.half_width
    assert known.fallback_std == pytest.approx(rows["target"].std(ddof=0))


def test_a_run_without_test_rows_knows_nothing(tmp_path: Path) -> None:
    known = read_experience(tmp_path)
    assert math.isnan(known.half_width)
    assert known.crystals is None


def test_crystals_of_the_run_are_known_again(tmp_path: Path) -> None:
    dataset = tiny_dataset(12)
    keep_crystals(tmp_path, dataset.take(np.arange(8)), silent)
    assert kept_crystals(tmp_path) is not None
    seen = read_experience(tmp_path).in_training(dataset)
    assert seen is not None
    assert seen.tolist() == [True] * 8 + [False] * 4


def test_an_element_that_was_not_trained_on_gets_the_mean_target() -> None:
    composition = np.zeros((3, 119))
    composition[:, 3] = composition[:, 9] = 0.5
    model = CompositionModel.fit(composition, np.array([498.0, 500.0, 502.0]))
    alone = np.zeros((1, 119))
    alone[0, 10] = 1.0
    assert model.predict(alone) == [0.0]
    assert model.with_unseen(composition, np.array([498.0, 500.0, 502.0])).predict(alone) == [500.0]
