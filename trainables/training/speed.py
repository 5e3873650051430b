"""How fast a configuration trains here: measured on some steps of it, without its levers."""

import itertools
import time

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.config import RunConfig
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import configured_model
from trainables.progress import silent
from trainables.training.memory import GRADIENT_COST, PREDICTION_COST, BatchBudget
from trainables.training.objective import Objective, TaskData
from trainables.training.optim import Anchor, averaged_weights, make_optimiser
from trainables.training.parallel import parts_mapper
from trainables.training.state import TrainState
from trainables.training.steps import epoch_batches, take_step

_WARM = 2  # steps, of which the first fill caches
_SECONDS = 2.0
_LEVERS = ("augment", "consistency", "tta", "ensemble", "distil", "multitask")


def measured_speed(
    config: RunConfig, task: Task, store: GraphStore, rows: NDArray[np.int64], device: torch.device
) -> float:
    """Take steps for two seconds, and return the structures a second.

    Args:
        rows: crystals to train on, usable ones; their targets are not looked at.
    """
    plain = config.changed({section: {} for section in _LEVERS} | {"model.physics": False})
    model, store = configured_model(plain.model, task).to(device), store.near(device)
    part = Part(("",) * len(rows), rows, np.zeros(len(rows)))
    objective = Objective(plain, TaskData(task, part, store, torch.ones((), device=device)), device)
    batches = epoch_batches([objective], plain.optim, plain.multitask, seed=0, epoch=0)
    averaged = averaged_weights(model, plain.optim, len(batches))
    caps = [BatchBudget(cost[device.type], silent) for cost in (GRADIENT_COST, PREDICTION_COST)]
    optimiser, anchor = make_optimiser(model, plain.optim), Anchor(model, plain.optim)
    state = TrainState(plain, 1, model, averaged, optimiser, caps[0], caps[1], anchor)
    model.train()
    begin, done, warm = 0.0, 0, min(_WARM, len(batches) - 1)
    with parts_mapper(device) as state.over_parts:
        for step, (_, places) in enumerate(itertools.cycle(batches)):
            if step == warm:
                begin = _now(device)
            chosen = objective.choose(places, np.random.default_rng(step))
            take_step(state, objective, chosen, rate=0.0, ramp=0.0)
            done += len(places) if step >= warm else 0
            if step >= warm and _now(device) - begin > _SECONDS:
                break
    return done / max(_now(device) - begin, 1e-9)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
