"""A baseline of one number: the read-out of the untrained potential that says most about a property."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.tabular.learner import parts_of

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OneVariable:
    """A monotone fit to one column of a table.

    Attributes:
        column: in the table.
        error: mean absolute error on rows that were not fitted.
        fit: scikit-learn's isotonic regression.
    """

    column: int
    error: float
    fit: Any

    def predict(self, table: Values) -> Values:
        """Return the prediction of each row, (n, columns) -> (n,)."""
        return np.asarray(self.fit.predict(table[:, self.column]))


def one_variable(table: Values, target: Values, groups: NDArray[np.int64]) -> OneVariable:
    """Fit the column (n, columns) whose monotone regression misses held-out targets (n,) by the least.

    A monotone curve (Barlow et al., Statistical Inference under Order Restrictions, 1972) asks nothing of its shape,
    whether the property goes as the number, its square root or its logarithm.

    Args:
        groups: (n,) rows of one group are never on both sides of a choice.
    """
    part = parts_of(groups, seed=0)
    errors = [_held_out_error(table[:, column], target, part) for column in range(table.shape[1])]
    best = int(np.argmin(errors))
    return OneVariable(best, errors[best], _monotone(table[:, best], target))


def _held_out_error(x: Values, target: Values, part: NDArray[np.int64]) -> float:
    total = 0.0
    for number in np.unique(part):
        held = part == number
        said = _monotone(x[~held], target[~held]).predict(x[held]) if (~held).any() else target.mean()
        total += float(np.abs(said - target[held]).sum())
    return total / len(target)


def _monotone(x: Values, target: Values) -> Any:
    """Return scikit-learn's isotonic regression of a column, rising or falling as its rank correlation says."""
    from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]  # a second to import

    with warnings.catch_warnings():  # a constant column, or one that says nothing, is not chosen
        warnings.simplefilter("ignore")
        return IsotonicRegression(increasing="auto", out_of_bounds="clip").fit(x, target)
