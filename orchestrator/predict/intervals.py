"""How wrong a run's predictions are, from its own test rows: intervals with a stated coverage, and what was trained on.

Intervals are those of CV+ (Barber, Candes, Ramdas and Tibshirani, Ann. Stat. 49, 486 (2021)): every test row's error
is laid around what the models of its own fold, which have not seen it, say of the new crystal, so that an interval is
wide where folds disagree. Where test rows and new crystals have a spread over seeds or views, errors count in units of
it (normalised conformal prediction: Papadopoulos, Gammerman and Vovk, Proc. AIA (2008)), so that it is wide where those
disagree too. With one model for all rows it is split conformal prediction (Lei et al., J. Am. Stat. Assoc. 113, 1094
(2018)).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.inputs.crystals import kept_crystals
from trainables.crystals import SYMBOLS
from trainables.data.dataset import Dataset
from trainables.data.same_crystal import CrystalSet

COVERAGE = 0.9
FEWEST = math.ceil(COVERAGE / (1 - COVERAGE) - 1e-9)  # errors that tell an interval
_BISECTIONS = 60  # of a float64 range


@dataclass(frozen=True, eq=False)
class ByFold:
    """What the models of each fold say of n crystals.

    Attributes:
        folds: number of each fold; None for models that were trained on all rows.
        value: (folds, n) in the task's unit.
        spread: (folds, n) over the fold's models, or the views of its only one; NaN where there is one number.
    """

    folds: tuple[int | None, ...]
    value: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TestErrors:
    """Errors of test rows: how large each is, (n,), in which fold, and how far its models were apart (NaN: unknown)."""

    __test__ = False  # no class of tests

    size: NDArray[np.float64]
    fold: NDArray[np.int64]
    spread: NDArray[np.float64]

    def interval(self, found: ByFold, coverage: float = COVERAGE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both ends of an interval for each of n crystals, (n,); NaN where too few rows tell one."""
        units, unit_of = self._units(found)
        parts = [(self.fold == fold) if fold is not None else np.full(len(self.fold), True) for fold in found.folds]
        sizes = [np.sort(self.size[part] / units[part]) for part in parts]
        rank = math.ceil((sum(map(len, sizes)) + 1) * coverage)
        if not 0 < rank <= sum(map(len, sizes)):
            nothing = np.full(found.value.shape[1], math.nan)
            return nothing, nothing
        return -_upper(sizes, -found.value, unit_of, rank), _upper(sizes, found.value, unit_of, rank)

    def _units(self, found: ByFold) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what errors count in, (rows,), and the same of new crystals, (folds, n); ones without a spread.

        The median error is added: what models have in common no spread shows, and one that is small beside the errors
        then changes nothing.
        """
        middle = float(np.median(self.size)) if len(self.size) else math.nan
        if not (middle > 0 and np.isfinite(self.spread).all() and np.isfinite(found.spread).all()):
            return np.ones(len(self.size)), np.ones_like(found.value)
        return self.spread + middle, found.spread + middle


def _upper(
    sizes: list[NDArray[np.float64]], value: NDArray[np.float64], unit: NDArray[np.float64], rank: int
) -> NDArray[np.float64]:
    """Return the rank-th smallest of value_k + unit_k x size, over all sizes of all folds k, for each crystal, (n,).

    By bisection: the sums themselves would be rows x crystals.
    """
    largest = np.array([each[-1] if len(each) else 0.0 for each in sizes])[:, None]
    low, high = value.min(axis=0), (value + unit * largest).max(axis=0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = sum(np.searchsorted(each, (middle - value[k]) / unit[k], side="right") for k, each in enumerate(sizes))
        reached = np.asarray(below) >= rank
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


@dataclass(frozen=True, eq=False)
class Experience:
    """What a run knows of its own errors.

    Attributes:
        errors: of test rows that its models predicted.
        half_width: of an interval around one prediction, with the coverage; NaN where too few test rows tell it.
        fallback_half_width, fallback_std: of rows that the composition model stands in for.
        crystals: what identifies the crystals of all rows of the run; None where it has not kept them.
    """

    errors: TestErrors
    half_width: float
    fallback_half_width: float
    fallback_std: float
    crystals: CrystalSet | None

    def unknown_elements(self, dataset: Dataset) -> list[int]:
        """Return the atomic numbers in these crystals that no row of the run has; none where its rows are not known."""
        if self.crystals is None:
            return []
        seen = {symbol for formula in set(self.crystals.formulas) for symbol in re.findall(r"[A-Z][a-z]?", formula)}
        there = np.flatnonzero(dataset.structures.element_counts.any(axis=0))
        return [int(z) for z in there if SYMBOLS[z] not in seen]

    def in_training(self, dataset: Dataset) -> NDArray[np.bool_] | None:
        """Return which crystals are rows of the run, (n,); None where that is not known."""
        if self.crystals is None:
            return None
        return self.crystals.holds(CrystalSet.of(dataset.structures))


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
        fold, spread = rows["fold"].to_numpy(dtype=np.int64), rows["std"].to_numpy(dtype=float)
    except (OSError, ValueError, KeyError):
        nothing = np.empty(0)
        none = TestErrors(nothing, nothing.astype(np.int64), nothing)
        return Experience(none, math.nan, math.nan, math.nan, kept_crystals(run))
    half_width = conformal_half_width(error[~fallback], coverage)
    # Too few rows without a graph to tell: no better than the mean of all targets is, and no less than the others.
    of_fallback = conformal_half_width(error[fallback], coverage)
    around_mean = conformal_half_width(target - target.mean(), coverage)
    wide = np.nanmax([half_width, of_fallback if math.isfinite(of_fallback) else around_mean, 0.0])
    told = TestErrors(np.abs(error[~fallback]), fold[~fallback], spread[~fallback])
    return Experience(told, half_width, float(wide) or math.nan, float(target.std()) or math.nan, kept_crystals(run))
