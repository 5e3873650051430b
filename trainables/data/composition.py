"""Least squares on atomic fractions: the composition baseline, the fallback, and the per-element reference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class CompositionModel:
    """y = sum over elements of fraction x coefficient.

    Attributes:
        coefficients: (119,) indexed by atomic number, in the target's unit; elements that were not in the
            fit carry 0.
    """

    coefficients: NDArray[np.float64]

    @classmethod
    def fit(cls, composition: NDArray[np.float64], targets: NDArray[np.float64]) -> "CompositionModel":
        """Minimum-norm least squares.

        Args:
            composition: (n, 119) atomic fractions.
            targets: (n,).
        """
        coefficients, *_ = np.linalg.lstsq(composition, targets, rcond=None)
        return cls(coefficients.astype(np.float64))

    def with_unseen(self, composition: NDArray[np.float64], targets: NDArray[np.float64]) -> "CompositionModel":
        """Return the model that takes the mean target for elements that were not in the fit, where least squares has 0.

        Args:
            composition: (n, 119) atomic fractions of the fit.
            targets: (n,).
        """
        unseen = ~composition.any(axis=0)
        return CompositionModel(np.where(unseen, targets.mean(), self.coefficients))

    def predict(self, composition: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict (n,) from (n, 119) atomic fractions."""
        return composition @ self.coefficients
