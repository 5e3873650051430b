"""The ladder on the embedded sample: E0 to E6 run through, resume, fail in part, and leave their reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.ablation.ladder import parse_starts
from orchestrator.ablation.plan import Planned
from orchestrator.ablation.run import AblationOptions, ablate
from orchestrator.execution import scheduler as execute_module
from orchestrator.execution.job import Job
from orchestrator.execution.resources import Resources
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.source import Source
from search_spaces.experiments import configuration
from trainables.data.tasks import SAMPLE_TASK
from trainables.errors import UserError
from trainables.files import read_json
from trainables.sample import load_sample

pytestmark = pytest.mark.trains

SETTINGS = {
    "optim.epochs": 1,
    "optim.batch_size": 8,
    "data.val_share": 0.2,
    "multitask.epochs": 1,
    "distil.inner_folds": 2,
}
LADDER = ("E0", "E1", "E2", "E3", "E4", "E5", "E6", "L3")
N_ROWS = 40


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another task on the sample's own crystals: their volume an atom, in a CSV table."""
    sample = load_sample().limit(N_ROWS)
    rows = [
        {
            "id": row_id,
            "structure": crystal.to_structure().to(fmt="cif"),
            "volume": abs(np.linalg.det(crystal.lattice)) / len(crystal.numbers),
        }
        for row_id, crystal in zip(sample.ids, sample.structures, strict=True)
    ]
    path = tmp_path_factory.mktemp("volumes") / "volumes.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def run(out: Path, volumes: Path, names: tuple[str, ...] = LADDER, **changes: Any) -> tuple[Any, list[Planned]]:
    options = AblationOptions(names, folds=(0, 1), seeds=1, resources=Resources("cpu", 1), command="crystaltune ablate")
    plans: list[Planned] = []
    analysis = ablate(
        Source("synthetic_sample", limit=N_ROWS),
        out,
        options,
        settings=SETTINGS | changes,
        auxiliary=[f"volume={volumes}"],
        show_plan=plans.append,
    )
    return analysis, plans


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> tuple[Path, Any, Planned]:
    out = tmp_path_factory.mktemp("ladder")
    analysis, plans = run(out, volumes)
    return out, analysis, plans[0]


def test_every_experiment_ends_in_a_row_with_all_its_numbers(whole: tuple[Path, Any, Planned]) -> None:
    out, _, _ = whole
    rows = {row["name"]: row for row in read_json(out / "ablation.json")["experiments"]}
    assert set(rows) == set(LADDER)
    wanted = {"mae_mean", "mae_std", "per_fold", "cost", "parent", "difference", "interval", "p_corrected", "decision"}
    for row in rows.values():
        assert wanted <= set(row)
        assert not row["failed"]
        assert set(row["per_fold"]) == {"0", "1"}
        assert row["mae_mean"] == pytest.approx(np.mean(list(row["per_fold"].values())))
    assert rows["E0"]["difference"] is None
    assert rows["E2"]["parent"] == "E1"
    assert rows["E1"]["cost"]["structures"] == 2 * rows["E0"]["cost"]["structures"]  # two views of every row
    assert rows["L3"]["cost"]["structures"] == 3 * rows["E0"]["cost"]["structures"]
    assert rows["E3"]["cost"]["structures"] == 3 * rows["E0"]["cost"]["structures"]


def test_the_report_is_there_in_every_form(whole: tuple[Path, Any, Planned]) -> None:
    out, analysis, _ = whole
    text, page = (out / "ablation.md").read_text(), (out / "ablation.html").read_text()
    assert "SYNTHETIC" in text
    for name in LADDER:
        assert name in text
        assert name in page
    assert len(pd.read_parquet(out / "ablation.parquet")) == len(LADDER)
    assert analysis.sentences
    assert all(sentence in text for sentence in analysis.sentences)


def test_the_experiments_mae_is_that_of_the_predictions_it_leaves(whole: tuple[Path, Any, Planned]) -> None:
    out, _, _ = whole
    predictions = pd.read_parquet(out / "ablation_predictions.parquet")
    rows = {row["name"]: row for row in read_json(out / "ablation.json")["experiments"]}
    error = (predictions["prediction"] - predictions["target"]).abs()
    per_fold = error.groupby([predictions["experiment"], predictions["fold"]]).mean()
    for name in LADDER:
        assert rows[name]["mae_mean"] == pytest.approx(per_fold[name].mean())
    sample = load_sample().limit(N_ROWS)
    target = dict(zip(sample.ids, sample.targets, strict=True))
    assert all(target[row.id] == row.target for row in predictions.itertuples())


def test_an_ensemble_is_the_mean_of_its_seeds_and_shares_them_with_the_baseline(
    whole: tuple[Path, Any, Planned],
) -> None:
    out, _, planned = whole
    plans = {plan.name: plan for plan in planned.experiments}
    assert (plans["E3"].n_models, plans["E3"].n_new) == (6, 4)  # seed 0 of both folds is E0's
    assert plans["E2"].n_new == plans["E6"].n_new == 0
    assert plans["E2"].shared_with == ("E1",)
    assert plans["E3"].shared_with == ("E0",)
    assert plans["E6"].shared_with == ("E4",)
    predictions = pd.read_parquet(out / "ablation_predictions.parquet")
    ensemble = predictions[(predictions["experiment"] == "E3") & (predictions["fold"] == 0)].set_index("id")[
        "prediction"
    ]
    plain = configuration("E0", SAMPLE_TASK, SETTINGS).model_dump(mode="json")
    members = [
        pd.read_parquet(file.parent / "predicted.parquet").query("part == 'test'").set_index("id")["prediction"]
        for file in out.glob("runs/fold0-*/record.json")
        if read_json(file)["config"] == plain | {"seed": read_json(file)["config"]["seed"]}
        and not read_json(file)["held_out_part"]
    ]
    assert len(members) == 3
    assert np.allclose(np.mean([each.loc[ensemble.index] for each in members], axis=0), ensemble, atol=1e-12)


def test_every_run_keeps_a_record(whole: tuple[Path, Any, Planned]) -> None:
    out, _, planned = whole
    records = [read_json(file) for file in out.glob("runs/*/record.json")]
    assert len(records) == planned.n_runs
    for record in records:
        wanted = {"config", "fingerprint", "data", "versions", "device", "seconds", "structures", "val_mae", "test"}
        assert wanted <= set(record)
        assert record["status"] == "finished"
        assert (record["test"] == {}) == (record["held_out_part"] is not None)  # a teacher predicts no test row
    joint = [record["auxiliary"][0] for record in records if "auxiliary" in record]
    assert len(joint) == 2
    assert all(each["removed"] > 0 and each["kept_overlap"] == 0 for each in joint)


def test_asked_for_again_nothing_is_trained_and_more_experiments_only_add(
    whole: tuple[Path, Any, Planned], volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, planned = whole
    made: list[Job] = []
    inner = execute_module.run_job

    def watched(job: Job, *rest: Any) -> dict[str, Any]:
        made.append(job)
        return inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", watched)
    again, plans = run(out, volumes)
    assert not made
    assert plans[0].n_finished == planned.n_runs
    assert again.rows == before.rows
    run(out, volumes, ("T4", "S3"))
    assert {job.config.seed for job in made} == {0}  # four views of the baseline; S3 needs nothing new
    assert len(made) == 2


def test_a_run_that_fails_is_a_record_and_stops_only_what_needs_it(
    tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = execute_module.run_job

    def fails(job: Job, *rest: Any) -> dict[str, Any]:
        if job.config.distil.weight == 0 and "labelled" in job.requests:
            return RunSummary.failure("the loss became nan in epoch 1")
        return inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", fails)
    analysis, _ = run(tmp_path, volumes, ("E4", "W0"))
    rows = {row.name: row.content() for row in analysis.rows}
    assert "the loss became nan" in rows["E4"]["failed"]
    assert rows["E4"]["mae_mean"] is None
    assert rows["E4"]["decision"] == "failed"
    assert rows["W0"]["mae_mean"] > 0
    failed = [read_json(file) for file in tmp_path.glob("runs/*/record.json")]
    assert any("a model that it needs failed" in record["reason"] for record in failed)


def test_when_everything_fails_the_command_does(tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute_module, "run_job", lambda job, *rest: RunSummary.failure("no luck"))
    with pytest.raises(UserError, match=r"every experiment failed.*no luck"):
        run(tmp_path, volumes, ("E0",))
    assert json.loads((tmp_path / "ablation.json").read_text())["experiments"][0]["failed"]


def test_the_plan_alone_trains_nothing(tmp_path: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute_module, "run_job", lambda *rest: pytest.fail("a run was begun"))
    options = AblationOptions(("E1",), folds=(0,), seeds=2, resources=Resources("cpu", 1), plan_only=True)
    plans: list[Planned] = []
    source = Source("synthetic_sample", limit=N_ROWS)
    assert ablate(source, tmp_path / "out", options, settings=SETTINGS, show_plan=plans.append) is None
    assert plans[0].n_runs == 4
    assert "4 models; about" in str(plans[0])
    assert not (tmp_path / "out").exists()


def test_mistyped_choices_are_one_line() -> None:
    with pytest.raises(UserError, match=r"`start=0.4.0`: one of 0.3.0"):
        parse_starts(["0.4.0"])
    assert parse_starts(["0.3.0", "scratch", "0.3.0"]) == ("0.3.0", "scratch")
