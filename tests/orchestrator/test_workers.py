"""Where jobs run."""

import os

import pytest
import torch
from fake_jobs import process_of

from orchestrator.execution import pool as workers
from orchestrator.execution.pool import Allocation, Listed, WorkerKilled, allocate, run_jobs
from trainables import processes
from trainables.errors import UserError
from trainables.progress import Progress, silent


def test_a_cpu_gets_a_process_a_core_and_few_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "n_cores", lambda: 4)
    assert allocate(5, "cpu") == Allocation(4, 1, ("cpu",))
    assert allocate(2, "cpu") == Allocation(2, 2, ("cpu",))
    assert allocate(5, "cpu", processes=1, per_gpu=3) == Allocation(1, 4, ("cpu",))


def test_gpus_get_one_process_each_or_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert allocate(5) == Allocation(2, 1, ("cuda:0", "cuda:1"))
    assert allocate(5, per_gpu=2) == Allocation(4, 1, ("cuda:0", "cuda:1"))
    assert allocate(3, per_gpu=2).processes == 3
    assert allocate(5, processes=1, per_gpu=2).processes == 1


class Malloc:
    """What was told to the C library, in order."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, option: int, value: int) -> None:
        self.options[option] = value

    def malloc_trim(self, _pad: int) -> None:
        self.trimmed += 1


def test_a_job_in_the_callers_process_keeps_freed_memory_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    malloc = Malloc()
    monkeypatch.setattr("trainables.processes.ctypes.CDLL", lambda _: malloc)
    seen = []

    def work(job: str, _device: str, _progress: Progress) -> str:
        seen.append(dict(malloc.options))
        if job == "fails":
            raise UserError("it failed")
        return job

    here = Allocation(1, 1, ("cpu",))
    assert list(run_jobs(work, Listed([("one", "one")]), here, silent)) == [("one", "one")]
    assert seen == [processes._KEEP]
    assert malloc.options == processes._USUAL
    assert malloc.trimmed == 1
    with pytest.raises(UserError, match="it failed"):
        list(run_jobs(work, Listed([("one", "fails")]), here, silent))
    assert malloc.options == processes._USUAL
    malloc.options.clear()
    list(run_jobs(work, Listed([("one", "one")]), Allocation(1, 1, ("cuda:0",)), silent))
    assert malloc.options == {}


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.processes.ctypes.CDLL", lambda _: object())
    with processes.keeping_freed_memory():
        pass


def test_threads_of_processes_without_a_job_go_to_the_others() -> None:
    where = Allocation(4, 2, ("cpu",))
    assert [where.threads_for(n) for n in (0, 1, 2, 3, 4, 40)] == [8, 8, 4, 2, 2, 2]


class Chain:
    """Three jobs of which the last needs the first two."""

    def __init__(self) -> None:
        self.order, self.ended = ["a", "b", "c"], []

    def take(self) -> tuple[str, str] | None:
        if not self.order or (self.order == ["c"] and len(self.ended) < 2):
            return None
        name = self.order.pop(0)
        return name, name

    @property
    def n_ready(self) -> int:
        return len(self.order)


@pytest.mark.trains
@pytest.mark.parametrize("where", [Allocation(1, 1, ("cpu",)), Allocation(2, 1, ("cpu",))])
def test_results_make_further_jobs_ready(where: Allocation) -> None:
    source, found = Chain(), {}
    for name, process in run_jobs(process_of, source, where, silent):
        source.ended.append(name)
        found[name] = process
    assert source.ended[2] == "c"
    assert set(source.ended) == {"a", "b", "c"}
    assert (os.getpid() in found.values()) == (where.processes == 1)


@pytest.mark.trains
def test_a_killed_process_is_told_and_what_ended_before_is_there() -> None:
    source = Listed([("fine", "fine"), ("kills", "kills")])
    results = run_jobs(process_of, source, Allocation(1, 1, ("cpu",)), silent, isolate=True)
    assert next(results)[0] == "fine"
    with pytest.raises(WorkerKilled, match="what is done is kept"):
        next(results)
