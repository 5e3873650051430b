"""What a cluster loses: workers, nodes, drivers, its head, its storage, its memory; and what is kept."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_models
import psutil
import pytest
from cluster_nodes import (
    NODE,
    ROOT,
    Messages,
    after,
    drive,
    events,
    finished_in,
    n_running,
    on_nodes,
    run_source,
    wait_until,
)
from ladders import plan_of

from orchestrator.execution.pool import Listed
from orchestrator.execution.scheduler import run_all
from orchestrator.execution.status import read_status
from trainables.errors import UserError

pytestmark = pytest.mark.trains


@pytest.mark.long
def test_a_driver_that_was_killed_goes_on_and_makes_nothing_twice(nodes: Any, tmp_path: Path) -> None:
    out = tmp_path / "a b#c?d%20"  # paths are taken as they are
    out.mkdir()
    first = drive(nodes, out)
    wait_until(lambda: len(finished_in(out)) >= 3)
    first.kill()
    first.wait()
    status = read_status(out)
    assert status is not None
    assert status.at_work is False
    before = finished_in(out)
    second = drive(nodes, out)
    told, _ = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "made 12" in told
    after_ = finished_in(out)
    assert {name: after_[name] for name in before} == before
    assert sum(event["event"] == "end" and event["before"] for event in events(out)) >= len(before)


def test_a_worker_that_is_killed_costs_its_job_alone(nodes: Any, tmp_path: Path) -> None:
    said = Messages()
    kinds = ("always", "once", "preempted", "raises", "fine")
    found = run_source(nodes, Listed([(kind, f"{kind} {tmp_path}") for kind in kinds]), said)
    assert found["always"] == "its process was killed 3 times (out of memory, most likely)"
    assert found["once"] == found["preempted"] == found["fine"] == "done"
    assert "no space left" in found["raises"]
    assert any(text.startswith("preempted is put back") and "taken away" in text for text in said.texts)
    assert any(text.startswith("once is put back") and "was killed" in text for text in said.texts)


@contextmanager
def node_with_memory(threshold: float) -> Iterator[Any]:
    """A node whose memory monitor ends workers once this share of its memory is taken."""
    from ray.cluster_utils import Cluster as Nodes

    system = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 200}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)]))
        head = {"num_cpus": 2, "include_dashboard": False, "_system_config": system}
        cluster = Nodes(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.mark.slow
def test_a_job_that_ray_s_memory_monitor_ends_has_failed_and_the_rest_goes_on(tmp_path: Path) -> None:
    said, memory = Messages(), psutil.virtual_memory()
    with node_with_memory((memory.total - memory.available) / memory.total + 0.15) as node:
        found = run_source(node, Listed([("large", f"grows {tmp_path}"), ("small", f"fine {tmp_path}")]), said)
    assert found == {"large": "its process was killed 3 times (out of memory)", "small": "done"}
    assert any("was killed (out of memory); continuing with" in text for text in said.texts)


@pytest.mark.slow
def test_where_memory_is_too_low_to_begin_it_is_said(tmp_path: Path) -> None:
    with node_with_memory(0.01) as node, pytest.raises(UserError, match=r"no worker can begin .* is low on memory"):
        run_source(node, Listed([("small", f"fine {tmp_path}")]), Messages())


@pytest.mark.long
def test_a_folder_that_is_lost_on_the_way_ends_the_session_and_fails_no_job(nodes: Any, tmp_path: Path) -> None:
    said, jobs = Messages(), Listed([(name, f"{name} {tmp_path}") for name in ("first", "unmounts", "third")])
    with pytest.raises(UserError, match=f"no node can take part: .* it does not share {tmp_path}"):
        run_source(nodes, jobs, said, at_once=1, folder=tmp_path)
    assert jobs.n_ready == 1
    assert any(text.startswith("third is put back: node ") for text in said.texts)


@pytest.mark.long
def test_without_its_head_the_driver_ends_and_says_how_to_continue(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)]))
        cluster = Nodes(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        driver = drive(cluster, tmp_path, "5", "60")
        try:
            wait_until(lambda: len(finished_in(tmp_path)) >= 1)
            cluster.head_node.kill_gcs_server()
            told, _ = driver.communicate(timeout=60)
        finally:
            driver.kill()
            cluster.shutdown()
    assert driver.returncode == 2, told
    assert "the head of the Ray cluster has not answered" in told
    assert finished_in(tmp_path)


# The last one: a driver of its own that joins afterwards may take the killed node, of the same address, for its own.
@pytest.mark.long
def test_a_node_that_is_killed_loses_nothing_finished_and_one_that_comes_later_is_used(
    nodes: Any, pauses: None, tmp_path: Path
) -> None:
    said = Messages()
    doomed, hold = nodes.add_node(**NODE), tmp_path / fake_models.HOLD
    graph = plan_of(tmp_path, said)

    with ThreadPoolExecutor(1) as pool:  # nodes are added by the main thread: they listen to signals
        run = pool.submit(run_all, graph, on_nodes(nodes), log=tmp_path, ended=after(tmp_path, 4, hold.touch))
        wait_until(lambda: hold.exists() and n_running(tmp_path) == 8, 240)  # a busy machine starts workers slowly
        nodes.remove_node(doomed, allow_graceful=False)
        nodes.add_node(**NODE)
        wait_until(lambda: any(event["event"] == "put_back" for event in events(tmp_path)))
        wait_until(lambda: n_running(tmp_path) == 8, 240)  # more than the three nodes that were left can hold
        hold.unlink()
        run.result()
    assert not any(summary.failed for summary in graph.summaries.values())
    lost = [event for event in events(tmp_path) if event["event"] == "put_back"]
    assert len(lost) == 2
    assert all("lost or does not answer" in event["reason"] for event in lost)
    assert len([text for text in said.texts if "is put back" in text]) == len(lost)
    counts = {key: len(list(graph.folder_of(spec).glob("run-*.json"))) for key, spec in graph.specs().items()}
    assert set(counts.values()) == {1}
