"""One optimiser step, and what comes when: the batches of an epoch, over one task or several."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.graphs.batch import cut_by_cost, training_batches
from trainables.levers import MultitaskConfig, OptimConfig
from trainables.training.objective import BatchSelection, Objective
from trainables.training.optim import set_learning_rate
from trainables.training.state import NonFiniteLoss, TrainState

_EXPONENT = {"proportional": 1.0, "sqrt": 0.5, "equal": 0.0}  # of the number of a task's rows


def epoch_batches(
    objectives: Sequence[Objective], optim: OptimConfig, mixing: MultitaskConfig, *, seed: int, epoch: int
) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the batches of an epoch: (objective, places in its part), a function of the arguments alone.

    An epoch is one pass over the first objective's rows. Steps of the others are mixed in so that the steps of a
    task go as its number of batches to the power of 1, 1/2 or 0; an auxiliary task goes on in the next epoch where
    it stopped in this one.
    """
    first = _task_batches(objectives[0], optim, seed, epoch)
    found = [(0, places) for places in first]
    for index, objective in enumerate(objectives[1:], start=1):
        n_batches = math.ceil(len(objective.data.part) / optim.batch_size)
        steps = auxiliary_steps(len(first), n_batches, mixing)
        passes: dict[int, list[NDArray[np.int64]]] = {}
        for number in range(epoch * steps, (epoch + 1) * steps):
            lap = number // n_batches
            if lap not in passes:
                passes[lap] = _task_batches(objective, optim, seed + index, lap)
            found.append((index, passes[lap][number % n_batches]))
    if len(objectives) > 1:
        order = np.random.default_rng([seed, epoch, len(found)]).permutation(len(found))
        found = [found[place] for place in order]
    return found


def auxiliary_steps(target: int, auxiliary: int, mixing: MultitaskConfig) -> int:
    """Return steps of an auxiliary task in an epoch, from the numbers of batches of both tasks."""
    return max(1, round(target * (auxiliary / target) ** _EXPONENT[mixing.mixing]))


def _task_batches(objective: Objective, optim: OptimConfig, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    data = objective.data
    return training_batches(data.store.cost[data.part.rows], optim.batch_size, seed=seed, epoch=epoch)


def take_step(run: TrainState, objective: Objective, chosen: BatchSelection, *, rate: float, ramp: float) -> float:
    """One optimiser step; returns the batch's loss.

    Gradients are summed over parts of bounded cost: memory stays bounded whatever the batch size, on a CPU the
    smaller arrays are faster, and the parts run in parallel.

    Raises:
        NonFiniteLoss: the loss became NaN or infinite; no weight has changed.
    """
    optim = run.config.optim
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]
    costs = objective.costs[chosen.places]

    def one_part(part: NDArray[np.int64]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = objective.loss(run.model, chosen.part(int(part[0]), int(part[-1]) + 1), ramp)
        return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)

    def whole_batch(cost: float) -> list[tuple[Tensor, tuple[Tensor | None, ...]]]:
        return list(run.over_parts(one_part, cut_by_cost(np.arange(len(chosen.places)), costs, cost)))

    run.optimiser.zero_grad(set_to_none=True)
    batch_value = 0.0
    for value, gradients in run.cap.fits(whole_batch):
        batch_value += float(value)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
    if not math.isfinite(batch_value):
        raise NonFiniteLoss(f"the loss became {batch_value}")
    if optim.grad_clip:
        torch.nn.utils.clip_grad_norm_(weights, optim.grad_clip)
    set_learning_rate(run.optimiser, rate)
    run.optimiser.step()
    run.anchor.pull(rate)
    run.averaged.update_parameters(run.model)
    return batch_value
