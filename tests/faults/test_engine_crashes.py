"""What Ray Tune is handed can be pickled whatever the driver holds, and a crash of Tune itself is in the report."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from study_report_data import ABOUT

from orchestrator.ray_session import Share
from orchestrator.study import ray_tune as tuning
from orchestrator.study.driver import StudyDriver
from orchestrator.study.journal import Journal, Trial, crashes_of
from orchestrator.study.options import MANIFEST as STUDY
from orchestrator.study.pruner import Pruner
from orchestrator.study.ray_tune import _Asking, _Ending, _Reporting, run_phase
from orchestrator.study.run import report
from trainables.errors import UserError
from trainables.files import write_json
from trainables.training.result import StepResult


class Live:
    """A watcher that cannot be pickled, as one with a live display."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def on_trial_start(self, trial: Trial) -> None: ...

    def on_trial_result(self, trial: Trial, result: StepResult) -> None: ...

    def on_trial_end(self, trial: Trial) -> None: ...


def driver_in(folder: Path) -> StudyDriver:
    journal = Journal(folder / "journal.jsonl")
    journal.append("begin", time=0)
    return StudyDriver(journal, planned, Pruner("none", 3), 2, callbacks=[Live()])


def planned(number: int, before: object) -> Trial:
    return Trial(number, {}, {})


def test_whoever_asks_judges_and_ends_trials_can_be_pickled_with_a_live_display_around(tmp_path: Path) -> None:
    driver = driver_in(tmp_path)
    for held in (_Asking(driver, tmp_path, 1), _Reporting(driver), _Ending(driver)):
        with pytest.raises(RuntimeError, match="in a copy that Ray Tune has pickled"):
            _ = pickle.loads(pickle.dumps(held))._here.driver
        assert copy.deepcopy(held)._here.driver is driver


def crash(*arguments: Any) -> None:
    raise TypeError("cannot pickle '_thread.RLock' object")


def test_a_crash_of_the_engine_is_in_the_journal_and_in_both_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_fit", crash)
    write_json(tmp_path / STUDY, dict(ABOUT))
    with pytest.raises(UserError, match=r"Ray Tune failed \(TypeError: cannot pickle"):
        run_phase(driver_in(tmp_path), None, Share(), tmp_path, max_concurrent=1)
    (told,) = crashes_of(Journal(tmp_path / "journal.jsonl").read())
    assert (told.phase, told.reason) == ("search", "TypeError: cannot pickle '_thread.RLock' object")
    analysis = report(tmp_path)
    assert any("crashed once, most recently with: TypeError" in sentence for sentence in analysis.sentences)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Crashes of the engine" in text
        assert "None." not in text.partition("Failures")[2].partition("How to repeat")[0]


def test_a_study_goes_on_after_a_crash_with_the_trials_it_had(tmp_path: Path) -> None:
    driver = driver_in(tmp_path)
    trial = driver.next()
    assert trial is not None
    driver.crashed("search", "a reason")
    journal = Journal(tmp_path / "journal.jsonl")
    again = StudyDriver(journal, planned, Pruner("none", 3), 2)
    assert again.next() == trial
