"""Joint training on several tasks: their rows, heads, scales and weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainables.config import RunConfig
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel
from trainables.model.heads import EnergyHead, PropertyHead
from trainables.model.reference import fit_reference
from trainables.training.objective import TaskData
from trainables.training.predict import predict, with_graph


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Rows of another task to train the trunk on; none of them a test crystal of the target's fold."""

    task: Task
    part: Part
    store: GraphStore


def auxiliary_data(config: RunConfig, auxiliary: Sequence[Auxiliary], device: torch.device) -> list[TaskData]:
    """One data a task, standardised by its rows; perturbations are for the target alone.

    Raises:
        UserError: a task has no rows with a graph.
    """
    tasks = []
    for index, each in enumerate(auxiliary):
        part = each.part.keep(with_graph(each.store, each.part.rows, config))
        if len(part) == 0:
            raise UserError(f"{each.task.name} has no rows with a graph left for joint training: leave it out")
        scale = torch.tensor(float(part.targets.std()) or 1.0, device=device)  # of equal targets any unit serves
        store = each.store.near(device)
        tasks.append(TaskData(each.task, part, store, scale, head=f"task_{index}", weight=config.multitask.weight))
    return tasks


def add_auxiliary_heads(model: CrystalModel, config: RunConfig, tasks: Sequence[TaskData]) -> None:
    """Add a head for each task: CHGNet's read-out with its own reference for energies, a fresh one for properties."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for data in tasks:
            if data.task.is_energy:
                model.auxiliary[data.head] = _energy_head(model, data)
            else:
                head = PropertyHead(model.atom_fea_dim)
                head.set_scale(torch.from_numpy(data.part.targets))
                model.auxiliary[data.head] = head
    model.auxiliary.to(device)
    if config.multitask.weighting == "uncertainty":
        for name in ("target", *(data.head for data in tasks)):
            model.log_scale[name] = nn.Parameter(torch.zeros((), device=device))


def _energy_head(model: CrystalModel, data: TaskData) -> EnergyHead:
    """Its reference is fitted to the data's rows."""
    rows, per_cell = data.part.rows, data.task.quantity == "energy_per_cell"
    energy = data.part.targets / data.store.counts[rows, 0] if per_cell else data.part.targets
    graph_energy = predict(model, data.store, rows, output="graph_energy")
    reference = fit_reference(data.store.composition(rows), graph_energy, energy)
    weight = model.composition_model.fc.weight
    known = torch.from_numpy(reference[1 : weight.shape[1] + 1]).to(weight)
    return EnergyHead(model.mlp, known, per_cell=per_cell)
