"""How a run stands, read from its folder while it runs, after it was killed, and from another machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.execution.log import LOG, ExecutionLog, PlannedModel, read_log
from orchestrator.execution.status import ModelState, read_status
from orchestrator.execution.summary import RunSummary
from orchestrator.study.journal import Journal, Trial, result_event, trial_event
from orchestrator.study.status import read_study_status
from trainables.errors import UserError
from trainables.training.result import StepResult

DONE = RunSummary(status="finished", reason="", structures=10, seconds=1.0, structures_per_s=10.0)
MODELS = [
    PlannedModel("t0", "teacher 0", (), 100.0),
    PlannedModel("t1", "teacher 1", (), 100.0),
    PlannedModel("s", "student", ("t0", "t1"), 300.0),
    PlannedModel("old", "made before", (), 0.0),
]


def written(folder: Path, *, closed: bool = False) -> ExecutionLog:
    log = ExecutionLog(folder)
    log.session(MODELS, 2, ["cpu"])
    log.end("old", DONE, before=True)
    log.begin("t0", "cuda:0")
    log.begin("t1", "cuda:1")
    log.end("t0", DONE)
    if closed:
        log.closed()
    return log


def at(folder: Path, *times: float) -> None:
    """Give the events of a log these times."""
    events = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    lines = [json.dumps(event | {"time": moment}) + "\n" for event, moment in zip(events, times, strict=True)]
    (folder / LOG).write_text("".join(lines))


def test_what_ran_runs_and_waits_is_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    written(tmp_path)
    at(tmp_path, 1000, 1000, 1001, 1003, 1021)
    status = read_status(tmp_path, now=1030)
    assert status is not None
    told = {model.name: model for model in status.models}
    assert {name: str(model.state) for name, model in told.items()} == {
        "teacher 0": "finished",
        "teacher 1": "running",
        "student": "waiting",
        "made before": "finished",
    }
    assert (told["teacher 0"].seconds, told["teacher 1"].seconds, told["made before"].seconds) == (20, 27, None)
    assert told["student"].why == "needs teacher 1"
    assert status.at_work
    assert status.worker == f"process {os.getpid()} on {os.uname().nodename}"
    assert status.silence == 9
    assert status.gpu_seconds == 20 + 27
    assert status.seconds_left == pytest.approx(60)  # 300 structures at 5 a second; teacher 1 is over its time


def test_a_session_that_was_killed_has_interrupted_models(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_status as t; "
        "t.written(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)], check=False)
    status = read_status(tmp_path)
    assert status is not None
    assert status.at_work is False
    assert status.count(ModelState.INTERRUPTED) == 1
    assert status.count(ModelState.WAITING) == 1


def test_a_session_that_has_ended_is_not_at_work_though_its_process_lives(tmp_path: Path) -> None:
    written(tmp_path, closed=True)
    status = read_status(tmp_path)
    assert status is not None
    assert status.at_work is False


def test_another_machines_session_is_told_by_its_last_event(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / LOG).read_text().replace(os.uname().nodename, "elsewhere")
    (tmp_path / LOG).write_text(text)
    status = read_status(tmp_path, now=time.time() + 100)
    assert status is not None
    assert status.at_work is None
    assert status.count(ModelState.RUNNING) == 1
    assert 99 < status.silence < 110
    told = CliRunner().invoke(app, ["status", str(tmp_path)]).stdout
    assert "On another machine: process" in " ".join(told.split())


def test_the_last_session_counts_and_half_a_line_does_not(tmp_path: Path) -> None:
    written(tmp_path)
    again = ExecutionLog(tmp_path)
    again.session(MODELS[:2], 1, ["cpu"])
    with (tmp_path / LOG).open("a") as file:
        file.write('{"event": "end", "ti')
    session = read_log(tmp_path)
    assert session is not None
    assert list(session.models) == ["t0", "t1"]
    assert all(model.begun is None for model in session.models.values())


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    log = ExecutionLog(tmp_path / "missing")
    log.begin("t0", "cpu")
    log.closed()
    assert read_log(tmp_path / "missing") is None


def test_a_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.end("t1", RunSummary.failure("out of memory"))
    log.end("s", RunSummary.failure("a model that it needs failed: out of memory"))
    log.closed()
    told = " ".join(CliRunner().invoke(app, ["status", str(tmp_path)]).stdout.split())
    assert "4 models: 2 finished, 2 failed. Nothing is running." in told
    assert "out of memory" in told


def study(folder: Path, *, pid: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"n_trials": 8, "unit": "eV"}))
    (folder / ".lock").write_text(f"process {pid} on {os.uname().nodename} since 2026-01-01 00:00:00\n")
    journal = Journal(folder / "journal.jsonl")
    journal.append("begin", time=1.0)
    for number, mae in enumerate((0.5, 0.25, 0.75)):
        journal.append("trial", time=2.0, **trial_event(Trial(number, {}, {})))
        journal.append("result", **result_event(number, StepResult(1, 0.5, mae, mae, 0.5, 10, 2.0), done=False))
    journal.append("end", time=3.0, number=0, state="COMPLETE", values=[0.5], reason="")
    journal.append("end", time=4.0, number=1, state="FAIL", values=[], reason="ValueError: no")


@pytest.mark.parametrize(
    ("pid", "state"), [(os.getpid(), "running"), (4_194_303, "interrupted")], ids=["running", "killed"]
)
def test_a_search_is_told_from_its_journal(tmp_path: Path, pid: int, state: str) -> None:
    study(tmp_path / "study", pid=pid)
    status = read_study_status(tmp_path / "study", now=10.0)
    assert (status.begun, status.asked, status.best_trial, status.best) == (3, 8, 0, 0.5)
    assert status.states == {"complete": 1, "failed": 1, state: 1}
    assert status.failures == ("trial 1 failed: ValueError: no",)
    assert status.at_work is (state == "running")
    assert status.silence == 6.0
    told = " ".join(CliRunner().invoke(app, ["status", str(tmp_path / "study")]).stdout.split())
    assert "Search: 3 of 8 trials" in told
    assert "trial 0 with a validation MAE of 0.5 eV." in told


def test_it_is_told_as_json_too(tmp_path: Path) -> None:
    written(tmp_path, closed=True)
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert told["models"]["at_work"] is False
    assert told["models"]["models"][0]["state"] == "finished"


def test_watching_ends_when_nothing_is_at_work_any_more(tmp_path: Path) -> None:
    written(tmp_path, closed=True)
    told = CliRunner().invoke(app, ["status", str(tmp_path), "--watch"])
    assert told.exit_code == 0
    assert "Nothing is running." in told.stdout


@pytest.mark.parametrize(
    ("make", "words"), [("missing", "does not exist"), ("file", "is a file"), ("empty", "contains no run")]
)
def test_a_folder_without_a_run_is_one_line(tmp_path: Path, make: str, words: str) -> None:
    if make == "file":
        (tmp_path / make).write_text("")
    elif make == "empty":
        (tmp_path / make).mkdir()
    told = CliRunner().invoke(app, ["status", str(tmp_path / make)])
    assert isinstance(told.exception, UserError)
    assert words in str(told.exception)


@pytest.mark.trains
def test_training_leaves_a_log_whose_order_respects_needs(tmp_path: Path) -> None:
    import crystaltune as ct

    sample = ct.load_dataset("sample", limit=40, progress=False)
    assert len(sample) == 40
    settings = {
        "optim.epochs": 1, "model.start": "scratch", "model.width": 8, "distil.weight": 0.5, "distil.inner_folds": 2,
        "distil.seeds": 1, "ensemble.members": 2,
    }  # fmt: skip
    run = ct.train("sample", limit=40, settings=settings, folds=0, out=tmp_path / "run", device="cpu", progress=False)
    session = read_log(run.folder)
    assert session is not None
    assert session.closed
    assert len(session.models) == 4
    for model in session.models.values():
        assert model.status == "finished"
        assert model.begun is not None
        for other in model.planned.needs:
            ended = session.models[other].ended
            assert ended is not None
            assert ended <= model.begun
    ct.train("sample", limit=40, settings=settings, folds=0, out=tmp_path / "run", device="cpu", progress=False)
    again = read_log(run.folder)
    assert again is not None
    assert all(model.before for model in again.models.values())


def test_on_a_cluster_what_could_begin_waits_for_a_node_a_gpu_or_a_core_and_says_that_it_was_put_back(
    tmp_path: Path,
) -> None:
    log = ExecutionLog(tmp_path)
    log.session(MODELS, 0, (), on_ray=True)

    def waits() -> str:
        status = read_status(tmp_path)
        assert status is not None
        return next(model.why for model in status.models if model.name == "teacher 0")

    assert waits() == "waits for a node"
    log.workers(1, gpus=True)
    assert waits() == "waits for a free GPU"
    log.begin("t0", "cuda:0 on node-1, GPU 3")
    log.put_back("t0", "node node-1 is lost or does not answer")
    assert waits() == "waits for a free GPU; it was put back: node node-1 is lost or does not answer"
    log.workers(1, gpus=False)
    assert waits().startswith("waits for a free core of the cluster")
    log.begin("t0", "cuda:0 on node-2, GPU 1")
    status = read_status(tmp_path, now=time.time() + 5)
    assert status is not None
    assert next(model for model in status.models if model.name == "teacher 0").device == "cuda:0 on node-2, GPU 1"
    assert status.gpu_seconds == pytest.approx(5, abs=0.1)
