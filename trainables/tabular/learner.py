"""Learning from a table: ridge regression and extremely randomised trees, and how much of each.

Everything is chosen on rows that a fit has not seen, in parts that keep rows of one composition together: the strength
of the ridge regression, whether targets are learnt under asinh, and the share of each model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALPHAS = np.logspace(0, 6, 13)
_FEATURES = 0.8  # of all, that a split chooses from
_SHARES = np.linspace(0, 1, 21)
_PARTS = 5
STEPS = 3 * _PARTS + 1  # of a fit: regressions and two kinds of forests of every part, and the whole
MOST_TREES = 400
_FEWEST_TREES = 50
_ROWS_FOR_MOST_TREES = 500  # a tree of more rows takes longer, and says more
_CHOOSING = 0.5  # of the trees, for choices
_LARGE = 2_000  # rows, from which on leaves hold two
LARGEST = 8.0  # standard deviations; a new crystal beyond them is no reason for a wild value

Table = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Learnt:
    """A fitted pair of models, each under its own unit: 0, or what targets are divided by for asinh.

    Attributes:
        center, scale: (features,) that the ridge regression standardises by; a constant column has scale infinity.
        weight, bias: of the ridge regression.
        forest: scikit-learn's, of the columns it was given.
        share: of the forest in the prediction.
        alpha: of the ridge regression.
        errors: mean absolute errors on rows that were not fitted: of the ridge regression, the forest, and both.
    """

    center: Values
    scale: Values
    weight: Values
    bias: float
    ridge_unit: float
    forest: Any
    forest_unit: float
    share: float
    alpha: float
    errors: tuple[float, float, float]

    def predict(self, table: Table, columns: NDArray[np.int64]) -> Values:
        """Return the prediction of each row, (n, features) -> (n,)."""
        linear = _standardised(table, self.center, self.scale) @ self.weight + self.bias
        trees = self.forest.predict(table[:, columns])
        return (1 - self.share) * undone(linear, self.ridge_unit) + self.share * undone(trees, self.forest_unit)


def learn(
    table: Table,
    target: Values,
    groups: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    seed: int = 0,
    most_trees: int = MOST_TREES,
    advance: Callable[[], object] = lambda: None,
) -> Learnt:
    """Fit a table (n, features) to targets (n,).

    Args:
        groups: (n,) rows of one group are never on both sides of a choice.
        columns: of the table that trees see.
        seed: of the parts and the trees.
        most_trees: of a small table; large ones have fewer.
        advance: called at most STEPS times, as the work goes on.
    """
    parts, size = parts_of(groups, seed), np.abs(target)
    units = [0.0, float(np.median(size[size > 0]))] if (size > 0).any() else [0.0]
    short = table[:, columns]
    linear = _linear_held_out(table, target, parts, units, advance)
    alpha, ridge_unit = min(linear, key=lambda each: _error(linear[each], target))
    trees = {unit: _trees_held_out(short, target, parts, unit, seed, most_trees, advance) for unit in units}
    forest_unit = min(trees, key=lambda each: _error(trees[each], target))
    both = linear[alpha, ridge_unit], trees[forest_unit]
    blended = {float(share): (1 - share) * both[0] + share * both[1] for share in _SHARES}
    share = min(blended, key=lambda each: _error(blended[each], target))
    path = _RidgePath(table, done(target, ridge_unit)[:, None])
    forest = _forest(short, done(target, forest_unit), seed, most_trees)
    advance()
    errors = (_error(both[0], target), _error(both[1], target), _error(blended[share], target))
    return Learnt(
        path.center, path.scale, path.weights(alpha)[:, 0], float(path.bias[0]), ridge_unit, forest, forest_unit,
        share, alpha, errors,
    )  # fmt: skip


def done(target: Values, unit: float) -> Values:
    """Return targets as a model learns them."""
    return np.arcsinh(target / unit) if unit else target


def undone(values: Values, unit: float) -> Values:
    """Return what a model says in the target's unit."""
    return np.sinh(np.clip(values, -50, 50)) * unit if unit else values


class _RidgePath:
    """Ridge regressions of all strengths, from one decomposition: of the smaller of the two products of the table.

    The coefficients are (X'X + alpha)^-1 X'y = X'(XX' + alpha)^-1 y, for standardised columns and centred targets.
    """

    def __init__(self, table: Table, targets: Values) -> None:
        """Decompose a table (n, features) for targets (n, k)."""
        self.center, self.scale = _standard(table)
        x = _standardised(table, self.center, self.scale)
        self.bias = targets.mean(axis=0)
        self._x, self._wide = x, x.shape[0] <= x.shape[1]
        size, self._basis = np.linalg.eigh(x @ x.T if self._wide else x.T @ x)
        self._size = np.maximum(size, 0.0)[:, None]
        centred = targets - self.bias
        self._turned = self._basis.T @ (centred if self._wide else x.T @ centred)

    def weights(self, alpha: float) -> Values:
        """Return the coefficients of standardised columns, (features, k)."""
        solved = self._basis @ (self._turned / (self._size + alpha))
        return np.asarray(self._x.T @ solved if self._wide else solved)

    def predict(self, table: Table, alpha: float) -> Values:
        """Return the predictions of new rows, (m, k)."""
        return np.asarray(_standardised(table, self.center, self.scale) @ self.weights(alpha) + self.bias)


def _linear_held_out(
    table: Table, target: Values, parts: NDArray[np.int64], units: list[float], advance: Callable[[], object]
) -> dict[tuple[float, float], Values]:
    """Return what regressions say of every part, fitted to the others: (n,), by strength and unit."""
    found = {(float(alpha), unit): np.empty(len(target)) for alpha in _ALPHAS for unit in units}
    for part in np.unique(parts):
        own = parts == part
        path = _RidgePath(table[~own], np.column_stack([done(target[~own], unit) for unit in units]))
        for alpha in _ALPHAS:
            said = path.predict(table[own], float(alpha))
            for column, unit in enumerate(units):
                found[float(alpha), unit][own] = undone(said[:, column], unit)
        advance()
    return found


def _trees_held_out(
    table: Table,
    target: Values,
    parts: NDArray[np.int64],
    unit: float,
    seed: int,
    most_trees: int,
    advance: Callable[[], object],
) -> Values:
    """Return what forests say of every part, grown on the others: (n,)."""
    found = np.empty(len(target))
    for part in np.unique(parts):
        own = parts == part
        forest = _forest(table[~own], done(target[~own], unit), seed, max(1, round(_CHOOSING * most_trees)))
        found[own] = undone(forest.predict(table[own]), unit)
        advance()
    return found


def _forest(table: Table, target: Values, seed: int, most_trees: int) -> Any:
    """Return a fitted forest (Geurts, Ernst and Wehenkel, Mach. Learn. 63, 3 (2006)), smaller where rows are many."""
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

    n_trees = int(np.clip(most_trees * _ROWS_FOR_MOST_TREES / len(table), min(_FEWEST_TREES, most_trees), most_trees))
    leaf = 1 if len(table) <= _LARGE else 2
    forest = ExtraTreesRegressor(n_trees, max_features=_FEATURES, min_samples_leaf=leaf, random_state=seed, n_jobs=1)
    return forest.fit(table, target)


def parts_of(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the part of each row, (n,): groups at random, each whole in one of up to five parts.

    Where all rows are one group there is nothing to hold apart, and each is a group of its own.
    """
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        names = place = np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[place] % max(2, min(_PARTS, len(names))))


def _standard(table: Table) -> tuple[Values, Values]:
    spread = table.std(axis=0, dtype=np.float64)
    return table.mean(axis=0, dtype=np.float64), np.where(spread > 1e-7, spread, np.inf)


def _standardised(table: Table, center: Values, scale: Values) -> Values:
    return np.clip((table - center) / scale, -LARGEST, LARGEST)


def _error(values: Values, target: Values) -> float:
    return float(np.abs(values - target).mean())
