"""The frozen pretrained CHGNet: how its energy changes when a crystal is strained or displaced."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import require_energies
from trainables.data.tasks import Task
from trainables.graphs.batch import Batch
from trainables.graphs.store import GraphStore
from trainables.levers import Start
from trainables.model.chgnet import SCRATCH_ARCHITECTURE, build_model
from trainables.progress import Progress, silent
from trainables.training.predict import predict


class FrozenEnergies:
    """Energy differences E(perturbed) - E(clean) of the untouched weights; the per-element reference cancels.

    Raises:
        UserError: the task is no energy.
    """

    def __init__(self, start: Start, task: Task, device: torch.device) -> None:
        require_energies(task)
        weights = SCRATCH_ARCHITECTURE if start == "scratch" else start
        self._model = build_model(weights, task).to(device).eval()
        self._per_cell, self._clean = task.quantity == "energy_per_cell", np.empty(0)

    def know(self, store: GraphStore, rows: NDArray[np.int64], progress: Progress = silent) -> None:
        """Compute the clean crystals' energies, for all that `difference` will be asked for."""
        self._clean = np.full(len(store), np.nan)
        self._clean[rows] = predict(self._model, store, rows, output="graph_energy", progress=progress)

    def difference(self, batch: Batch, rows: NDArray[np.int64]) -> Tensor:
        """(n,) in the task's unit: what the perturbation in `batch` does to the energies of the crystals `rows`."""
        with torch.no_grad():
            energy = self._model.graph_energy(batch)  # (n,) eV/atom
        change = energy - torch.from_numpy(self._clean[rows]).to(energy)
        return change * batch.n_atoms if self._per_cell else change
