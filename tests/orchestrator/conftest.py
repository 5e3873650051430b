"""A Ray cluster for the modules that want one."""

from collections.abc import Iterator
from typing import Any

import fake_models
import pytest
from cluster_nodes import three_nodes

from orchestrator.execution import on_cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of three nodes with two GPUs each; a module's own, as some tests break it."""
    with three_nodes() as cluster:
        yield cluster


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that take two seconds and need no training."""
    monkeypatch.setattr(on_cluster, "run_job", fake_models.pause)
