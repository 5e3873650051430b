"""The main job on small tables: files it leaves, resume, refusals, leaks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from small_data import tiny_dataset

from orchestrator.execution import job as job_module
from orchestrator.execution import scheduler as execute_module
from orchestrator.execution.folders import only_process
from orchestrator.execution.job import Job
from orchestrator.execution.resources import Resources
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.source import Source
from orchestrator.predict.run import predict_file
from orchestrator.record.submission import record_run
from orchestrator.train.run import TrainOptions, baseline_run, train
from trainables.errors import UserError
from trainables.files import read_json

pytestmark = pytest.mark.trains

SETTINGS = {"optim.epochs": 2, "optim.batch_size": 8, "data.val_share": 0.2}


@pytest.fixture(scope="module")
def whole_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV table of 24 crystals as CIF text."""
    data = tiny_dataset(24)
    rows = [
        {"id": row_id, "structure": crystal.to_structure().to(fmt="cif"), "y": target}
        for row_id, crystal, target in zip(data.ids, data.structures, data.targets, strict=True)
    ]
    path = tmp_path_factory.mktemp("table") / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def table(whole_table: Path, tmp_path: Path) -> Path:
    """A copy of the table, to be changed at will."""
    return Path(shutil.copy(whole_table, tmp_path / "table.csv"))


def run(table: Path, out: Path, folds: tuple[int, ...] = (0, 1), **settings: Any) -> dict[str, Any]:
    changes = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    options = TrainOptions(folds, Resources("cpu", 1))
    return train(Source("tiny", table, unit="eV/atom", energy=True), out, settings=changes, options=options).content()


@dataclass(frozen=True)
class Finished:
    """A run's folder, what it returned and the jobs it did."""

    folder: Path
    scores: dict[str, Any]
    jobs: list[Job]

    def copied(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.folder, folder))


def finished(table: Path, out: Path, folds: tuple[int, ...]) -> Finished:
    jobs: list[Job] = []
    inner = execute_module.run_job

    def watched(job: Job, *rest: Any) -> dict[str, Any]:
        jobs.append(job)
        return inner(job, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(execute_module, "run_job", watched)
        return Finished(out, run(table, out, folds), jobs)


@pytest.fixture(scope="module")
def one_fold(whole_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Fold 0, trained once for all tests that read it or damage a copy."""
    return finished(whole_table, tmp_path_factory.mktemp("one_fold") / "out", (0,))


@pytest.fixture(scope="module")
def two_folds(whole_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Folds 0 and 1; to be read, not changed."""
    return finished(whole_table, tmp_path_factory.mktemp("two_folds") / "out", (0, 1))


def test_train_leaves_scores_and_predictions_of_every_test_row(two_folds: Finished) -> None:
    scores = two_folds.scores
    assert scores == read_json(two_folds.folder / "scores.json")
    assert set(scores["folds"]) == {"0", "1"}
    for values in (*scores["folds"].values(), scores["mean"]):
        assert {"mae", "rmse", "max_error", "n", "n_fallback"} <= set(values)
    assert scores["task"] == "tiny"
    assert scores["tier"] == "pretrained-overlap-unknown"
    assert scores["partial"] is False
    assert scores["record"] is None
    assert "tiny" in scores["no_record_because"]
    assert set(scores["baselines"]) == {"dummy", "linear", "zero-shot"}
    predictions = pd.read_parquet(two_folds.folder / "predictions.parquet")
    assert list(predictions.columns[:4]) == ["id", "fold", "target", "prediction"]
    assert predictions["id"].is_unique
    assert np.isfinite(predictions["prediction"]).all()
    for fold, rows in predictions.groupby("fold"):
        mae = (rows["prediction"] - rows["target"]).abs().mean()
        assert scores["folds"][str(fold)]["mae"] == pytest.approx(mae)


def test_workers_never_get_a_test_target(two_folds: Finished) -> None:
    seen = two_folds.jobs
    predictions = pd.read_parquet(two_folds.folder / "predictions.parquet")
    assert len(seen) == 2
    for job in seen:
        test = set(predictions.loc[predictions["fold"] == job.config.fold, "id"])
        assert job.split.test is None
        assert set(job.requests["test"].ids) == test
        assert set(vars(job.requests["test"])) == {"ids", "rows"}
        assert not test & set(job.split.train.ids + job.split.val.ids)


def test_second_train_in_the_same_folder_trains_nothing_and_adds_folds(
    one_fold: Finished, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = one_fold.copied(tmp_path / "out"), one_fold.scores
    with monkeypatch.context() as patched:
        patched.setattr(execute_module, "run_job", lambda *args: pytest.fail("a fold was trained again"))
        assert run(table, out, (0,))["mean"] == before["mean"]
    after = run(table, out, (1,))
    assert set(after["folds"]) == {"0", "1"}
    assert after["folds"]["0"] == before["folds"]["0"]


def test_a_folder_in_which_nothing_was_made_takes_another_run(table: Path, tmp_path: Path) -> None:
    source, options = (
        Source("tiny", table, unit="eV/atom", energy=True, limit=1),
        TrainOptions((0,), Resources("cpu", 1)),
    )
    with pytest.raises(UserError):
        train(source, tmp_path / "out", settings=SETTINGS, options=options)
    assert run(table, tmp_path / "out", (0,))["mean"]["n"] > 0


def test_folder_of_another_run_is_refused_with_the_difference(one_fold: Finished, table: Path, tmp_path: Path) -> None:
    out = one_fold.copied(tmp_path / "out")
    with pytest.raises(UserError, match=r"optim.lr was 0.001, is 0.002"):
        run(table, out, (0,), optim__lr=0.002)
    changed = pd.read_csv(table)
    changed.loc[0, "y"] += 1
    changed.to_csv(table, index=False)
    with pytest.raises(UserError, match="the data differ"):
        run(table, out, (0,))


def test_the_same_numbers_as_an_energy_are_another_run(one_fold: Finished, table: Path, tmp_path: Path) -> None:
    out = one_fold.copied(tmp_path / "out")
    source = Source("tiny", table, unit="eV/atom", energy=False)
    with pytest.raises(UserError, match="the data differ"):
        train(source, out, settings=SETTINGS, options=TrainOptions((0,), Resources("cpu", 1)))


@pytest.mark.parametrize("lost", ["predictions.parquet", "done.json"])
def test_a_fold_that_lost_a_file_is_finished_again_without_training(
    one_fold: Finished, table: Path, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = one_fold.copied(tmp_path / "out"), one_fold.scores
    monkeypatch.setattr("trainables.training.loop.take_step", lambda *args, **kw: pytest.fail("it was trained again"))
    file = out / "fold_0" / lost
    file.write_text("{")
    assert run(table, out, (0,))["mean"] == before["mean"]
    file.unlink()
    assert run(table, out, (0,))["mean"] == before["mean"]


def test_a_wrong_published_table_is_told_before_anything_is_read(tmp_path: Path) -> None:
    options = TrainOptions((0,), published=tmp_path / "missing.csv")
    with pytest.raises(UserError, match="`published="):
        train(Source("tiny", tmp_path / "missing too.csv"), tmp_path / "out", options=options)


def test_second_process_in_the_same_folder_exits_at_once(table: Path, tmp_path: Path) -> None:
    with (
        only_process(tmp_path / "out"),
        pytest.raises(UserError, match="another process is using"),
    ):
        run(table, tmp_path / "out", (0,))


def test_failed_fold_is_named_and_the_others_are_kept(
    one_fold: Finished, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = execute_module.run_job

    def fails_in_fold_1(job: Job, *rest: Any) -> dict[str, Any]:
        if job.config.fold == 1:
            return RunSummary.failure("the loss became nan in epoch 0")
        return inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", fails_in_fold_1)
    with pytest.raises(UserError, match=r"1 of 2 folds failed \(fold 1: the loss became nan"):
        run(table, tmp_path / "out")
    scores = read_json(tmp_path / "out" / "scores.json")
    assert set(scores["folds"]) == {"0"}
    assert scores["folds"]["0"]["mae"] == one_fold.scores["folds"]["0"]["mae"]
    assert "nan" in scores["failed"]["1"]


def test_where_nothing_can_be_written_no_further_model_is_begun(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = job_module.write_json

    def full(path: Path, content: Any) -> None:
        if path.name == job_module.DONE:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        inner(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(job_module, "write_json", full)
        with pytest.raises(
            UserError, match=r"fold 0: .*done.json cannot be written \(No space left on device\)"
        ) as told:
            run(table, tmp_path / "out")
    assert "fold 1: not begun, as another's files could not be written" in str(told.value)
    assert [file.parent.name for file in (tmp_path / "out").glob("fold_*/fit.json")] == ["fold_0"]
    assert set(run(table, tmp_path / "out")["folds"]) == {"0", "1"}


def test_rows_without_a_graph_end_in_a_counted_fallback(table: Path, tmp_path: Path) -> None:
    content = pd.read_csv(table)
    for row, element in enumerate(("He", "Ne", "Ar", "Kr", "Xe")):
        content.loc[row, "structure"] = Structure(Lattice.cubic(9.0), [element], [[0, 0, 0]]).to(fmt="cif")
    content.to_csv(table, index=False)
    scores = run(table, tmp_path / "out", (0, 1, 2, 3, 4), optim__epochs=1, data__val_share=0.4)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert scores["mean"]["n_fallback"] == 5
    assert set(predictions.loc[predictions["fallback"], "id"]) == {f"tiny-{i:03d}" for i in range(5)}
    assert np.isfinite(predictions["prediction"]).all()


def test_predict_averages_the_folds_in_the_order_of_the_file(two_folds: Finished, table: Path, tmp_path: Path) -> None:
    two_folds.copied(tmp_path / "out")
    shuffled = pd.read_csv(table).sample(frac=1, random_state=0).drop(columns="y")
    shuffled.to_csv(tmp_path / "new.csv", index=False)
    predicted, path = predict_file(tmp_path / "out", tmp_path / "new.csv", device="cpu")
    assert list(predicted["id"]) == list(shuffled["id"])
    assert pd.read_parquet(path).equals(predicted)
    assert (predicted["std"] > 0).any()
    own = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("id")["prediction"]
    assert (predicted.set_index("id")["prediction"].loc[own.index] - own).abs().max() < 1.0
    again, path = predict_file(tmp_path / "out", tmp_path / "new.csv", tmp_path / "pred.csv", device="cpu")
    assert path == tmp_path / "pred.csv"
    assert pd.read_csv(path, float_precision="round_trip", keep_default_na=False).equals(again)
    assert predicted["in_training"].all()
    assert (predicted["problem"] == "").all()
    with pytest.raises(UserError, match="not contain a trained fold"):
        predict_file(tmp_path / "nowhere", tmp_path / "new.csv")
    for out, part in ((tmp_path, "is a folder"), (tmp_path / "pred.txt", "must end in one of")):
        with pytest.raises(UserError, match=part):  # before the run is looked at
            predict_file(tmp_path / "nowhere", tmp_path / "new.csv", out)


def test_own_tables_have_no_record_and_say_why(one_fold: Finished, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Matbench record"):
        record_run(one_fold.copied(tmp_path / "out"))
    with pytest.raises(UserError, match="does not contain a finished run"):
        record_run(tmp_path / "nowhere")


def test_a_target_of_ones_own_for_a_known_task_is_refused_before_its_file_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jdft2d predicts 'exfoliation_en'"):
        train(Source("JDFT2D", target="y"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_baselines_alone(table: Path) -> None:
    scores = baseline_run(Source("tiny", table, energy=True), (0, 1)).model_dump(mode="json")
    data = tiny_dataset(24)
    assert scores["baselines"]["dummy"]["mean"]["n"] == sum(scores["baselines"]["dummy"]["folds"][f]["n"] for f in "01")
    assert scores["baselines"]["linear"]["mean"]["mae"] < np.abs(data.targets - data.targets.mean()).mean() * 2


LONGER = {"optim.epochs": 6, "optim.batch_size": 4, "data.val_share": 0.2}


def in_two_processes(table: Path, out: Path) -> dict[str, Any]:
    source, options = Source("tiny", table, unit="eV/atom", energy=True), TrainOptions((0, 1), Resources("cpu", 2))
    return train(source, out, settings=LONGER, options=options).content()


@pytest.fixture(scope="module")
def by_two_processes(whole_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two folds by two processes."""
    out = tmp_path_factory.mktemp("two_processes") / "out"
    in_two_processes(whole_table, out)
    return out


def test_two_processes_give_the_scores_of_one(by_two_processes: Path, table: Path, tmp_path: Path) -> None:
    one = run(table, tmp_path / "one", **LONGER)
    two = read_json(by_two_processes / "scores.json")
    for fold in ("0", "1"):
        assert two["folds"][fold]["mae"] == pytest.approx(one["folds"][fold]["mae"], abs=1e-4)


SCRIPT = """
import sys
from pathlib import Path
from test_train import in_two_processes
if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_numbers(
    by_two_processes: Path, table: Path, tmp_path: Path
) -> None:
    """SIGKILL of the whole command while both workers train; the same command again equals an uninterrupted run."""
    cut = tmp_path / "cut"
    (tmp_path / "job.py").write_text(SCRIPT)
    here = Path(__file__).resolve()
    paths = os.pathsep.join(str(folder) for folder in (here.parents[2], here.parents[1] / "support", here.parent))
    killed = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(table), str(cut)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while not list(cut.glob("fold_*/checkpoints/epoch-0000[1-4].json")):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (cut / "scores.json").exists()
    in_two_processes(table, cut)
    both = (by_two_processes, cut)
    whole_scores, cut_scores = (read_json(out / "scores.json") for out in both)
    for scores in (whole_scores, cut_scores):
        for values in scores["folds"].values():
            values.pop("structures_per_s")
    assert cut_scores == whole_scores
    frames = [pd.read_parquet(out / "predictions.parquet") for out in both]
    assert frames[0].equals(frames[1])
    histories = [json.loads((out / "fold_0" / "fit.json").read_text())["history"] for out in both]
    assert [e["train_loss"] for e in histories[0]] == [e["train_loss"] for e in histories[1]]
