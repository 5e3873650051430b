"""One training run: from a split without test rows to the best checkpoint."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainables.config import RunConfig, refuse_for_task
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import write_json
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import configured_model
from trainables.progress import Progress, silent
from trainables.training.checkpoint import write_checkpoint
from trainables.training.compute import Compute, refuse_inexact_tf32
from trainables.training.course import Course, CourseFailed, train
from trainables.training.distill import SoftTargets
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import Auxiliary, auxiliary_streams
from trainables.training.objective import Stream
from trainables.training.predict import save_model, with_graph
from trainables.training.result import Epoch, FitResult, StepResult
from trainables.training.run import Run

Result = TypeVar("Result")


def fit(
    config: RunConfig,
    split: FoldSplit,
    store: GraphStore,
    task: Task,
    folder: Path,
    *,
    skinned: GraphStore | None = None,
    soft: SoftTargets | None = None,
    auxiliary: Sequence[Auxiliary] = (),
    compute: Compute | None = None,
    progress: Progress = silent,
    stop_early: Callable[[Epoch], bool] | None = None,
) -> FitResult:
    """Train on split.train, choose the epoch on split.val, keep everything under `folder`.

    A folder that holds checkpoints of this run is resumed after the last whole epoch; on the CPU its losses equal
    those of an uninterrupted run, whatever the number of threads (torch.get_num_threads() are used). Whoever shares
    folders between configurations compares RunConfig.fingerprint() first, as orchestrator.train does.

    Args:
        split: without test rows (FoldSplit.without_test()).
        skinned: the same crystals with the skin of augment.skin_for(config), where config.augment is active.
        soft: teachers' labels of every training row (for a refit of validation rows too), where config.distil.weight
            > 0.
        auxiliary: the tasks of config.multitask, without rows that are test crystals.
        stop_early: asked after every epoch; True ends the run with the best epoch so far.

    Raises:
        ValueError: the split holds test rows, or what a lever needs is not there.
        UserError: no usable training rows, in-sample teachers, a lever that the task cannot have, or a folder that
            cannot be written.
    """
    steps = fit_steps(
        config,
        split,
        store,
        task,
        folder,
        skinned=skinned,
        soft=soft,
        auxiliary=auxiliary,
        compute=compute,
        progress=progress,
        stop_early=stop_early,
    )
    return _last(steps)


def fit_steps(
    config: RunConfig,
    split: FoldSplit,
    store: GraphStore,
    task: Task,
    folder: Path,
    *,
    skinned: GraphStore | None = None,
    soft: SoftTargets | None = None,
    auxiliary: Sequence[Auxiliary] = (),
    compute: Compute | None = None,
    progress: Progress = silent,
    stop_early: Callable[[Epoch], bool] | None = None,
    shares: int = 1,
) -> Generator[StepResult, None, FitResult]:
    """`fit` in steps, for a search that decides after each whether it goes on; closing it ends the training.

    Args, result and errors are those of `fit`.

    Args:
        shares: steps an epoch. They change when the model is validated and saved, not what is trained.

    Yields:
        After each step, when its checkpoint is on disk; of a resumed run the last one that was done comes again.
    """
    _check_arguments(config, split, skinned, soft, auxiliary)
    if shares < 1:
        raise ValueError(f"{shares} steps an epoch: 1 or more were wanted")
    compute = compute or Compute()
    compute.check()
    rows, val = _usable(config, split, store, skinned, task)
    left_out = len(split.train) + len(split.val) - len(rows) - len(val)
    trained = Part.join(rows, val) if config.data.refit else rows
    course = _course(config, store, skinned, soft, task, trained, compute, progress, shares)
    if config.model.head == "hurdle" and rows.targets.min() < 0:
        raise UserError(f"model.head=hurdle is for targets of zero or more; {task.name} has {rows.targets.min():.4g}")
    if compute.tf32:
        start = configured_model(config.model, task, config.seed)
        refuse_inexact_tf32(start.to(course.device), course.store, rows.rows)
    result = FitResult("finished", None, -1, math.inf, [], len(rows), len(val), left_out)
    try:
        begin = None
        if auxiliary:
            begin = yield from _jointly(result, config, rows, val, auxiliary, course, folder)
        training = train(
            config, [_stream(config, rows, course)], val, course, folder, begin=begin, stop_early=stop_early
        )
        run = yield from _as_steps(training, result.before, shares)
    except CourseFailed as failure:
        run, result.status, result.reason = failure.run, "failed", failure.reason
    result.compiled = run.model.compiled
    _keep(result, run, task, folder / "model")
    if config.data.refit and result.status == "finished":
        try:
            _refit(result, config, Part.join(rows, val), begin, course, folder)
        except CourseFailed as failure:  # the model chosen by validation stays
            result.status, result.reason = "failed", f"refit: {failure.reason}"
    write_json(folder / "fit.json", result.summary())
    return result


def _check_arguments(
    config: RunConfig,
    split: FoldSplit,
    skinned: GraphStore | None,
    soft: SoftTargets | None,
    auxiliary: Sequence[Auxiliary],
) -> None:
    if split.test is not None:
        raise ValueError("fit takes a split without its test rows: split.without_test()")
    if config.augment.active and skinned is None:
        raise ValueError("augmentation wants the crystals with a skin: skinned=, built with augment.skin_for(config)")
    if config.distil.weight > 0 and soft is None:
        raise ValueError("distillation wants the teachers' labels: soft=")
    if config.distil.weight > 0 and config.distil.features > 0 and soft is not None and soft.features is None:
        raise ValueError("distil.features > 0 wants soft targets with the teachers' features")
    if [each.task.name for each in auxiliary] != list(config.multitask.tasks):
        raise ValueError(f"config.multitask.tasks are {config.multitask.tasks}: auxiliary= wants the same, in order")


def _usable(
    config: RunConfig, split: FoldSplit, store: GraphStore, skinned: GraphStore | None, task: Task
) -> tuple[Part, Part]:
    """Training and validation rows with a graph, and with one to perturb where that is wanted."""
    usable = with_graph(store, np.arange(len(store)), config)
    if skinned is not None and config.augment.active:
        usable &= ~skinned.failed
    parts = [part.keep(usable[part.rows]) for part in (split.train, split.val)]
    for role, part in zip(("training", "validation"), parts, strict=True):
        if len(part) == 0:
            raise UserError(
                f"fold {split.fold} of {task.name} has no {role} rows with a graph; give more rows, or set "
                "data.isolated_atoms=keep if their atoms are merely far apart"
            )
    return parts[0], parts[1]


def _course(
    config: RunConfig,
    store: GraphStore,
    skinned: GraphStore | None,
    soft: SoftTargets | None,
    task: Task,
    trained: Part,
    compute: Compute,
    progress: Progress,
    shares: int,
) -> Course:
    device, frozen = compute.torch_device, None
    refuse_for_task(config, task)
    store = store.near(device)
    if soft is not None:
        soft.check(config.distil, trained.ids)
    if config.augment.active and config.augment.labels == "corrected":
        frozen = FrozenEnergies(config.model.start, task, device)
        frozen.know(store, trained.rows, progress)
    near_skinned = None if skinned is None or not config.augment.active else skinned.near(device)
    return Course(task, store, near_skinned, soft, frozen, device, compute, progress, shares)


def _stream(config: RunConfig, rows: Part, course: Course) -> Stream:
    """The target's rows, with everything its loss needs; its scale is set with the model's."""
    soft = course.soft.aligned(rows.ids) if course.soft is not None and config.distil.weight > 0 else None
    one = torch.ones((), device=course.device)
    return Stream(course.task, rows, course.store, one, skinned=course.skinned, soft=soft, frozen=course.frozen)


def _as_steps(
    training: Generator[tuple[Run, float], None, Run], before: Sequence[Epoch], shares: int, *, chooses: bool = True
) -> Generator[StepResult, None, Run]:
    """A course as steps that count on from the epochs of the one before.

    Args:
        chooses: the best epoch of this course is what is kept.
    """
    while True:
        try:
            run, current = next(training)
        except StopIteration as end:
            return end.value
        done, part = [*before, *run.history], run.part
        best = run.best_val_mae if chooses else math.inf
        last_loss = run.history[-1].train_loss if run.history else math.nan
        yield StepResult(
            step=len(done) * shares + part.share,
            epoch=len(done) + part.share / shares,
            mae=min(best, current) if part.share or not chooses else best,
            current=current,
            train_loss=part.loss_sum * run.config.optim.batch_size / part.rows if part.share else last_loss,
            structures=part.structures + sum(epoch.structures for epoch in done),
            seconds=part.seconds + sum(epoch.seconds for epoch in done),
        )


def _last(steps: Generator[Any, None, Result]) -> Result:
    """What steps end with."""
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
    auxiliary: Sequence[Auxiliary],
    course: Course,
    folder: Path,
) -> Generator[StepResult, None, dict[str, Tensor]]:
    """Train one trunk on all tasks; returns the state the target's own training begins with."""
    shorter = config.changed({"optim.epochs": config.multitask.epochs})
    streams = [_stream(config, rows, course), *auxiliary_streams(config, auxiliary, course.device)]
    run = yield from _as_steps(train(shorter, streams, val, course, folder / "joint"), [], course.shares, chooses=False)
    result.before = run.history
    return run.kept.without_training_parts()


def _refit(
    result: FitResult,
    config: RunConfig,
    rows: Part,
    begin: Mapping[str, Tensor] | None,
    course: Course,
    folder: Path,
) -> None:
    """Train anew on train + validation, for as many epochs as validation chose."""
    epochs = result.best_epoch + 1
    shorter = config.changed({"optim.epochs": epochs})
    run = _last(train(shorter, [_stream(config, rows, course)], None, course, folder / "refit", begin=begin))
    write_checkpoint(folder / "model", save_model(run.kept, config, course.task, {"refit_epochs": epochs}))
    result.refit_epochs = epochs
    result.history += run.history


def _keep(result: FitResult, run: Run, task: Task, path: Path) -> None:
    """Put the run's best epoch into the result and on disk."""
    result.history = run.history
    result.best_epoch, result.best_val_mae = run.best_epoch, run.best_val_mae
    if not run.best:
        return
    run.kept.load_state_dict(run.best)
    about: dict[str, Any] = {"best_epoch": run.best_epoch, "best_val_mae": run.best_val_mae}
    write_checkpoint(path, save_model(run.kept, run.config, task, about))
    result.model = path
