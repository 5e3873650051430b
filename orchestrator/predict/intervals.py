"""How wrong a run's predictions are, from its own test rows: intervals with a stated coverage, and what was trained on.

Intervals are those of split conformal prediction (Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018)): the half width is
the k-th smallest absolute error of rows that no model of theirs has seen, k = ceil((n + 1) coverage).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.inputs.crystals import kept_crystals
from trainables.data.dataset import Dataset
from trainables.data.grouping import crystal_keys

COVERAGE = 0.9


@dataclass(frozen=True, eq=False)
class Experience:
    """What a run knows of its own errors.

    Attributes:
        half_width: of an interval with the coverage; NaN where there are too few test rows to tell.
        fallback_half_width, fallback_std: of rows that the composition model stands in for.
        crystals: what identifies the crystals of all rows of the run; None where it has not kept them.
    """

    half_width: float
    fallback_half_width: float
    fallback_std: float
    crystals: frozenset[str] | None

    def in_training(self, dataset: Dataset) -> NDArray[np.bool_] | None:
        """Return which crystals are rows of the run, (n,); None where that is not known."""
        if self.crystals is None:
            return None
        return np.array([name in self.crystals for name in crystal_keys(dataset.structures)], dtype=bool)


def conformal_half_width(errors: NDArray[np.float64], coverage: float = COVERAGE) -> float:
    """Return the half width of an interval that covers a new row with at least this probability.

    Args:
        errors: (n,) of rows exchangeable with the new one, which the model has not seen.

    Returns:
        NaN where n is too small for the coverage: ceil((n + 1) coverage) > n.
    """
    rank = math.ceil((len(errors) + 1) * coverage)
    return float(np.sort(np.abs(errors))[rank - 1]) if 0 < rank <= len(errors) else math.nan


def read_experience(run: Path, coverage: float = COVERAGE) -> Experience:
    """Read what a run's test rows tell; nothing where it has none."""
    try:
        rows = pd.read_parquet(run / "predictions.parquet")
        error = (rows["prediction"] - rows["target"]).to_numpy(dtype=float)
        target, fallback = rows["target"].to_numpy(dtype=float), rows["fallback"].to_numpy(dtype=bool)
    except (OSError, ValueError, KeyError):
        return Experience(math.nan, math.nan, math.nan, kept_crystals(run))
    half_width = conformal_half_width(error[~fallback], coverage)
    # Too few rows without a graph to tell: no better than the mean of all targets is, and no less than the others.
    of_fallback = conformal_half_width(error[fallback], coverage)
    around_mean = conformal_half_width(target - target.mean(), coverage)
    wide = np.nanmax([half_width, of_fallback if math.isfinite(of_fallback) else around_mean, 0.0])
    return Experience(half_width, float(wide) or math.nan, float(target.std()) or math.nan, kept_crystals(run))
