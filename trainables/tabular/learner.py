"""Learning from a table: ridge regression and extremely randomised trees, and how much of each.

Everything is chosen on rows that a fit has not seen, in parts that keep rows of one composition together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALPHAS = np.logspace(0, 6, 13)
_SHARES = np.linspace(0, 1, 21)
_PARTS = 5
_MOST_TREES, _FEWEST_TREES = 400, 60
_ROWS_FOR_MOST_TREES = 2_000
_LARGEST = 8.0  # standard deviations; a new crystal beyond them is no reason for a wild value

Table = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Learnt:
    """A fitted pair of models.

    Attributes:
        center, scale: (features,) that the ridge regression standardises by; a constant column has scale infinity.
        weight, bias: of the ridge regression.
        forest: scikit-learn's.
        share: of the forest in the prediction.
        alpha: of the ridge regression.
        errors: mean absolute errors on rows that were not fitted: of the ridge regression, the forest, and both.
    """

    center: Values
    scale: Values
    weight: Values
    bias: float
    forest: Any
    share: float
    alpha: float
    errors: tuple[float, float, float]


def learn(table: Table, target: Values, groups: NDArray[np.int64], seed: int) -> Learnt:
    """Fit a table (n, features) to targets (n,).

    Args:
        groups: (n,) rows of one group are never on both sides of a choice.
        seed: of the parts and the trees.
    """
    from sklearn.linear_model import Ridge  # type: ignore[import-untyped]

    parts = _parts(groups, seed)
    held_out = _held_out(table, target, parts)
    ridge = {float(alpha): held_out(_ridge(float(alpha))) for alpha in _ALPHAS}
    alpha = min(ridge, key=lambda each: _error(ridge[each], target))
    trees = held_out(lambda x, y, new: _forest(x, y, seed).predict(new))
    blended = {float(share): (1 - share) * ridge[alpha] + share * trees for share in _SHARES}
    share = min(blended, key=lambda each: _error(blended[each], target))
    center, scale = _standard(table)
    fitted = Ridge(alpha=alpha).fit(_standardised(table, center, scale), target)
    return Learnt(
        center, scale, np.asarray(fitted.coef_, np.float64), float(fitted.intercept_), _forest(table, target, seed),
        share, alpha, (_error(ridge[alpha], target), _error(trees, target), _error(blended[share], target)),
    )  # fmt: skip


Fit = Callable[[Table, Values, Table], Values]  # (table, target, new table) -> values


def _held_out(table: Table, target: Values, parts: NDArray[np.int64]) -> Callable[[Fit], Values]:
    """Return what a fit says of every part, fitted to the others: (n,)."""

    def predictions(fit: Fit) -> Values:
        found = np.empty(len(target))
        for part in np.unique(parts):
            own = parts == part
            found[own] = fit(table[~own], target[~own], table[own])
        return found

    return predictions


def _ridge(alpha: float) -> Fit:
    from sklearn.linear_model import Ridge

    def fit(table: Table, target: Values, new: Table) -> Values:
        center, scale = _standard(table)
        model = Ridge(alpha=alpha).fit(_standardised(table, center, scale), target)
        return np.asarray(model.predict(_standardised(new, center, scale)))

    return fit


def _forest(table: Table, target: Values, seed: int) -> Any:
    """Return a fitted forest (Geurts, Ernst and Wehenkel, Mach. Learn. 63, 3 (2006)), smaller where rows are many."""
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

    n_trees = int(np.clip(_MOST_TREES * _ROWS_FOR_MOST_TREES / len(table), _FEWEST_TREES, _MOST_TREES))
    many = len(table) > _ROWS_FOR_MOST_TREES
    forest = ExtraTreesRegressor(
        n_trees, max_features="sqrt" if many else 0.33, min_samples_leaf=2 if many else 1, random_state=seed, n_jobs=1
    )
    return forest.fit(table, target)


def _parts(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the part of each row, (n,): groups at random, each whole in one of up to five parts."""
    names, place = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[place] % min(_PARTS, len(names)))


def _standard(table: Table) -> tuple[Values, Values]:
    spread = table.std(axis=0, dtype=np.float64)
    return table.mean(axis=0, dtype=np.float64), np.where(spread > 1e-7, spread, np.inf)


def _standardised(table: Table, center: Values, scale: Values) -> Values:
    return np.clip((table - center) / scale, -_LARGEST, _LARGEST)


def _error(values: Values, target: Values) -> float:
    return float(np.abs(values - target).mean())
