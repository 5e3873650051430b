"""Jobs over processes: one process a core on a CPU, one a GPU where there are several."""

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from orchestrator.execution.gpu_check import unused_gpu
from orchestrator.report.progress import NamedProgress, QueueProgress, relay
from trainables.errors import UserError
from trainables.processes import ignored_by_children, keep_freed_memory, keeping_freed_memory, n_cores, spawned_pool
from trainables.progress import Progress

Job = TypeVar("Job")
Handed = TypeVar("Handed", covariant=True)
Result = TypeVar("Result")
Work = Callable[[Job, str, Progress], Result]  # (job, device, progress) -> result
Begun = Callable[[str, str], None]  # (name, device)


class WorkerKilled(UserError):
    """A worker process ended without an answer; results that came before it are there."""


@dataclass(frozen=True)
class Allocation:
    """Where jobs run: how many at once, with how many threads, on which devices in turn."""

    processes: int
    threads: int
    devices: tuple[str, ...]

    def threads_for(self, n_jobs: int) -> int:
        """Return the threads of one of so many jobs: those of processes that have nothing to do are shared out."""
        return max(self.threads, self.threads * self.processes // max(1, min(n_jobs, self.processes)))


def allocate(n_jobs: int, device: str = "auto", processes: int | None = None, per_gpu: int = 1) -> Allocation:
    """Allocate one process a core on a CPU (the cores shared out where there are fewer jobs), or `per_gpu` a GPU.

    Raises:
        UserError: a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        cores = n_cores()
        count = min(processes or cores, max(n_jobs, 1))
        return Allocation(count, max(1, cores // count), ("cpu",))
    if device != "cuda":
        raise UserError(f"`device={device}`: must be auto, cpu or cuda")
    if not torch.cuda.is_available():
        reason = unused_gpu() or "no CUDA GPU is visible to PyTorch here"
        raise UserError(f"`device=cuda`: {reason} (or use `device=cpu`)")
    devices = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return Allocation(min(processes or per_gpu * len(devices), max(n_jobs, 1)), 1, devices)


class Source(Protocol[Handed]):
    """Hands out jobs; which there are may depend on the results of others."""

    def take(self) -> tuple[str, Handed] | None:
        """Return the next job with its name, or None where none can begin before another ends."""

    @property
    def n_ready(self) -> int:
        """Return how many jobs could begin now."""


class Listed(Source[Handed]):
    """A source of jobs that do not depend on each other, in their order."""

    def __init__(self, jobs: Iterable[tuple[str, Handed]]) -> None:
        self._left = deque(jobs)
        self._taken: dict[str, Handed] = {}

    def take(self) -> tuple[str, Handed] | None:
        """Return the next job."""
        if not self._left:
            return None
        name, job = self._left.popleft()
        self._taken[name] = job
        return name, job

    def put_back(self, name: str, reason: str) -> None:
        """Offer a job again whose worker was lost."""
        self._left.append((name, self._taken[name]))

    @property
    def n_ready(self) -> int:
        """Return how many are left."""
        return len(self._left)


def run_jobs(
    work: Callable[[Job, str, Progress], Result],
    source: Source[Job],
    where: Allocation,
    progress: Progress,
    *,
    isolate: bool = False,
    begun: Begun = lambda name, device: None,
) -> Iterator[tuple[str, Result]]:
    """Run the jobs of a source and yield (name, result) as each ends, until the source has none and none runs.

    The source is asked again after each result has been taken from here, so that results may make jobs ready.

    Args:
        isolate: in worker processes even where one would do, so that this process outlives a job's.
        begun: called with the name of each job that is handed to a process, and the device it gets.

    Raises:
        UserError: raised by a job; WorkerKilled where a worker process was; results that came before were yielded.
    """
    if where.processes == 1 and not isolate:
        yield from _run_here(work, source, where, progress, begun)
        return
    with ignored_by_children():  # with the queue a process begins that tracks its resources
        queue = multiprocessing.get_context("spawn").Queue()
    with relay(queue, progress), spawned_pool(where.processes, _begin_worker, (queue, where)) as pool:
        try:
            yield from _run_in(pool, work, source, where, begun)
        except BrokenProcessPool:
            raise WorkerKilled(
                "a worker process was killed (out of memory, most likely); what is done is kept: "
                "run it again, with `processes=1` to need less memory"
            ) from None


def _run_here(
    work: Callable[[Job, str, Progress], Result],
    source: Source[Job],
    where: Allocation,
    progress: Progress,
    begun: Begun,
) -> Iterator[tuple[str, Result]]:
    device = where.devices[0]
    while (item := source.take()) is not None:
        name, job = item
        begun(name, device)
        with _threads(where.threads), keeping_freed_memory() if device == "cpu" else nullcontext():
            result = work(job, device, NamedProgress(progress, name))
        yield name, result


def _run_in(
    pool: ProcessPoolExecutor,
    work: Callable[[Job, str, Progress], Result],
    source: Source[Job],
    where: Allocation,
    begun: Begun,
) -> Iterator[tuple[str, Result]]:
    """Keep a job in each process while there are any, and each on the device that has the fewest."""
    running: dict[Future[Result], tuple[str, str]] = {}
    while True:
        while len(running) < where.processes and (item := source.take()) is not None:
            name, job = item
            in_use = Counter(device for _, device in running.values())
            device = min(where.devices, key=lambda each: in_use[each])
            begun(name, device)
            threads = where.threads_for(len(running) + 1 + source.n_ready)
            running[pool.submit(_in_worker, work, job, device, name, threads)] = name, device
        if not running:
            return
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            name, _ = running[future]
            result = future.result()
            del running[future]
            yield name, result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use that many threads meanwhile: this process is the caller's, who may have chosen another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_queue: Any = None


def _begin_worker(queue: Any, where: Allocation) -> None:
    global _queue
    _queue = queue
    queue.cancel_join_thread()  # what was not shown yet must not keep a worker from ending
    if where.devices == ("cpu",):
        keep_freed_memory()


def _in_worker(work: Callable[[Job, str, Progress], Result], job: Job, device: str, name: str, threads: int) -> Result:
    torch.set_num_threads(threads)
    return work(job, device, QueueProgress(_queue, name))
