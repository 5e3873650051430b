"""A Ray cluster of several nodes on this machine, and what its models have left, for tests."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_models
import pytest

from orchestrator.execution.pool import Listed
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.inputs.recipe import ModelSpec
from trainables.progress import silent

ROOT = Path(__file__).resolve().parents[2]
# A node that is killed is lost after two seconds, not half a minute.
QUICK: dict[str, Any] = {"_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4}}
NODE: dict[str, Any] = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80 * 1024**2}


class Messages:
    """Progress of which only messages are kept."""

    stage = staticmethod(silent.stage)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@contextmanager
def three_nodes() -> Iterator[Any]:
    """A cluster of three nodes with two GPUs each, whose workers find tests/support."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)]))
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv(fake_models.SECONDS, "2")  # long beside what a busy machine takes to hand them out
        cluster = Nodes(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **QUICK})
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


def on_nodes(nodes: Any, **options: Any) -> Resources:
    return Resources(cluster=Cluster(nodes.address), **options)


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "execution.jsonl").read_text().splitlines()]


def n_running(out: Path) -> int:
    """Return how many models have begun and neither ended nor been put back."""
    kinds = Counter(event["event"] for event in events(out))
    return kinds["begin"] - kinds["end"] - kinds["put_back"]


def after(out: Path, done: int, act: Callable[[], None]) -> Callable[[ModelSpec, Any], None]:
    """Return an `ended` that acts once so many models are made."""
    count = 0

    def ended(spec: ModelSpec, summary: Any) -> None:
        nonlocal count
        count += 1
        if count == done:
            act()

    return ended


def drive(nodes: Any, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(ROOT / "tests" / "support" / "cluster_driver.py"), nodes.address, str(out), *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def wait_until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def finished_in(out: Path) -> dict[str, float]:
    return {file.parent.name: file.stat().st_mtime for file in out.glob("*/done.json")}


def run_source(nodes: Any, jobs: Listed[str], said: Messages, **options: Any) -> dict[str, str]:
    from orchestrator.execution.ray_pool import ClusterRun, run_on_ray

    run = ClusterRun(Cluster(nodes.address), "cpu", **options)
    return dict(run_on_ray(fake_models.ends_badly, jobs, run, said, failed=lambda reason: reason))
