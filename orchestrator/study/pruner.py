"""Early pruner: Ray Tune's schedulers, told of results in the order of a study's journal.

They see a trial by its number alone, so a session that goes on with a study replays its results into a new scheduler
and has the rungs of a study that was never interrupted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from orchestrator.study.options import SchedulerName, SearchOptions
from search_spaces.space import Space
from trainables.training.result import StepResult

_STEP, _MAE = "step", "mae"


@dataclass(frozen=True)
class _Numbered:
    """All that the schedulers ask of a trial."""

    trial_id: str


class _BracketsInTurn(AsyncHyperBandScheduler):
    """Asynchronous Hyperband whose trials go through the brackets in turn (Li et al., MLSys 2020, section 3.2).

    Ray's own draws them from numpy's global generator, which is the caller's, and no study could be repeated. Private
    attributes of Ray are used here and nowhere else; tests/orchestrator/test_stopping.py relies on all of them.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._trial_info[trial.trial_id] = self._brackets[int(trial.trial_id) % len(self._brackets)]

    def rungs(self) -> dict[int, dict[str, float]]:
        """Return what was recorded at each rung (of all brackets): milestone -> trial number -> MAE."""
        found: dict[int, dict[str, float]] = {}
        for bracket in self._brackets:
            for milestone, recorded in bracket._rungs:
                found.setdefault(int(milestone), {}).update({name: -value for name, value in recorded.items()})
        return dict(sorted(found.items()))


class Pruner:
    """Decides after every step whether a trial goes on.

    Args:
        rule: asha (asynchronous successive halving, Li et al., MLSys 2020), hyperband (the same with three brackets),
            median (the median rule of Golovin et al., KDD 2017) or none.
        n_steps: of a trial at full length.
        grace: steps that every trial makes.
        factor: one in so many goes on at each rung.
    """

    def __init__(self, rule: SchedulerName, n_steps: int, *, grace: int = 1, factor: int = 3) -> None:
        self.rule, self.n_steps, self.grace, self.factor = rule, n_steps, min(grace, n_steps), factor
        self._scheduler: TrialScheduler = _scheduler(rule, n_steps, self.grace, factor)

    @property
    def milestones(self) -> tuple[int, ...]:
        """The steps of the rungs, ascending; of the first bracket, where there are several."""
        if self.rule not in ("asha", "hyperband"):
            return ()
        found, step = [], self.grace
        while step <= self.n_steps:
            found.append(step)
            step *= self.factor
        return tuple(found)

    def describe(self) -> dict[str, Any]:
        """Return the rule as it is written into study.json."""
        return {"name": self.rule, "grace": self.grace, "factor": self.factor, "milestones": list(self.milestones)}

    def begin(self, number: int) -> None:
        """Take note of a trial that starts."""
        self._scheduler.on_trial_add(None, _Numbered(str(number)))

    def should_prune(self, number: int, result: StepResult) -> bool:
        """Record a result of a running trial; True where it should not go on."""
        decision = self._scheduler.on_trial_result(None, _Numbered(str(number)), _seen(result))
        return bool(decision == TrialScheduler.STOP)

    def complete(self, number: int, result: StepResult) -> None:
        """Record the last result of a trial that ended by itself."""
        self._scheduler.on_trial_complete(None, _Numbered(str(number)), _seen(result))

    def rungs(self) -> dict[int, dict[str, float]]:
        """Return what was recorded at each rung (of all brackets): milestone -> trial number -> MAE."""
        return self._scheduler.rungs() if isinstance(self._scheduler, _BracketsInTurn) else {}


def pruner_of(options: SearchOptions, space: Space, n_steps: int) -> Pruner:
    """Return the rule that was asked for; none where trials are one step, or must end for their cost to be known."""
    single = space.runs == "prediction" or len(options.objectives) > 1
    return Pruner("none" if single else options.scheduler, n_steps, grace=options.grace, factor=options.factor)


def _seen(result: StepResult) -> Mapping[str, Any]:
    return {_STEP: result.step, _MAE: result.mae}


def _scheduler(rule: SchedulerName, n_steps: int, grace: int, factor: int) -> TrialScheduler:
    told: dict[str, Any] = {"time_attr": _STEP, "metric": _MAE, "mode": "min"}
    if rule == "none":
        return FIFOScheduler()
    if rule == "median":  # an endless slice: it stops trials, it never pauses them
        return MedianStoppingRule(**told, grace_period=grace, min_time_slice=math.inf)
    brackets = 1 if rule == "asha" else max(1, min(3, int(math.log(n_steps / grace, factor) + 1e-9)))
    # A hair above the last step: Ray cuts log(243 / 1) / log(3) off to 4 and loses the last rung.
    told |= {"max_t": n_steps * (1 + 1e-9), "grace_period": grace, "reduction_factor": factor}
    return _BracketsInTurn(**told, brackets=brackets, stop_last_trials=False)
