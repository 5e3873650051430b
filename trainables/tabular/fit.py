"""One training run of a model of tables: seconds, and no epochs."""

import math
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.config import RunConfig
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.files import write_json
from trainables.graphs.store import GraphStore
from trainables.progress import Progress
from trainables.tabular.learner import STEPS, Learnt, learn
from trainables.tabular.model import TabularModel
from trainables.training.checkpoint import write_checkpoint
from trainables.training.compute import Compute
from trainables.training.data import TrainingData
from trainables.training.predict import predict, save_model
from trainables.training.result import Epoch, FitResult, StepResult


def fit_tabular(
    config: RunConfig, data: TrainingData, folder: Path, compute: Compute, progress: Progress
) -> Generator[StepResult, None, FitResult]:
    """Fit the training part of `data`, tell the error on its validation part, and keep the model under `folder`."""
    start = time.perf_counter()
    rows, val = data.usable_parts(config)
    left_out = len(data.split.train) + len(data.split.val) - len(rows) - len(val)
    model = TabularModel(config.model, data.task).to(compute.torch_device)
    known = Part.join(rows, val)
    table = predict(model, data.store, known.rows, output="table", progress=progress)
    groups = compositions(data.store, known.rows)
    with progress.stage("fit features", STEPS * (1 + config.data.refit), "steps") as bar:
        advance = partial(bar.advance, 1)
        learnt = _learnt(model, data.task, data.store, known, table, groups, np.arange(len(rows)), config.seed, advance)
        model.take(learnt)
        error = float(np.abs(predict(model, data.store, val.rows) - val.targets).mean())
        bar.advance(0, f"val MAE {error:.4g} {data.task.unit}".rstrip())
        if config.data.refit:
            model.take(
                _learnt(model, data.task, data.store, known, table, groups, np.arange(len(known)), config.seed, advance)
            )
    about = {"best_epoch": 0, "best_val_mae": error, "inner_mae": learnt.errors[2], "share_of_trees": learnt.share}
    write_checkpoint(folder / "model", save_model(model, config, data.task, about))
    seconds = time.perf_counter() - start
    epoch = Epoch(0, learnt.errors[2], error, math.nan, seconds, len(known))
    result = FitResult("finished", folder / "model", 0, error, [epoch], len(rows), len(val), left_out)
    result.refit_epochs = int(config.data.refit)
    write_json(folder / "fit.json", result.summary())
    yield StepResult(1, 1.0, error, error, learnt.errors[2], len(known), seconds)
    return result


def _learnt(
    model: TabularModel, task: Task, store: GraphStore, known: Part, table: NDArray[np.float64],
    groups: NDArray[np.int64], chosen: NDArray[np.int64], seed: int,
    advance: Callable[[], object],
) -> Learnt:  # fmt: skip
    atoms = store.counts[known.rows, 0] if model.per_cell else np.ones(len(known))
    target = (known.targets / atoms)[chosen]
    columns = model.columns.cpu().numpy()
    return learn(table[chosen].astype(np.float32), target, groups[chosen], columns, seed=seed, advance=advance)


def compositions(store: GraphStore, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for the composition of each row, (n,)."""
    _, number = np.unique(np.round(store.composition(rows), 4), axis=0, return_inverse=True)
    return np.asarray(number).ravel()
