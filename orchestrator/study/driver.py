"""The study itself: which trial comes next, what its results mean, and where everything is written down first.

It knows nothing of Ray. Whoever runs the trials asks `next`, reports every result and every failure, and does as it is
told; a test can be that as well as a cluster. Every event goes into the journal before anything acts on it.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from orchestrator.study.journal import Journal, Trial, TrialState, result_event, trial_event, trials_of
from orchestrator.study.pruner import Pruner
from trainables.errors import CannotWrite, UserError
from trainables.training.result import StepResult

MOST_TRIES = 3  # of a trial whose process is killed
Decision = Literal["continue", "stop"]


class Callback(Protocol):
    """Is told of everything after it is in the journal."""

    def on_trial_start(self, trial: Trial) -> None:
        """Take note of a trial that starts."""

    def on_trial_result(self, trial: Trial, result: StepResult) -> None:
        """Take note of a trial's result."""

    def on_trial_end(self, trial: Trial) -> None:
        """Take note of a trial that has ended."""


class StudyDriver:
    """The trials of a study, in one phase: the search, or the checks of its best at full length.

    Args:
        planned: the trial of a number and the trials before it, or None where there is none: Sampler.ask for the
            search, a list for the checks.
        pruner: how running trials are judged; a new one, into which the journal is replayed.
        n_trials: of this phase, those of earlier sessions included.
        mine: which trials of the journal are this phase's.
        cost: what a finished trial costs, as a second objective; None for one objective.
        deadline: on the clock of time.monotonic(); after it trials are left where they are.
    """

    def __init__(
        self,
        journal: Journal,
        planned: Callable[[int, Sequence[Trial]], Trial | None],
        pruner: Pruner,
        n_trials: int,
        *,
        mine: Callable[[Trial], bool] = lambda trial: trial.of is None,
        cost: Callable[[Trial], float] | None = None,
        callbacks: Sequence[Callback] = (),
        deadline: float = math.inf,
    ) -> None:
        self._journal, self._planned, self._n_trials = journal, planned, n_trials
        self.pruner, self._cost, self._callbacks, self._deadline = pruner, cost, callbacks, deadline
        self._exhausted = False
        self.broken: UserError | None = None
        events = journal.read()
        known = trials_of(events)
        self.trials = {number: trial for number, trial in known.items() if mine(trial)}
        self._next_number = max(known, default=-1) + 1
        self._replay(events)
        self._waiting: list[int] = []
        self.interrupted()

    @property
    def finished(self) -> bool:
        """Every trial of this phase has ended."""
        begun = self._exhausted or len(self.trials) >= self._n_trials
        return begun and all(trial.state != TrialState.RUNNING for trial in self.trials.values())

    @property
    def late(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    @property
    def ends_now(self) -> bool:
        """Nothing goes on in this session: its time is over, or nothing can be written any more."""
        return self.late or self.broken is not None

    @property
    def nothing_to_begin(self) -> bool:
        """No trial will begin, now or later, unless a running one is killed."""
        return self.ends_now or (not self._waiting and (self._exhausted or len(self.trials) >= self._n_trials))

    def next(self) -> Trial | None:
        """Return the next trial to run: one that was interrupted, or a new one; None where there is none now."""
        if self.ends_now:
            return None
        if self._waiting:
            return self.trials[self._waiting.pop(0)]
        if self._exhausted or len(self.trials) >= self._n_trials:
            return None
        trial = self._planned(self._next_number, list(self.trials.values()))
        if trial is None:
            self._exhausted = True
            return None
        self._write("trial", **trial_event(trial))
        self.trials[trial.number] = trial
        self._next_number += 1
        self.pruner.begin(trial.number)
        for callback in self._callbacks:
            callback.on_trial_start(trial)
        return trial

    def report(self, number: int, result: StepResult, *, done: bool) -> Decision:
        """Take a trial's result; the steps that a trial repeats after it was interrupted are known already."""
        trial = self.trials[number]
        if trial.state != TrialState.RUNNING:
            return "stop"
        if result.step > trial.last:
            self._write("result", **result_event(number, result, done))
            trial.results.append(result)
            trial.done = done
            for callback in self._callbacks:
                callback.on_trial_result(trial, result)
            self._judge(trial)
        return "continue" if trial.state == TrialState.RUNNING and not self.ends_now else "stop"

    def failed(self, number: int, reason: str) -> None:
        """Take note of a trial that raised an error: it has failed."""
        if self.trials[number].state == TrialState.RUNNING:
            self._end(self.trials[number], TrialState.FAIL, reason=reason)

    def killed(self, number: int, reason: str) -> None:
        """Try a trial whose process ended without an error of its own again from its last step, a few times."""
        trial = self.trials[number]
        if trial.state != TrialState.RUNNING:
            return
        if trial.tries >= MOST_TRIES:
            self._end(trial, TrialState.FAIL, reason=f"{reason}, {trial.tries} times")
            return
        self._write("again", number=number, reason=reason)
        trial.tries += 1
        self._waiting.append(number)

    def unwritable(self, number: int, reason: str) -> None:
        """End the study: a trial could not write its files; it has not failed, and no other would fare better."""
        self.broken = CannotWrite(f"trial {number}: {reason} (continue the study with `resume=True`)")

    def crashed(self, phase: str, reason: str) -> None:
        """Note that whoever runs the trials has failed: none of them is to blame, and the report says so."""
        self._write("crash", phase=phase, reason=reason)

    def interrupted(self) -> None:
        """Put what has not ended back into the queue: nothing runs any more."""
        self._waiting = [trial.number for trial in self.trials.values() if trial.state == TrialState.RUNNING]

    def _judge(self, trial: Trial) -> None:
        """Record the last result for those to come, and end the trial where it says so."""
        self._conclude(trial, stopped=self._told_to_stop(trial, trial.results[-1], trial.done))

    def _told_to_stop(self, trial: Trial, result: StepResult, done: bool) -> bool:
        if not math.isfinite(result.mae):
            return False
        if done:
            self.pruner.complete(trial.number, result)
            return False
        return self.pruner.should_prune(trial.number, result)

    def _conclude(self, trial: Trial, *, stopped: bool) -> None:
        if not math.isfinite(trial.mae):
            self._end(trial, TrialState.FAIL, reason=f"the validation MAE is not finite at step {trial.last}")
        elif trial.done:
            self._end(trial, TrialState.COMPLETE, self._values(trial))
        elif stopped:
            self._end(trial, TrialState.PRUNED, (trial.mae,))

    def _values(self, trial: Trial) -> tuple[float, ...]:
        return (trial.mae,) if self._cost is None else (trial.mae, self._cost(trial))

    def _end(
        self,
        trial: Trial,
        state: TrialState,
        values: tuple[float, ...] = (),
        reason: str = "",
    ) -> None:
        self._write("end", number=trial.number, state=state, values=list(values), reason=reason)
        trial.state, trial.values, trial.reason = state, values, reason
        for callback in self._callbacks:
            callback.on_trial_end(trial)

    def _write(self, event: str, **content: Any) -> None:
        try:
            self._journal.append(event, time=round(time.time(), 3), **content)
        except UserError as error:
            self.broken = error  # whoever runs the trials may swallow it, and must not go on
            raise

    def _replay(self, events: Sequence[dict[str, Any]]) -> None:
        """Bring the rungs to stand as they stood.

        A trial whose last result ended it, but whose end is not in the journal, ends now.
        """
        stopped: dict[int, bool] = {}
        for event in events:
            match event:
                case {"event": "trial", "number": number} if number in self.trials:
                    self.pruner.begin(number)
                case {"event": "result", "number": number, "step": step, "done": done} if number in self.trials:
                    trial = self.trials[number]
                    result = next(result for result in trial.results if result.step == step)
                    stopped[number] = self._told_to_stop(trial, result, bool(done))
        for number, told in stopped.items():
            if self.trials[number].state == TrialState.RUNNING:
                self._conclude(self.trials[number], stopped=told)
