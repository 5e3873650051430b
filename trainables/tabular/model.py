"""A model of tables under the interface of the others: from a batch of graphs to predictions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.data.tasks import Task
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore
from trainables.levers import ModelConfig
from trainables.model.chgnet import SCRATCH_ARCHITECTURE, build_model, cutoffs_of
from trainables.progress import Progress
from trainables.tabular.crystal_features import CrystalFeatures
from trainables.tabular.learner import LARGEST, Learnt
from trainables.tabular.shapes import ShapedBatch
from trainables.tabular.trees import Forest
from trainables.tabular.vibrations import gamma_frequencies

_BUFFERS = ("center", "scale", "weight", "bias", "ridge_unit", "forest_unit", "share")


class TabularModel(nn.Module):
    """Features of a crystal, then ridge regression and a forest.

    Attributes:
        start: weights of the CHGNet among the features.
        floor: predictions below it are raised to it.
        per_cell: values are those of the whole cell; what is learnt is that of an atom.
        columns: of the features that trees see: those that say what they are, not CHGNet's own.
    """

    compiled: bool = False
    readouts_of: None = None  # they are among its features
    center: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    ridge_unit: Tensor
    forest_unit: Tensor
    share: Tensor
    columns: Tensor

    def __init__(self, config: ModelConfig, task: Task) -> None:
        """Build the model before anything is learnt; `scratch` does without CHGNet's features."""
        super().__init__()
        self.start = config.start
        trunk = None if config.start == "scratch" else build_model(config.start, task)
        if trunk is not None:
            trunk.head = None
        self.features = CrystalFeatures(trunk, phonons=config.phonons)
        self.forest = Forest()
        self.floor, self.per_cell = config.floor, task.is_sum or task.quantity == "energy_per_cell"
        self.cutoffs: Cutoffs = cutoffs_of(SCRATCH_ARCHITECTURE if config.start == "scratch" else config.start)
        width = len(self.features.names)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("center", "scale", "weight"), (width,))
        for name in _BUFFERS:
            self.register_buffer(name, torch.zeros(shapes.get(name, ()), dtype=torch.float64))
        self.register_buffer("columns", torch.from_numpy(tree_columns(self.features.names)), persistent=False)
        # What tells a model's device is a parameter.
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def take(self, learnt: Learnt) -> None:
        """Take over what was learnt."""
        for name in _BUFFERS:
            getattr(self, name).copy_(torch.as_tensor(getattr(learnt, name), dtype=torch.float64))
        self.forest = Forest(learnt.forest).to(self.anchor.device)

    def forward(self, batch: ShapedBatch) -> Tensor:
        """Predictions (n,) in the task's unit."""
        return self._said(self.features(batch), batch.n_atoms)

    def of_table(self, table: NDArray[np.float32], n_atoms: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the predictions (n,) of features that are known, (n, width); NaN of rows without them."""
        there, values = np.isfinite(table).any(axis=1), np.full(len(table), np.nan)
        features, atoms = torch.from_numpy(table[there]), torch.from_numpy(n_atoms[there])
        device = self.anchor.device
        with torch.inference_mode():
            values[there] = self._said(features.to(device), atoms.to(device)).cpu().numpy()
        return values

    def _said(self, table: Tensor, n_atoms: Tensor) -> Tensor:
        standard = ((table.double() - self.center) / self.scale).clamp(-LARGEST, LARGEST)
        linear = _undone(standard @ self.weight + self.bias, self.ridge_unit)
        trees = _undone(self.forest(table[:, self.columns]), self.forest_unit)
        value = (1 - self.share) * linear + self.share * trees
        value = value * n_atoms if self.per_cell else value
        return value if self.floor is None else value.clamp(min=self.floor)

    def table(self, batch: ShapedBatch) -> Tensor:
        """Return the features, (n, width)."""
        found: Tensor = self.features(batch)
        return found

    def frequencies(self, store: GraphStore, rows: NDArray[np.int64], progress: Progress) -> NDArray[np.float64] | None:
        """Return what batches of the crystals `rows` have to come with, (n, 1); None where they need nothing."""
        return gamma_frequencies(self.features.trunk, store, rows, progress) if self.features.phonons else None

    def without_training_parts(self) -> dict[str, Tensor]:
        """Return the state that predicts."""
        return self.state_dict()


def tree_columns(names: list[str]) -> NDArray[np.int64]:
    """Return the columns that trees see: not CHGNet's own numbers, nor the shares of single elements."""
    return np.array([k for k, name in enumerate(names) if not name.startswith(("block ", "share of "))], dtype=np.int64)


def _undone(values: Tensor, unit: Tensor) -> Tensor:
    return torch.where(unit > 0, torch.sinh(values.clamp(-50, 50)) * unit, values)
