"""What a study has done: its trials, in a journal that only grows and from which everything else is made.

Every event is one line of JSON, on disk before anything acts on it: a driver that is killed loses nothing but the line
it was writing. Scheduler, sampler, the Optuna mirror and the reports are all rebuilt from these lines.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainables.errors import CannotWrite, UserError
from trainables.progress import Progress, silent
from trainables.training.result import StepResult, plain


class TrialState(StrEnum):
    """How a trial stands, by Optuna's names."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    RUNNING = "RUNNING"

    @property
    def label(self) -> str:
        """Return the state in words."""
        words = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
        return words[self.value]


@dataclass
class Trial:
    """One trial.

    Attributes:
        changes: dotted keys of RunConfig over the study's base configuration.
        params: what the sampler chose, by the space's own names.
        origin: the name of a known starting point, or "sampler".
        seed: of the run.
        of: for a check at full length, the number of the trial that it checks.
        values: one a objective (MAE, or MAE and cost); empty where the trial failed or is running.
        reason: why it failed.
        distributions: of params, as Optuna writes them (JSON), so that a journal can be read without its space.
        tries: how often it was begun; more than once where its process was killed.
        done: it has made its last step.
    """

    number: int
    changes: dict[str, Any]
    params: dict[str, Any]
    origin: str = "sampler"
    seed: int = 0
    of: int | None = None
    state: TrialState = TrialState.RUNNING
    values: tuple[float, ...] = ()
    reason: str = ""
    distributions: dict[str, str] = field(default_factory=dict)
    tries: int = 1
    done: bool = False
    results: list[StepResult] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The step at which it stands, or ended."""
        return self.results[-1].step if self.results else 0

    @property
    def mae(self) -> float:
        """Best validation MAE so far; nan before the first step."""
        return self.results[-1].mae if self.results else math.nan

    @property
    def structures(self) -> int:
        """Return the structures processed so far."""
        return self.results[-1].structures if self.results else 0

    @property
    def seconds(self) -> float:
        """Return the seconds of training and validation."""
        return self.results[-1].seconds if self.results else 0.0


@dataclass(frozen=True)
class Crash:
    """Whoever ran the trials failed, and no trial was to blame.

    Attributes:
        time: seconds since 1970.
        phase: search, probe or check.
    """

    time: float
    phase: str
    reason: str


class Journal:
    """The lines of one study, appended one by one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: str, **content: Any) -> None:
        """Write one event and wait until it is on disk.

        Raises:
            CannotWrite: it cannot be written (a full disk, for one); what was written before is whole.
        """
        line = json.dumps({"event": event, **content}, allow_nan=False) + "\n"
        before = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            with suppress(OSError):  # of half a line; the next one begins where this one did
                os.truncate(self._path, before)
            raise CannotWrite(
                f"{self._path} cannot be written ({error.strerror}): free some space and continue with `resume=True`"
            ) from None

    def read(self, progress: Progress = silent, *, mend: bool = False) -> list[dict[str, Any]]:
        """All whole lines; a last one that is not (yet) is left out.

        Args:
            mend: take it out of the file and say so. Only for whoever holds the study: another process may be writing.

        Raises:
            UserError: the file is missing, empty, or damaged before its last line.
        """
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read ({error.strerror}): this is not the folder of a study"
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        if mend and len(whole) < len(content):
            progress.message(f"{self._path.name}: the last line was cut off and is left out")
            os.truncate(self._path, len(whole))
        events = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                events.append(_event(line))
            except ValueError:
                raise UserError(
                    f"line {number} of {self._path} is damaged: restore a copy of that file, or start a new "
                    "search with another `out`"
                ) from None
        if not events or events[0].get("event") != "begin":
            raise UserError(
                f"{self._path} does not begin as a study's journal does (was it cut off?): restore a copy of "
                "that file, or start a new search with another `out`"
            )
        return events


def _event(line: bytes) -> dict[str, Any]:
    event = json.loads(line)
    if not isinstance(event, dict) or "event" not in event:
        raise ValueError("no event")
    return event


def trials_of(events: Iterable[Mapping[str, Any]]) -> dict[int, Trial]:
    """Return the trials of a journal, by number, in the order they began.

    Raises:
        UserError: it speaks of a trial that has not begun.
    """
    trials: dict[int, Trial] = {}
    for event in events:
        match {name: value for name, value in event.items() if name != "time"}:
            case {"event": "trial", "number": number, **content}:
                trials[number] = Trial(number, **content)
            case {"number": number} if number not in trials:
                raise UserError(f"the journal tells how trial {number} went but not that it began: it is damaged")
            case {"event": "result", "number": number, "done": done, **content}:
                trials[number].done = done
                trials[number].results.append(StepResult(**_floats(content)))
            case {"event": "again", "number": number}:
                trials[number].tries += 1
            case {"event": "end", "number": number, "state": state, "values": values, "reason": reason}:
                trial = trials[number]
                trial.state, trial.values, trial.reason = TrialState(state), tuple(values), reason
    return trials


def crashes_of(events: Iterable[Mapping[str, Any]]) -> tuple[Crash, ...]:
    """Return the crashes that a journal tells of, in their order."""
    crashes = []
    for event in events:
        match event:
            case {"event": "crash", "time": when, "phase": phase, "reason": reason}:
                crashes.append(Crash(when, phase, reason))
    return tuple(crashes)


_BEGINNING = ("number", "changes", "params", "origin", "seed", "of", "distributions")


def trial_event(trial: Trial) -> dict[str, Any]:
    """Return the fields of the line with which a trial begins."""
    return {name: getattr(trial, name) for name in _BEGINNING}


def result_event(number: int, result: StepResult, done: bool) -> dict[str, Any]:
    """Return the fields of a step's line; JSON has no nan, so it is None there."""
    return {"number": number, "done": done, **plain(asdict(result))}


def _floats(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in content.items()}
