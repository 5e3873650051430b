"""The training loop: epochs in steps that can be watched, stopped and resumed."""

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import RunConfig
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.model.reference import fit_reference, set_reference
from trainables.preemption import Preempted, asked_to_stop
from trainables.progress import Bar, Progress
from trainables.training.cached import trunk_is_known, with_known_trunk
from trainables.training.checkpoint import CheckpointFolder
from trainables.training.compute import Compute, precision
from trainables.training.distill import SoftTargets
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import add_auxiliary_heads
from trainables.training.memory import GRADIENT_COST, PREDICTION_COST, BatchBudget
from trainables.training.objective import Objective, TaskData
from trainables.training.optim import Anchor, averaged_weights, freeze, learning_rate, make_optimiser
from trainables.training.parallel import parts_mapper
from trainables.training.predict import predict
from trainables.training.result import Epoch
from trainables.training.state import NonFiniteLoss, PartOfEpoch, TrainState
from trainables.training.steps import epoch_batches, take_step


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """What the joint training, the training and the refit of a state share.

    Attributes:
        validations_per_epoch: steps an epoch is cut into; after each the model is validated and a checkpoint written.
            The epoch that is kept is chosen at whole epochs only, so the trained model does not depend on it.
    """

    task: Task
    store: GraphStore
    skinned: GraphStore | None
    soft: SoftTargets | None
    frozen: FrozenEnergies | None
    device: torch.device
    compute: Compute
    progress: Progress
    validations_per_epoch: int = 1


class TrainingFailed(Exception):
    """Training cannot continue; what it left is in `state`."""

    def __init__(self, state: TrainState, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


def train(
    config: RunConfig,
    tasks: list[TaskData],
    val: Part | None,
    context: TrainingContext,
    folder: Path,
    *,
    initial_state: Mapping[str, Tensor] | None = None,
    epochs: int | None = None,
) -> Generator[tuple[TrainState, float], None, TrainState]:
    """Train for all epochs, resumed where the checkpoints in `folder` end.

    Args:
        tasks: the target's rows first, then those of auxiliary tasks.
        initial_state: what the model starts from; by default the configuration's weights.
        epochs: how many; by default the configuration's.

    Yields:
        After each step, when its checkpoint is on disk: the state, and the validation error in the task's unit (nan
        without validation rows). Of a resumed run the last one that was done comes again, so that whoever
        was interrupted while it dealt with it misses nothing.

    Raises:
        TrainingFailed: a loss, a weight or the validation error is not finite.
        Preempted: the process was asked to stop (trainables.preemption); the checkpoint holds the step it was in.
    """
    epochs = epochs or config.optim.epochs
    state, objectives = _prepare(config, tasks, val, context, initial_state, epochs)
    progress = context.progress
    checkpoints = CheckpointFolder(_checkpoint_folder(folder, context.validations_per_epoch), progress)
    restored = checkpoints.latest()
    if restored is not None:
        state.restore(restored, context.device)
    if state.model.compiled and not state.ended:
        progress.message("compiling the model first: a minute or two on a CPU, less when it was done before")
    rows = _rows_of_epochs(config, objectives, epochs)
    with (
        precision(context.compute),
        parts_mapper(context.device) as state.over_parts,
        progress.stage("train" if len(tasks) == 1 else "train jointly", sum(rows), "structures") as bar,
    ):
        bar.advance(sum(rows[: len(state.history)]) + state.part.rows, _note(state, context.task))
        if restored is not None and (state.history or state.part.share):
            yield state, state.part.val_mae if state.part.share else state.history[-1].val_mae
        while not state.ended:
            try:
                val_mae = _one_share(state, objectives, val, context, bar)
            except NonFiniteLoss as error:
                kept = "; the last good epoch is kept" if state.history else ""
                reason = f"{error} in epoch {len(state.history) + 1}{kept}"
                raise TrainingFailed(state, reason) from None
            except Preempted:
                checkpoints.save(
                    len(state.history) * context.validations_per_epoch + state.part.share, state.checkpoint()
                )
                raise
            done = len(state.history) * context.validations_per_epoch + state.part.share
            checkpoints.save(done - 1, state.checkpoint())
            bar.advance(0, _note(state, context.task))
            yield state, val_mae
            if asked_to_stop() and not state.ended:
                raise Preempted
    return state


def _checkpoint_folder(folder: Path, per_epoch: int) -> Path:
    """Checkpoints are counted in steps, so those of other steps lie elsewhere."""
    return folder / ("checkpoints" if per_epoch == 1 else f"checkpoints-{per_epoch}-an-epoch")


def _prepare(
    config: RunConfig,
    tasks: list[TaskData],
    val: Part | None,
    context: TrainingContext,
    initial_state: Mapping[str, Tensor] | None,
    epochs: int,
) -> tuple[TrainState, list[Objective]]:
    """Return the model with its reference or scale fitted on the training part, its optimiser, and its losses."""
    task, device, target = context.task, context.device, tasks[0]
    model = configured_model(config.model, task, config.seed).to(device)
    if initial_state is not None:
        model.load_state_dict(dict(initial_state))
    elif task.is_energy:
        set_reference(model, training_reference(model, target.store, target.part, task))
    if model.head is not None:
        model.head.set_scale(torch.from_numpy(_per_unit(task, target)))
        scale = torch.tensor(float(target.part.targets.std()) or 1.0, device=device) if task.is_sum else model.head.std
        target = replace(target, scale=scale.clone())
        if target.store.readouts is not None:
            readouts = target.store.readouts[torch.from_numpy(target.part.rows).to(target.store.device)]
            model.head.fit_readouts(readouts.to(device), torch.from_numpy(_per_unit(task, target)).to(device))
    if len(tasks) > 1:
        target = replace(target, scale=torch.tensor(_spread(model, target.part.targets) or 1.0, device=device))
        add_auxiliary_heads(model, config, tasks[1:])
    if config.distil.features > 0 and target.soft is not None and target.soft.features is not None:
        model.match = torch.nn.Linear(model.atom_fea_dim, target.soft.features.shape[1]).to(device)
        torch.nn.init.eye_(model.match.weight)
        torch.nn.init.zeros_(model.match.bias)
    freeze(model, config.model.freeze)
    known = len(tasks) == 1 and trunk_is_known(config)
    if known:
        rows = target.part.rows if val is None else np.concatenate([target.part.rows, val.rows])
        target = replace(target, store=with_known_trunk(model, target.store, rows, context.progress))
    tasks = [target, *tasks[1:]]
    objectives = [Objective(config, data, device) for data in tasks]
    n_steps = epochs * len(_batches(config, objectives, 0))  # as many in every epoch
    averaged = averaged_weights(model, config.optim, n_steps)
    work = 0.0 if known else epochs * sum(float(each.costs.sum()) for each in objectives)
    model.compiled = context.compute.compiles(work)
    caps = [BatchBudget(cost[device.type], context.progress) for cost in (GRADIENT_COST, PREDICTION_COST)]
    optimiser, anchor = make_optimiser(model, config.optim), Anchor(model, config.optim)
    return TrainState(config, epochs, model, averaged, optimiser, caps[0], caps[1], anchor), objectives


def _spread(model: CrystalModel, targets: NDArray[np.float64]) -> float:
    """Return the standard deviation of targets as the model learns them."""
    transform = None if model.head is None else model.head.transform
    if transform is None:
        return float(targets.std())
    return float(transform(torch.from_numpy(targets).to(transform.unit.device)).std(correction=0))


def _per_unit(task: Task, target: TaskData) -> NDArray[np.float64]:
    """Return the targets that a head standardises by, (n,): per atom where the cell has the value."""
    return target.part.targets / target.store.counts[target.part.rows, 0] if task.is_sum else target.part.targets


def training_reference(model: CrystalModel, store: GraphStore, train: Part, task: Task) -> NDArray[np.float64]:
    """Per-element reference (119,) eV of an untouched model, fitted on these rows."""
    n_atoms = store.counts[train.rows, 0]
    energy = train.targets / n_atoms if task.quantity == "energy_per_cell" else train.targets
    graph_energy = predict(model, store, train.rows, output="graph_energy")
    return fit_reference(store.composition(train.rows), graph_energy, energy)


def _batches(config: RunConfig, objectives: Sequence[Objective], epoch: int) -> list[tuple[int, NDArray[np.int64]]]:
    return epoch_batches(objectives, config.optim, config.multitask, seed=config.seed, epoch=epoch)


def _rows_of_epochs(config: RunConfig, objectives: Sequence[Objective], epochs: int) -> list[int]:
    """Return the rows of all tasks in each epoch; in joint training their number differs from epoch to epoch."""
    if len(objectives) == 1:
        return [len(objectives[0].data.part)] * epochs
    return [sum(len(places) for _, places in _batches(config, objectives, epoch)) for epoch in range(epochs)]


def _one_share(
    state: TrainState, objectives: list[Objective], val: Part | None, context: TrainingContext, bar: Bar
) -> float:
    """Train on the epoch's next share of batches and validate; returns the validation error."""
    start, config, number, part = time.perf_counter(), state.config, len(state.history), state.part
    batches = _batches(config, objectives, number)
    first, last = (round(len(batches) * (part.share + k) / context.validations_per_epoch) for k in (0, 1))
    state.model.train()
    for step in range(first + part.step, last):
        index, places = batches[step]
        objective = objectives[index]
        done = (number + (step + 0.5) / len(batches)) / state.epochs
        part.learning_rate = learning_rate(config.optim, done)
        ramp = min(1.0, done / config.consistency.ramp) if config.consistency.ramp else 1.0
        chosen = objective.choose(places, np.random.default_rng([config.seed, number, step, _DRAWS]))
        part.loss_sum += take_step(state, objective, chosen, rate=part.learning_rate, ramp=ramp)
        part.rows, part.structures = part.rows + len(places), part.structures + len(places) * objective.views_per_row
        bar.advance(len(places))
        if asked_to_stop() and step + 1 < last:
            part.step, part.seconds = step + 1 - first, part.seconds + time.perf_counter() - start
            raise Preempted
    part.step = 0
    if not all(bool(weight.isfinite().all()) for weight in state.kept.parameters()):
        raise NonFiniteLoss("a weight became nan or infinite")
    part.share += 1
    part.val_mae = math.nan if val is None else _validate(state, val, objectives[0].data.store)
    part.seconds += time.perf_counter() - start
    if part.share == context.validations_per_epoch:
        _end_epoch(state, part)
    return part.val_mae


def _end_epoch(state: TrainState, part: PartOfEpoch) -> None:
    """Put a whole epoch into the history, and keep its weights where they are the best."""
    number = len(state.history)
    state.keep_best(number, part.val_mae)
    train_loss = part.loss_sum * state.config.optim.batch_size / part.rows
    state.history.append(Epoch(number, train_loss, part.val_mae, part.learning_rate, part.seconds, part.structures))
    state.part = PartOfEpoch()


_DRAWS = 0xA46  # keeps the generator of draws apart from that of batches


def _validate(state: TrainState, val: Part, store: GraphStore) -> float:
    """Mean absolute error of the averaged weights, in the task's unit."""
    error = float(np.abs(predict(state.kept, store, val.rows, cap=state.validation_cap) - val.targets).mean())
    if not math.isfinite(error):
        raise NonFiniteLoss(f"the validation error became {error}")
    return error


def _note(state: TrainState, task: Task) -> str:
    if not state.history:
        return ""
    last = state.history[-1]
    best = "" if math.isnan(last.val_mae) else f"val MAE {last.val_mae:.4g} (best {state.best_val_mae:.4g}) "
    return f"epoch {last.epoch + 1}/{state.epochs} {best}{task.unit}"
