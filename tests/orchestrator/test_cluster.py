"""Models on a Ray cluster of several nodes, all of them on this machine, with GPUs that are only counted."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fake_models
import numpy as np
import pandas as pd
import pytest
from cluster_nodes import (
    ROOT,
    events,
    on_nodes,
)
from ladders import plan_of

from orchestrator.execution.pool import Listed
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.execution.scheduler import run_all
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


@pytest.mark.long
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


def test_a_folder_that_a_node_does_not_share_is_told_with_its_name(nodes: Any, tmp_path: Path) -> None:
    from orchestrator.execution.ray_nodes import Nodes, require_shared, shared_folder
    from orchestrator.ray_session import Share, ray_session

    with ray_session(nodes.address), Nodes() as there, shared_folder(tmp_path) as token:
        fitting = there.fitting(Share())
        require_shared(tmp_path, token, fitting)
        with pytest.raises(UserError, match=f"node {fitting[0].name} cannot take part: its .* is another one"):
            require_shared(tmp_path, "other", fitting)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.long
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
    last = events(there)[-8:]
    assert [(event["event"], event.get("before")) for event in last] == [*[("end", True)] * 7, ("closed", None)]
