"""How often a run's intervals hold: those made from the test rows of other folds, on the rows of each fold.

python benchmarks/coverage.py DIR [--coverage 0.9]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.predict.intervals import COVERAGE, conformal_half_width


def measure(run: Path, coverage: float) -> dict[str, object]:
    """Return the share of covered rows of each fold and of all, and the mean half width."""
    rows = pd.read_parquet(run / "predictions.parquet")
    rows = rows[~rows["fallback"]]
    error, fold = (rows["prediction"] - rows["target"]).abs().to_numpy(), rows["fold"].to_numpy()
    widths = {int(k): conformal_half_width(error[fold != k], coverage) for k in np.unique(fold)}
    held = np.array([value <= widths[int(k)] for value, k in zip(error, fold, strict=True)])
    return {
        "run": str(run),
        "stated": coverage,
        "rows": len(rows),
        "covered": float(held.mean()),
        "by_fold": {k: float(held[fold == k].mean()) for k in widths},
        "mean_half_width": float(np.mean(list(widths.values()))),
        "mae": float(error.mean()),
    }


def main() -> None:
    """Print one line of JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--coverage", type=float, default=COVERAGE)
    options = parser.parse_args()
    for run in options.runs:
        print(json.dumps(measure(run, options.coverage)), flush=True)


if __name__ == "__main__":
    main()
