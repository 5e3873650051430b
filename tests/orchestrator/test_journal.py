"""The journal of a study: what is written stays readable, and what is damaged is told in one line."""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from said import Said
from test_study_driver import Runner, driver_of, searched

from orchestrator.study.driver import StudyDriver
from orchestrator.study.journal import Journal, Trial, result_event, trial_event, trials_of
from orchestrator.study.pruner import Pruner
from trainables.errors import UserError
from trainables.training.result import StepResult

FULL = Path("/dev/full")


def written(folder: Path, n_results: int = 3) -> Path:
    journal = Journal(folder / "journal.jsonl")
    journal.append("begin", time=1.5)
    journal.append("trial", time=2.5, **trial_event(Trial(0, {"optim.lr": 0.1}, {"optim.lr": 0.1}, "E0", 4)))
    for step in range(1, n_results + 1):
        journal.append("result", **result_event(0, StepResult(step, 0.5, 1.25, 1.5, 0.5, 10, 2.0), done=False))
    return folder / "journal.jsonl"


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as error:
        Journal(file).read()
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    return str(error.value)


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond this: a disk that is full in the middle of a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_appended_is_read_again_in_order(tmp_path: Path) -> None:
    said = Said()
    events = Journal(written(tmp_path)).read(said)
    assert [event["event"] for event in events] == ["begin", "trial", "result", "result", "result"]
    trial = trials_of(events)[0]
    assert (trial.changes, trial.params, trial.origin, trial.seed) == ({"optim.lr": 0.1}, {"optim.lr": 0.1}, "E0", 4)
    assert [result.step for result in trial.results] == [1, 2, 3]
    assert said.lines == []


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_last_line_that_was_cut_off_is_left_out_and_said(tmp_path: Path, lost: int) -> None:
    file, said = written(tmp_path), Said()
    whole = file.read_bytes()
    file.write_bytes(whole[:-lost])
    assert len(Journal(file).read(said, mend=True)) == 4
    assert said.lines == ["journal.jsonl: the last line was cut off and is left out"]
    assert file.read_bytes() == whole[: whole[:-1].rfind(b"\n") + 1]
    Journal(file).append("result", **result_event(0, StepResult(3, 0.5, 1.25, 1.5, 0.5, 10, 2.0), done=False))
    assert file.read_bytes() == whole
    again = Said()
    assert len(Journal(file).read(again, mend=True)) == 5
    assert again.lines == []


def test_zeros_that_a_power_cut_left_at_the_end_are_left_out(tmp_path: Path) -> None:
    file, said = written(tmp_path), Said()
    with file.open("ab") as handle:
        handle.write(bytes(300))
    assert len(Journal(file).read(said, mend=True)) == 5
    assert len(said.lines) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b"3", b'{"number": 0}', b"\xff\xfe", b"\x00\x00"])
def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path: Path, damage: bytes) -> None:
    file = written(tmp_path)
    lines = file.read_bytes().splitlines()
    lines[2] = damage
    content = b"\n".join(lines) + b"\n"
    file.write_bytes(content)
    assert refusal(file) == (
        f"line 3 of {file} is damaged: restore a copy of that file, or start a new search with another `out`"
    )
    assert file.read_bytes() == content  # nothing is lost by asking


def test_an_empty_a_missing_and_another_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    assert refusal(file) == f"{file} cannot be read (No such file or directory): this is not the folder of a study"
    begins = f"{file} does not begin as a study's journal does (was it cut off?): restore a copy of that file, "
    for content in (b"", b'{"event": "beg', b'{"event": "trial", "number": 0}\n'):
        file.write_bytes(content)
        assert refusal(file) == begins + "or start a new search with another `out`"
    assert "cannot be read (Is a directory)" in refusal(tmp_path)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_line() -> None:
    with pytest.raises(UserError) as error:
        Journal(FULL).append("begin")
    assert str(error.value) == (
        "/dev/full cannot be written (No space left on device): free some space and continue with `resume=True`"
    )


@pytest.mark.parametrize("room", [0, 1, 60])
def test_lines_before_a_full_disk_are_whole_and_a_later_session_goes_on(tmp_path: Path, room: int) -> None:
    file = written(tmp_path)
    before = Journal(file).read()
    with room_for(file.stat().st_size + room), pytest.raises(UserError, match="free some space"):
        Journal(file).append("result", **result_event(0, StepResult(4, 0.5, 1.25, 1.5, 0.5, 10, 2.0), done=False))
    assert Journal(file).read() == before
    Journal(file).append("end", number=0, state="PRUNED", values=[1.25], reason="")
    assert Journal(file).read()[:-1] == before


def test_a_line_after_one_that_did_not_fit_is_a_line_of_its_own(tmp_path: Path) -> None:
    file = written(tmp_path)
    journal, before = Journal(file), Journal(file).read()
    with room_for(file.stat().st_size + 60), pytest.raises(UserError, match="free some space"):
        journal.append("result", **result_event(0, StepResult(4, 0.5, 1.25, 1.5, 0.5, 10, 2.0), done=False))
    journal.append("end", number=0, state="PRUNED", values=[1.25], reason="")
    events = Journal(file).read()
    assert events[:-1] == before
    assert events[-1]["event"] == "end"


def test_a_trial_whose_line_did_not_fit_never_began(tmp_path: Path) -> None:
    file, _ = searched(tmp_path, Runner(), n=3)
    driver = driver_of(file, n=4)
    with room_for(file.stat().st_size + 60), pytest.raises(UserError, match="free some space"):
        driver.next()
    assert list(driver.trials) == [0, 1, 2]
    again = driver_of(file, n=4)
    Runner().run(again)
    assert (list(again.trials), again.finished) == ([0, 1, 2, 3], True)


@pytest.mark.parametrize("name", ["mae", "current", "train_loss"])
def test_nan_is_nan_again_and_everything_else_is_exact(tmp_path: Path, name: str) -> None:
    fine = StepResult(7, 7 / 3, 0.1 + 0.2, 1e-17, 123456.789e20, 12345678901234, 0.1)
    result = replace(fine, **{name: math.nan})
    journal = Journal(written(tmp_path, n_results=0))
    journal.append("result", **result_event(0, result, done=True))
    assert "NaN" not in (tmp_path / "journal.jsonl").read_text()
    trial = trials_of(journal.read())[0]
    (found,) = trial.results
    assert math.isnan(getattr(found, name))
    assert replace(found, **{name: getattr(fine, name)}) == fine
    assert trial.done


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_reason_of_a_failure_is_the_same_where_its_line_was_lost(tmp_path: Path, value: float) -> None:
    file, driver = searched(tmp_path, Runner(faults={(0, 2): value}), n=1)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert driver_of(file, n=1).trials[0].reason == driver.trials[0].reason


def test_every_field_of_a_trial_comes_back(tmp_path: Path) -> None:
    journal = Journal(written(tmp_path, n_results=0))
    changes = {"model.freeze": ["embedding"], "optim.lr": 1e-3, "optim.batch_size": 8, "multitask.max_rows": None}
    params: dict[str, Any] = {"freeze": "inputs", "optim.lr": 1e-3, "strain on": False, "optim.batch_size": 8}
    trial = Trial(1, changes, params, "Schütt's", 3, of=0, distributions={"optim.lr": '{"name": "x"}'})
    journal.append("trial", **trial_event(trial))
    assert trials_of(journal.read())[1] == trial
    journal.append("again", number=1, reason="killed")
    journal.append("end", number=1, state="FAIL", values=[], reason="it said\n“no”")
    found = trials_of(journal.read())[1]
    assert found == replace(trial, tries=2, state="FAIL", reason="it said\n“no”")


def test_checks_and_search_share_a_journal_but_not_their_trials(tmp_path: Path) -> None:
    file, search = searched(tmp_path, Runner(3), n=5)
    journal = Journal(file)
    checks = StudyDriver(
        journal,
        lambda number, before: Trial(number, search.trials[0].changes, {}, "check", len(before), of=0),
        Pruner("none", 9),
        2,
        mine=lambda trial: trial.of is not None,
    )
    Runner().run(checks)
    found = [(trial.number, trial.seed, trial.state) for trial in checks.trials.values()]
    assert found == [(5, 0, "COMPLETE"), (6, 1, "COMPLETE")]
    more = driver_of(file, n=7)
    assert more.pruner.rungs() == search.pruner.rungs()
    Runner().run(more)
    assert list(more.trials) == [0, 1, 2, 3, 4, 7, 8]


def test_reading_a_journal_that_another_process_is_writing_leaves_its_last_line_alone(tmp_path: Path) -> None:
    file = written(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert len(Journal(file).read()) == 4
    assert file.read_bytes() == whole[:-10]
