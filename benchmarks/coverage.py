"""How often a run's intervals hold.

python benchmarks/coverage.py DIR [--coverage 0.9]             on its own test rows, told by those of other folds
python benchmarks/coverage.py DIR --new FILE --target COLUMN   on rows that no model of it has seen, as `predict` does
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import crystaltune as ct
from orchestrator.predict.intervals import COVERAGE, ByFold, TestErrors


def measure(run: Path, coverage: float) -> dict[str, object]:
    """Return the share of covered test rows, each told by the other folds, with errors in units of spread or not."""
    rows = pd.read_parquet(run / "predictions.parquet")
    rows = rows[~rows["fallback"]]
    error, fold = (rows["prediction"] - rows["target"]).abs().to_numpy(), rows["fold"].to_numpy(dtype=np.int64)
    spread = rows["std"].to_numpy(dtype=float)
    found: dict[str, object] = {"run": str(run), "stated": coverage, "rows": len(rows), "mae": float(error.mean())}
    for name, unit in (("plain", np.full(len(rows), np.nan)), ("by spread", spread)):
        half = _half_widths(TestErrors(error, fold, unit), coverage)
        inside = error <= half
        by_fold = {int(k): round(float(inside[fold == k].mean()), 4) for k in np.unique(fold)}
        found[name] = {
            "covered": float(inside.mean()), "by_fold": by_fold, "mean_half_width": float(half.mean()),
            "worst_tenth_covered": float(inside[np.argsort(-spread)[: max(1, len(rows) // 10)]].mean()),
        }  # fmt: skip
    return found


def _half_widths(errors: TestErrors, coverage: float) -> NDArray[np.float64]:
    """Return what the errors of other folds say of each row, (n,)."""
    half = np.empty(len(errors.size))
    for fold in np.unique(errors.fold):
        own = errors.fold == fold
        others = TestErrors(errors.size[~own], errors.fold[~own], errors.spread[~own])
        low, high = others.interval(ByFold((None,), np.zeros((1, own.sum())), errors.spread[own][None]), coverage)
        half[own] = 0.5 * (high - low)
    return half


def measure_new(run: Path, file: Path, target: str) -> dict[str, object]:
    """Return the share of new rows that `predict` covers."""
    labelled = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    told = ct.Run(run).predict(labelled)
    if told["in_training"].any():
        raise SystemExit(f"{int(told['in_training'].sum())} rows of {file} are crystals of the run")
    wanted = labelled[target].to_numpy(dtype=float)
    inside = (told["low"] <= wanted) & (wanted <= told["high"])
    width = 0.5 * (told["high"] - told["low"])
    return {
        "run": str(run), "stated": COVERAGE, "new_rows": len(told), "covered": float(inside.mean()),
        "mean_half_width": float(width.mean()), "mae": float((told["prediction"] - wanted).abs().mean()),
    }  # fmt: skip


def main() -> None:
    """Print one line of JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--coverage", type=float, default=COVERAGE)
    parser.add_argument("--new", type=Path, metavar="FILE", help="labelled crystals that the runs have not seen")
    parser.add_argument("--target", help="column of their labels")
    options = parser.parse_args()
    for run in options.runs:
        new = options.new and measure_new(run, options.new, options.target)
        print(json.dumps(new or measure(run, options.coverage)), flush=True)


if __name__ == "__main__":
    main()
