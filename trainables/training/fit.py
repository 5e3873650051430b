"""One training run: from a split without test rows to the best checkpoint."""

import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainables.config import RunConfig, validate_for_task
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import write_json
from trainables.model.chgnet import configured_model
from trainables.progress import Progress, silent
from trainables.tabular.fit import fit_tabular
from trainables.training.checkpoint import write_checkpoint
from trainables.training.compute import Compute, require_exact_tf32
from trainables.training.data import TrainingData
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import auxiliary_data
from trainables.training.loop import TrainingContext, TrainingFailed, train
from trainables.training.objective import TaskData
from trainables.training.predict import save_model, with_readouts
from trainables.training.result import Epoch, FitResult, StepResult
from trainables.training.state import TrainState

Result = TypeVar("Result")


def fit(
    config: RunConfig,
    data: TrainingData,
    folder: Path,
    *,
    compute: Compute | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Train on the training part of `data`, choose the epoch on its validation part, keep everything under `folder`.

    A folder that holds checkpoints of this run is resumed after the last whole epoch; on the CPU its losses equal
    those of an uninterrupted run, whatever the number of threads (torch.get_num_threads() are used). Whoever shares
    folders between configurations compares RunConfig.fingerprint() first, as orchestrator.train does.

    Raises:
        ValueError: what a lever needs is not there.
        UserError: no usable training rows, in-sample teachers, a lever that the task cannot have, or a folder that
            cannot be written.
    """
    return _last(fit_steps(config, data, folder, compute=compute, progress=progress))


def fit_steps(
    config: RunConfig,
    data: TrainingData,
    folder: Path,
    *,
    compute: Compute | None = None,
    progress: Progress = silent,
    validations_per_epoch: int = 1,
) -> Generator[StepResult, None, FitResult]:
    """`fit` in steps, for a search that decides after each whether it continues; closing it ends the training.

    Result and errors are those of `fit`.

    Args:
        validations_per_epoch: steps an epoch. They change when the model is validated and saved, not what is trained.

    Yields:
        After each step, when its checkpoint is on disk; of a resumed run the last one that was done comes again.
    """
    data.require_for(config)
    if validations_per_epoch < 1:
        raise ValueError(f"validations_per_epoch must be at least 1 (got {validations_per_epoch})")
    compute = compute or Compute()
    compute.check()
    if config.model.family == "tabular":
        validate_for_task(config, data.task)
        return (yield from fit_tabular(config, data, folder, compute, progress))
    rows, val = data.usable_parts(config)
    left_out = len(data.split.train) + len(data.split.val) - len(rows) - len(val)
    trained = Part.join(rows, val) if config.data.refit else rows
    context = _context(config, data, trained, compute, progress, validations_per_epoch)
    _require_targets(config, trained, context)
    if compute.tf32:
        start = configured_model(config.model, data.task, config.seed)
        require_exact_tf32(start.to(context.device), context.store, rows.rows)
    result = FitResult("finished", None, -1, math.inf, [], len(rows), len(val), left_out)
    try:
        initial_state = None
        if data.auxiliary:
            initial_state = yield from _jointly(result, config, rows, val, data, context, folder)
        training = train(config, [_target(config, rows, context)], val, context, folder, initial_state=initial_state)
        state = yield from _as_steps(training, result.before, validations_per_epoch)
    except TrainingFailed as failure:
        state, result.status, result.reason = failure.state, "failed", failure.reason
    result.compiled, result.halved_batches = state.model.compiled, _halved(state)
    _keep(result, state, data.task, folder / "model")
    if config.data.refit and result.status == "finished":
        try:
            _refit(result, config, trained, initial_state, context, folder)
        except TrainingFailed as failure:  # the model chosen by validation stays
            result.status, result.reason = "failed", f"refit: {failure.reason}"
    write_json(folder / "fit.json", result.summary())
    return result


def _context(
    config: RunConfig,
    data: TrainingData,
    trained: Part,
    compute: Compute,
    progress: Progress,
    validations_per_epoch: int,
) -> TrainingContext:
    device, frozen, skinned = compute.torch_device, None, data.skinned
    validate_for_task(config, data.task)
    store = with_readouts(config.model if config.model.physics else None, data.store, device, progress)
    if skinned is not None and store.readouts is not None:
        skinned = skinned.with_readouts(store.readouts)
    store = store.near(device)
    if data.soft_targets is not None:
        data.soft_targets.check(config.distil, trained.ids)
    if config.augment.active and config.augment.labels == "corrected":
        frozen = FrozenEnergies(config.model.start, data.task, device)
        frozen.know(store, trained.rows, progress)
    near_skinned = None if skinned is None or not config.augment.active else skinned.near(device)
    return TrainingContext(
        data.task, store, near_skinned, data.soft_targets, frozen, device, compute, progress, validations_per_epoch
    )


def _require_targets(config: RunConfig, rows: Part, context: TrainingContext) -> None:
    """Refuse targets that the head cannot learn."""
    model, name = config.model, context.task.name
    if model.head == "hurdle" and rows.targets.min() < 0:
        raise UserError(f"model.head=hurdle is for targets of zero or more; {name} has {rows.targets.min():.4g}")
    if model.transform != "log":
        return
    learnt = rows.targets[rows.targets > 0] if model.head == "hurdle" else rows.targets
    soft = None if context.soft is None else context.soft.aligned(rows.ids).mean
    for values, whose in ((learnt, name), (soft, "a teacher")):
        if values is not None and len(values) and values.min() <= 0:
            raise UserError(
                f"model.transform=log is for targets above zero; {whose} has {values.min():.4g}: use "
                "model.transform=asinh, or model.head=hurdle where many are exactly zero"
            )


def _target(config: RunConfig, rows: Part, context: TrainingContext) -> TaskData:
    """Return the target's rows with everything its loss needs; its scale is set with the model's."""
    soft = context.soft.aligned(rows.ids) if context.soft is not None and config.distil.weight > 0 else None
    one = torch.ones((), device=context.device)
    return TaskData(context.task, rows, context.store, one, skinned=context.skinned, soft=soft, frozen=context.frozen)


def _as_steps(
    training: Generator[tuple[TrainState, float], None, TrainState],
    before: Sequence[Epoch],
    validations_per_epoch: int,
    *,
    chooses: bool = True,
) -> Generator[StepResult, None, TrainState]:
    """Yield a training as steps that count on from the epochs of the one before.

    Args:
        chooses: the best epoch of this training is what is kept.
    """
    while True:
        try:
            state, current = next(training)
        except StopIteration as end:
            return end.value
        done, part = [*before, *state.history], state.part
        best = state.best_val_mae if chooses else math.inf
        last_loss = state.history[-1].train_loss if state.history else math.nan
        yield StepResult(
            step=len(done) * validations_per_epoch + part.share,
            epoch=len(done) + part.share / validations_per_epoch,
            mae=min(best, current) if part.share or not chooses else best,
            current=current,
            train_loss=part.loss_sum * state.config.optim.batch_size / part.rows if part.share else last_loss,
            structures=part.structures + sum(epoch.structures for epoch in done),
            seconds=part.seconds + sum(epoch.seconds for epoch in done),
        )


def _halved(state: TrainState) -> bool:
    """Return whether memory ran out once: on a GPU the last digits depend on it."""
    return state.cap.halved or state.validation_cap.halved


def _last(steps: Generator[Any, None, Result]) -> Result:
    """Run steps to their end and return what they end with."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def _jointly(
    result: FitResult,
    config: RunConfig,
    rows: Part,
    val: Part,
    data: TrainingData,
    context: TrainingContext,
    folder: Path,
) -> Generator[StepResult, None, dict[str, Tensor]]:
    """Train one trunk on all tasks; returns the state that the target's own training starts from."""
    tasks = [_target(config, rows, context), *auxiliary_data(config, data.auxiliary, context.device)]
    whole = config.changed({"optim.patience": 0})  # it is the target's own training that chooses an epoch
    training = train(whole, tasks, val, context, folder / "joint", epochs=config.multitask.epochs)
    state = yield from _as_steps(training, [], context.validations_per_epoch, chooses=False)
    result.before = state.history
    return state.kept.without_training_parts()


def _refit(
    result: FitResult,
    config: RunConfig,
    rows: Part,
    initial_state: Mapping[str, Tensor] | None,
    context: TrainingContext,
    folder: Path,
) -> None:
    """Train anew on train + validation, for as many epochs as validation chose."""
    epochs = result.best_epoch + 1
    target = _target(config, rows, context)
    state = _last(train(config, [target], None, context, folder / "refit", initial_state=initial_state, epochs=epochs))
    write_checkpoint(folder / "model", save_model(state.kept, config, context.task, {"refit_epochs": epochs}))
    result.refit_epochs, result.halved_batches = epochs, result.halved_batches or _halved(state)
    result.history += state.history


def _keep(result: FitResult, state: TrainState, task: Task, path: Path) -> None:
    """Put the best epoch into the result and on disk."""
    result.history = state.history
    result.best_epoch, result.best_val_mae = state.best_epoch, state.best_val_mae
    if not state.best:
        return
    state.kept.load_state_dict(state.best)
    about: dict[str, Any] = {"best_epoch": state.best_epoch, "best_val_mae": state.best_val_mae}
    write_checkpoint(path, save_model(state.kept, state.config, task, about))
    result.model = path
