import json
import logging
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matbench.bench import MatbenchBenchmark
from record_data import DESCRIPTION, PARAMS, TASK, table, write_finished_run

from orchestrator.evaluation.scores import Scores
from orchestrator.record import matbench as record
from orchestrator.record.matbench import INSTALL_MATBENCH, MatbenchRecord
from orchestrator.record.submission import _check_targets, record_run
from orchestrator.train.run import _with_record
from trainables.data.folds import N_FOLDS
from trainables.data.tasks import SAMPLE_TASK, TASKS, custom_task
from trainables.errors import UserError


def write(predictions: pd.DataFrame, folder: Path, **changes: Any) -> Path:
    return recorded(predictions, folder, **changes).path


def recorded(predictions: pd.DataFrame, folder: Path, **changes: Any) -> MatbenchRecord:
    given: dict[str, Any] = {"task": TASK, "description": DESCRIPTION, "params": PARAMS, **changes}
    return record.write_record(predictions, given.pop("task"), folder, **given)


def reopened(path: Path) -> Any:
    return MatbenchBenchmark.from_file(str(path))


def results(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["tasks"][TASK.name]["results"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One valid record that several tests read."""
    return write(table(), tmp_path_factory.mktemp("whole") / "record")


def test_a_valid_record_opens_in_matbench_with_the_scores_of_the_predictions(whole: Path) -> None:
    predictions = table()
    task = reopened(whole).matbench_jdft2d
    error = predictions["prediction"] - predictions["target"]
    by_fold = error.abs().groupby(predictions["fold"]).mean()
    assert task.all_folds_recorded
    assert task.scores.mae.mean == pytest.approx(by_fold.mean(), rel=1e-12)
    for fold in range(N_FOLDS):
        assert task.results[f"fold_{fold}"].scores.mae == pytest.approx(by_fold[fold], rel=1e-12)
        rmse = np.sqrt((error[predictions["fold"] == fold] ** 2).mean())
        assert task.results[f"fold_{fold}"].scores.rmse == pytest.approx(rmse, rel=1e-12)


def test_every_prediction_stands_in_the_record_under_its_own_id(whole: Path) -> None:
    recorded = {mbid: value for fold in results(whole).values() for mbid, value in fold["data"].items()}
    assert recorded == dict(zip(table()["id"], table()["prediction"], strict=True))


def test_the_record_keeps_the_description_and_the_parameters_of_every_fold(whole: Path) -> None:
    benchmark = reopened(whole)
    assert benchmark.user_metadata == {
        "name": "crystaltune test",
        "authors": "A. Tester",
        "tier": "pretrained-disjoint",
        "settings": DESCRIPTION.settings,
        "versions": DESCRIPTION.versions,
        "n_fallback": 3,
    }
    for fold in range(N_FOLDS):
        assert benchmark.matbench_jdft2d.results[f"fold_{fold}"].parameters == PARAMS[fold]


def test_published_predictions_score_their_published_mae(shared_data: Path, tmp_path: Path) -> None:
    published = pd.read_csv(shared_data / "matbench_predictions" / "matbench_jdft2d.csv.gz")
    targets = pd.read_csv(shared_data / "matbench_targets" / "matbench_jdft2d.csv.gz").set_index("mbid")
    scores = pd.read_csv(shared_data / "matbench_predictions" / "recomputed_mae.csv")
    wanted = scores.query("task == 'jdft2d' and algorithm == 'coNGN'")["mae_mean_over_folds"].item()
    predictions = pd.DataFrame(
        {
            "id": published["mbid"],
            "fold": published["fold"],
            "target": targets[TASK.target].reindex(published["mbid"]).to_numpy(),
            "prediction": published["coNGN"],
        }
    )
    path = write(predictions, tmp_path)
    assert reopened(path).matbench_jdft2d.scores.mae.mean == pytest.approx(wanted, abs=1e-4)


def test_shuffled_rows_give_the_same_record(whole: Path, tmp_path: Path) -> None:
    shuffled = table().sample(frac=1, random_state=1)
    assert results(write(shuffled, tmp_path)) == results(whole)


def test_float32_predictions_are_recorded_as_their_exact_values(tmp_path: Path) -> None:
    predictions = table().astype({"prediction": np.float32})
    values = {
        mbid: value for fold in results(write(predictions, tmp_path)).values() for mbid, value in fold["data"].items()
    }
    assert values == dict(zip(predictions["id"], predictions["prediction"].astype(float), strict=True))


def test_recording_twice_into_one_folder_leaves_the_second_record_and_no_other_file(tmp_path: Path) -> None:
    write(table(seed=1), tmp_path)
    path = write(table(seed=2), tmp_path)
    recorded = results(path)["fold_0"]["data"]
    second = table(seed=2).set_index("id")["prediction"]
    assert all(second[mbid] == value for mbid, value in recorded.items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["info.json", "results.json.gz", "run.py"]


def test_info_json_fills_what_matbench_asks_for_and_tells_tier_pretraining_and_fallbacks(whole: Path) -> None:
    info = json.loads((whole.parent / "info.json").read_text())
    assert all(info[key] for key in ("authors", "algorithm", "algorithm_long", "bibtex_refs", "requirements"))
    assert info["requirements"] == {"python": ["crystaltune==0.1.0", "torch==2.15.0"]}
    for wanted in ("pretrained-disjoint", "MPtrj", "3 of 636 test predictions are fallbacks"):
        assert wanted in info["notes"]
    for doi in ("10.1038/s42256-023-00716-3", "10.1038/s41524-020-00406-3"):
        assert doi in info["bibtex_refs"]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_matbench_task_has_an_honest_text_for_each_of_its_tiers(task: Any) -> None:
    for tier in ("scratch", task.overlap):
        assert "MPtrj" in record._info(replace(DESCRIPTION, tier=tier), n_rows=10)["notes"]


def test_run_py_is_valid_python_that_trains_with_the_settings(whole: Path) -> None:
    names: dict[str, Any] = {"__name__": "opened by a test"}
    exec(compile((whole.parent / "run.py").read_text(), "run.py", "exec"), names)
    assert names["SETTINGS"] == DESCRIPTION.settings


def test_the_submission_folder_is_named_as_matbench_asks() -> None:
    assert record.submission_folder(Path("out"), "CHGNet (ours) v2") == Path("out/matbench_v0.1_CHGNet_ours_v2")


def without(row: int) -> pd.DataFrame:
    return table().drop(index=row)


def changed(row: int, column: str, value: Any) -> pd.DataFrame:
    predictions = table().astype({column: type(value)})
    predictions.loc[row, column] = value
    return predictions


def moved(row: int) -> pd.DataFrame:
    return changed(row, "fold", (int(table().loc[row, "fold"]) + 1) % N_FOLDS)


REFUSED = {
    "nan": (lambda: changed(4, "prediction", float("nan")), "1 predictions are not finite (mb-jdft2d-005)"),
    "infinite": (lambda: changed(4, "prediction", float("inf")), "1 predictions are not finite (mb-jdft2d-005)"),
    "nan target": (lambda: changed(4, "target", float("nan")), "1 targets are not finite (mb-jdft2d-005)"),
    "missing id": (lambda: without(4), "is missing 1 official test ids (mb-jdft2d-005)"),
    "foreign id": (lambda: changed(4, "id", "mb-jdft2d-999"), "1 ids that do not belong to it (mb-jdft2d-999)"),
    "extra id": (
        lambda: pd.concat([table(), table().head(1).assign(id="mb-jdft2d-637")]),
        "1 ids that do not belong to it (mb-jdft2d-637)",
    ),
    "duplicate id": (
        lambda: pd.concat([table(), table().iloc[[4]]]),
        "1 ids are predicted more than once (mb-jdft2d-005)",
    ),
    "id in another fold": (lambda: moved(4), "mb-jdft2d-005"),
    "missing fold": (lambda: table().query("fold != 3"), "fold 3 was not run"),
    "unknown fold": (lambda: changed(4, "fold", 7), "contain folds 7"),
    "missing column": (lambda: table().drop(columns="target"), "have no column target"),
    "arrays": (
        lambda: table().assign(prediction=[np.array([value]) for value in table()["prediction"]]),
        "the predictions are object values",
    ),
    "text": (lambda: table().assign(prediction="1.0"), "plain number"),
    "booleans": (lambda: table().assign(prediction=True), "the predictions are bool values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_faulty_predictions_are_refused_in_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        write(make(), tmp_path / "record")
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"description": replace(DESCRIPTION, authors="")}, "has no authors"),
        ({"description": replace(DESCRIPTION, tier="", settings={}, versions={})}, "no tier, settings, versions"),
        (
            {"description": replace(DESCRIPTION, settings={"lr": np.float32(1)})},
            "description cannot be written",
        ),
        ({"description": replace(DESCRIPTION, tier="pretrained-label-overlap")}, "does not fit matbench_jdft2d"),
        ({"description": replace(DESCRIPTION, n_fallback=636)}, "all 636 predictions are fallbacks"),
        ({"params": {0: {"lr": np.float32(0.1)}}}, "the parameters of fold 0 cannot be written as JSON"),
        ({"params": {2: {"loss": float("nan")}}}, "the parameters of fold 2 cannot be written as JSON"),
        ({"task": SAMPLE_TASK}, "synthetic sample"),
    ],
)
def test_a_faulty_description_is_refused_before_anything_is_written(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        write(table(), tmp_path / "record", **changes)
    assert not (tmp_path / "record").exists()


def test_a_score_matbench_does_not_share_is_an_error_and_leaves_the_older_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(table(seed=1), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "matbench.data_ops.score_array", lambda *_: dict.fromkeys(("mae", "rmse", "mape", "max_error"), 1.0)
    )
    with pytest.raises(RuntimeError, match=r"fold 0 of matbench_jdft2d: matbench's scores are {'mae': 1\.0"):
        write(table(seed=2), tmp_path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["info.json", "results.json.gz", "run.py"]


def test_matbench_stays_silent_while_a_record_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write(table(), tmp_path)
    assert not [entry for entry in caplog.records if entry.name.startswith("matbench")]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_whole_matbench_task_with_all_folds_can_be_recorded(task: Any) -> None:
    rows = task.official_rows
    assert record.why_no_record(task, partial=False, n_rows=rows, folds=range(N_FOLDS), n_fallback=5) is None


@pytest.mark.parametrize(
    ("task", "changes", "sentence"),
    [
        (SAMPLE_TASK, {}, "synthetic_sample is a synthetic sample, not a Matbench task"),
        (custom_task("mine", "y", "eV", "property"), {}, "mine is a table of your own, not a Matbench task"),
        (custom_task(TASK.name, "y", "eV", "property"), {}, "a table of your own"),
        (TASKS["matbench_mp_e_form"], {"partial": True, "n_rows": 871}, "partial here (871 of 132752 rows)"),
        (TASK, {"folds": [0, 1, 3, 4]}, "fold 2 was not run"),
        (TASK, {"folds": [0]}, "folds 1, 2, 3, 4 were not run"),
        (TASK, {"n_fallback": 636}, "all 636 predictions are fallbacks"),
    ],
)
def test_why_no_record_names_the_reason(task: Any, changes: dict[str, Any], sentence: str) -> None:
    given = {"partial": False, "n_rows": 636, "folds": range(N_FOLDS), "n_fallback": 0, **changes}
    assert sentence in record.why_no_record(task, **given)


def test_a_record_says_which_matbench_has_validated_it(tmp_path: Path) -> None:
    written = recorded(table(), tmp_path / "run" / "record")
    assert written.validated_by == f"matbench {version('matbench')}"
    assert written.sentence == f"Matbench record: {written.path} (validated by matbench 0.6)"


def without_matbench(monkeypatch: pytest.MonkeyPatch, missing: str = "matbench") -> None:
    """Make importing `missing` fail, as where it is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"matbench", missing}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)


@pytest.mark.parametrize("missing", ["matbench", "matminer"])
def test_without_matbench_the_same_record_is_written_and_says_how_to_validate_it(
    missing: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as absent:
        without_matbench(absent, missing)
        written = recorded(table(), tmp_path / "my run" / "record")
    assert written.validated_by is None
    assert "checked by crystaltune against the official splits" in written.sentence
    assert f"{INSTALL_MATBENCH} && crystaltune record '{tmp_path / 'my run'}'" in written.sentence
    assert "\n" not in written.sentence
    assert results(written.path) == results(whole)
    assert reopened(written.path).is_valid


def test_a_record_is_made_without_matbench_matminer_or_scikit_learn() -> None:
    code = (
        "import sys\n"
        "for name in ('matbench', 'matminer', 'sklearn'): sys.modules[name] = None\n"
        "import orchestrator.record.submission, trainables.data.locate\n"
        "assert orchestrator.record.submission.matbench_version() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    write_finished_run(tmp_path)
    return tmp_path


def with_record(run: Path) -> dict[str, Any]:
    """The scores of a run once its record was tried."""
    return _with_record(Scores.model_validate_json((run / "scores.json").read_text()), run).content()


def test_a_finished_run_is_recorded_and_its_scores_say_who_has_validated_the_record(finished: Path) -> None:
    told = with_record(finished)
    assert {name: told[name] for name in ("record", "record_validated_by", "no_record_because")} == {
        "record": "matbench_v0.1_crystaltune_chgnet/results.json.gz",
        "record_validated_by": "matbench 0.6",
        "no_record_because": None,
    }
    benchmark = reopened(finished / str(told["record"]))
    assert benchmark.user_metadata["versions"] == {"crystaltune": "0.1.0", "matbench": "0.6"}
    assert benchmark.matbench_jdft2d.results.fold_3.parameters == {"fold": 3, "optim.lr": 0.001, "task": TASK.name}


def test_a_run_without_matbench_is_recorded_too_and_does_not_claim_its_version(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as absent:
        without_matbench(absent)
        told = with_record(finished)
    assert told["record_validated_by"] is None
    assert reopened(finished / str(told["record"])).user_metadata["versions"] == {"crystaltune": "0.1.0"}
    again = record_run(finished)
    assert again.validated_by == "matbench 0.6"


def test_a_run_on_other_targets_ends_with_its_scores_and_the_reason_for_having_no_record(finished: Path) -> None:
    predictions = pd.read_parquet(finished / "predictions.parquet")
    predictions.assign(target=predictions["target"] * 1.01).to_parquet(finished / "predictions.parquet")
    told = with_record(finished)
    assert told["record"] is told["record_validated_by"] is None
    assert "download the official one" in str(told["no_record_because"])
    assert not list(finished.glob("matbench*"))


def test_targets_that_are_not_the_official_ones_are_refused_before_a_record(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "matbench_targets" / "matbench_jdft2d.csv.gz")
    table = table.rename(columns={"exfoliation_en": "target"})
    _check_targets(TASKS["matbench_jdft2d"], table)
    table["target"] *= 1.01
    with pytest.raises(UserError, match="mean absolute deviation"):
        _check_targets(TASKS["matbench_jdft2d"], table)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optim.lr": 1e-3}, "with crystaltune."),
        ({"ensemble.members": 3, "ensemble.combine": "mean"}, "with crystaltune: mean of 3 seeds."),
        (
            {"ensemble.members": 2, "ensemble.combine": "greedy", "ensemble.vary.model.start": ["0.3.0", "r2scan"]},
            "with crystaltune: greedy of 2 seeds of each variant of model.start.",
        ),
        (
            {"distil.weight": 0.5, "tta.views": 4},
            "taught by out-of-fold teachers as well as by the labels; 4 views of each crystal averaged.",
        ),
    ],
)
def test_the_record_says_what_its_algorithm_is(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    path = write(table(), tmp_path / "record", description=replace(DESCRIPTION, settings=settings))
    assert json.loads((path.parent / "info.json").read_text())["algorithm_long"].endswith(told)


@pytest.mark.parametrize(
    ("settings", "tier", "told"),
    [
        ({"optim.lr": 1e-3}, "pretrained-disjoint", "CHGNet fine-tuned on each"),
        ({"optim.lr": 1e-3}, "scratch", "CHGNet's architecture trained from random weights on each"),
        (
            {"model.family": "tabular"}, "pretrained-disjoint",
            "Ridge regression and extremely randomised trees fitted to numbers of each crystal, those of the "
            "pretrained CHGNet among them, on each",
        ),
        (
            {"model.family": "tabular"}, "scratch",
            "Ridge regression and extremely randomised trees fitted to numbers of each crystal, on each",
        ),
        (
            {"ensemble.vary.model.family": ["chgnet", "tabular"]}, "pretrained-disjoint",
            "CHGNet fine-tuned; ridge regression and extremely randomised trees",
        ),
    ],
)  # fmt: skip
def test_a_record_calls_nothing_fine_tuned_that_is_not(
    tmp_path: Path, settings: dict[str, Any], tier: Any, told: str
) -> None:
    path = write(table(), tmp_path / "record", description=replace(DESCRIPTION, settings=settings, tier=tier))
    assert json.loads((path.parent / "info.json").read_text())["algorithm_long"].startswith(told)
