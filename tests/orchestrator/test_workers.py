"""Where jobs run."""

import pytest
import torch

from orchestrator.execution import pool as workers
from orchestrator.execution.pool import Allocation, allocate


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
