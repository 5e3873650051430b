"""Errors of predictions, per fold and over folds."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

METRICS = ("mae", "rmse", "max_error")


def errors(target: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, float]:
    """MAE, RMSE and largest absolute error, in the target's unit.

    Raises:
        ValueError: a prediction that is not finite; every row ends in a prediction or a fallback before this.
    """
    if not np.isfinite(prediction).all():
        raise ValueError(f"{int((~np.isfinite(prediction)).sum())} predictions are not finite")
    difference = np.abs(prediction - target)
    return {
        "mae": float(difference.mean()),
        "rmse": float(np.sqrt((difference**2).mean())),
        "max_error": float(difference.max()),
    }


def fold_scores(predictions: pd.DataFrame) -> dict[str, Any]:
    """Scores of each fold, their mean and standard deviation over folds.

    Args:
        predictions: columns fold, target, prediction, and fallback (bool) where there may be some.

    Returns:
        {"folds": {"0": {mae, rmse, max_error, n, n_fallback}, ...}, "mean": {...}, "std": {...}}; n and
        n_fallback of the mean are sums; std is the population's, as Matbench gives it.
    """
    folds: dict[str, dict[str, float]] = {}
    for fold, rows in predictions.groupby("fold"):
        scores: dict[str, float] = errors(rows["target"].to_numpy(float), rows["prediction"].to_numpy(float))
        fallback = int(rows["fallback"].sum()) if "fallback" in rows else 0
        folds[str(fold)] = scores | {"n": len(rows), "n_fallback": fallback}
    mean: dict[str, float] = {metric: float(np.mean([f[metric] for f in folds.values()])) for metric in METRICS}
    mean |= {count: sum(int(f[count]) for f in folds.values()) for count in ("n", "n_fallback")}
    std = {metric: float(np.std([f[metric] for f in folds.values()])) for metric in METRICS}
    return {"folds": folds, "mean": mean, "std": std}
