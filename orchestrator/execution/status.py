"""How the models of a run stand, from its folder alone: what ran, what runs, what waits and for what."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.execution.dependencies import schedule
from orchestrator.execution.folders import is_alive
from orchestrator.execution.log import LoggedModel, LoggedSession, read_log


class ModelState(StrEnum):
    """How a model stands."""

    FINISHED = "finished"
    FAILED = "failed"
    RUNNING = "running"
    READY = "ready"
    WAITING = "waiting"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class ModelStatus:
    """One model.

    Attributes:
        seconds: that it has run, where it has begun.
        why: what it waits for, or why it failed.
    """

    name: str
    state: ModelState
    seconds: float | None = None
    device: str = ""
    why: str = ""


@dataclass(frozen=True)
class ExecutionStatus:
    """The last session of a run's folder.

    Attributes:
        at_work: a process is working on it; None where that cannot be seen from here (it runs on another machine).
        worker: that process, in words.
        silence: seconds since the last event.
        seconds_left: until everything is made; None where nothing is finished yet to measure by, or nothing is left.
        gpu_seconds: of all models that ran on a GPU.
    """

    models: tuple[ModelStatus, ...]
    at_work: bool | None
    worker: str
    silence: float
    seconds_left: float | None
    gpu_seconds: float

    def count(self, state: ModelState) -> int:
        """Return how many models stand like that."""
        return sum(model.state == state for model in self.models)


def read_status(folder: Path, now: float | None = None) -> ExecutionStatus | None:
    """Return how the models of a folder's last session stand; None where it has no log.

    Args:
        now: seconds since 1970, by default the clock's.
    """
    session = read_log(folder)
    if session is None:
        return None
    # Another machine's clock may be ahead of this one, and the log's times are rounded.
    moment = max(time.time() if now is None else now, session.last_event)
    at_work = False if session.closed else is_alive(session.pid, session.host)
    models = tuple(_status(model, session, at_work, moment) for model in session.models.values())
    gpu_seconds = sum(
        (model.ended or moment) - model.begun
        for model in session.models.values()
        if model.begun is not None and model.device.startswith("cuda") and (model.ended or at_work is not False)
    )
    worker = f"process {session.pid} on {session.host}"
    left = _seconds_left(list(session.models.values()), session.processes, moment)
    return ExecutionStatus(models, at_work, worker, moment - session.last_event, left, gpu_seconds)


def _status(model: LoggedModel, session: LoggedSession, at_work: bool | None, now: float) -> ModelStatus:
    name = model.planned.name
    if model.status:
        seconds = None if model.begun is None or model.ended is None else model.ended - model.begun
        return ModelStatus(name, ModelState(model.status), seconds, model.device, model.reason)
    if model.begun is not None:
        state = ModelState.INTERRUPTED if at_work is False else ModelState.RUNNING
        until = session.last_event if at_work is False else now
        return ModelStatus(name, state, until - model.begun, model.device)
    lacking = [session.models[key] for key in model.planned.needs if session.models[key].status != "finished"]
    if lacking:
        return ModelStatus(name, ModelState.WAITING, why=f"needs {_names(lacking)}")
    return ModelStatus(name, ModelState.READY, why="" if at_work is False else _waits_for(model, session))


def _waits_for(model: LoggedModel, session: LoggedSession) -> str:
    """Return what a model that could begin waits for."""
    if not session.on_ray:
        return "waits for a free process"
    what = "a node" if not session.processes else "a free GPU" if session.gpus else "a free core of the cluster"
    return f"waits for {what}" + (f"; it was put back: {model.reason}" if model.put_back else "")


def _names(models: Sequence[LoggedModel], most: int = 3) -> str:
    names = [model.planned.name for model in models]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _seconds_left(models: Sequence[LoggedModel], processes: int, now: float) -> float | None:
    """Return the time until all are made, by the speed of those that were made in this session."""
    made = [model for model in models if model.status == "finished" and not model.before and model.begun is not None]
    seconds = sum((model.ended or now) - (model.begun or now) for model in made)
    structures = sum(model.planned.structures for model in made)
    left = {model.planned.key: model for model in models if not model.status}
    if not left or seconds <= 0 or structures <= 0:
        return None
    needs = {key: [other for other in model.planned.needs if other in left] for key, model in left.items()}
    each = {key: model.planned.structures * seconds / structures for key, model in left.items()}
    for key, model in left.items():
        if model.begun is not None:
            each[key] = max(0.0, each[key] - (now - model.begun))
    return max(end for _, end in schedule(needs, each, max(1, processes)).values())
