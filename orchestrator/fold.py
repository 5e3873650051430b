"""One fold of a run, from a split to predictions on disk. What a worker process does."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.config import RunConfig
from trainables.data.composition import CompositionModel
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import read_json, write_json, write_parquet
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel
from trainables.model.compiled import Compile
from trainables.progress import Progress
from trainables.training.checkpoint import DamagedCheckpoint
from trainables.training.compute import Compute
from trainables.training.fit import fit
from trainables.training.predict import load_model, predict, with_graph

DONE = "done.json"
COMPOSITION = "composition.json"  # coefficients by atomic number, in the target's unit


@dataclass(frozen=True, eq=False)
class FoldJob:
    """All a worker is told. Test rows come as ids and places only: their targets never leave the parent."""

    config: RunConfig
    task: Task
    split: FoldSplit  # without test
    test_ids: tuple[str, ...]
    test_rows: NDArray[np.int64]
    store: Path
    folder: Path
    compiled: Compile = "auto"
    tf32: bool = False


def run_fold(job: FoldJob, device: str, progress: Progress) -> dict[str, Any]:
    """Fit, predict the test rows, and leave predictions.parquet and done.json in the fold's folder.

    Returns:
        The content of done.json: status, reason, and what the fit reported.
    """
    with _alone(job.folder):
        before = finished(job.folder)
        if before is not None:
            return before
        store = GraphStore(job.store)
        job.config.save(job.folder / "config.yaml")
        compute = Compute(device, job.compiled, job.tf32)
        result = fit(job.config, job.split, store, job.task, job.folder, compute=compute, progress=progress)
        summary: dict[str, Any] = read_json(job.folder / "fit.json")
        if result.status == "finished" and result.model is not None:
            known = Part.join(job.split.train, job.split.val)
            composition = CompositionModel.fit(store.composition(known.rows), known.targets)
            write_json(job.folder / COMPOSITION, {"coefficients": composition.coefficients.tolist()})
            model, *_ = load_model(result.model, device)
            values, fallback = predict_with_fallback(model, composition, job.config, store, job.test_rows)
            table = pd.DataFrame(
                {"id": job.test_ids, "fold": job.config.fold, "prediction": values, "fallback": fallback}
            )
            write_parquet(job.folder / "predictions.parquet", table)
            write_json(job.folder / DONE, summary)
        return summary


def finished(folder: Path) -> dict[str, Any] | None:
    """What a finished fold reported, or None."""
    try:
        summary: dict[str, Any] = read_json(folder / DONE)
        pd.read_parquet(folder / "predictions.parquet", columns=["id"])
    except (OSError, ValueError):
        return None
    return summary


def predict_with_fallback(
    model: CrystalModel, composition: CompositionModel, config: RunConfig, store: GraphStore, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """CHGNet where a row has a usable graph, else least squares on its composition.

    Returns:
        (n,) predictions, and (n,) True where the composition model stood in.
    """
    values = predict(model, store, rows)
    fallback = ~with_graph(store, rows, config) | ~np.isfinite(values)
    values[fallback] = composition.predict(store.composition(rows[fallback]))
    return values, fallback


def load_fold(folder: Path, device: str) -> tuple[CrystalModel, CompositionModel, RunConfig, Task]:
    """A finished fold's model and its fallback.

    Raises:
        UserError: its files are damaged.
    """
    try:
        model, config, task = load_model(folder / "model", device)
        coefficients = np.array(read_json(folder / COMPOSITION)["coefficients"])
        return model, CompositionModel(coefficients), config, task
    except (DamagedCheckpoint, OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is damaged ({error}): remove that folder and train the fold again") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works in this folder (one whose parent was just killed, for example)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
