"""What is fitted before the first step: the per-element reference of energies, the scale of other targets."""

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data.composition import CompositionModel
from trainables.model.chgnet import CrystalModel


def fit_reference(
    composition: NDArray[np.float64], graph_energy: NDArray[np.float64], energy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Per-element energies by least squares on (energy - graph energy), all per atom: (119,) eV.

    The minimum-norm solution is taken around the mean residual, so an element that no training row holds gets
    that mean instead of 0.

    Args:
        composition: (n, 119) atomic fractions.
        graph_energy: (n,) CHGNet's energies without a reference.
        energy: (n,) targets.
    """
    residual = energy - graph_energy
    return CompositionModel.fit(composition, residual - residual.mean()).coefficients + residual.mean()


def set_reference(model: CrystalModel, reference: NDArray[np.float64]) -> None:
    """Put per-element energies (119,) into CHGNet's own composition model."""
    weight = model.composition_model.fc.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(reference[1 : weight.shape[1] + 1]).to(weight)[None])
