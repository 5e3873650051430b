"""The main job on real Matbench data: minutes long, so behind the marker `slow`."""

from pathlib import Path

import pytest

from orchestrator.inputs.source import Source
from orchestrator.train.run import TrainOptions, baseline_run, train

pytestmark = pytest.mark.slow


def test_jdft2d_fold_0_beats_the_dummy_by_far(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(shared_data / "matbench_full"))
    scores = train(Source("jdft2d"), tmp_path, options=TrainOptions((0,))).content()
    assert scores["partial"] is False
    assert scores["mean"]["mae"] < min(45.0, 0.7 * scores["baselines"]["dummy"]["mean"]["mae"])


def test_fine_tuning_beats_the_untouched_chgnet_on_real_formation_energies(shared_data: Path, tmp_path: Path) -> None:
    source = Source("mp_e_form", shared_data / "matbench_partial" / "matbench_mp_e_form_partial.json.gz")
    published = shared_data / "matbench_predictions" / "matbench_mp_e_form.csv.gz"
    settings = {"optim.epochs": 8}
    scores = train(source, tmp_path, settings=settings, options=TrainOptions((1,), published=published)).content()
    assert scores["partial"] is True
    assert scores["mean"]["mae"] < 0.9 * scores["baselines"]["zero-shot"]["mean"]["mae"]
    assert scores["published"]["coNGN"]["mean"]["mae"] < scores["published"]["rf"]["mean"]["mae"]


def test_mean_predictor_scores_the_leaderboards_dummy(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(shared_data / "matbench_full"))
    scores = baseline_run(Source("jdft2d"), range(5)).model_dump(mode="json")
    assert scores["baselines"]["dummy"]["mean"]["mae"] == pytest.approx(67.2851, abs=1e-4)
