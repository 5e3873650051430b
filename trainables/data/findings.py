"""What a table's rows say about themselves before anything is trained: mistakes, and what should be known."""

import numpy as np

from trainables.data.dataset import Dataset
from trainables.errors import UserError

_GROWS = 0.8  # correlation of targets with the number of atoms from which on they are taken for energies of cells
_MOST_EV_PER_ATOM = 100.0  # no energy per atom of a pseudopotential code is that large


def growth(dataset: Dataset) -> float:
    """Return the correlation of targets with the number of atoms; 0 where one of them hardly varies."""
    atoms = dataset.structures.n_atoms.astype(np.float64)
    if len(dataset) < 10 or np.ptp(atoms) == 0 or np.ptp(dataset.targets) == 0:
        return 0.0
    return float(np.corrcoef(atoms, dataset.targets)[0, 1])


def require_energies_per_atom(dataset: Dataset) -> None:
    """Refuse energies of whole cells where energies per atom were announced.

    Raises:
        UserError: with what gives them away.
    """
    if not dataset.task.is_energy or dataset.task.is_matbench:
        return
    r, target = growth(dataset), dataset.task.target
    if abs(r) > _GROWS:
        raise UserError(
            f"'{target}' grows with the number of atoms (r = {r:.2f}), as energies of whole cells do; eV/atom is "
            "wanted: use `total_energy=True`, which divides them, or divide them yourself"
        )
    middle = float(np.median(np.abs(dataset.targets)))
    if middle > _MOST_EV_PER_ATOM:
        raise UserError(
            f"'{target}' has a median size of {middle:,.0f} eV/atom, which no energy per atom has: use "
            "`total_energy=True` if these are energies of whole cells, or convert them"
        )
