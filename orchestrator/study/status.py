"""How a search stands, from its folder alone."""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.execution.folders import last_holder
from orchestrator.study.journal import Journal, TrialState, trials_of
from orchestrator.study.options import JOURNAL, MANIFEST
from trainables.errors import UserError
from trainables.files import read_json


@dataclass(frozen=True)
class StudyStatus:
    """How the trials of a study stand.

    Attributes:
        begun, asked: trials, not counting confirmation runs.
        states: number of trials by state, in words.
        checks: confirmation runs that have begun.
        best: lowest validation MAE of a complete trial, in `unit`.
        failures: a sentence a failed trial.
        at_work: a process is working on it; None where that cannot be seen from here.
        silence: seconds since the last event.
    """

    begun: int
    asked: int
    states: dict[str, int]
    checks: int
    unit: str
    best: float | None = None
    best_trial: int | None = None
    failures: tuple[str, ...] = field(default=())
    at_work: bool | None = False
    worker: str = ""
    silence: float = 0.0


def read_study_status(folder: Path, now: float | None = None) -> StudyStatus:
    """Return how a study stands.

    Args:
        now: seconds since 1970, by default the clock's.

    Raises:
        UserError: its files are missing or damaged.
    """
    events = Journal(folder / JOURNAL).read()
    try:
        about = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        raise UserError(f"{folder / MANIFEST} is missing or damaged: restore a copy of it") from None
    trials = trials_of(events)
    searched = [trial for trial in trials.values() if trial.of is None]
    complete = [trial for trial in searched if trial.state == TrialState.COMPLETE and trial.values]
    best = min(complete, key=lambda trial: trial.values[0], default=None)
    at_work, worker = last_holder(folder)
    states = Counter(trial.state for trial in searched)
    words = {state.label: count for state, count in states.items()}
    if at_work is False and states[TrialState.RUNNING]:
        words["interrupted"] = words.pop(TrialState.RUNNING.label)
    last = max((float(event["time"]) for event in events if "time" in event), default=0.0)
    return StudyStatus(
        begun=len(searched),
        asked=int(about.get("n_trials", len(searched))),
        states=words,
        checks=len(trials) - len(searched),
        unit=str(about.get("unit", "")),
        best=None if best is None else best.values[0],
        best_trial=None if best is None else best.number,
        failures=tuple(f"trial {trial.number} failed: {trial.reason}" for trial in searched if trial.reason),
        at_work=at_work,
        worker=worker,
        silence=max(0.0, (time.time() if now is None else now) - last),
    )
