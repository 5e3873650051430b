"""What runs on the nodes of a Ray cluster: a worker that makes one model after another, and what it says meanwhile."""

import os
import platform
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import torch

from orchestrator.execution.gpu_check import unused_gpu
from orchestrator.execution.ray_stores import Fetch, fetch_from
from orchestrator.provenance import versions
from orchestrator.report.progress import QueueProgress
from trainables.errors import UserError
from trainables.files import write_text
from trainables.preemption import Preempted, ask_to_stop
from trainables.processes import keep_freed_memory
from trainables.progress import Progress

_SECONDS_BETWEEN_EVENTS = 0.5

Work = Callable[[Any, str, Progress], Any]
Localise = Callable[[Any, Fetch], Any]


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is told when it begins.

    Attributes:
        device: "auto", "cpu" or "cuda".
        threads: of torch.
        folder: that has to be on storage which the driver's machine shares; None where nothing is written.
        token: that the driver has put there.
        events: where progress goes.
        keeper: hands out graph stores that a node lacks.
    """

    device: str
    threads: int
    folder: Path | None
    token: str
    events: Any
    keeper: Any


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker has begun.

    Attributes:
        node: the machine's name.
        node_id: Ray's.
        device: of torch: "cpu" or "cuda:0".
        gpus: numbers of the node's GPUs that Ray has given to the worker.
        problem: why it cannot work there; empty where it can.
        note: what should be known of it, such as a GPU that is passed over.
    """

    node: str
    node_id: str
    pid: int
    device: str
    gpus: tuple[str, ...]
    versions: dict[str, str]
    problem: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        """Return the place in words."""
        gpus = f", GPU {', '.join(self.gpus)}" if self.gpus else ""
        return f"{self.device} on {self.node}{gpus}"


@dataclass(frozen=True)
class NodeProblem:
    """Why a node cannot do a job that any other could: its result in place of the job's."""

    reason: str


class EventSink:
    """An actor that holds workers' events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []

    def put(self, events: list[tuple[Any, ...]]) -> None:
        """Add events."""
        self._events += events

    def take(self) -> list[tuple[Any, ...]]:
        """Return what came since the last time."""
        taken, self._events = self._events, []
        return taken


class EventBuffer:
    """Gathers a worker's events and sends them a few times a second; many small advances become one."""

    def __init__(self, send: Callable[[list[tuple[Any, ...]]], object]) -> None:
        self._send, self._lock = send, threading.Lock()
        self._events: list[tuple[Any, ...]] = []
        threading.Thread(target=self._send_again_and_again, daemon=True).start()

    def put(self, event: tuple[Any, ...]) -> None:
        """Add an event: of the queue that QueueProgress writes to."""
        with self._lock:
            last = self._events[-1] if self._events else ("",)
            if event[0] == last[0] == "advance" and event[1] == last[1]:
                kind, key, amount, note = event
                self._events[-1] = (kind, key, last[2] + amount, note or last[3])
            else:
                self._events.append(event)

    def flush(self) -> None:
        """Send what there is."""
        with self._lock:
            events, self._events = self._events, []
        if events:
            with suppress(Exception):  # whoever watches may be gone: the work goes on
                self._send(events)

    def _send_again_and_again(self) -> None:
        while not threading.Event().wait(_SECONDS_BETWEEN_EVENTS):
            self.flush()


class Worker:
    """An actor that makes one model after another in its share of a node."""

    def begin(self, task: WorkerTask) -> WorkerPlace:
        """Look around: device, shared storage, versions."""
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's own; what counts is said below
        torch.set_num_threads(task.threads)
        gpus = tuple(str(number) for number in ray.get_gpu_ids())
        device, problem, note = _device(task.device, bool(gpus))
        if device == "cpu":
            keep_freed_memory()
        problem = problem or _storage_problem(task)
        events = task.events
        self._task = task
        self._buffer = EventBuffer(lambda sent: events.put.remote(sent))
        self._device, self._fetch = device, fetch_from(task.keeper)
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, _asked_to_stop)
        node = ray.get_runtime_context().get_node_id()
        return WorkerPlace(platform.node(), node, os.getpid(), device, gpus, versions(), problem, note)

    def run(self, work: Work, job: Any, name: str, localise: Localise | None) -> Any:
        """Do a job and return its result.

        Returns:
            None where the node is about to be taken away, with a checkpoint left; a NodeProblem where the node has lost
            the shared storage, or cannot hold what the job reads.
        """
        if problem := _storage_problem(self._task):
            return NodeProblem(problem)
        try:
            if localise is not None:
                job = localise(job, self._fetch)
        except (OSError, UserError) as error:
            return NodeProblem(" ".join(str(error).split()))
        try:
            return work(job, self._device, QueueProgress(self._buffer, name))
        except Preempted:
            return None
        finally:
            self._buffer.flush()


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    ask_to_stop()


def _device(wanted: str, has_gpu: bool) -> tuple[str, str, str]:
    """Return (device, problem, note) of a worker."""
    if wanted == "cpu" or not has_gpu:
        return "cpu", "", ""
    if torch.cuda.is_available():
        return "cuda:0", "", ""
    reason = unused_gpu()
    if wanted == "cuda":
        return "cpu", reason or "Ray gave it a GPU, but PyTorch sees no CUDA GPU there", ""
    return "cpu", "", f"{reason}. Running on its CPU." if reason else ""


def _storage_problem(task: WorkerTask) -> str:
    if task.folder is None:
        return ""
    return storage_problem(task.folder, task.token, probe_name(ray.get_runtime_context().get_worker_id()))


def storage_problem(folder: Path, token: str, name: str) -> str:
    """Return why this node does not share a folder with the driver, or an empty string.

    Args:
        token: what the driver has put there; it is written into a file of that name.
    """
    try:
        seen = (folder / probe_name("driver")).read_text(encoding="utf-8")
    except OSError as error:
        return f"it does not share {folder} ({error.strerror or error})"
    if seen != token:
        return f"its {folder} is another one than the driver's"
    try:
        write_text(folder / name, token)
    except OSError as error:
        return f"it cannot write to {folder} ({error.strerror or error})"
    return ""


def probe_name(writer: str) -> str:
    """Return the name of the file with which a process shows that it writes to a folder."""
    return f".probe-{writer[:12]}"
