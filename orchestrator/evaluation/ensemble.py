"""Combining the members (seeds) of an ensemble: their predictions, or their weights.

What a combination learns, it learns from out-of-fold rows of the training fold: the inner validation rows, which no
member was trained on. The functions that choose weights are given nothing else, so they cannot see a test row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.errors import UserError, listed
from trainables.levers import Combine

Values = NDArray[np.float64]

GREEDY_ROUNDS = 50
SHRINKAGES = (1.0, 0.75, 0.5, 0.25, 0.0)  # towards equal weights; the strongest first, because it wins ties
MOST_INNER_FOLDS = 5
GROUPS_AN_INNER_FOLD = 4  # fewer formulas than twice this say nothing about weights
MOST_SUBSETS = 100
_SAME = 1 - 1e-9  # an error that is not below this share of another is no better: the difference is rounding


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What weights are chosen on: rows of the training fold that no member was trained on.

    Attributes:
        prediction: (m, n) members x rows, in the task's unit.
        target: (n,)
        group: (n,) reduced formulas; rows of one formula stay together in the inner folds.

    Raises:
        ValueError: shapes that don't belong together, or values that are not finite.
    """

    prediction: Values
    target: Values
    group: Sequence[str]

    def __post_init__(self) -> None:
        _check(self.prediction, self.target)
        if len(self.group) != len(self.target):
            raise ValueError(f"{len(self.group)} groups for {len(self.target)} rows")

    def keep(self, mask: NDArray[np.bool_]) -> "OutOfFold":
        """Return the rows where `mask` (n,) is true."""
        group = [name for name, kept in zip(self.group, mask, strict=True) if kept]
        return OutOfFold(self.prediction[:, mask], self.target[mask], group)


def choose_weights(method: Combine, known: OutOfFold, *, seed: int = 0) -> Values | None:
    """Weights (m,) of the members, at least 0 and of sum 1; None for the median, which has none.

    Without any out-of-fold row every method falls back to equal weights.

    Args:
        seed: of the inner folds of `stacked`; the other methods draw nothing.
    """
    if len(known.target) == 0 and method != "median":
        return _equal(len(known.prediction))
    return METHODS[method](known, seed)


def combine(method: Combine, prediction: Values, weights: Values | None = None) -> Values:
    """One prediction a row, (n,), from members x rows (m, n).

    Args:
        weights: (m,) from `choose_weights`; None for the median, and for a mean of equal weights.

    Raises:
        ValueError: a prediction that is not finite, or weights that don't belong to the method or the members.
    """
    _check(prediction)
    if method == "median":
        if weights is not None:
            raise ValueError("a median has no weights")
        return np.asarray(np.median(prediction, axis=0))
    if weights is None:
        if method != "mean":
            raise ValueError(f"{method} needs the weights that choose_weights returned")
        weights = _equal(len(prediction))
    _check_weights(weights, len(prediction))
    return np.asarray(weights @ prediction)


def disagreement(prediction: Values) -> Values:
    """Return standard deviation over the members of (m, n), a row: (n,); 0 for a single member."""
    _check(prediction)
    return np.asarray(prediction.std(axis=0))


def error_curve(
    prediction: Values, target: Values, fold: NDArray[np.integer] | None = None, *, seed: int = 0
) -> list[dict[str, float]]:
    """Return the error of the mean of k members for k = 1..m: what one more member brings.

    It describes test rows or any others; nothing is chosen by it.

    Args:
        prediction: (m, n); target: (n,)
        fold: (n,) where there is one, so that errors are means over folds of the fold's MAE, as Matbench gives them.
        seed: of the subsets, where a size has more than MOST_SUBSETS of them.

    Returns:
        One dict a size: n_members, n_subsets, and mae, min, max over the subsets of that size.
    """
    _check(prediction, target)
    if len(target) == 0 or (fold is not None and len(fold) != len(target)):
        raise ValueError(f"{len(target)} targets, {0 if fold is None else len(fold)} fold numbers")
    row_weight = _row_weights(len(target), fold)
    rng = np.random.default_rng(seed)
    curve = []
    for size in range(1, len(prediction) + 1):
        subsets = _subsets(len(prediction), size, rng)
        found = np.array([np.abs(prediction[list(subset)].mean(axis=0) - target) @ row_weight for subset in subsets])
        counts = {"n_members": size, "n_subsets": len(subsets)}
        curve.append(counts | {"mae": float(found.mean()), "min": float(found.min()), "max": float(found.max())})
    return curve


def soup(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | Values | None = None) -> dict[str, Tensor]:
    """Return the average of the weights of models fine-tuned from the same start: one model, at one model's cost.

    Wortsman et al., Model soups (ICML 2022). Runs from different starts have no common basin, so their average
    means nothing; nothing here can tell, so the caller must. What is not of a floating type is the first state's.

    Args:
        states: state_dicts of the members.
        weights: (m,) at least 0, of sum 1; equal where None.

    Returns:
        A state_dict on the CPU, in the first state's types; summed in float64.

    Raises:
        UserError: states that are not of one model.
    """
    if not states:
        raise UserError("a soup needs at least one model")
    for place, state in enumerate(states):
        _require_same_model(states[0], state, place)
    shares = _equal(len(states)) if weights is None else np.asarray(weights, dtype=np.float64)
    _check_weights(shares, len(states))
    mixed = {}
    for name, first in states[0].items():
        tensors = [state[name].detach().cpu() for state in states]
        mixed[name] = _average(tensors, shares).to(first.dtype) if first.is_floating_point() else tensors[0].clone()
    return mixed


def _average(tensors: list[Tensor], shares: Values) -> Tensor:
    return torch.stack([share * tensor.double() for share, tensor in zip(shares.tolist(), tensors, strict=True)]).sum(0)


def _require_same_model(first: Mapping[str, Tensor], other: Mapping[str, Tensor], place: int) -> None:
    names = sorted(first.keys() ^ other.keys())
    if names:
        raise UserError(f"model {place} is not of model 0's kind: only one of them has {listed(names, 3)}")
    shapes = [f"{name} {tuple(other[name].shape)}" for name in first if other[name].shape != first[name].shape]
    if shapes:
        raise UserError(f"model {place} is not of model 0's kind: it has other shapes in {listed(shapes, 3)}")


def _equal(m: int) -> Values:
    return np.full(m, 1 / m)


def _mae(weights: Values, known: OutOfFold) -> float:
    return float(np.abs(weights @ known.prediction - known.target).mean())


def _greedy(known: OutOfFold, _seed: int) -> Values:
    """Forward selection with replacement on the MAE, from the best member on; the best prefix is kept.

    Caruana et al., Ensemble selection from libraries of models (ICML 2004). A selection can end above the error
    of the plain mean, which then is taken: on its own rows the result is never worse than the mean.
    """
    m = len(known.prediction)
    counts, total = np.zeros(m), np.zeros_like(known.target)
    best_weights, best = _equal(m), _mae(_equal(m), known) * _SAME
    for picked in range(1, GREEDY_ROUNDS + 1):
        found = np.abs((total + known.prediction) / picked - known.target).mean(axis=1)  # (m,)
        chosen = int(found.argmin())  # the first of equals
        counts[chosen] += 1
        total += known.prediction[chosen]
        if found[chosen] < best:
            best_weights, best = counts / picked, float(found[chosen]) * _SAME
    return best_weights


def _stacked(known: OutOfFold, seed: int) -> Values:
    """Return the mixture of least MAE (Breiman, Stacked regressions, 1996), shrunk towards equal weights.

    How far is chosen by cross-validation over groups: the strongest shrinkage whose error is within one standard
    error of the best one's (the rule of Breiman et al., CART, 1984). Seeds of one recipe hardly differ, and a mixture
    fitted to few rows then loses to the mean: in simulations of five exchangeable members and 60 rows by 3.9 %, by
    0.6 % with the best shrinkage, and by 0.2 % with this rule.
    """
    m = len(known.prediction)
    inner = _inner_folds(known.group, seed)
    n_folds = int(inner.max()) + 1
    if n_folds < 2:
        return _equal(m)
    error = np.empty((len(SHRINKAGES), len(known.target)))  # of rows that the mixture was not fitted to
    for fold in range(n_folds):
        held, mixture = inner == fold, _least_mae(known.keep(inner != fold))
        for place, share in enumerate(SHRINKAGES):
            error[place, held] = np.abs(_shrunk(mixture, share) @ known.prediction - known.target)[held]
    return _shrunk(_least_mae(known), SHRINKAGES[_first_as_good(error, known.group)])


def _first_as_good(error: Values, group: Sequence[str]) -> int:
    """Return the first of several candidates' errors (c, n) whose sum is within a standard error of the least one.

    The standard error is that of the paired difference, over groups, because rows of one formula err together.
    """
    place = np.unique(np.asarray(group, dtype=str), return_inverse=True)[1]
    difference = error - error[error.sum(axis=1).argmin()]
    by_group = np.array([np.bincount(place, weights=row) for row in difference])  # (c, groups)
    within = np.sqrt(by_group.shape[1]) * by_group.std(axis=1) + (1 - _SAME) * error.sum(axis=1)
    return int(np.argmax(by_group.sum(axis=1) <= within))


def _shrunk(weights: Values, share: float) -> Values:
    return (1 - share) * weights + share * _equal(len(weights))


def _inner_folds(group: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return an inner fold a row, (n,): whole groups in a seeded order; all 0 where there are too few for two folds."""
    names, place = np.unique(np.asarray(group, dtype=str), return_inverse=True)
    n_folds = max(1, min(MOST_INNER_FOLDS, len(names) // GROUPS_AN_INNER_FOLD))
    rank = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(rank[place] % n_folds, dtype=np.int64)


def _least_mae(known: OutOfFold) -> Values:
    """Weights (m,) >= 0 of sum 1 that minimise mean |target - w . prediction|: a linear programme, solved exactly.

    With the errors E = prediction - target, (m, n), it is min_w max_l sum_i l_i (w . E)_i over -1 <= l_i <= 1. The
    order of min and max may be swapped (both sets are convex and compact), which gives: maximise s where
    s <= (E l)_j for every member j. That has m rows instead of n, and at 10,000 rows is 40 times faster; the weights
    are the multipliers of those m rows.
    """
    errors = known.prediction - known.target  # (m, n)
    scale = np.abs(errors).mean()
    m, n = errors.shape
    if scale == 0:
        return _equal(m)
    from scipy.optimize import linprog  # half a second to import, and most runs stack nothing

    cost = np.append(np.zeros(n), -1.0)  # of (l, s); linprog minimises
    rows = np.hstack([-errors / scale, np.ones((m, 1))])  # s - (E l)_j <= 0
    bounds = [(-1.0, 1.0)] * n + [(None, None)]
    found = linprog(cost, A_ub=rows, b_ub=np.zeros(m), bounds=bounds, method="highs")
    if found.status != 0:
        raise RuntimeError(f"no stacking weights from {n} rows of {m} members: {found.message}")
    weights = np.clip(-found.ineqlin.marginals, 0, None)
    return np.asarray(weights / weights.sum())


def _row_weights(n: int, fold: NDArray[np.integer] | None) -> Values:
    """(n,) weights of rows that make a sum of absolute errors the mean over folds of the fold's MAE."""
    numbers, place, counts = np.unique(
        np.zeros(n, dtype=np.int64) if fold is None else fold, return_inverse=True, return_counts=True
    )
    return np.asarray(1 / (counts[place] * len(numbers)))


def _subsets(m: int, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All subsets of `size` of m members, or MOST_SUBSETS different ones where there are more."""
    if comb(m, size) <= MOST_SUBSETS:
        return list(combinations(range(m), size))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < MOST_SUBSETS:
        drawn.add(tuple(sorted(rng.choice(m, size, replace=False).tolist())))
    return sorted(drawn)


def _check(prediction: NDArray[Any], target: NDArray[Any] | None = None) -> None:
    if prediction.ndim != 2 or len(prediction) == 0:
        raise ValueError(
            f"predictions have shape {prediction.shape}; expected members x rows, with at least one member"
        )
    if target is not None and target.shape != prediction.shape[1:]:
        raise ValueError(f"targets have shape {target.shape}, predictions {prediction.shape}: one target a column")
    for name, values in (("predictions", prediction), ("targets", target)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} {name} are not finite")


def _check_weights(weights: Values, m: int) -> None:
    if weights.shape != (m,):
        raise ValueError(f"weights have shape {weights.shape}; one is needed for each of {m} members")
    if not (weights >= 0).all() or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"weights must be non-negative and sum to 1, got {weights.tolist()}")


METHODS: dict[Combine, Callable[[OutOfFold, int], Values | None]] = {
    "mean": lambda known, _: _equal(len(known.prediction)),
    "median": lambda *_: None,
    "greedy": _greedy,
    "stacked": _stacked,
}
