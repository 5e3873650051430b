"""What it costs to schedule models on Ray: 40 pauses of 2 s on 2 workers, and a plan of 1,000 models without training.

python benchmarks/scheduling.py [--jobs 40 --seconds 2 --models 1000 --workers 2]
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crystaltune  # noqa: F401 - before ray: it sets what ray reads when it is imported

# isort: split
import pandas as pd

from orchestrator.execution import on_cluster
from orchestrator.execution.job import Job, predictions_file
from orchestrator.execution.pool import Listed
from orchestrator.execution.ray_pool import ClusterRun, run_on_ray
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import open_context
from orchestrator.inputs.recipe import ModelSpec, fold_recipe
from orchestrator.inputs.source import Source
from orchestrator.ray_session import ray_session
from trainables.files import write_parquet
from trainables.progress import Progress, silent

STUDENTS = 41  # of each fold of a configuration, which with its 9 teachers are 50 models


def pause(seconds: float, device: str, progress: Progress) -> RunSummary:
    """Sleep: a model whose training is somebody else's."""
    time.sleep(seconds)
    return RunSummary(status="finished", reason="", structures=1, seconds=seconds, structures_per_s=1.0)


def predict_nothing(job: Job, device: str, progress: Progress) -> RunSummary:
    """Leave the predictions that a student's teachers owe it: all of a model but its training."""
    job.folder.mkdir(parents=True, exist_ok=True)
    for views, _ in job.views:
        tables = [
            pd.DataFrame({"id": each.ids, "part": part, "prediction": 0.0, "std": 0.0, "fallback": False})
            for part, each in job.requests.items()
        ]
        write_parquet(predictions_file(job.folder, views), pd.concat(tables, ignore_index=True))
    return RunSummary(status="finished", reason="", structures=1, seconds=1.0, structures_per_s=1.0)


def plan_of(models: int, folder: Path) -> ModelGraph:
    """Return a plan of about so many models: folds of ensembles of students with 9 out-of-fold teachers."""
    context = open_context(Source("sample", limit=100), {})
    each = STUDENTS + 9
    folds = max(1, min(5, round(models / each)))
    configs = [
        context.config.changed(
            {"optim.lr": 1e-3 / (k + 1), "ensemble.members": STUDENTS, "distil": {"weight": 0.5, "seeds": 3}}
        )
        for k in range(max(1, round(models / (folds * each))))
    ]
    recipes = [fold_recipe(config.changed({"fold": fold})) for config in configs for fold in range(folds)]
    return ModelGraph(context, recipes, lambda spec: folder / spec.name_with(context.key(spec)))


def resident_mb() -> float:
    """Return this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@contextmanager
def workers(count: int) -> Iterator[None]:
    """A Ray of one's own whose workers find this file."""
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with ray_session("local", cores=count):
        yield


def measure_pauses(jobs: int, seconds: float, count: int) -> dict[str, Any]:
    """Return the wall time of pauses over the ideal one, with and without the workers' start."""
    begun: list[float] = []
    start = time.perf_counter()
    source = Listed([(f"job {n}", seconds) for n in range(jobs)])
    run = ClusterRun(Cluster(), "cpu", count)
    list(
        run_on_ray(
            pause, source, run, silent, failed=RunSummary.failure, begun=lambda *_: begun.append(time.perf_counter())
        )
    )
    end = time.perf_counter()
    ideal = jobs * seconds / count
    return {
        "ideal_s": ideal,
        "wall_s": end - start,
        "ratio": (end - start) / ideal,
        "ratio_after_first_begin": (end - begun[0]) / ideal,
    }


def measure_plan(models: int, count: int) -> dict[str, Any]:
    """Return milliseconds a model, of the driver's loop and of its own time, and how the driver's memory grows."""
    memory: list[float] = []
    times: list[tuple[float, float]] = []

    def ended(spec: ModelSpec, summary: RunSummary) -> None:
        times.append((time.perf_counter(), time.process_time()))
        memory.append(resident_mb())

    with tempfile.TemporaryDirectory() as folder:
        graph = plan_of(models, Path(folder))
        on_cluster.run_job = predict_nothing
        run_all(graph, Resources("cpu", count, cluster=Cluster()), ended=ended, log=Path(folder))
    tenth = max(1, len(times) // 10)
    wall, own = (times[-1][k] - times[tenth][k] for k in (0, 1))
    left = len(times) - 1 - tenth
    return {
        "models": len(times),
        "ms_per_model": 1e3 * wall / left,
        "driver_cpu_ms_per_model": 1e3 * own / left,
        "driver_mb_after_a_tenth": memory[tenth],
        "driver_mb_at_the_end": memory[-1],
    }


def main() -> None:
    """Measure both and print one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sys.modules.setdefault("scheduling", sys.modules["__main__"])
    pause.__module__ = predict_nothing.__module__ = "scheduling"  # workers import this file under its name
    with workers(options.workers):
        print(json.dumps({"pauses": measure_pauses(options.jobs, options.seconds, options.workers)}), flush=True)
        print(json.dumps({"plan": measure_plan(options.models, options.workers)}), flush=True)


if __name__ == "__main__":
    main()
