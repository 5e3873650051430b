"""Studies on a real Ray: every way a trial can end, and a driver that is killed in the middle."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_trainable import N_STEPS
from fake_trials import run_fakes

from orchestrator.ray_environment import check_address
from orchestrator.ray_session import Capacity, Share, share_for
from orchestrator.study import ray_tune as tuning
from orchestrator.study.driver import MOST_TRIES, StudyDriver
from orchestrator.study.journal import Journal, Trial, trials_of
from orchestrator.study.options import TrialResources
from orchestrator.study.pruner import Pruner
from trainables.errors import UserError

pytestmark = pytest.mark.trains

HERE = Path(__file__).resolve().parents[1] / "support"
VALUES = (5, 3, 8, 1, 9, 2, 7, 4, 6, 0)


@pytest.fixture(scope="module")
def ended(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyDriver, Path]:
    """A study whose trials end in every way there is."""
    folder = tmp_path_factory.mktemp("faults")
    return run_fakes(folder, (0, 101, 102, 103, 104, 105, 1), rule="none", at_once=2), folder


def by_x(driver: StudyDriver) -> dict[int, Trial]:
    return {trial.changes["x"]: trial for trial in driver.trials.values()}


def test_a_trial_that_raises_fails_with_its_reason_in_one_line(ended: tuple[StudyDriver, Path]) -> None:
    trial = by_x(ended[0])[101]
    assert (trial.state, trial.reason, trial.last) == ("FAIL", "ValueError: no luck with 101", 1)


def test_a_trial_that_becomes_nan_fails_at_its_step(ended: tuple[StudyDriver, Path]) -> None:
    trial = by_x(ended[0])[102]
    assert (trial.state, trial.reason, trial.values) == ("FAIL", "the validation MAE is not finite at step 2", ())


def test_a_trial_whose_worker_is_killed_goes_on_from_its_last_step(ended: tuple[StudyDriver, Path]) -> None:
    trial = by_x(ended[0])[103]
    assert (trial.state, trial.tries) == ("COMPLETE", 2)
    assert [result.step for result in trial.results] == list(range(1, N_STEPS + 1))


def test_a_trial_whose_worker_is_killed_again_and_again_fails(ended: tuple[StudyDriver, Path]) -> None:
    trial = by_x(ended[0])[104]
    assert trial.state == "FAIL"
    assert trial.reason == f"its process was killed (out of memory, most likely), {MOST_TRIES} times"


def test_a_trial_that_reports_too_little_fails_and_stops_nothing_else(ended: tuple[StudyDriver, Path]) -> None:
    trials = by_x(ended[0])
    assert trials[105].state == "FAIL"
    assert trials[105].reason.startswith("a result without step, epoch, mae")
    assert trials[0].state == trials[1].state == "COMPLETE"


def test_local_ray_that_runs_is_known_by_its_answer(local_ray: None) -> None:
    check_address(str(ray.get_runtime_context().gcs_address))


def test_trials_run_at_the_drivers_own_priority(ended: tuple[StudyDriver, Path]) -> None:
    """Ray's own choice for workers is nice 15, at which a study beside any other work starves."""
    found = {int(file.read_text()) for file in (ended[1] / "trials").glob("nice-*")}
    assert found == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_the_journal_holds_what_the_driver_says(ended: tuple[StudyDriver, Path]) -> None:
    driver, folder = ended
    assert driver.finished
    assert repr(trials_of(Journal(folder / "journal.jsonl").read())) == repr(driver.trials)  # nan is not nan


def run_script(folder: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, str(HERE / "fake_trials.py"), str(folder), ",".join(map(str, VALUES))]
    return subprocess.Popen(
        words,
        cwd=HERE.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        stderr=subprocess.DEVNULL,
    )


def timeless(folder: Path) -> list[dict[str, object]]:
    events = Journal(folder / "journal.jsonl").read()
    return [{name: value for name, value in event.items() if name != "time"} for event in events]


@pytest.mark.usefixtures("local_ray")
def test_a_driver_killed_in_the_middle_goes_on_and_ends_with_the_study_of_one_that_was_not(tmp_path: Path) -> None:
    """kill -9 of the driver: no finished trial runs again, and journal, states and rungs are those of a whole study."""
    run_fakes(tmp_path / "whole", VALUES)
    cut = run_script(tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    while not journal.exists() or journal.read_text().count('"end"') < 4:
        assert cut.poll() is None
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    ended = [number for number, trial in trials_of(Journal(journal).read()).items() if trial.state != "RUNNING"]
    assert 4 <= len(ended) < len(VALUES)
    made = {number: (tmp_path / "cut" / "trials" / f"made-{number:05d}").read_text() for number in ended}
    run_fakes(tmp_path / "cut", VALUES)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    for number, steps in made.items():
        assert (tmp_path / "cut" / "trials" / f"made-{number:05d}").read_text() == steps
    rungs = []
    for name in ("cut", "whole"):
        here = Journal(tmp_path / name / "journal.jsonl")
        driver = StudyDriver(here, lambda number, before: None, Pruner("asha", N_STEPS), len(VALUES))
        assert driver.finished
        rungs.append(driver.pruner.rungs())
    assert rungs[0] == rungs[1]
    assert set(rungs[0]) == {1, 3, 9}


@pytest.mark.parametrize(
    ("cpus", "gpus", "words"),
    [
        (17.0, None, "no machine has both (Ray has 16 CPUs and 0 GPUs; 1 CPUs and 2 GPUs)"),
        (4.0, 1.0, "no machine has both"),
        (1.0, 3.0, "no machine has both"),
    ],
)
def test_resources_that_no_machine_has_are_refused_before_ray_waits_for_them(
    cpus: float, gpus: float | None, words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        share_for(Capacity(((16.0, 0.0), (1.0, 2.0))), cpus, gpus)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 1.5}, "`gpus=1.5`: must be a fraction up to 1, or a whole number"),
        ({"gpus": -0.5}, "`gpus=-0.5`: must be a fraction up to 1"),
        ({"gpus": float("nan")}, "`gpus=nan`: must be a fraction up to 1"),
        ({"cpus": 0.0}, "`cpus=0`: must be a number above 0"),
        ({"cpus": float("inf")}, "`cpus=inf`: must be a number above 0"),
        ({"max_concurrent": 0}, "`max_concurrent=0`: must be at least 1"),
    ],
)
def test_resources_that_no_machine_can_have_are_refused_when_they_are_asked_for(
    asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        TrialResources(**asked)


def test_trials_at_once_are_bounded_by_the_cores_and_shares_of_gpus_of_each_machine() -> None:
    cluster = Capacity(((16.0, 2.0), (3.0, 1.0)))
    assert cluster.at_once(Share(1, 0.25)) == 8 + 3
    assert cluster.at_once(Share(1, 0.0)) == 19
    assert cluster.at_once(Share(8, 0.25)) == 2
    assert share_for(cluster, 1.0, None) == Share(1.0, 1.0)
    assert share_for(Capacity(((2.0, 0.0),)), 1.0, None) == Share(1.0, 0.0)


@pytest.mark.usefixtures("local_ray")
def test_a_study_without_machines_ends_at_once_and_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "is_alive", lambda: False)
        patched.setattr(tuning, "_SECONDS_BETWEEN_LOOKS", 0.1)
        with pytest.raises(UserError, match="lost all its machines; continue the study with `resume=True`"):
            run_fakes(tmp_path / "study", VALUES)
    driver = run_fakes(tmp_path / "study", VALUES)
    assert driver.finished
    assert len(driver.trials) == len(VALUES)


@pytest.mark.usefixtures("local_ray")
def test_a_disk_that_is_full_ends_the_session_and_fails_no_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trial \d: no room left .*`resume=True`"):
        run_fakes(tmp_path / "study", (106, 1))
    trials = trials_of(Journal(tmp_path / "study" / "journal.jsonl").read())
    assert {trial.state for trial in trials.values()} <= {"RUNNING", "COMPLETE"}
    assert trials[0].state == "RUNNING"


@pytest.mark.slow
def test_local_ray_that_loses_its_only_machine_ends_the_study_and_keeps_it(tmp_path: Path) -> None:
    """The raylet and its workers are killed: Ray alone would wait for ever."""
    script = run_script(tmp_path / "study")
    journal = tmp_path / "study" / "journal.jsonl"
    while not journal.exists() or '"result"' not in journal.read_text():
        assert script.poll() is None
        time.sleep(0.05)
    machine = [pid for pid in descendants(script.pid) if "raylet/raylet" in command_of(pid)]
    assert machine
    workers = [worker for raylet in machine for worker in descendants(raylet)]
    for pid in [*machine, *workers]:
        os.kill(pid, signal.SIGKILL)
    assert script.wait(120) != 0
    assert run_script(tmp_path / "study").wait(120) == 0
    trials = trials_of(Journal(journal).read())
    assert len(trials) == len(VALUES)
    assert all(trial.state in ("COMPLETE", "PRUNED") for trial in trials.values())


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
