"""Intervals cover what they say, bad rows keep their place, and what was trained on is told."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_data import tiny_dataset

from orchestrator.inputs.crystals import keep_crystals, kept_crystals
from orchestrator.predict.intervals import conformal_half_width, read_experience
from trainables.data.composition import CompositionModel


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


def written(run: Path, n_fallback: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    target = rng.normal(500, 50, size=100)
    rows = pd.DataFrame(
        {"id": [f"r{k}" for k in range(100)], "target": target, "fallback": np.arange(100) < n_fallback}
    )
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
    keep_crystals(tmp_path, dataset.take(np.arange(8)))
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
