"""Predict new structures with the folds a run has trained."""

from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.execution.fold import FOLD, LoadedFold, read_fold
from orchestrator.execution.pool import plan
from orchestrator.inputs.datasets import graph_store
from orchestrator.predict.files import predictions_path, write_predictions
from trainables.data.dataset import read_structures
from trainables.data.tasks import N_FOLDS
from trainables.errors import UserError
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import skin_of


def predict_file(
    run: Path, file: Path, out: Path | None = None, *, device: str = "auto", progress: Progress = silent
) -> tuple[pd.DataFrame, Path]:
    """Predict a table of structures, or one CIF, with the mean of a run's trained folds.

    Args:
        run: a folder `train` has written.
        out: where they are written, in the format of its suffix (prediction_files.FORMATS); by default
            predict-<file>.parquet in `run`.

    Returns:
        Columns id, prediction, std (over folds; 0 with one fold), fallback, in the file's order; and its path.

    Raises:
        UserError: a place that cannot be written, no trained fold, an unreadable file, or structures that cannot be
            used (ids listed).
    """
    path = predictions_path(run, file, out)
    device = plan(1, device).devices[0]
    folds = [LoadedFold.load(folder, device) for folder in trained_folds(run)]
    config, task = folds[0].config, folds[0].task
    dataset = read_structures(file, task)
    start, views = config.model.start, config.tta
    store, skinned = graph_store(dataset, start, progress), None
    if views.views > 1:
        skinned = graph_store(dataset, start, progress, skin=skin_of(views, cutoffs_of(start)))
    rows, n_members = np.arange(len(dataset)), sum(len(fold.members) for fold in folds)
    values, fallback = np.empty((len(folds), len(rows))), np.zeros(len(rows), dtype=bool)
    with progress.stage("predict", n_members * len(rows), "crystals") as bar:
        for place, fold in enumerate(folds):
            members = []
            for member in fold.members:
                found, stood_in = member.predict(store, rows, views, skinned)
                members.append(found.value)
                fallback |= stood_in
                bar.advance(len(rows))
            values[place] = fold.combine(members)
    if fallback.any():
        progress.message(f"{int(fallback.sum())} rows have isolated atoms or no graph: their composition model is used")
    table = pd.DataFrame({"id": dataset.ids, "prediction": values.mean(0), "std": values.std(0), "fallback": fallback})
    write_predictions(path, table)
    return table, path


def trained_folds(run: Path) -> list[Path]:
    """The folders of a run's finished folds.

    Raises:
        UserError: there are none, or one is damaged.
    """
    folders = [run / f"fold_{fold}" for fold in range(N_FOLDS)]
    done = [folder for folder in folders if read_fold(folder) is not None]
    damaged = [folder for folder in folders if folder not in done and (folder / FOLD).exists()]
    if damaged:
        raise UserError(f"{damaged[0]} is damaged ({FOLD} or its predictions): train again to repair it")
    if not done:
        raise UserError(f"{run} does not contain a trained fold; train one first")
    return done
