"""A job of the scheduler whose training is a pause: it leaves what others need of it."""

import os
import signal
import time
from pathlib import Path

import pandas as pd
import psutil

from orchestrator.execution.job import Job, predictions_file
from orchestrator.execution.summary import RunSummary
from trainables.files import write_json, write_parquet
from trainables.preemption import Preempted, asked_to_stop
from trainables.progress import Progress

SECONDS = "CRYSTALTUNE_TEST_SECONDS"  # that a job takes
HOLD = "hold"  # while a file of this name is beside a job's folder, it goes on


def pause(job: Job, device: str, progress: Progress) -> RunSummary:
    """Sleep, and predict zeros."""
    with progress.stage("train", 1, "structures") as bar:
        time.sleep(float(os.environ.get(SECONDS, "1")))
        until = time.monotonic() + 300
        while (job.folder.parent / HOLD).exists() and time.monotonic() < until:
            time.sleep(0.05)
        bar.advance(1)
    job.folder.mkdir(parents=True, exist_ok=True)
    for views, _ in job.views:
        tables = [
            pd.DataFrame({"id": each.ids, "part": part, "prediction": 0.0, "std": 0.0, "fallback": False})
            for part, each in job.requests.items()
        ]
        write_parquet(predictions_file(job.folder, views), pd.concat(tables, ignore_index=True))
    count_run(job.folder)
    return RunSummary(status="finished", reason="", structures=1, seconds=1.0, structures_per_s=1.0)


def count_run(folder: Path) -> None:
    """Note that a job was done once more."""
    write_json(folder / f"run-{time.time_ns()}.json", {})


def ends_badly(job: str, device: str, progress: Progress) -> str:
    """A job that ends its process, always, once or by asking it to stop, or that takes the results' folder away."""
    kind, _, folder = job.partition(" ")
    tried = Path(folder) / kind
    first = not tried.exists()
    tried.touch()
    if kind == "always" or (kind == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "preempted" and first:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert asked_to_stop()
        raise Preempted
    if kind == "unmounts":
        for file in Path(folder).glob(".probe-*"):
            file.unlink()
    if kind == "grows":
        taken = [b"x" * (psutil.virtual_memory().total // 5)]
        time.sleep(30)
        return f"done with {len(taken[0])}"
    if kind == "raises":
        raise OSError("no space left")
    return "done"
