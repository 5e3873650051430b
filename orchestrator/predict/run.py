"""Predict new structures with the folds a run has trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.execution.fold import ALL_ROWS, FOLD, LoadedFold, read_fold
from orchestrator.execution.pool import allocate
from orchestrator.inputs.datasets import graph_store
from orchestrator.predict.files import predictions_path, write_predictions
from orchestrator.predict.intervals import COVERAGE, FEWEST, ByFold, Experience, read_experience
from trainables.crystals import SYMBOLS
from trainables.data.dataset import Dataset
from trainables.data.findings import findings_of_crystals
from trainables.data.own_table import TableOptions
from trainables.data.tasks import N_FOLDS
from trainables.data.to_predict import ToPredict, read_structures
from trainables.errors import UserError, listed
from trainables.graphs.store import GraphStore
from trainables.levers import Start, TtaConfig
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import skin_of

_USUAL = TableOptions()
_SHOWN = 5  # ids, in a message


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of n crystals, in the task's unit.

    Attributes:
        value: (n,) mean of the folds.
        std: (n,) over all models of all folds; of a single one over its views, or NaN.
        fallback: (n,) where the composition model stood in for one that needs a graph.
    """

    value: NDArray[np.float64]
    std: NDArray[np.float64]
    fallback: NDArray[np.bool_]
    by_fold: ByFold

    @classmethod
    def of_nothing(cls) -> "Prediction":
        """Return what is said of no crystals."""
        none = np.empty(0)
        return cls(none, none, none.astype(bool), ByFold((None,), none[None], none[None]))


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
    _tell(known, dataset, progress)
    found = _with_intervals(known, predict_structures(folds, dataset, progress))
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


def _tell(known: Experience, dataset: Dataset, progress: Progress) -> None:
    """Say what makes predictions of these crystals doubtful."""
    for finding in (each for each in findings_of_crystals(dataset) if each.level == "warning"):
        progress.message(f"warning: {finding.text} ({listed(finding.ids, _SHOWN)})")
    new = known.unknown_elements(dataset)
    if new:
        ids = [dataset.ids[row] for row in np.flatnonzero(dataset.structures.element_counts[:, new].any(axis=1))]
        names = listed(SYMBOLS[z] for z in new)
        progress.message(
            f"warning: the run has no row with {names}: its predictions are guesses ({listed(ids, _SHOWN)})"
        )
    if len(dataset) and len(known.errors.size) < FEWEST:
        progress.message(
            f"no intervals: the run has {len(known.errors.size)} test rows to learn from, and {COVERAGE:.0%} wants at "
            f"least {FEWEST}"
        )


def _with_intervals(known: Experience, said: Prediction) -> pd.DataFrame:
    """Return columns prediction, std, fallback, low and high."""
    low, high = known.errors.interval(said.by_fold)
    wide = known.fallback_half_width
    return pd.DataFrame(
        {
            "prediction": said.value,
            "std": np.where(said.fallback, known.fallback_std, said.std),
            "fallback": said.fallback,
            "low": np.where(said.fallback, said.value - wide, np.minimum(low, said.value)),
            "high": np.where(said.fallback, said.value + wide, np.maximum(high, said.value)),
        }
    )


def load_folds(run: Path, device: str = "auto") -> list[LoadedFold]:
    """Read the trained folds of a run.

    Raises:
        UserError: there are none, one is damaged, or there is no such device.
    """
    folders, device = trained_folds(run), allocate(1, device).devices[0]
    return [LoadedFold.load(folder, device) for folder in folders]


def predict_structures(folds: Sequence[LoadedFold], dataset: Dataset, progress: Progress = silent) -> Prediction:
    """Predict structures with the mean of trained folds."""
    if not len(dataset):
        return Prediction.of_nothing()
    views = folds[0].config.tta
    starts = dict.fromkeys(member.config.model.start for fold in folds for member in fold.members)
    graphs = {start: _graphs(dataset, start, views, progress) for start in starts}
    rows, n_members = np.arange(len(dataset)), sum(len(fold.members) for fold in folds)
    fallback, values, spreads = np.zeros(len(rows), dtype=bool), [], []
    each: list[NDArray[np.float64]] = []
    with progress.stage("predict", n_members * len(rows), "crystals") as bar:
        for fold in folds:
            members, over_views = [], np.full(len(rows), np.nan)
            for member in fold.members:
                store, skinned = graphs[member.config.model.start]
                predicted, stood_in = member.predict(store, rows, views, skinned)
                members.append(predicted.value)
                over_views = predicted.std if views.views > 1 else over_views  # a single number has no spread
                fallback |= stood_in
                bar.advance(len(rows))
            values.append(fold.combine(members))
            spreads.append(np.std(members, axis=0) if len(members) > 1 else over_views)
            each += members
    if fallback.any():
        progress.message(
            f"{int(fallback.sum())} rows have isolated atoms or no graph: the composition model is used for them"
        )
    by_fold = ByFold(tuple(fold.number for fold in folds), np.stack(values), np.stack(spreads))
    std = np.std(each, axis=0) if len(each) > 1 else spreads[0]
    return Prediction(by_fold.value.mean(axis=0), std, fallback, by_fold)


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
