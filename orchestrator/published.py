"""Published Matbench predictions on the same test rows."""

import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.scores import fold_scores
from trainables.errors import UserError

_NOT_ALGORITHMS = 3


def published_scores(file: Path, predictions: pd.DataFrame) -> dict[str, Any]:
    """Scores of every algorithm in a table of published test predictions, on the rows predicted here.

    Args:
        file: CSV with mbid, fold, target, then one column an algorithm.
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
        raise UserError(f"--published {file} lacks {missing}; is it the table of this task?")
    algorithms = list(table.columns[_NOT_ALGORITHMS:])  # mbid, fold and target come first
    return {
        name: fold_scores(joined[["fold", "target"]].assign(prediction=joined[name]))
        for name in algorithms
        if joined[name].notna().all()
    }


def read_published(file: Path) -> pd.DataFrame:
    """Read such a table.

    Raises:
        UserError: it is none.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"--published {file} cannot be read as CSV: {' '.join(str(error).split())[:120]}") from None
    if list(table.columns[:2]) != ["mbid", "fold"]:
        raise UserError(
            f"--published {file} does not begin with the columns mbid and fold but {list(table.columns[:3])}"
        )
    return table
