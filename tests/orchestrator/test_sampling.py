"""What is asked for next depends on the trials alone, and Optuna's view of them is the journal's."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from said import Said
from test_study_driver import BASE, FAULTS, SHAPES, SPACE, Runner, cost, driver_of, events_of, searched, trials_in

from orchestrator.study.journal import Journal, Trial, trial_event, trials_of
from orchestrator.study.options import SamplerName
from orchestrator.study.optuna_export import OptunaExport
from orchestrator.study.sampler import Sampler, distributions_of, frozen, study_of
from search_spaces import ssa
from search_spaces.optim import SPACE as OPTIM
from trainables.config import RunConfig
from trainables.training.result import StepResult

ROOT = Path(__file__).resolve().parents[2]
N = 13  # three more than the samplers draw at random before they learn
EVERY_SAMPLER = pytest.mark.parametrize("sampler", get_args(SamplerName))
ASKED_IN_A_PROCESS = """
import json, sys
from pathlib import Path
from orchestrator.study.sampler import Sampler
from orchestrator.study.journal import Journal, trials_of
from search_spaces.ssa import SPACE
from trainables.config import RunConfig
trials = list(trials_of(Journal(Path(sys.argv[1])).read()).values())
sampling = Sampler(SPACE, SPACE.base(RunConfig(task="jdft2d")), "tpe", 0)
print(json.dumps([sampling.ask(number, trials[:number]).params for number in (7, 11, 12, 13)]))
"""


def asker(sampler: SamplerName, seed: int = 0, n_objectives: int = 1) -> Sampler:
    return Sampler(SPACE, SPACE.base(BASE), sampler, seed, n_objectives)


def score(trial: Trial) -> float:
    return abs(math.log10(trial.changes["optim.lr"]) + 2) + trial.changes.get("loss.delta", 0.5)


def with_result(trial: Trial, step: int, value: float) -> Trial:
    return replace(trial, results=[StepResult(step, step / 3, value, value, 0.5, 10 * step, 1.0)])


def complete(trial: Trial) -> Trial:
    return replace(with_result(trial, 9, score(trial)), state="COMPLETE", values=(score(trial),), done=True)


def asked(sampling: Sampler, n: int = N) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(n):
        trial = sampling.ask(number, trials)
        assert trial is not None
        trials.append(complete(trial))
    return trials


def told(trials: Mapping[int, Trial]) -> list[tuple[Any, ...]]:
    """State, values, values by step, parameters and distributions that an Optuna study should have."""
    found = []
    for number, trial in sorted(trials.items()):
        steps = {result.step: result.mae for result in trial.results if math.isfinite(result.mae)}
        distributions = SPACE.distributions(trial.params)
        found.append((number, trial.state, list(trial.values) or None, steps, trial.params, distributions))
    return found


def seen_in(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.values, t.intermediate_values, t.params, t.distributions) for t in study.trials]


def mirrored(folder: Path) -> list[tuple[Any, ...]]:
    return seen_in(optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'optuna.db'}"))


def test_known_points_come_first_in_order_and_by_name() -> None:
    trials = asked(asker("tpe"), 4)
    assert [trial.origin for trial in trials] == ["E0", "literature", "sampler", "sampler"]
    assert trials[0].params == {"optim.lr": BASE.optim.lr, "loss.name": "l1", "augment.strain_size on": False}
    assert SPACE.base(BASE).changed(trials[0].changes) == SPACE.base(BASE)
    assert trials[1].changes == {
        "optim.lr": 3e-3,
        "loss.name": "huber",
        "loss.delta": 0.1,
        "augment.strain_size": 0.0,
    }
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.seed for trial in trials} == {BASE.seed}


@EVERY_SAMPLER
def test_every_sampler_fills_a_conditional_space_without_repeating(sampler: SamplerName) -> None:
    trials = asked(asker(sampler))
    assert len({json.dumps(trial.changes, sort_keys=True) for trial in trials}) == N
    for trial in trials:
        SPACE.base(BASE).changed(trial.changes)
        assert ("loss.delta" in trial.changes) == (trial.changes["loss.name"] == "huber")
        assert ("augment.strain_size" in trial.params) == trial.params["augment.strain_size on"]
        assert 1e-4 <= trial.changes["optim.lr"] <= 1e-1
    assert {trial.changes["loss.name"] for trial in trials} == {"l1", "huber"}


@EVERY_SAMPLER
def test_the_same_question_has_the_same_answer_whatever_came_before(sampler: SamplerName) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  the generator that a sampler must not use
    first = asked(asker(sampler))
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    again = asker(sampler)
    for number in reversed(range(N)):
        answer = again.ask(number, first[:number])
        assert answer is not None
        assert complete(answer) == first[number]
    assert first != asked(asker(sampler, seed=1))


def test_processes_give_the_same_answers_whatever_the_order_of_their_sets(tmp_path: Path) -> None:
    sampling = Sampler(ssa.SPACE, ssa.SPACE.base(BASE), "tpe", 0)
    journal, trials = Journal(tmp_path / "journal.jsonl"), []
    journal.append("begin")
    for number in range(13):
        trial = sampling.ask(number, trials)
        assert trial is not None
        trials.append(replace(trial, state="COMPLETE", values=(1 + abs(number - 6.2),)))
        journal.append("trial", **trial_event(trial))
        journal.append("end", number=number, state="COMPLETE", values=list(trials[-1].values), reason="")
    answers = [sampling.ask(number, trials[:number]) for number in (7, 11, 12, 13)]
    command = [sys.executable, "-c", ASKED_IN_A_PROCESS, str(tmp_path / "journal.jsonl")]
    for hashes in ("1", "5"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [answer.params for answer in answers if answer is not None]


@EVERY_SAMPLER
def test_running_trials_are_seen_and_break_nothing(sampler: SamplerName) -> None:
    trials = asked(asker(sampler), 12)
    ended = asker(sampler).ask(14, trials)
    begun = [
        replace(complete(trials[10]), number=number, state="RUNNING", values=(), done=False) for number in (12, 13)
    ]
    begun[0] = replace(begun[0], results=[])
    beside = asker(sampler).ask(14, [*trials, *begun])
    assert ended is not None
    assert beside is not None
    assert beside.changes not in [trial.changes for trial in trials]
    if sampler == "tpe":  # it keeps away from what is being tried
        assert beside.changes != ended.changes
    study = study_of([*trials, *begun], 1)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12 + ["RUNNING"] * 2


def test_failed_trials_teach_nothing_but_are_not_tried_again() -> None:
    trials = asked(asker("tpe"), 12)
    trials[4:8] = [replace(trial, state="FAIL", values=(), reason="it burst") for trial in trials[4:8]]
    answer = asker("tpe").ask(12, trials)
    assert answer is not None
    assert answer.changes not in [trial.changes for trial in trials]
    assert frozen(trials[4], single=True).user_attrs == {"origin": "sampler", "reason": "it burst"}


def test_two_objectives_are_asked_for_as_well() -> None:
    trials = [replace(trial, values=(score(trial), float(trial.number))) for trial in asked(asker("random"))]
    answer = asker("tpe", n_objectives=2).ask(N, trials)
    assert answer is not None
    assert answer.changes not in [trial.changes for trial in trials]
    assert answer == asker("tpe", n_objectives=2).ask(N, trials)


@EVERY_SAMPLER
def test_distributions_are_the_spaces_own_after_a_journal(tmp_path: Path, sampler: SamplerName) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("begin")
    trials = asked(asker(sampler), 11)
    for trial in trials:
        journal.append("trial", **trial_event(trial))
    for before, after in zip(trials, trials_of(journal.read()).values(), strict=True):
        assert distributions_of(after) == SPACE.distributions(after.params)
        assert trial_event(after) == trial_event(before)
        assert {name: type(value) for name, value in after.params.items()} == {
            name: type(value) for name, value in before.params.items()
        }


@SHAPES
def test_optuna_and_its_copy_on_disk_say_what_the_journal_says(tmp_path: Path, at_once: int) -> None:
    said, runner = Said(), Runner(at_once, FAULTS, most=15)
    mirror = OptunaExport(tmp_path / "optuna.db", "study", [], 1, said)
    file, _ = searched(tmp_path, runner, n=10, callbacks=[mirror])
    records = trials_in(file)
    assert "RUNNING" in {trial.state for trial in records.values()}
    assert mirrored(tmp_path) == told(records)
    again = OptunaExport(tmp_path / "optuna.db", "study", records.values(), 1, said)
    assert mirrored(tmp_path) == told(records)  # made anew
    Runner(at_once, FAULTS, runner.saved).run(driver_of(file, n=10, callbacks=[again]))
    records = trials_in(file)
    assert {trial.state for trial in records.values()} == {"COMPLETE", "PRUNED", "FAIL"}
    assert mirrored(tmp_path) == told(records) == seen_in(study_of(records.values(), 1))
    assert said.lines == []


def test_with_two_objectives_a_copy_made_anew_is_the_live_one(tmp_path: Path) -> None:
    mirror = OptunaExport(tmp_path / "optuna.db", "study", [], 2, Said())
    runner = Runner(2, {(1, 3): "raise", (2, 2): math.nan}, most=16)
    file, _ = searched(tmp_path, runner, n=5, rule="none", cost=cost, callbacks=[mirror])
    live = mirrored(tmp_path)
    assert {state for _, state, *_ in live} >= {"FAIL", "RUNNING"}
    OptunaExport(tmp_path / "optuna.db", "study", trials_in(file).values(), 2, Said())
    assert mirrored(tmp_path) == live


@pytest.mark.parametrize("breaks", [0, 9], ids=["from the beginning", "in the middle"])
def test_a_copy_that_cannot_be_written_says_so_once_and_the_study_goes_on(
    tmp_path: Path, breaks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna tries several times
    plain, _ = searched(tmp_path / "plain", Runner(), n=4)
    said = Said()
    database = tmp_path / "optuna.db" if breaks else tmp_path / "nowhere" / "optuna.db"
    mirror = OptunaExport(database, "study", [], 1, said)
    runner = Runner(most=breaks)
    file, _ = searched(tmp_path, runner, callbacks=[mirror], n=4)
    assert len(said.lines) == (0 if breaks else 1)
    if breaks:
        database.write_bytes(b"no database")
    Runner(saved=runner.saved).run(driver_of(file, callbacks=[mirror], n=4))
    assert events_of(file) == events_of(plain)
    (line,) = said.lines
    assert line.startswith("optuna.db is no longer updated (")
    assert line.endswith("); the study continues")
    assert "\n" not in line


def test_a_known_point_that_was_tried_already_is_not_asked_for_again() -> None:
    first = asked(asker("tpe"), 2)
    swapped = [replace(first[1], number=0), replace(first[0], number=1)]
    third = asker("tpe").ask(2, swapped)
    assert third is not None
    assert third.changes not in [trial.changes for trial in first]


def test_probes_are_tried_after_the_base_with_its_value_where_they_say_nothing() -> None:
    base = RunConfig(task="jdft2d")
    plain = Sampler(OPTIM, OPTIM.base(base), "random", 0)
    trials = asked(plain, 8)
    probe = next(trial for trial in trials[5:] if trial.params["optim.layer_decay"] != 1.0)
    begins = Sampler(OPTIM, OPTIM.base(base), "random", 0, probes=(probe,))
    first = begins.ask(0, [])
    assert first is not None
    second = begins.ask(1, [first])
    assert second is not None
    assert (first.origin, second.origin) == ("E0", f"probe {probe.number}")
    assert second.params["optim.lr"] == probe.params["optim.lr"]
    assert second.params["optim.layer_decay"] == first.params["optim.layer_decay"]
    assert second.params["model.freeze"] == first.params["model.freeze"]
