"""The study as an Optuna study in a SQLite file, live: `optuna-dashboard sqlite:///DIR/optuna.db` shows it.

A copy for looking at. Nothing reads it back, and where it cannot be written the study goes on without it.
"""

import math
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState as OptunaState

from orchestrator.study.journal import Trial
from orchestrator.study.sampler import frozen, quiet_optuna
from trainables.progress import Progress
from trainables.training.result import StepResult


class OptunaExport:
    """A watcher that copies what happens; made anew from the trials whenever a session begins."""

    def __init__(self, file: Path, name: str, trials: Iterable[Trial], n_objectives: int, progress: Progress) -> None:
        self._progress, self._single, self._broken = progress, n_objectives == 1, False
        self._ids: dict[int, int] = {}
        self._guarded(lambda: self._make(file, name, trials, n_objectives))

    def on_trial_start(self, trial: Trial) -> None:
        """Take note of a trial that starts."""
        self._guarded(lambda: self._add(trial))

    def on_trial_result(self, trial: Trial, result: StepResult) -> None:
        """Take note of a trial's result."""
        if self._single and math.isfinite(result.mae):
            self._guarded(
                lambda: self._storage.set_trial_intermediate_value(self._ids[trial.number], result.step, result.mae)
            )

    def on_trial_end(self, trial: Trial) -> None:
        """Take note of a trial that has ended."""
        values = list(trial.values) or None
        state = OptunaState[trial.state]
        if trial.reason:
            self._guarded(lambda: self._storage.set_trial_user_attr(self._ids[trial.number], "reason", trial.reason))
        self._guarded(lambda: self._storage.set_trial_state_values(self._ids[trial.number], state, values))

    def _make(self, file: Path, name: str, trials: Iterable[Trial], n_objectives: int) -> None:
        # Not by a URL, in which ?, # and % of a path have meanings of their own.
        self._storage = RDBStorage(
            "sqlite:///optuna.db", engine_kwargs={"creator": lambda: sqlite3.connect(file.resolve())}
        )
        for summary in optuna.get_all_study_summaries(self._storage):
            optuna.delete_study(study_name=summary.study_name, storage=self._storage)
        self._study = self._storage.create_new_study([StudyDirection.MINIMIZE] * n_objectives, name)
        for trial in trials:
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        self._ids[trial.number] = self._storage.create_new_trial(
            self._study, template_trial=frozen(trial, single=self._single)
        )

    def _guarded(self, act: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            with quiet_optuna():
                act()
        except Exception as error:
            self._broken = True
            reason = " ".join(str(error).split())[:120]
            self._progress.message(f"optuna.db is no longer updated ({reason}); the study continues")
