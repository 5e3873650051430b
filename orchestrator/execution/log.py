"""When each model of a run began and ended, in a file of the run's folder that only grows: whoever watches reads it.

A line is one event of JSON: `session` (what is planned, and by whom), `begin`, `put_back`, `end`, `workers` (on a
cluster), `closed`. The file decides
nothing (what is finished is found in the models' own folders), and a log that cannot be written stops no training.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.execution.summary import RunSummary

LOG = "execution.jsonl"


@dataclass(frozen=True)
class PlannedModel:
    """A model that a session needs.

    Attributes:
        key: unique among its models.
        name: as messages have it.
        needs: keys of the models that have to be made before.
        structures: to process in its training.
    """

    key: str
    name: str
    needs: tuple[str, ...]
    structures: float


class ExecutionLog:
    """The log of one session, appended to its folder's."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG

    def session(
        self, models: Iterable[PlannedModel], processes: int, devices: Iterable[str], *, on_ray: bool = False
    ) -> None:
        """Note what will be made, on how many processes; on Ray their number is told later, as it changes."""
        about = {"pid": os.getpid(), "host": platform.node(), "processes": processes, "devices": list(devices)}
        about |= {"on_ray": True} if on_ray else {}
        self._append("session", **about, models=[asdict(model) for model in models])

    def begin(self, key: str, device: str) -> None:
        """Note that a model's training begins."""
        self._append("begin", key=key, device=device)

    def workers(self, count: int, *, gpus: bool) -> None:
        """Note how many workers there are on a cluster, and whether they have GPUs."""
        self._append("workers", count=count, gpus=gpus)

    def put_back(self, key: str, reason: str) -> None:
        """Note that a model waits again, as its worker was lost."""
        self._append("put_back", key=key, reason=reason)

    def end(self, key: str, summary: RunSummary, *, before: bool = False) -> None:
        """Note what became of a model.

        Args:
            before: it was finished when the session began.
        """
        self._append("end", key=key, status=summary.status, reason=summary.reason, before=before)

    def closed(self) -> None:
        """Note that nothing of the session runs any more."""
        self._append("closed")

    def _append(self, event: str, **content: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **content}) + "\n"
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line)


@dataclass
class LoggedModel:
    """A model of the last session.

    Attributes:
        begun, ended: seconds since 1970, where it has.
        device: cpu, or cuda:0 and so on.
        status: finished or failed, where it has ended.
        before: it was finished when the session began.
        put_back: how often its worker was lost.
    """

    planned: PlannedModel
    begun: float | None = None
    ended: float | None = None
    device: str = ""
    status: str = ""
    reason: str = ""
    before: bool = False
    put_back: int = 0


@dataclass
class LoggedSession:
    """The last session of a folder.

    Attributes:
        closed: it has ended, by itself or with an error of its own; a killed one has not.
        last_event: seconds since 1970.
        on_ray: it runs on a cluster.
        gpus: its workers have GPUs.
    """

    pid: int
    host: str
    processes: int
    begun: float
    models: dict[str, LoggedModel] = field(default_factory=dict)
    closed: bool = False
    last_event: float = 0.0
    on_ray: bool = False
    gpus: bool = False


def read_log(folder: Path) -> LoggedSession | None:
    """Return the last session of a folder; None where there is no log.

    Lines that cannot be read (one that is being written, for one) are left out.
    """
    try:
        lines = (folder / LOG).read_bytes().splitlines()
    except OSError:
        return None
    session: LoggedSession | None = None
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            session = _told(session, json.loads(line))
    return session


def _told(session: LoggedSession | None, event: Mapping[str, Any]) -> LoggedSession | None:
    match event:
        case {"event": "session", "time": begun, "pid": pid, "host": host, "processes": processes, "models": models}:
            planned = [PlannedModel(**{**model, "needs": tuple(model["needs"])}) for model in models]
            session = LoggedSession(pid, host, processes, begun, {model.key: LoggedModel(model) for model in planned})
            session.on_ray = bool(event.get("on_ray"))
        case {"event": "begin", "time": begun, "key": key, "device": device} if session is not None:
            model = session.models[key]
            model.begun, model.device = begun, device
        case {"event": "end", "time": ended, "key": key, "status": status, "reason": reason} if session is not None:
            model = session.models[key]
            model.ended, model.status, model.reason = ended, status, reason
            model.before = bool(event.get("before"))
        case {"event": "put_back", "key": key, "reason": reason} if session is not None:
            model = session.models[key]
            model.begun, model.put_back, model.reason = None, model.put_back + 1, reason
        case {"event": "workers", "count": count, "gpus": gpus} if session is not None:
            session.processes, session.gpus = int(count), bool(gpus)
        case {"event": "closed"} if session is not None:
            session.closed = True
    if session is not None:
        session.last_event = float(event["time"])
    return session
