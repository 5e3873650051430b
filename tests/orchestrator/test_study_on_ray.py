"""Studies on a real Ray: every way a trial can end, and a driver that is killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainable import N_STEPS
from fake_trials import run_fakes

from orchestrator.runtime import Capacity, Share, ray_session, share_for
from orchestrator.stopping import Stopping
from orchestrator.study_driver import MOST_TRIES, StudyDriver
from orchestrator.study_record import Journal, TrialRecord, trials_of
from trainables.errors import UserError

HERE = Path(__file__).resolve().parents[1]
VALUES = (5, 3, 8, 1, 9, 2, 7, 4, 6, 0)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StudyDriver, Path]]:
    """A study whose trials end in every way there is."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patched:
        # trials' processes find what this one does
        patched.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
        with ray_session(cores=2):
            driver = run_fakes(folder, (0, 101, 102, 103, 104, 105, 1), rule="none", at_once=2)
        yield driver, folder


def by_x(driver: StudyDriver) -> dict[int, TrialRecord]:
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


def test_the_journal_holds_what_the_driver_says(ended: tuple[StudyDriver, Path]) -> None:
    driver, folder = ended
    assert driver.finished
    assert repr(trials_of(Journal(folder / "journal.jsonl").read())) == repr(driver.trials)  # nan is not nan


def run_script(folder: Path) -> "subprocess.Popen[bytes]":
    words = [sys.executable, str(HERE / "fake_trials.py"), str(folder), ",".join(map(str, VALUES))]
    return subprocess.Popen(
        words,
        cwd=HERE.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
        stderr=subprocess.DEVNULL,
    )


def timeless(folder: Path) -> list[dict[str, object]]:
    events = Journal(folder / "journal.jsonl").read()
    return [{name: value for name, value in event.items() if name != "time"} for event in events]


def test_a_driver_killed_in_the_middle_goes_on_and_ends_with_the_study_of_one_that_was_not(tmp_path: Path) -> None:
    """kill -9 of the driver: no finished trial runs again, and journal, states and rungs are those of a whole study."""
    assert run_script(tmp_path / "whole").wait(120) == 0
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
    assert run_script(tmp_path / "cut").wait(120) == 0
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    for number, steps in made.items():
        assert (tmp_path / "cut" / "trials" / f"made-{number:05d}").read_text() == steps
    rungs = []
    for name in ("cut", "whole"):
        here = Journal(tmp_path / name / "journal.jsonl")
        driver = StudyDriver(here, here.read(), lambda number, before: None, Stopping("asha", N_STEPS), len(VALUES))
        assert driver.finished
        rungs.append(driver.stopping.rungs())
    assert rungs[0] == rungs[1]
    assert set(rungs[0]) == {1, 3, 9}


@pytest.mark.parametrize(
    ("cpus", "gpus", "words"),
    [
        (3.0, None, "--cpus-per-trial 3: Ray has 4 CPUs in all, at most 2 on one machine"),
        (1.0, 1.0, "--gpus-per-trial 1: Ray has 0.5 GPUs in all"),
        (1.0, 1.5, "a fraction up to 1 or a whole number was wanted"),
        (0.0, None, "a number above 0 was wanted"),
        (1.0, -0.5, "a fraction up to 1"),
    ],
)
def test_resources_that_no_machine_has_are_refused_before_ray_waits_for_them(
    cpus: float, gpus: float | None, words: str
) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        share_for(Capacity(4.0, 0.5, 2.0, 0.5), cpus, gpus)


def test_trials_at_once_are_bounded_by_cores_and_by_shares_of_gpus() -> None:
    machine = Capacity(cpus=16, gpus=2, largest_cpus=16, largest_gpus=2)
    assert machine.at_once(Share(1, 0.25)) == 8
    assert machine.at_once(Share(1, 0.0)) == 16
    assert machine.at_once(Share(8, 0.25)) == 2
    assert share_for(machine, 1.0, None) == Share(1.0, 1.0)
