"""Who watches a study: the live table, and whoever keeps its disk use bounded."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator.report.format import readable
from orchestrator.study.journal import Trial, TrialState
from orchestrator.study.pruner import Pruner
from trainables.progress import Bar
from trainables.training.result import StepResult

_SHOWN = 8  # running and newest trials in the live table
_SECONDS_BETWEEN = 0.5


class CheckpointCleaner:
    """Removes what trials that have ended leave behind, but for the best one's model."""

    def __init__(self, trials: Path, records: Sequence[Trial]) -> None:
        self._trials = trials
        self._best = min(
            (trial for trial in records if trial.state == TrialState.COMPLETE),
            key=lambda trial: trial.values[0],
            default=None,
        )
        for trial in records:
            if trial.state != TrialState.RUNNING:
                self._clear(trial)

    def on_trial_start(self, trial: Trial) -> None:
        """Nothing."""

    def on_trial_result(self, trial: Trial, result: StepResult) -> None:
        """Nothing."""

    def on_trial_end(self, trial: Trial) -> None:
        """Take note of a trial that has ended."""
        before = self._best
        better = trial.state == TrialState.COMPLETE and (before is None or trial.values[0] < before.values[0])
        if better:
            self._best = trial
        self._clear(trial)
        if better and before is not None:
            self._clear(before)

    def _clear(self, trial: Trial) -> None:
        folder = self._trials / f"{trial.number:05d}"
        if trial is not self._best:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for checkpoints in (*folder.glob("checkpoints*"), folder / "joint", folder / "refit"):
            shutil.rmtree(checkpoints, ignore_errors=True)


class StudyDisplay:
    """Shows how a study stands: a table on a terminal, a line a trial elsewhere.

    Args:
        bar: advances by one a trial.
        show: puts a table above the bars; None where there is no terminal.
        say: prints a line.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        pruner: Pruner,
        records: Sequence[Trial],
        bar: Bar,
        show: Callable[[RenderableType], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._unit, self._pruner = name, unit, pruner
        self._trials = {trial.number: trial for trial in records}
        self._bar, self._show, self._say = bar, show, say
        self._drawn = -_SECONDS_BETWEEN
        bar.advance(sum(trial.state != TrialState.RUNNING for trial in records), self._note())

    def on_trial_start(self, trial: Trial) -> None:
        """Take note of a trial that starts."""
        self._trials[trial.number] = trial
        self._draw()

    def on_trial_result(self, trial: Trial, result: StepResult) -> None:
        """Take note of a trial's result."""
        self._trials[trial.number] = trial
        self._draw()

    def on_trial_end(self, trial: Trial) -> None:
        """Take note of a trial that has ended."""
        self._trials[trial.number] = trial
        self._bar.advance(1, self._note())
        self._draw(now=True)
        if self._show is None or trial.state == TrialState.FAIL:
            self._say(f"{self._name}: {sentence(trial, self._unit)}")

    def _best(self) -> Trial | None:
        ended = (trial for trial in self._trials.values() if trial.state == TrialState.COMPLETE)
        return min(ended, key=lambda trial: trial.values[0], default=None)

    def _note(self) -> str:
        best = self._best()
        return "" if best is None else f"best {best.values[0]:.4g} {self._unit} (trial {best.number})"

    def _draw(self, now: bool = False) -> None:
        if self._show is not None and (now or time.monotonic() - self._drawn >= _SECONDS_BETWEEN):
            self._drawn = time.monotonic()
            self._show(live_table(list(self._trials.values()), self._pruner, self._unit))


def sentence(trial: Trial, unit: str) -> str:
    """Return what became of a trial, in one line."""
    name = f"trial {trial.number}" + (f" (trial {trial.of} again, seed {trial.seed})" if trial.of is not None else "")
    if trial.state == TrialState.FAIL:
        return f"{name} failed: {trial.reason}"
    ended = trial.state.label
    what = ", ".join(f"{key}={_short(value)}" for key, value in trial.changes.items()) if trial.of is None else ""
    return f"{name} {ended} at step {trial.last}: MAE {trial.mae:.4g} {unit}".rstrip() + (f" | {what}" if what else "")


def live_table(trials: Sequence[Trial], pruner: Pruner, unit: str) -> RenderableType:
    """Return counts, rungs, and the trials that run or ended last; the changes of each as far as the line is wide."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    for column in ("trial", "state", "step", f"MAE{f' ({unit})' if unit else ''}", "time"):
        justify: Literal["left", "right"] = "left" if column == "state" else "right"
        table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
    table.add_column("changes", no_wrap=True, overflow="ellipsis", ratio=1)
    differing = _differing(trials)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    rest = [trial for trial in trials if trial.state != TrialState.RUNNING]
    left = max(0, _SHOWN - len(running))
    for trial in [*rest[len(rest) - min(left, len(rest)) :], *running[-_SHOWN:]]:
        mae = f"{trial.mae:.4g}" if trial.results else ""
        what = ", ".join(f"{key.rsplit('.', 1)[-1]} {_short(trial.changes.get(key))}" for key in differing)
        seconds = readable(trial.seconds) if trial.results else ""
        table.add_row(str(trial.number), trial.state.label.removesuffix(" early"), str(trial.last), mae, seconds, what)
    return Group(*filter(None, (_counts(trials), _rungs(pruner))), table)


def _differing(trials: Sequence[Trial]) -> list[str]:
    """Return the keys in which trials differ: the others only fill the line."""
    keys = dict.fromkeys(key for trial in trials for key in trial.changes)
    if len(trials) < 2:
        return list(keys)
    return [key for key in keys if len({repr(trial.changes.get(key)) for trial in trials}) > 1]


def _counts(trials: Sequence[Trial]) -> str:
    counted = ((sum(trial.state == state for trial in trials), state.label) for state in TrialState)
    return ", ".join(f"{number} {word}" for number, word in counted if number)


def _rungs(pruner: Pruner) -> str:
    found = pruner.rungs()
    shown = (f"step {step}: {len(maes)} (best {min(maes.values()):.4g})" for step, maes in found.items() if maes)
    said = "; ".join(shown)
    return f"rungs: {said}" if said else ""


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)
