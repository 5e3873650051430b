"""A study's brain, run here by a few lines of plain Python instead of Ray: what it writes, decides and survives."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.study import driver as study_driver
from orchestrator.study.callbacks import StudyDisplay
from orchestrator.study.driver import MOST_TRIES, StudyDriver
from orchestrator.study.journal import Journal, Trial, trials_of
from orchestrator.study.options import SchedulerName
from orchestrator.study.pruner import Pruner
from orchestrator.study.sampler import Sampler
from search_spaces.space import Dimension, Point, Space
from trainables.config import RunConfig
from trainables.training.result import StepResult

N_STEPS, N_TRIALS = 9, 14  # four trials more than the sampler draws at random before it learns
BASE = RunConfig(task="jdft2d", seed=7)
SPACE = Space(
    "small",
    "",
    (
        Dimension("optim.lr", 1e-4, 1e-1, log=True),
        Dimension("loss.name", choices=("l1", "huber")),
        Dimension("loss.delta", 0.01, 1.0, log=True, when={"loss.name": ("huber",)}),
        Dimension("augment.strain_size", 1e-4, 5e-3, log=True, zero=True),
    ),
    fixed={"augment.strain": "symmetry"},
    points=(Point("literature", {"optim.lr": 3e-3, "loss.name": "huber", "loss.delta": 0.1}),),
)
FEW = Space(
    "few",
    "",
    (
        Dimension("loss.name", choices=("l1", "huber")),
        Dimension("optim.name", choices=("adamw", "radam")),
        Dimension("optim.lr", choices=(0.001, 0.01)),
    ),
)
KILLED = "its process was killed"
# By trial and step: a loss that is not finite, an error, and so many deaths of the process.
FAULTS: dict[tuple[int, int], Any] = {(0, 3): 1, (2, 1): "raise", (3, 1): math.nan, (5, 1): 2}
SHAPES = pytest.mark.parametrize("at_once", [1, 3])


def maes(changes: Mapping[str, Any]) -> list[float]:
    """What a trial reports after each step: wobbling, at speeds and to ends of its own."""
    end = 1 + abs(math.log10(changes["optim.lr"]) + 1.5) + 50 * abs(changes.get("augment.strain_size", 0.0) - 0.004)
    end += 0.3 * abs(math.log10(changes.get("loss.delta", 0.5)))
    speed = 0.3 + abs(math.sin(20 * end))
    return [end + 3 * math.exp(-speed * step) + 0.2 * math.cos(9 * end * step) for step in range(1, N_STEPS + 1)]


@dataclass
class Runner:
    """Runs trials in turns that depend on where they stand and on nothing else.

    Attributes:
        saved: steps on disk by trial: what outlives the runner.
        computed: (trial, step) of this runner, in order.
        repeats: trials that have yet to report the last step on disk once more.
        most: results after which nothing moves any more.
    """

    at_once: int = 1
    faults: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)
    computed: list[tuple[int, int]] = field(default_factory=list)
    repeats: set[int] = field(default_factory=set)
    most: float = math.inf
    after: Callable[[], None] = lambda: None

    def run(self, driver: StudyDriver) -> None:
        running: list[int] = []
        while len(self.computed) < self.most:
            while len(running) < self.at_once and (trial := driver.next()) is not None:
                running.append(trial.number)
                if trial.number in self.saved:
                    self.repeats.add(trial.number)
            if not running:
                return
            number = min(running, key=lambda each: (driver.trials[each].last * (1 + each % 3), each))
            if not self._step(driver, number):
                running.remove(number)
            self.after()

    def _step(self, driver: StudyDriver, number: int) -> bool:
        if number in self.repeats:  # as a trial does that goes on from its checkpoint
            self.repeats.remove(number)
            return self._report(driver, number)
        step = self.saved.get(number, 0) + 1
        fault = self.faults.get((number, step))
        if fault == "raise":
            driver.failed(number, f"ValueError: no such thing at step {step}")
            return False
        if isinstance(fault, int) and driver.trials[number].tries <= fault:
            driver.killed(number, KILLED)
            return False
        self.computed.append((number, step))
        self.saved[number] = step
        return self._report(driver, number)

    def _report(self, driver: StudyDriver, number: int) -> bool:
        step = self.saved[number]
        seen = maes(driver.trials[number].changes)[:step]
        fault = self.faults.get((number, step))
        mae = fault if isinstance(fault, float) else min(seen)
        result = StepResult(step, step / 3, mae, seen[-1], 0.5, 10 * step * (1 + number % 4), 2.0 * step)
        return driver.report(number, result, done=step >= N_STEPS) == "continue"


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 0.0


def begun(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    Journal(folder / "journal.jsonl").append("begin", time=0.0)
    return folder / "journal.jsonl"


def driver_of(
    file: Path, rule: SchedulerName = "asha", space: Space = SPACE, n: int = N_TRIALS, **given: Any
) -> StudyDriver:
    """A new process's driver: nothing but the file is known to it."""
    sampling = Sampler(space, space.base(BASE), "tpe", 0, 1 if given.get("cost") is None else 2)
    journal = Journal(file)
    journal.read(mend=True)
    return StudyDriver(journal, sampling.ask, Pruner(rule, N_STEPS), n, **given)


def events_of(file: Path) -> list[dict[str, Any]]:
    """Without the times at which they were written."""
    return [{name: value for name, value in event.items() if name != "time"} for event in Journal(file).read()]


def trials_in(file: Path) -> dict[int, Trial]:
    return trials_of(Journal(file).read())


def contents(trial: Trial) -> dict[str, Any]:
    """All fields; nan in a form that equals itself."""
    return {item.name: repr(getattr(trial, item.name)) for item in fields(trial)}


def searched(folder: Path, runner: Runner, **given: Any) -> tuple[Path, StudyDriver]:
    file = begun(folder)
    driver = driver_of(file, **given)
    runner.run(driver)
    return file, driver


def on_disk(trial: Trial, ahead: bool) -> int:
    """Steps that a trial has saved: those of the journal, or the next one as well where there is one."""
    fault = FAULTS.get((trial.number, trial.last + 1))
    dies = fault == "raise" or (isinstance(fault, int) and trial.tries <= fault)
    return trial.last + (ahead and trial.state == "RUNNING" and trial.last < N_STEPS and not dies)


def cost(trial: Trial) -> float:
    return float(trial.structures)


@SHAPES
@pytest.mark.parametrize("ahead", [False, True], ids=["journal and checkpoints agree", "checkpoints ahead, line cut"])
def test_a_study_interrupted_after_any_line_ends_as_one_that_was_not(tmp_path: Path, at_once: int, ahead: bool) -> None:
    whole = Runner(at_once, FAULTS)
    file, driver = searched(tmp_path / "whole", whole)
    lines, events, rungs = file.read_bytes().splitlines(keepends=True), events_of(file), driver.pruner.rungs()
    assert {trial.state for trial in driver.trials.values()} == {"COMPLETE", "PRUNED", "FAIL"}
    assert sum(trial.tries > 1 for trial in driver.trials.values()) == 2
    assert len(driver.trials) == N_TRIALS
    for kept in range(1, len(lines) + 1):
        copy = tmp_path / "copy.jsonl"
        rest = lines[kept][: len(lines[kept]) // 2] if ahead and kept < len(lines) else b""
        copy.write_bytes(b"".join(lines[:kept]) + rest)
        before = trials_of(json.loads(line) for line in lines[:kept])
        saved = {number: on_disk(trial, ahead) for number, trial in before.items() if on_disk(trial, ahead)}
        runner = Runner(at_once, FAULTS, dict(saved))
        resumed = driver_of(copy)
        runner.run(resumed)
        assert events_of(copy) == events, f"interrupted after line {kept}: {lines[kept - 1]!r}"
        assert resumed.pruner.rungs() == rungs
        assert sorted(runner.computed) == sorted((n, at) for n, at in whole.computed if at > saved.get(n, 0))
        assert list(map(contents, resumed.trials.values())) == list(map(contents, trials_in(file).values()))
        assert resumed.finished


@SHAPES
def test_sessions_that_end_again_and_again_make_the_same_study(tmp_path: Path, at_once: int) -> None:
    file, driver = searched(tmp_path / "whole", Runner(at_once, FAULTS))
    again = begun(tmp_path / "again")
    saved: dict[int, int] = {}
    for _ in range(200):
        resumed = driver_of(again)
        if resumed.finished:
            break
        Runner(at_once, FAULTS, saved, most=2).run(resumed)
    assert events_of(again) == events_of(file)
    assert resumed.pruner.rungs() == driver.pruner.rungs()


@SHAPES
def test_what_the_driver_holds_is_what_its_journal_holds_and_nothing_repeats(tmp_path: Path, at_once: int) -> None:
    runner = Runner(at_once, FAULTS)
    file, driver = searched(tmp_path, runner)
    assert all(contents(driver.trials[n]) == contents(trial) for n, trial in trials_in(file).items())
    changes = [trial.changes for trial in driver.trials.values()]
    assert all(one not in changes[:place] for place, one in enumerate(changes))
    assert len(runner.computed) == len(set(runner.computed))
    assert [trial.origin for trial in driver.trials.values()][:3] == ["E0", "literature", "sampler"]
    assert {trial.seed for trial in driver.trials.values()} == {BASE.seed}


def test_a_trial_stopped_early_is_pruned_at_its_step_with_its_value(tmp_path: Path) -> None:
    _, driver = searched(tmp_path, Runner())
    pruned = [trial for trial in driver.trials.values() if trial.state == "PRUNED"]
    complete = [trial for trial in driver.trials.values() if trial.state == "COMPLETE"]
    assert len(pruned) + len(complete) == N_TRIALS
    assert len(pruned) >= 5
    for trial in pruned:
        assert trial.last in (1, 3)
        assert trial.values == (min(maes(trial.changes)[: trial.last]),)
        assert (trial.done, trial.reason) == (False, "")
    for trial in complete:
        assert (trial.last, trial.values, trial.done) == (N_STEPS, (min(maes(trial.changes)),), True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 4, N_STEPS])
def test_a_value_that_is_not_finite_fails_the_trial_and_names_the_step(tmp_path: Path, value: float, step: int) -> None:
    file, driver = searched(tmp_path, Runner(faults={(0, step): value}), n=4)
    trial = driver.trials[0]
    assert (trial.state, trial.values, trial.last) == ("FAIL", (), step)
    assert trial.reason == f"the validation MAE is not finite at step {step}"
    assert [other.state for other in driver.trials.values()].count("FAIL") == 1
    assert all(math.isfinite(mae) for rung in driver.pruner.rungs().values() for mae in rung.values())
    assert trials_in(file)[0].reason == trial.reason


def test_a_trial_that_raises_fails_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    _, driver = searched(tmp_path, Runner(3, {(2, 3): "raise", (4, 1): "raise"}), n=6, rule="none")
    assert [trial.state for trial in driver.trials.values()] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"] * 2
    assert driver.trials[2].reason == "ValueError: no such thing at step 3"
    assert (driver.trials[2].last, driver.trials[2].values, driver.trials[4].last) == (2, (), 0)


def test_a_killed_trial_goes_on_where_it_stood_and_fails_after_its_last_try(tmp_path: Path) -> None:
    runner = Runner(faults={(0, 4): MOST_TRIES - 1, (1, 3): MOST_TRIES})
    _, driver = searched(tmp_path, runner, n=2, rule="none")
    assert runner.computed == [(0, step) for step in range(1, N_STEPS + 1)] + [(1, 1), (1, 2)]
    first, second = driver.trials.values()
    assert (first.state, first.tries, first.reason, len(first.results)) == ("COMPLETE", MOST_TRIES, "", N_STEPS)
    assert (second.state, second.last, second.reason) == ("FAIL", 2, f"{KILLED}, {MOST_TRIES} times")


def test_nothing_that_comes_after_a_trials_end_counts(tmp_path: Path) -> None:
    file, driver = searched(tmp_path, Runner(), n=3)
    before, content, rungs = contents(driver.trials[0]), file.read_bytes(), driver.pruner.rungs()
    late = StepResult(N_STEPS + 1, 4.0, 0.001, 0.001, 0.5, 999, 99.0)
    assert driver.report(0, late, done=True) == "stop"
    driver.failed(0, "too late")
    driver.killed(0, "too late")
    assert (contents(driver.trials[0]), file.read_bytes()) == (before, content)
    assert driver.pruner.rungs() == rungs
    assert driver.next() is None


@SHAPES
def test_a_deadline_leaves_trials_running_and_a_later_session_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole, _ = searched(tmp_path / "whole", Runner(at_once))
    clock = Clock()
    monkeypatch.setattr(study_driver, "time", clock)

    def tick() -> None:
        clock.now += 1

    first = Runner(at_once, after=tick)
    file, driver = searched(tmp_path, first, deadline=14)
    running = [trial for trial in driver.trials.values() if trial.state == "RUNNING"]
    assert 1 <= len(running) <= at_once
    assert driver.late
    assert not driver.finished
    assert driver.nothing_to_begin
    assert len(first.computed) <= 14 + at_once  # those at work bring their step to its end
    second = Runner(at_once, saved=first.saved)
    later = driver_of(file)
    second.run(later)
    assert later.finished
    assert all(trial.state != "RUNNING" for trial in trials_in(file).values())
    assert not set(second.computed) & set(first.computed)
    if at_once == 1:
        assert events_of(file) == events_of(whole)


def test_two_objectives_end_with_mae_and_cost_and_nothing_is_pruned(tmp_path: Path) -> None:
    _, driver = searched(tmp_path, Runner(3), rule="none", cost=cost)
    assert len(driver.trials) == N_TRIALS
    for trial in driver.trials.values():
        assert trial.state == "COMPLETE"
        assert trial.values == (min(maes(trial.changes)), 10.0 * N_STEPS * (1 + trial.number % 4))


@SHAPES
def test_a_space_with_few_configurations_ends_early_instead_of_repeating(tmp_path: Path, at_once: int) -> None:
    file, driver = searched(tmp_path, Runner(at_once), space=FEW, n=30)
    changes = {json.dumps(trial.changes, sort_keys=True) for trial in driver.trials.values()}
    assert (len(driver.trials), len(changes)) == (8, 8)
    assert driver.finished
    assert driver.nothing_to_begin
    content = file.read_bytes()
    again = driver_of(file, space=FEW, n=30)
    Runner(at_once).run(again)
    assert again.finished
    assert file.read_bytes() == content


class Reader:
    """A watcher that believes the file alone."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.told: list[tuple[str, int, int]] = []

    def on_trial_start(self, trial: Trial) -> None:
        self._check("began", trial)

    def on_trial_result(self, trial: Trial, result: StepResult) -> None:
        assert trial.results[-1] is result
        self._check("reported", trial)

    def on_trial_end(self, trial: Trial) -> None:
        assert trial.state != "RUNNING"
        self._check("ended", trial)

    def _check(self, what: str, trial: Trial) -> None:
        assert contents(trials_in(self._file)[trial.number]) == contents(trial)
        self.told.append((what, trial.number, trial.last))


def test_callbacks_are_told_of_everything_once_it_is_in_the_journal(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "journal.jsonl")
    file, _ = searched(tmp_path, Runner(3, FAULTS), callbacks=[reader])
    names = {"trial": "began", "result": "reported", "end": "ended"}
    assert [(what, number) for what, number, _ in reader.told] == [
        (names[event["event"]], event["number"]) for event in events_of(file) if event["event"] in names
    ]


def test_a_trial_whose_end_was_lost_ends_before_anything_else_and_callbacks_hear_of_it(tmp_path: Path) -> None:
    file, driver = searched(tmp_path, Runner(), n=4)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    reader = Reader(copy)
    resumed = driver_of(copy, n=4, callbacks=[reader])
    assert reader.told == [("ended", 3, driver.trials[3].last)]
    assert resumed.finished
    assert resumed.next() is None


def test_the_live_table_of_a_later_session_follows_the_trials_that_go_on(tmp_path: Path) -> None:
    runner = Runner(most=4)
    file, _ = searched(tmp_path, runner, n=1)
    records = list(trials_in(file).values())
    notes: list[str] = []

    class Counted:
        def advance(self, amount: float, note: str = "") -> None:
            notes.append(note)

    stopping = Pruner("asha", N_STEPS)
    watch = StudyDisplay("search", "eV", stopping, records, Counted(), None, lambda _: None)
    driver = driver_of(file, n=1, callbacks=[watch])
    Runner(saved=runner.saved).run(driver)
    assert driver.trials[0].state == "COMPLETE"
    assert notes == ["", f"best {driver.trials[0].values[0]:.4g} eV (trial 0)"]
