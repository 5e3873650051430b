"""Statistics of the difference between two predictors on the same test rows: is the child better than its parent?"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from trainables.errors import listed

CONFIDENCE = 0.95  # of every interval, and 1 - CONFIDENCE is the level of `detectable`
FIVE_FOLD_TEST_SHARE = 0.25  # n_test / n_train: one fold in five is tested, four train
N_RESAMPLES = 10_000
_CELLS_PER_CHUNK = 2_000_000  # (resamples x clusters) held at once: some 60 MB


@dataclass(frozen=True)
class CorrectedT:
    """A paired t-test over folds with the variance corrected for their shared training rows.

    Attributes:
        mean: mean difference over folds, in the errors' unit, as se and detectable are.
        se: corrected standard error.
        df: degrees of freedom, folds - 1.
        t: mean / se; infinite where every fold shows the same difference.
        p: two-sided.
        detectable: the smallest |mean| that this many folds with this spread could have called significant.
    """

    mean: float
    se: float
    df: int
    t: float
    p: float
    detectable: float


@dataclass(frozen=True)
class Bootstrap:
    """A mean difference with its 95 % percentile interval and two-sided p, from resampled clusters."""

    mean: float
    low: float
    high: float
    p: float
    n_clusters: int


@dataclass(frozen=True)
class Contrast:
    """A child against its parent; differences are child - parent, so negative ones speak for the child.

    Attributes:
        difference: mean over folds of the difference in MAE, in the target's unit.
        per_fold: that of each fold.
        bootstrap: over clusters of test rows; the trained models are taken as given.
        corrected_t: over folds; None where there is only one.
    """

    difference: float
    per_fold: dict[int, float]
    bootstrap: Bootstrap
    corrected_t: CorrectedT | None

    @property
    def p(self) -> float:
        """The p to report: over folds where there are several, for only that one knows of retraining."""
        return self.bootstrap.p if self.corrected_t is None else self.corrected_t.p


def nadeau_bengio(differences: NDArray[np.float64], test_share: float = FIVE_FOLD_TEST_SHARE) -> CorrectedT | None:
    """Corrected resampled t-test: SE^2 = (1/J + n_test/n_train) * sample variance.

    Nadeau & Bengio, Machine Learning 52, 239 (2003). It assumes that the differences of the folds are about
    normal, with one variance and with one correlation n_test / (n_test + n_train) between any two of them, which
    stands in for the training rows that they share. The plain t-test (without n_test/n_train) takes folds for
    independent and finds too much.

    Args:
        differences: (J,) one difference a fold.
        test_share: n_test / n_train, 1/4 for five folds; also where only some of the five were run.

    Returns:
        None for fewer than two folds: they have no spread.

    Raises:
        ValueError: differences that are not finite, or a share that is not positive.
    """
    if not np.isfinite(differences).all() or not test_share > 0:
        raise ValueError(f"expected finite differences and a positive test share, got {differences} and {test_share}")
    n = len(differences)
    if n < 2:
        return None
    mean = float(np.mean(differences))
    # rounding leaves equal differences a variance of 1e-34 or so
    variance = float(np.var(differences, ddof=1)) if np.ptp(differences) > 0 else 0.0
    se = math.sqrt((1 / n + test_share) * variance)
    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    t = mean / se if se > 0 else (math.copysign(math.inf, mean) if mean else 0.0)
    p = min(1.0, float(2 * stats.t.sf(abs(t), n - 1)))
    return CorrectedT(mean, se, n - 1, t, p, critical * se)


def cluster_bootstrap(
    difference: NDArray[np.float64],
    fold: NDArray[np.int64],
    cluster: Sequence[Hashable],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Resample whole clusters of test rows with replacement; both predictors keep the same rows (paired).

    The statistic is Matbench's: the mean over folds of each fold's mean. In a resample that leaves a fold without
    rows it is the mean over the others. Assumed: clusters are independent of each other, their rows need not be,
    and there are many (with fewer than about 30 the interval is too narrow). The models are held fixed, so the
    spread between training runs or folds is not in it. Of a single cluster nothing can be learnt: an infinite
    interval, p = 1.

    Args:
        difference: (n,) |error of the child| - |error of the parent|, perhaps averaged over seeds.
        fold: (n,) test fold of each row.
        cluster: (n,) what the rows of a cluster share, such as the chemical system; may straddle folds.
        n_resamples: resamples; the smallest possible p is 2 / (n_resamples + 1).
        seed: the same seed gives the same numbers.

    Returns:
        p is two-sided: twice the share of resamples on the other side of zero, (1 + count) / (1 + n_resamples)
        (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 4.2), at most 1.

    Raises:
        ValueError: no rows, rows that do not match in number, missing clusters, or differences not finite.
    """
    sums, counts = _per_cluster(difference, fold, cluster)
    mean = float(_mean_over_folds(sums.sum(0, keepdims=True), counts.sum(0, keepdims=True))[0])
    n_clusters = len(sums)
    if n_clusters == 1:
        return Bootstrap(mean, -math.inf, math.inf, 1.0, 1)
    resampled = _resample(sums, counts, n_resamples, np.random.default_rng(seed))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    other_side = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (1 + other_side) / (1 + n_resamples))
    return Bootstrap(mean, float(low), float(high), p, n_clusters)


def _per_cluster(
    difference: NDArray[np.float64], fold: NDArray[np.int64], cluster: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums and counts of the rows by cluster and fold, both (n_clusters, n_folds): all that a resample needs."""
    if not 0 < len(difference) == len(fold) == len(cluster):
        raise ValueError(f"expected as many folds and clusters as rows: {len(difference)}, {len(fold)}, {len(cluster)}")
    if not np.isfinite(difference).all():
        raise ValueError(f"{int((~np.isfinite(difference)).sum())} differences are not finite")
    owner, names = pd.factorize(pd.Series(list(cluster), dtype=object))  # a Series keeps tuples whole
    if (owner < 0).any():
        raise ValueError(f"{int((owner < 0).sum())} rows have no cluster")
    folds, place = np.unique(fold, return_inverse=True)
    shape = (len(names), len(folds))
    cell = owner * len(folds) + place  # (n,)
    size = math.prod(shape)
    sums = np.bincount(cell, weights=difference, minlength=size)
    counts = np.bincount(cell, minlength=size)
    return sums.reshape(shape).astype(np.float64), counts.reshape(shape).astype(np.float64)


def _resample(
    sums: NDArray[np.float64], counts: NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the statistic in each resample, (n_resamples,), in chunks: all weights at once could be gigabytes."""
    n_clusters, n_folds = sums.shape
    table = np.concatenate([sums, counts], axis=1)  # (n_clusters, 2 n_folds)
    chunk = max(1, _CELLS_PER_CHUNK // n_clusters)
    statistic = np.empty(n_resamples)
    for start in range(0, n_resamples, chunk):
        rows = min(chunk, n_resamples - start)
        # counting draws gives the multinomial weights some ten times faster than Generator.multinomial
        drawn = rng.integers(n_clusters, size=(rows, n_clusters))
        drawn += np.arange(rows)[:, None] * n_clusters
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        totals = weights.astype(np.float64) @ table  # (rows, 2 n_folds)
        statistic[start : start + rows] = _mean_over_folds(totals[:, :n_folds], totals[:, n_folds:])
    return statistic


def _mean_over_folds(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (k,) over the folds that have rows of sums / counts, both (k, n_folds)."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    mean: NDArray[np.float64] = means.sum(1) / (counts > 0).sum(1)
    return mean


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Step-down adjusted p-values: reject those below the level, and the family's error rate is that level.

    Holm, Scandinavian Journal of Statistics 6, 65 (1979): the i-th smallest of m (from 1) times m - i + 1, never
    below an earlier one, at most 1. Nothing is assumed of how the tests depend on each other.

    Args:
        p_values: None where there was no test; it stays None and does not count in m.

    Raises:
        ValueError: a p outside 0 to 1.
    """
    given = [(p, place) for place, p in enumerate(p_values) if p is not None]
    if wrong := [p for p, _ in given if not 0 <= p <= 1]:
        raise ValueError(f"p-values lie between 0 and 1, got {listed(wrong)}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(given)):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        adjusted[place] = largest
    return adjusted


def compare(
    child: pd.DataFrame,
    parent: pd.DataFrame,
    systems: "pd.Series[str] | Mapping[Any, Hashable]",
    *,
    test_share: float = FIVE_FOLD_TEST_SHARE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Contrast:
    """Compare two predictors on the same rows; what is assumed stands at `nadeau_bengio` and `cluster_bootstrap`.

    Args:
        child: columns id, fold, error: the absolute error of each test row, already averaged over seeds, in the
            target's unit; one row an id, in any order.
        parent: the same ids in the same folds.
        systems: chemical system (or other cluster) by id; may hold more ids. A Series has them as its index.
        test_share: n_test / n_train of a fold.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: an id twice, other ids or folds, an id without system, or errors that are not finite.
    """
    ours, theirs = _aligned(child, parent)
    cluster_of = systems.to_dict() if isinstance(systems, pd.Series) else systems
    if missing := [row_id for row_id in ours.ids if row_id not in cluster_of]:
        raise ValueError(f"no chemical system is given for {listed(missing, 5)}")
    difference, fold = ours.error - theirs.error, ours.fold  # (n,)
    cluster = [cluster_of[row_id] for row_id in ours.ids]
    bootstrap = cluster_bootstrap(difference, fold, cluster, n_resamples=n_resamples, seed=seed)
    per_fold = {int(name): float(difference[fold == name].mean()) for name in np.unique(fold)}
    over_folds = np.array(list(per_fold.values()))
    return Contrast(float(over_folds.mean()), per_fold, bootstrap, nadeau_bengio(over_folds, test_share))


@dataclass(frozen=True, eq=False)
class _RowErrors:
    """Fold and absolute error of test rows, each (n,), sorted by id.

    Sorting also makes the bootstrap's draws, and so its numbers, independent of the order of the rows.
    """

    ids: NDArray[Any]
    fold: NDArray[np.int64]
    error: NDArray[np.float64]

    @classmethod
    def of(cls, frame: pd.DataFrame, name: str) -> "_RowErrors":
        names = ["id", "fold", "error"]
        if lacking := [column for column in names if column not in frame]:
            raise ValueError(f"{name} lacks the columns {listed(lacking)}")
        ids, fold, error = (frame.sort_values("id")[column].to_numpy() for column in names)
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated):
            raise ValueError(f"{name} lists ids more than once: {listed(repeated, 5)}")
        if unusable := int((~np.isfinite(error.astype(float))).sum()):
            raise ValueError(f"{name} has {unusable} errors that are not finite")
        return cls(ids, fold, error.astype(np.float64))


def _aligned(child: pd.DataFrame, parent: pd.DataFrame) -> tuple[_RowErrors, _RowErrors]:
    """Return the errors of two predictors on the same rows."""
    ours, theirs = _RowErrors.of(child, "the child"), _RowErrors.of(parent, "the parent")
    for one, other, name in ((ours, theirs, "the parent"), (theirs, ours, "the child")):
        if lacking := sorted(set(one.ids) - set(other.ids)):
            raise ValueError(f"{name} lacks {len(lacking)} ids: {listed(lacking, 5)}")
    elsewhere = ours.ids[ours.fold != theirs.fold]
    if len(elsewhere):
        raise ValueError(f"{len(elsewhere)} ids are in another fold at the parent: {listed(elsewhere, 5)}")
    return ours, theirs


def with_holm(contrasts: Mapping[str, Contrast]) -> dict[str, float | None]:
    """Holm-adjusted p of each contrast, all of them being one family; see `Contrast.p` for which p."""
    return dict(zip(contrasts, holm([contrast.p for contrast in contrasts.values()]), strict=True))
