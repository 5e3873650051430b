"""Published Matbench predictions on the same test rows."""

from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.scores import fold_scores
from trainables.errors import UserError

_NOT_ALGORITHMS = 3  # mbid, fold, target


def published_scores(file: Path, predictions: pd.DataFrame) -> dict[str, Any]:
    """Scores of every algorithm in a table of published test predictions, on the rows predicted here.

    Args:
        file: CSV with mbid, fold, target, then one column an algorithm.
        predictions: columns id, fold, target.

    Raises:
        UserError: not such a table, or a row that it lacks.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {file} cannot be read as CSV: {error}") from None
    if "mbid" not in table.columns or "fold" not in table.columns:
        raise UserError(f"--published {file} has no columns mbid and fold; it has {', '.join(table.columns[:6])}")
    joined = predictions[["id", "fold", "target"]].merge(
        table.drop(columns="fold"), left_on="id", right_on="mbid", how="left", suffixes=("", "_published")
    )
    if joined["mbid"].isna().any():
        missing = joined.loc[joined["mbid"].isna(), "id"].iloc[0]
        raise UserError(f"--published {file} lacks {missing}; is it the table of this task?")
    algorithms = list(table.columns[_NOT_ALGORITHMS:])
    return {
        name: fold_scores(joined[["fold", "target"]].assign(prediction=joined[name]))
        for name in algorithms
        if joined[name].notna().all()
    }
