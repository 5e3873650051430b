"""Predict new structures with the folds a run has trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.execution.fold import ALL_ROWS, FOLD, LoadedFold, read_fold
from orchestrator.execution.pool import allocate
from orchestrator.inputs.datasets import graph_store
from orchestrator.predict.files import predictions_path, write_predictions
from orchestrator.predict.intervals import read_experience
from trainables.data.dataset import Dataset
from trainables.data.own_table import TableOptions
from trainables.data.tasks import N_FOLDS
from trainables.data.to_predict import ToPredict, read_structures
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.levers import Start, TtaConfig
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import skin_of

_USUAL = TableOptions()


def predict_file(
    run: Path,
    files: Path | Sequence[Path],
    out: Path | None = None,
    *,
    options: TableOptions = _USUAL,
    device: str = "auto",
    progress: Progress = silent,
) -> tuple[pd.DataFrame, Path]:
    """Predict structures of tables, files and folders with the mean of a run's trained folds, and write it.

    Args:
        run: a folder that `train` has written.
        out: where they are written, in the format of its suffix (predict.files.FORMATS); by default
            predict-<file>.parquet in `run`.

    Returns:
        As `predict_rows`; and the path of the file.

    Raises:
        UserError: a place that cannot be written, no trained fold, or nothing that can be read.
    """
    given = [files] if isinstance(files, Path) else list(files)
    path = predictions_path(run, given[0], out)
    folds = load_folds(run, device)
    table = predict_rows(run, folds, read_structures(given, folds[0].task, options, progress), progress)
    write_predictions(path, table)
    return table, path


def predict_rows(run: Path, folds: Sequence[LoadedFold], rows: ToPredict, progress: Progress = silent) -> pd.DataFrame:
    """Predict the rows that can be used, and say of the others why not.

    Returns:
        Columns id, prediction, std (as predict_structures), low and high (ends of an interval with a coverage of
        intervals.COVERAGE), fallback and in_training (bool), and problem (empty where there is none), in the order
        of the rows. What is not known is NaN.
    """
    known, dataset = read_experience(run), rows.dataset
    columns = ["prediction", "std", "fallback"]
    found = predict_structures(folds, dataset, progress)[columns] if len(dataset) else pd.DataFrame(columns=columns)
    fallback = found["fallback"].to_numpy(dtype=bool)
    width = np.where(fallback, known.fallback_half_width, known.half_width)
    found["std"] = np.where(fallback, known.fallback_std, found["std"].to_numpy(dtype=float))
    found["low"], found["high"] = found["prediction"] - width, found["prediction"] + width
    seen = known.in_training(dataset)
    found["in_training"] = False if seen is None else seen
    whole = pd.DataFrame({"id": rows.ids}, index=range(len(rows.ids)))
    found.index = pd.Index(rows.places)
    for name in ("prediction", "std", "low", "high"):
        whole[name] = found[name].astype(float).reindex(whole.index)
    for name in ("fallback", "in_training"):
        whole[name] = found[name].reindex(whole.index, fill_value=False).astype(bool)
    whole["problem"] = [rows.problems.get(place, "") for place in whole.index]
    return whole


def load_folds(run: Path, device: str = "auto") -> list[LoadedFold]:
    """Read the trained folds of a run.

    Raises:
        UserError: there are none, one is damaged, or there is no such device.
    """
    folders, device = trained_folds(run), allocate(1, device).devices[0]
    return [LoadedFold.load(folder, device) for folder in folders]


def predict_structures(folds: Sequence[LoadedFold], dataset: Dataset, progress: Progress = silent) -> pd.DataFrame:
    """Predict structures with the mean of trained folds.

    Returns:
        Columns id, prediction, std (over all models of all folds; of a single one over its views, or NaN) and fallback
        (bool), in the dataset's order.
    """
    views = folds[0].config.tta
    starts = dict.fromkeys(member.config.model.start for fold in folds for member in fold.members)
    graphs = {start: _graphs(dataset, start, views, progress) for start in starts}
    rows, n_members = np.arange(len(dataset)), sum(len(fold.members) for fold in folds)
    values, fallback = np.empty((len(folds), len(rows))), np.zeros(len(rows), dtype=bool)
    each, over_views = [], np.zeros(len(rows))
    with progress.stage("predict", n_members * len(rows), "crystals") as bar:
        for index, fold in enumerate(folds):
            members = []
            for member in fold.members:
                store, skinned = graphs[member.config.model.start]
                predicted, stood_in = member.predict(store, rows, views, skinned)
                members.append(predicted.value)
                over_views = predicted.std
                fallback |= stood_in
                bar.advance(len(rows))
            values[index] = fold.combine(members)
            each += members
    if fallback.any():
        progress.message(
            f"{int(fallback.sum())} rows have isolated atoms or no graph: the composition model is used for them"
        )
    alone = over_views if views.views > 1 else np.full(len(rows), np.nan)  # a single number has no spread
    std = np.std(each, axis=0) if len(each) > 1 else alone
    return pd.DataFrame({"id": dataset.ids, "prediction": values.mean(0), "std": std, "fallback": fallback})


def _graphs(
    dataset: Dataset, start: Start, views: TtaConfig, progress: Progress
) -> tuple[GraphStore, GraphStore | None]:
    """Return the graphs for these weights, and those with a skin where there are several views."""
    store = graph_store(dataset, start, progress)
    if views.views == 1:
        return store, None
    return store, graph_store(dataset, start, progress, skin=skin_of(views, cutoffs_of(start)))


def trained_folds(run: Path) -> list[Path]:
    """Return the folders of a run's models that predict: that of all rows, or else its finished folds.

    Raises:
        UserError: there are none, or one is damaged.
    """
    if read_fold(run / ALL_ROWS / "fold_0") is not None:
        return [run / ALL_ROWS / "fold_0"]
    folders = [run / f"fold_{fold}" for fold in range(N_FOLDS)]
    done = [folder for folder in folders if read_fold(folder) is not None]
    damaged = [folder for folder in folders if folder not in done and (folder / FOLD).exists()]
    if damaged:
        raise UserError(f"{damaged[0]} is damaged ({FOLD} or its predictions): train again to repair it")
    if not done:
        raise UserError(f"{run} does not contain a trained fold; train one first")
    return done
