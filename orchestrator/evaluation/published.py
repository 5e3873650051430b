"""Published Matbench predictions on the same test rows."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.evaluation.scores import PredictorScores, score_folds
from trainables.data.dataset import Dataset
from trainables.data.folds import fold_of_rows
from trainables.errors import UserError, listed

_NOT_ALGORITHMS = 3


def published_scores(file: Path, predictions: pd.DataFrame) -> dict[str, PredictorScores]:
    """Score every algorithm in a table of published test predictions, on the rows predicted here.

    Args:
        file: CSV with mbid, fold, target, then one column per algorithm.
        predictions: columns id, fold, target.

    Raises:
        UserError: not such a table, or a row that it lacks.
    """
    table = read_published(file)
    joined = predictions[["id", "fold", "target"]].merge(
        table.drop(columns="fold"), left_on="id", right_on="mbid", how="left", suffixes=("", "_published")
    )
    if joined["mbid"].isna().any():
        missing = joined.loc[joined["mbid"].isna(), "id"].iloc[0]
        raise UserError(f"`published={file}` lacks {missing}; is it the table of this task?")
    algorithms = list(table.columns[_NOT_ALGORITHMS:])  # mbid, fold and target come first
    return {
        name: score_folds(joined[["fold", "target"]].assign(prediction=joined[name]))
        for name in algorithms
        if joined[name].notna().all()
    }


def check_published(file: Path, dataset: Dataset, folds: Sequence[int]) -> None:
    """Reject a table of another task before anything is trained.

    Raises:
        UserError: it lacks a test row of these folds, or has another target for it.
    """
    chosen = np.isin(fold_of_rows(dataset), list(folds))
    ids = np.array(dataset.ids)[chosen]
    table = read_published(file).set_index("mbid")
    missing = sorted(set(ids) - set(table.index))
    if missing:
        raise UserError(f"`published={file}` lacks {listed(missing, 3)}; is it the table of this task?")
    target = pd.to_numeric(table.iloc[:, 1].loc[ids], errors="coerce").to_numpy(np.float64)
    other = ~np.isclose(target, dataset.targets[chosen], rtol=1e-4, atol=1e-4)
    if other.any():
        raise UserError(f"`published={file}` has targets that differ from the data's for {listed(ids[other], 3)}")


def read_published(file: Path) -> pd.DataFrame:
    """Read a table of published test predictions.

    Raises:
        UserError: it is not such a table.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"`published={file}` cannot be read as CSV: {' '.join(str(error).split())[:120]}") from None
    if list(table.columns[:2]) != ["mbid", "fold"]:
        raise UserError(
            f"`published={file}` does not begin with the columns mbid and fold but with {list(table.columns[:3])}"
        )
    return table
