"""Jobs over processes: one process a core on a CPU, one a GPU where there are several."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from orchestrator.execution.gpu_check import unused_gpu
from orchestrator.report.progress import NamedProgress, QueueProgress, relay
from trainables.errors import UserError
from trainables.processes import ignored_by_children, keep_freed_memory, keeping_freed_memory, n_cores, spawned_pool
from trainables.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, str, Progress], Result]  # (job, device, progress) -> result


class WorkerKilled(UserError):
    """A worker process ended without an answer; results that came before it are there."""


@dataclass(frozen=True)
class Allocation:
    """Where jobs run: how many at once, with how many threads, on which devices in turn."""

    processes: int
    threads: int
    devices: tuple[str, ...]


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


def run_jobs(
    work: Callable[[Job, str, Progress], Result],
    jobs: Sequence[tuple[str, Job]],
    where: Allocation,
    progress: Progress,
    *,
    isolate: bool = False,
) -> Iterator[tuple[str, Result]]:
    """Run named jobs and yield (name, result) as each ends.

    Args:
        isolate: in worker processes even where one would do, so that this process outlives a job's.

    Raises:
        UserError: raised by a job; WorkerKilled where a worker process was; results that came before were yielded.
    """
    if not isolate and (where.processes == 1 or len(jobs) == 1):
        for index, (name, job) in enumerate(jobs):
            device = where.devices[index % len(where.devices)]
            with _threads(where.threads), keeping_freed_memory() if device == "cpu" else nullcontext():
                result = work(job, device, NamedProgress(progress, name))
            yield name, result
        return
    with ignored_by_children():  # with the queue a process begins that tracks its resources
        queue = multiprocessing.get_context("spawn").Queue()
    with relay(queue, progress), spawned_pool(where.processes, _begin_worker, (queue, where)) as pool:
        waiting = {
            pool.submit(_in_worker, work, job, where.devices[index % len(where.devices)], name): name
            for index, (name, job) in enumerate(jobs)
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            raise WorkerKilled(
                "a worker process was killed (out of memory, most likely); what is done is kept: "
                "run it again, with `processes=1` to need less memory"
            ) from None


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
    torch.set_num_threads(where.threads)
    if where.devices == ("cpu",):
        keep_freed_memory()


def _in_worker(work: Callable[[Job, str, Progress], Result], job: Job, device: str, name: str) -> Result:
    return work(job, device, QueueProgress(_queue, name))
