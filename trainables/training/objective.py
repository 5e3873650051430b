"""The loss of some crystals of one task: labels, perturbed views, consistency of views, teachers."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import RunConfig
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.graphs.batch import Batch, collate
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel
from trainables.model.heads import Outputs, mean_pool
from trainables.training.augment import Perturbation, draw, gathered, has_moved, moved, view_cost
from trainables.training.distill import SoftTargets
from trainables.training.frozen import FrozenEnergies
from trainables.training.losses import distance, supervised


@dataclass(frozen=True, eq=False)
class TaskData:
    """The rows of one task that a course of training draws batches from, and what their loss needs.

    Attributes:
        head: name of the auxiliary head; empty for the model's own.
        scale: the loss's unit: 1 eV for an energy trained alone, else the training targets' standard deviation.
        weight: of the data's loss.
        skinned: the same crystals with a skin, where views are perturbed.
        soft: teachers' labels, aligned with `part`.
    """

    task: Task
    part: Part
    store: GraphStore
    scale: Tensor
    head: str = ""
    weight: float = 1.0
    skinned: GraphStore | None = None
    soft: SoftTargets | None = None
    frozen: FrozenEnergies | None = None


@dataclass(frozen=True, eq=False)
class BatchSelection:
    """The crystals of one batch, or of a part of one: places in the data's part, and what was drawn for them."""

    places: NDArray[np.int64]
    change: Perturbation | None

    def part(self, begin: int, end: int) -> "BatchSelection":
        """Return the rows from begin to end."""
        change = None if self.change is None else self.change.part(begin, end)
        return BatchSelection(self.places[begin:end], change)


class Objective:
    """The loss that a configuration asks for, of the crystals of a data.

    Attributes:
        costs: (rows,) of the part: what a crystal costs at once, in units of GraphStore.cost.
    """

    def __init__(self, config: RunConfig, data: TaskData, device: torch.device) -> None:
        self._config, self.data, self._device = config, data, device
        self._perturbs = config.augment.active and data.skinned is not None
        self._consistent = self._perturbs and config.consistency.weight > 0
        self._target, self.costs = torch.from_numpy(data.part.targets), self._costs()
        if data.soft is not None:
            self._soft = torch.from_numpy(data.soft.mean)
            self._row_weight = torch.from_numpy(data.soft.row_weights(config.distil))
            self._features = None if data.soft.features is None else torch.from_numpy(data.soft.features)

    @property
    def views_per_row(self) -> int:
        """Structures whose energy and gradient a row costs."""
        return 2 if self._consistent else 1

    def _costs(self) -> NDArray[np.float64]:
        rows, data = self.data.part.rows, self.data
        clean = data.store.cost[rows]
        if not self._perturbs or data.skinned is None:
            return clean
        views = view_cost(self._config.augment, data.skinned)[rows]
        return views + clean if self._consistent else views

    def choose(self, places: NDArray[np.int64], rng: np.random.Generator) -> BatchSelection:
        """Draw the perturbations of a whole batch: they depend on nothing but the generator and the batch."""
        if not self._perturbs:
            return BatchSelection(places, None)
        n_atoms = self.data.store.counts[self.data.part.rows[places], 0]
        augment = self._config.augment
        return BatchSelection(places, draw(augment, n_atoms, rng, probability=augment.probability))

    def loss(self, model: CrystalModel, chosen: BatchSelection, ramp: float) -> Tensor:
        """Return summed over the crystals, divided by the nominal batch size.

        Batches are equal in cost, not in number; dividing by a constant gives every crystal the same weight in an
        epoch, where a mean would favour the large crystals that share a batch with few others.

        Args:
            ramp: 0 to 1, what the consistency weight is multiplied by.
        """
        config, data, rows = self._config, self.data, self.data.part.rows[chosen.places]
        if chosen.change is None or data.skinned is None:
            clean = self._forward(model, collate(data.store, rows).to(self._device))
            per_row = self._supervised(model, clean, chosen.places)
        else:
            store = data.skinned
            still = gathered(config.augment, store, rows)
            view = moved(config.augment, store, rows, still, chosen.change)
            batch = view.batch(trim=replace(store.cutoffs, skin=0.0)).to(self._device)
            gain = None if data.frozen is None else data.frozen.difference(batch, rows)
            perturbed = self._forward(model, batch)
            if self._consistent:
                clean = self._forward(model, collate(data.store, rows).to(self._device))
                share = ramp * has_moved(still, view).to(self._device)
                per_row = self._both(model, clean, perturbed, chosen.places, gain, share)
            else:
                per_row = self._supervised(model, perturbed, chosen.places, gain)
        total = data.weight * per_row.sum() / config.optim.batch_size
        return _uncertain(model, data.head or "target", total, len(rows) / config.optim.batch_size)

    def _forward(self, model: CrystalModel, batch: Batch) -> tuple[Tensor, Outputs]:
        """Pooled features (n, D), where they are matched, and outputs."""
        features = model.features(batch)
        pooled = mean_pool(features, batch) if model.match is not None else features[:0]
        return pooled, model.outputs(features, batch, self.data.head)

    def _supervised(
        self,
        model: CrystalModel,
        found: tuple[Tensor, Outputs],
        places: NDArray[np.int64],
        gain: Tensor | None = None,
    ) -> Tensor:
        """(n,) distance to labels and teachers; `gain` is what the perturbation adds to both."""
        (pooled, outputs), config, data = found, self._config, self.data
        add: Tensor | float = 0.0 if gain is None else gain
        hard = supervised(config.loss, outputs, self._at(self._target, places, outputs) + add, data.scale)
        if data.soft is None:
            return hard
        expected, share = outputs.expected_as_learnt(), config.distil.weight
        taught = outputs.as_learnt(self._at(self._soft, places, outputs)) + add
        soft = distance(config.loss, expected, taught, data.scale)
        mixed = self._at(self._row_weight, places, outputs) * ((1 - share) * hard + share * soft)
        if model.match is not None and self._features is not None:
            wanted = self._at(self._features, places, outputs)
            mixed = mixed + config.distil.features * (model.match(pooled) - wanted).square().mean(dim=1)
        return mixed

    def _both(
        self,
        model: CrystalModel,
        clean: tuple[Tensor, Outputs],
        perturbed: tuple[Tensor, Outputs],
        places: NDArray[np.int64],
        gain: Tensor | None,
        share: Tensor,
    ) -> Tensor:
        """(n,) supervised loss of one view or of both, and the distance between them.

        Args:
            share: (n,) of the consistency weight. 0 for crystals that did not move: both predictions differ by rounding
                there, whose sign would decide the gradient of an absolute difference.
        """
        config = self._config.consistency
        per_row = self._supervised(model, clean, places)
        if config.supervised:
            per_row = 0.5 * (per_row + self._supervised(model, perturbed, places, gain))
        target = clean[1].expected_as_learnt() + (0.0 if gain is None else gain)
        if config.target == "stop_gradient":
            target = target.detach()
        apart = distance(self._config.loss, perturbed[1].expected_as_learnt(), target, self.data.scale)
        return per_row + share * config.weight * apart

    def _at(self, values: Tensor, places: NDArray[np.int64], outputs: Outputs) -> Tensor:
        return values[torch.from_numpy(places)].to(outputs.value)


def _uncertain(model: CrystalModel, name: str, loss: Tensor, share: float) -> Tensor:
    """Return a loss under a learnt scale b: loss / b + log b, the negative log-likelihood of Laplace noise.

    After Kendall, Gal and Cipolla (CVPR 2018), for absolute instead of squared errors.

    Args:
        share: of the nominal batch that the loss is of.
    """
    if name not in model.log_scale:
        return loss
    log_scale = model.log_scale[name]
    return loss * torch.exp(-log_scale) + share * log_scale
