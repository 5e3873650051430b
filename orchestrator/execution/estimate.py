"""How long runs will take: structures to process, and a measured speed."""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.execution.dependencies import schedule
from orchestrator.execution.pool import Allocation
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import ModelSpec
from trainables.graphs.store import GraphStore
from trainables.tabular.crystal_features import PASSES as TABULAR_PASSES
from trainables.training.augment import view_cost
from trainables.training.speed import measured_speed
from trainables.training.steps import auxiliary_steps

_PREDICTION = 0.3  # of the time of a prediction with its gradient
_MEASURED_ROWS = 2_000
_START_SECONDS = 4.0  # of a worker process: importing torch and CHGNet


def structures_of(context: TaskContext, run: ModelSpec) -> float:
    """Return how many structures are processed in training a model, validation counted by its time; 0 for a soup.

    Of a model of tables the passes through CHGNet count; the fit itself takes seconds, which are left out.
    """
    if run.soup_of:
        return 0.0
    split, _ = context.split(run)
    config = run.config
    if config.model.family == "tabular":
        return TABULAR_PASSES * _PREDICTION * (len(split.train) + len(split.val))
    views = 2 if config.augment.active and config.consistency.weight > 0 else 1
    epochs = config.optim.epochs
    joint = _joint_structures(context, run, len(split.train)) if config.multitask.tasks else 0.0
    return joint + epochs * (views * len(split.train) + _PREDICTION * len(split.val))


def _joint_structures(context: TaskContext, run: ModelSpec, n_train: int) -> float:
    """Return the structures of the joint training, those of other tasks by what they cost beside the target's."""
    config, total = run.config, float(n_train)
    own = float(GraphStore(context.store(config.model.start)).cost.mean())
    size = config.optim.batch_size
    for rows in context.auxiliary_rows(config):
        steps = auxiliary_steps(math.ceil(n_train / size), math.ceil(len(rows.part) / size), config.multitask)
        total += steps * size * float(GraphStore(rows.store).cost[rows.part.rows].mean()) / own
    return config.multitask.epochs * total


def cost_factor(context: TaskContext, run: ModelSpec) -> float:
    """Return what a structure of a model costs, over one of a plain run: full graphs where views break the symmetry."""
    augment = run.config.augment
    if not augment.active or augment.keeps_symmetry:
        return 1.0
    store = GraphStore(context.store(run.config.model.start, augment))
    return float(view_cost(augment, store).sum() / store.cost.sum())


def structures_per_second(context: TaskContext, run: ModelSpec, where: Allocation) -> float:
    """Measure the speed of training on some of the model's own crystals, in one process."""
    store, device = GraphStore(context.store(run.config.model.start)), torch.device(where.devices[0])
    usable = np.flatnonzero(~store.failed & (store.n_isolated == 0))
    rows = np.sort(np.random.default_rng(0).permutation(usable)[:_MEASURED_ROWS])
    before = torch.get_num_threads()
    torch.set_num_threads(where.threads)
    try:
        return measured_speed(run.config, context.dataset.task, store, rows, device)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class FleetEstimate:
    """What a plan would take on so many workers.

    Attributes:
        workers: models at the same time.
        speed: structures a second of one worker.
        seconds: until all is made.
        longest: seconds of the longest chain of models that need each other: no number of workers is faster.
        work: seconds of all models together.
    """

    workers: int
    speed: float
    seconds: float
    longest: float
    work: float

    @property
    def busy(self) -> float:
        """Return the share of the workers' time in which they train."""
        return self.work / (self.workers * self.seconds) if self.seconds else 0.0


def fleet_estimate(
    needs: Mapping[str, list[str]], seconds: Mapping[str, float], workers: int, speed: float
) -> FleetEstimate:
    """Estimate the time of models that need each other, scheduled as they will be.

    Args:
        needs: keys of the models that each needs.
        seconds: of each model.
    """
    if not seconds:
        return FleetEstimate(workers, speed, 0.0, 0.0, 0.0)
    ends = [max(end for _, end in schedule(needs, seconds, count).values()) for count in (workers, len(seconds))]
    return FleetEstimate(workers, speed, ends[0], ends[1], sum(seconds.values()))


def estimate_of(
    context: TaskContext, specs: Mapping[str, ModelSpec], workers: int, finished: Container[str], speed: float
) -> FleetEstimate:
    """Estimate the time of all models (by key) that are not finished, training alone.

    Args:
        speed: structures a second of one worker.
    """
    left = {key: spec for key, spec in specs.items() if key not in finished}
    needs = {key: [k for other in spec.needs if (k := context.key(other)) in left] for key, spec in left.items()}
    each = {key: structures_of(context, spec) * cost_factor(context, spec) / speed for key, spec in left.items()}
    return fleet_estimate(needs, each, workers, speed)


def seconds_of(
    context: TaskContext, specs: Mapping[str, ModelSpec], where: Allocation, finished: Container[str], speed: float
) -> float:
    """Estimate the time of all models (by key) that are not finished on this machine, as they will be scheduled.

    Args:
        speed: structures a second of one process.
    """
    seconds = estimate_of(context, specs, where.processes, finished, speed).seconds
    return seconds + _START_SECONDS if seconds else 0.0
