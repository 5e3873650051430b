"""Early stopping: which trials go on, and that a study that is gone on with has the rungs it had."""

import math
import random
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from orchestrator.study.options import SchedulerName
from orchestrator.study.pruner import Pruner
from trainables.training.result import StepResult

SEEDS = pytest.mark.parametrize("seed", range(6))
Told = tuple[int, int, float, bool]  # trial, step, MAE, whether it was told to stop


def result(step: int, mae: float) -> StepResult:
    return StepResult(step, float(step), mae, mae, 0.5, step, 1.0)


class Halving:
    """Asynchronous successive halving by hand: a trial goes on from a rung if it is in the best 1/factor of it.

    The line between the best 1/factor and the rest is drawn between those that came before (by linear interpolation).
    """

    def __init__(self, milestones: Sequence[int], factor: int) -> None:
        self.rungs: dict[int, dict[str, float]] = {milestone: {} for milestone in milestones}
        self._factor = factor

    def should_prune(self, number: int, step: int, mae: float) -> bool:
        if step not in self.rungs:
            return False
        before = sorted(self.rungs[step].values())
        self.rungs[step][str(number)] = mae
        if not before:
            return False
        place = (len(before) - 1) / self._factor
        low = math.floor(place)
        high = min(low + 1, len(before) - 1)
        return mae > before[low] + (place - low) * (before[high] - before[low])


def random_study(stopping: Pruner, seed: int, n_trials: int = 40, at_once: int = 4) -> list[Told]:
    """Trials with random MAEs, some at work at the same time, in random turns; what each was told."""
    draws = random.Random(seed)
    told: list[Told] = []
    running: dict[int, tuple[int, float]] = {}
    begun = 0
    while begun < n_trials or running:
        while len(running) < at_once and begun < n_trials:
            stopping.begin(begun)
            running[begun] = (0, draws.uniform(1, 3))
            begun += 1
        number = draws.choice(sorted(running))
        step, mae = running[number][0] + 1, running[number][1] * draws.uniform(0.8, 1.0)
        if step == stopping.n_steps:
            stopping.complete(number, result(step, mae))
            stop = False
        else:
            stop = stopping.should_prune(number, result(step, mae))
        told.append((number, step, mae, stop))
        if stop or step == stopping.n_steps:
            del running[number]
        else:
            running[number] = (step, mae)
    return told


def replayed(told: Sequence[Told], stopping: Pruner) -> list[bool]:
    """The decisions of another scheduler that is told the same."""
    known: set[int] = set()
    found = []
    for number, step, mae, _ in told:
        if number not in known:
            stopping.begin(number)
            known.add(number)
        if step == stopping.n_steps:
            stopping.complete(number, result(step, mae))
            found.append(False)
        else:
            found.append(stopping.should_prune(number, result(step, mae)))
    return found


@pytest.mark.parametrize(
    ("n_steps", "grace", "factor", "milestones"),
    [
        (243, 1, 3, (1, 3, 9, 27, 81, 243)),
        (1000, 1, 10, (1, 10, 100, 1000)),
        (125, 1, 5, (1, 5, 25, 125)),
        (64, 2, 2, (2, 4, 8, 16, 32, 64)),
        (30, 1, 3, (1, 3, 9, 27)),
        (30, 4, 3, (4, 12)),
        (1, 1, 3, (1,)),
        (5, 9, 3, (5,)),
    ],
)
def test_the_scheduler_has_every_rung_up_to_the_last_step(
    n_steps: int, grace: int, factor: int, milestones: tuple[int, ...]
) -> None:
    stopping = Pruner("asha", n_steps, grace=grace, factor=factor)
    assert stopping.milestones == milestones
    assert tuple(stopping.rungs()) == milestones
    assert stopping.describe() == {
        "name": "asha",
        "grace": min(grace, n_steps),
        "factor": factor,
        "milestones": list(milestones),
    }


def test_rungs_are_there_for_every_power_of_every_factor() -> None:
    for factor in (2, 3, 4, 5):
        for power in range(1, 9):
            for n_steps in (factor**power - 1, factor**power, factor**power + 1):
                stopping = Pruner("asha", n_steps, factor=factor)
                assert tuple(stopping.rungs()) == stopping.milestones
                bands = Pruner("hyperband", n_steps, factor=factor)
                assert tuple(bands.rungs()) == bands.milestones


def test_a_trial_that_goes_all_the_way_is_on_every_rung() -> None:
    stopping = Pruner("asha", 243)
    stopping.begin(0)
    for step in range(1, 243):
        assert not stopping.should_prune(0, result(step, 300.0 - step))
    stopping.complete(0, result(243, 57.0))
    assert stopping.rungs() == {step: {"0": 300.0 - step} for step in (1, 3, 9, 27, 81, 243)}


@SEEDS
@pytest.mark.parametrize(("n_steps", "grace", "factor"), [(27, 1, 3), (20, 2, 2), (30, 4, 4)])
def test_asha_decides_as_successive_halving_does_by_hand(seed: int, n_steps: int, grace: int, factor: int) -> None:
    stopping = Pruner("asha", n_steps, grace=grace, factor=factor)
    told = random_study(stopping, seed)
    by_hand = Halving(stopping.milestones, factor)
    last = [by_hand.should_prune(number, step, mae) and step < n_steps for number, step, mae, _ in told]
    assert [stop for *_, stop in told] == last
    assert stopping.rungs() == by_hand.rungs
    stopped = sum(last)
    assert 15 <= stopped <= 38


@SEEDS
def test_asha_decides_as_rays_own_scheduler_does(seed: int) -> None:
    told = random_study(Pruner("asha", 26), seed)  # no rung at the end, where Ray loses it
    own = AsyncHyperBandScheduler(
        time_attr="step", metric="mae", mode="min", max_t=26, grace_period=1, reduction_factor=3
    )
    trials = {number: TuneTrial("fake", trial_id=str(number), stub=True) for number, *_ in told}
    for trial in trials.values():
        own.on_trial_add(None, trial)
    for number, step, mae, stop in told:
        decision = own.on_trial_result(None, trials[number], {"step": step, "mae": mae})
        assert step == 26 or (decision == TrialScheduler.STOP) == stop


@pytest.mark.parametrize("rule", get_args(SchedulerName))
def test_a_replay_decides_the_same_and_has_the_same_rungs(rule: SchedulerName) -> None:
    np.random.seed(1)  # noqa: NPY002  the generator from which Ray draws its brackets
    first = Pruner(rule, 27)
    told = random_study(first, 11)
    np.random.seed(2)  # noqa: NPY002
    for cut in (0, 1, 17, len(told) // 2, len(told)):
        again = Pruner(rule, 27)
        assert replayed(told[:cut], again) == [stop for *_, stop in told[:cut]]
        if cut == len(told):
            assert again.rungs() == first.rungs()


def test_hyperbands_trials_go_through_its_brackets_in_turn() -> None:
    stopping = Pruner("hyperband", 81)
    assert stopping.milestones == (1, 3, 9, 27, 81)
    for number in range(9):
        stopping.begin(number)
        for step in range(1, 10):
            if stopping.should_prune(number, result(step, 1.0 - 0.01 * number)):  # each better than those before
                raise AssertionError(f"trial {number} was stopped at step {step}")
    rungs = stopping.rungs()
    assert set(rungs[1]) == {"0", "3", "6"}
    assert set(rungs[3]) == {"0", "3", "6", "1", "4", "7"}
    assert set(rungs[9]) == {str(number) for number in range(9)}
    stopping.begin(9)
    assert stopping.should_prune(9, result(1, 5.0))  # the first bracket's first rung is step 1
    stopping.begin(10)
    assert [stopping.should_prune(10, result(step, 5.0)) for step in (1, 2, 3)] == [False, False, True]
    stopping.begin(11)
    assert [stopping.should_prune(11, result(step, 5.0)) for step in range(1, 10)] == [False] * 8 + [True]


@SEEDS
def test_the_median_rule_stops_or_goes_on_and_never_pauses(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    said: list[str] = []
    original = MedianStoppingRule.on_trial_result

    def listening(self: MedianStoppingRule, *seen: object) -> str:
        said.append(original(self, *seen))
        return said[-1]

    monkeypatch.setattr(MedianStoppingRule, "on_trial_result", listening)
    told = random_study(Pruner("median", 20, grace=3), seed)
    assert set(said) == {TrialScheduler.CONTINUE, TrialScheduler.STOP}
    assert [decision == TrialScheduler.STOP for decision in said] == [stop for _, step, _, stop in told if step < 20]


@SEEDS
def test_the_median_rule_decides_as_it_does_by_hand(seed: int) -> None:
    told = random_study(Pruner("median", 20, grace=3), seed)
    seen: dict[int, list[float]] = {}
    for number, step, mae, stop in told:
        seen.setdefault(number, []).append(mae)
        others = [maes for other, maes in seen.items() if other != number and len(maes) >= step]
        means = [float(np.mean(maes[2:step])) for maes in others if step >= 3]  # from the end of the grace on
        assert stop == (step < 20 and len(means) >= 3 and min(seen[number]) > float(np.median(means)))


@pytest.mark.parametrize("rule", get_args(SchedulerName))
@pytest.mark.parametrize("grace", [1, 4])
def test_no_trial_is_stopped_before_its_grace_is_over(rule: SchedulerName, grace: int) -> None:
    told = [each for seed in range(5) for each in random_study(Pruner(rule, 16, grace=grace, factor=2), seed)]
    steps = [step for _, step, _, stop in told if stop]
    assert all(step >= grace for step in steps)
    assert bool(steps) == (rule != "none")


def test_a_trials_last_value_is_on_its_rungs() -> None:
    stopping = Pruner("asha", 9)
    for number, last in ((0, 1.0), (1, 0.5), (2, 2.0)):
        stopping.begin(number)
        stopping.complete(number, result(9, last))
    assert stopping.rungs()[9] == {"0": 1.0, "1": 0.5, "2": 2.0}
    short = Pruner("asha", 11)  # no rung at its end: the last rung keeps what was seen there
    short.begin(0)
    for step in range(1, 11):
        short.should_prune(0, result(step, 20.0 - step))
    short.complete(0, result(11, 0.1))
    assert short.rungs() == {1: {"0": 19.0}, 3: {"0": 17.0}, 9: {"0": 11.0}}


def test_without_a_rule_nothing_stops_and_there_are_no_rungs() -> None:
    stopping = Pruner("none", 9)
    assert not any(stop for *_, stop in random_study(stopping, 0))
    assert (stopping.rungs(), stopping.milestones) == ({}, ())
