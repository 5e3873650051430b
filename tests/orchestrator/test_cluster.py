"""Models on a Ray cluster of several nodes, all of them on this machine, with GPUs that are only counted."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_models
import numpy as np
import pandas as pd
import psutil
import pytest
from ladders import plan_of

from orchestrator.execution import on_cluster
from orchestrator.execution.pool import Listed
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.execution.scheduler import run_all
from orchestrator.execution.status import read_status
from orchestrator.inputs.recipe import ModelSpec
from orchestrator.inputs.source import Source
from orchestrator.study.options import SearchOptions, TrialResources
from orchestrator.study.run import search
from orchestrator.train.ensemble import make_ensemble
from orchestrator.train.members import Member, read_members
from orchestrator.train.options import EnsembleOptions
from orchestrator.train.run import TrainOptions
from trainables.errors import UserError
from trainables.progress import silent

pytestmark = pytest.mark.trains
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


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
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


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that take two seconds and need no training."""
    monkeypatch.setattr(on_cluster, "run_job", fake_models.pause)


def on_nodes(nodes: Any, **options: Any) -> Resources:
    return Resources(cluster=Cluster(nodes.address), **options)


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "execution.jsonl").read_text().splitlines()]


def spans(out: Path) -> dict[str, tuple[float, float]]:
    """When each model began, the last time, and ended."""
    found: dict[str, list[float]] = {}
    for event in events(out):
        if event["event"] == "begin":
            found[event["key"]] = [event["time"]]
        elif event["event"] == "end":
            found[event["key"]].append(event["time"])
    return {key: (times[0], times[1]) for key, times in found.items()}


def idle_share(out: Path, workers: int) -> float:
    """Return the share of worker time during which a worker was idle and a model could have begun.

    Counted from the moment at which all workers are there.
    """
    needs = {model["key"]: model["needs"] for model in events(out)[0]["models"]}
    made = spans(out)
    begin = next(each["time"] for each in events(out) if each["event"] == "workers" and each["count"] == workers)
    end = max(ended for _, ended in made.values())
    idle = 0.0
    times = np.arange(begin, end, 0.005)
    for time_ in times:
        running = sum(first <= time_ < last for first, last in made.values())
        ready = sum(
            time_ < first and all(made[other][1] <= time_ for other in needs[key]) for key, (first, _) in made.items()
        )
        idle += min(workers - running, ready)
    return idle / (workers * len(times))


def test_every_gpu_is_busy_and_nothing_begins_before_what_it_needs(nodes: Any, pauses: None, tmp_path: Path) -> None:
    graph = plan_of(tmp_path)
    run_all(graph, on_nodes(nodes), log=tmp_path)
    assert len(graph.summaries) == 18
    assert not any(summary.failed for summary in graph.summaries.values())
    made = spans(tmp_path)
    for key, spec in graph.specs().items():
        for other in spec.needs:
            assert made[graph.context.key(other)][1] <= made[key][0]
    assert idle_share(tmp_path, workers=6) < 0.05
    gpus = {event["device"] for event in events(tmp_path) if event["event"] == "begin"}
    assert {name.rpartition(" ")[2] for name in gpus} == {"0", "1"}
    assert not list(tmp_path.glob(".probe-*"))


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


def run_source(nodes: Any, jobs: Listed[str], said: Messages, **options: Any) -> dict[str, str]:
    from orchestrator.execution.ray_pool import ClusterRun, run_on_ray

    run = ClusterRun(Cluster(nodes.address), "cpu", **options)
    return dict(run_on_ray(fake_models.ends_badly, jobs, run, said, failed=lambda reason: reason))


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


def test_a_folder_that_a_node_does_not_share_is_told_with_its_name(nodes: Any, tmp_path: Path) -> None:
    from orchestrator.execution.ray_nodes import Nodes, require_shared, shared_folder
    from orchestrator.ray_session import Share, ray_session

    with ray_session(nodes.address), Nodes() as there, shared_folder(tmp_path) as token:
        fitting = there.fitting(Share())
        require_shared(tmp_path, token, fitting)
        with pytest.raises(UserError, match=f"node {fitting[0].name} cannot take part: its .* is another one"):
            require_shared(tmp_path, "other", fitting)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_lost_on_the_way_ends_the_session_and_fails_no_job(nodes: Any, tmp_path: Path) -> None:
    said, jobs = Messages(), Listed([(name, f"{name} {tmp_path}") for name in ("first", "unmounts", "third")])
    with pytest.raises(UserError, match=f"no node can take part: .* it does not share {tmp_path}"):
        run_source(nodes, jobs, said, at_once=1, folder=tmp_path)
    assert jobs.n_ready == 1
    assert any(text.startswith("third is put back: node ") for text in said.texts)


def test_a_ray_of_ones_own_is_started_beside_a_cluster_that_runs_here(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.ray_session import ray_session

    with tempfile.TemporaryDirectory(prefix="ct", dir="/tmp") as short:  # sockets lie in it
        (Path(short) / "ray").mkdir()
        (Path(short) / "ray" / "ray_current_cluster").write_text(nodes.address)  # where `ray.init` would look
        monkeypatch.setenv("RAY_TMPDIR", short)
        with ray_session(cores=1) as capacity:
            assert capacity.machines == ((1.0, 0.0),)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_token_that_is_missing_or_wrong_is_one_line(nodes: Any, tmp_path: Path, token: str | None) -> None:
    if token is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    code = "import sys; from orchestrator.cli.main import main; sys.argv[0] = 'crystaltune'; main()"
    words = ["train", "sample", "--limit", "40", "--address", nodes.address, "--out", str(tmp_path / "out")]
    env = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"}
    env |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert told.returncode in (0, 2), told.stderr  # a cluster without tokens takes any
    assert "Traceback" not in told.stderr
    if token is None:
        assert told.returncode == 2
        assert "Ray cannot be joined there" in told.stderr


def test_what_no_node_can_give_is_refused(nodes: Any) -> None:
    from orchestrator.execution.ray_pool import ClusterRun, run_on_ray

    run = ClusterRun(Cluster(nodes.address, cpus=64), "cpu")
    with pytest.raises(UserError, match=r"^`cpus_per_model=64`: no machine has both"):
        list(run_on_ray(fake_models.ends_badly, Listed([("one", "fine .")]), run, silent, failed=str))


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


def test_a_search_on_a_cluster_makes_its_teachers_there_too(nodes: Any, tmp_path: Path) -> None:
    options = SearchOptions("distil", trials=2, top=0, place=TrialResources(nodes.address), resources=Resources("cpu"))
    distil = {"weight": 0.5, "inner_folds": 2, "seeds": 1}
    settings = {"optim.epochs": 1, "distil": distil}
    analysis = search(Source("sample", limit=40), tmp_path / "study", options, settings=settings)
    assert len(analysis.searched) == 2
    assert (tmp_path / "study" / "best.yaml").is_file()
    begun = [event for event in events(tmp_path / "study" / "teachers") if event["event"] == "begin"]
    assert len(begun) == 2
    assert all("GPU" not in event["device"] and " on " in event["device"] for event in begun)


def members_of(run: Path) -> tuple[Member, ...]:
    summary = read_members(run)
    assert summary is not None
    return summary.members


def test_an_ensemble_and_its_student_are_made_there_with_the_digits_of_this_machine(nodes: Any, tmp_path: Path) -> None:
    asked = EnsembleOptions(seeds=2, vary={"optim.lr": [3e-3, 3e-2]}, distil=True)
    settings = {"model.start": "scratch", "model.width": 8, "optim.epochs": 1}
    settings |= {"distil.inner_folds": 2, "distil.seeds": 1}

    def made(name: str, resources: Resources) -> Path:
        options = TrainOptions((0,), resources)
        make_ensemble(Source("sample", limit=40), tmp_path / name, asked, settings=settings, options=options)
        return tmp_path / name

    there = made("there", Resources("cpu", processes=2, cluster=Cluster(nodes.address)))
    here = made("here", Resources("cpu", processes=1))
    for file in ("predictions.parquet", "student/predictions.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(there / file), pd.read_parquet(here / file), check_exact=True)
    assert members_of(there) == members_of(here)
    begun = [event["device"] for event in events(there) if event["event"] == "begin"]
    assert len(begun) == 7  # four members, two teachers, a student
    assert all(" on " in device for device in begun)
    nobody = Resources("cpu", cluster=Cluster("127.0.0.1:1"))
    assert made("there", nobody) == there  # nothing is left to make: no Ray is asked


def n_running(out: Path) -> int:
    """Return how many models have begun and neither ended nor been put back."""
    kinds = Counter(event["event"] for event in events(out))
    return kinds["begin"] - kinds["end"] - kinds["put_back"]


# The last one: a driver of its own that joins afterwards may take the killed node, of the same address, for its own.
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
