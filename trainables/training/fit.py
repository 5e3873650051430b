"""One training run: from a split without test rows to the best checkpoint."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import RunConfig, refuse_for_task
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import write_json
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.model.reference import fit_reference, set_reference
from trainables.progress import Bar, Progress, silent
from trainables.training.checkpoint import CheckpointFolder, write_checkpoint
from trainables.training.compute import Compute, precision, refuse_inexact_tf32
from trainables.training.distill import SoftTargets
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import Auxiliary, add_auxiliary_heads, auxiliary_streams
from trainables.training.memory import GRADIENT_COST, PREDICTION_COST, CostCap
from trainables.training.objective import Objective, Stream
from trainables.training.optim import averaged_weights, freeze, learning_rate, make_optimiser
from trainables.training.parallel import parts_mapper
from trainables.training.predict import predict, save_model, with_graph
from trainables.training.result import Epoch, FitResult
from trainables.training.run import NonFiniteLoss, Run
from trainables.training.steps import epoch_batches, take_step


@dataclass(frozen=True, eq=False)
class _Course:
    """What every course of training of a run shares."""

    task: Task
    store: GraphStore
    skinned: GraphStore | None
    soft: SoftTargets | None
    frozen: FrozenEnergies | None
    device: torch.device
    compute: Compute
    progress: Progress


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
    _check_arguments(config, split, skinned, soft, auxiliary)
    compute = compute or Compute()
    compute.check()
    train, val = _usable(config, split, store, skinned, task)
    left_out = len(split.train) + len(split.val) - len(train) - len(val)
    trained = Part.join(train, val) if config.data.refit else train
    course = _course(config, store, skinned, soft, task, trained, compute, progress)
    if config.model.head == "hurdle" and train.targets.min() < 0:
        raise UserError(f"model.head=hurdle is for targets of zero or more; {task.name} has {train.targets.min():.4g}")
    if compute.tf32:
        start = configured_model(config.model, task, config.seed)
        refuse_inexact_tf32(start.to(course.device), course.store, train.rows)
    result = FitResult("finished", None, -1, math.inf, [], len(train), len(val), left_out)
    try:
        begin = _jointly(result, config, train, auxiliary, course, folder) if auxiliary else None
        run = _train(config, [_stream(config, train, course)], val, course, folder, begin, stop_early)
    except _Failed as failure:
        run, result.status, result.reason = failure.run, "failed", failure.reason
    result.compiled = run.model.compiled
    _keep(result, run, task, folder / "model")
    if config.data.refit and result.status == "finished":
        try:
            _refit(result, config, Part.join(train, val), begin, course, folder)
        except _Failed as failure:  # the model chosen by validation stays
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
) -> _Course:
    device, frozen = compute.torch_device, None
    refuse_for_task(config, task)
    store = store.near(device)
    if soft is not None:
        soft.check(config.distil, trained.ids)
    if config.augment.active and config.augment.labels == "corrected":
        frozen = FrozenEnergies(config.model.start, task, device)
        frozen.know(store, trained.rows, progress)
    near_skinned = None if skinned is None or not config.augment.active else skinned.near(device)
    return _Course(task, store, near_skinned, soft, frozen, device, compute, progress)


class _Failed(Exception):
    def __init__(self, run: Run, reason: str) -> None:
        super().__init__(reason)
        self.run, self.reason = run, reason


def _stream(config: RunConfig, rows: Part, course: _Course) -> Stream:
    """The target's rows, with everything its loss needs; its scale is set with the model's."""
    soft = course.soft.aligned(rows.ids) if course.soft is not None and config.distil.weight > 0 else None
    one = torch.ones((), device=course.device)
    return Stream(course.task, rows, course.store, one, skinned=course.skinned, soft=soft, frozen=course.frozen)


def _jointly(
    result: FitResult,
    config: RunConfig,
    train: Part,
    auxiliary: Sequence[Auxiliary],
    course: _Course,
    folder: Path,
) -> dict[str, Tensor]:
    """Train one trunk on all tasks; returns the state the target's own training begins with."""
    shorter = config.changed({"optim.epochs": config.multitask.epochs})
    streams = [_stream(config, train, course), *auxiliary_streams(config, auxiliary, course.device)]
    run = _train(shorter, streams, None, course, folder / "joint", None, None)
    result.before = run.history
    return run.kept.without_training_parts()


def _refit(
    result: FitResult,
    config: RunConfig,
    rows: Part,
    begin: Mapping[str, Tensor] | None,
    course: _Course,
    folder: Path,
) -> None:
    """Train anew on train + validation, for as many epochs as validation chose."""
    epochs = result.best_epoch + 1
    shorter = config.changed({"optim.epochs": epochs})
    run = _train(shorter, [_stream(config, rows, course)], None, course, folder / "refit", begin, None)
    write_checkpoint(folder / "model", save_model(run.kept, config, course.task, {"refit_epochs": epochs}))
    result.refit_epochs = epochs
    result.history += run.history


def _train(
    config: RunConfig,
    streams: list[Stream],
    val: Part | None,
    course: _Course,
    folder: Path,
    begin: Mapping[str, Tensor] | None,
    stop_early: Callable[[Epoch], bool] | None,
) -> Run:
    """All epochs of one course of training, resumed where its checkpoints end."""
    run, objectives = _prepare(config, streams, course, begin)
    progress = course.progress
    checkpoints = CheckpointFolder(folder / "checkpoints", progress)
    restored = checkpoints.latest()
    if restored is not None:
        run.restore(restored, course.device)
    if run.model.compiled and len(run.history) < config.optim.epochs:
        progress.message("the model is compiled first: a minute or two on a CPU, less when it was done before")
    rows = _rows_an_epoch(config, objectives)
    with (
        precision(course.compute),
        parts_mapper(course.device) as run.over_parts,
        progress.stage(
            "train" if len(streams) == 1 else "train jointly", config.optim.epochs * rows, "structures"
        ) as bar,
    ):
        bar.advance(len(run.history) * rows, _note(run, course.task))
        for number in range(len(run.history), config.optim.epochs):
            try:
                epoch = _one_epoch(run, number, objectives, val, course, bar)
            except NonFiniteLoss as error:
                raise _Failed(run, f"{error} in epoch {number + 1}; the last good epoch is kept") from None
            run.history.append(epoch)
            checkpoints.save(number, run.checkpoint())
            bar.advance(0, _note(run, course.task))
            if stop_early is not None and stop_early(epoch):
                break
    return run


def _prepare(
    config: RunConfig, streams: list[Stream], course: _Course, begin: Mapping[str, Tensor] | None
) -> tuple[Run, list[Objective]]:
    """The model with its reference or scale fitted on the training part, its optimiser, and its losses."""
    task, device, target = course.task, course.device, streams[0]
    model = configured_model(config.model, task, config.seed).to(device)
    if begin is not None:
        model.load_state_dict(dict(begin))
    elif task.is_energy:
        set_reference(model, training_reference(model, target.store, target.part, task))
    if model.head is not None:
        model.head.set_scale(torch.from_numpy(target.part.targets))
        target = replace(target, scale=model.head.std.clone())
    if len(streams) > 1:
        target = replace(target, scale=torch.tensor(float(target.part.targets.std()) or 1.0, device=device))
        add_auxiliary_heads(model, config, streams[1:])
    if config.distil.features > 0 and target.soft is not None and target.soft.features is not None:
        model.match = torch.nn.Linear(model.atom_fea_dim, target.soft.features.shape[1]).to(device)
        torch.nn.init.eye_(model.match.weight)
        torch.nn.init.zeros_(model.match.bias)
    freeze(model, config.model.freeze)
    streams = [target, *streams[1:]]
    objectives = [Objective(config, stream, device) for stream in streams]
    n_steps = config.optim.epochs * len(_batches(config, objectives, 0))  # as many in every epoch
    averaged = averaged_weights(model, config.optim, n_steps)
    work = config.optim.epochs * sum(float(each.costs.sum()) for each in objectives)
    model.compiled = course.compute.compiles(work)
    caps = [CostCap(cost[device.type], course.progress) for cost in (GRADIENT_COST, PREDICTION_COST)]
    return Run(config, model, averaged, make_optimiser(model, config.optim), caps[0], caps[1]), objectives


def training_reference(model: CrystalModel, store: GraphStore, train: Part, task: Task) -> NDArray[np.float64]:
    """Per-element reference (119,) eV of an untouched model, fitted on these rows."""
    n_atoms = store.counts[train.rows, 0]
    energy = train.targets / n_atoms if task.quantity == "energy_per_cell" else train.targets
    graph_energy = predict(model, store, train.rows, output="graph_energy")
    return fit_reference(store.composition(train.rows), graph_energy, energy)


def _batches(config: RunConfig, objectives: Sequence[Objective], epoch: int) -> list[tuple[int, NDArray[np.int64]]]:
    return epoch_batches(objectives, config.optim, config.multitask, seed=config.seed, epoch=epoch)


def _rows_an_epoch(config: RunConfig, objectives: Sequence[Objective]) -> int:
    """Rows of all tasks in an epoch; in joint training those of the first, which the others hardly differ from."""
    if len(objectives) == 1:
        return len(objectives[0].stream.part)
    return sum(len(places) for _, places in _batches(config, objectives, 0))


def _one_epoch(
    run: Run, number: int, objectives: list[Objective], val: Part | None, course: _Course, bar: Bar
) -> Epoch:
    start, config = time.perf_counter(), run.config
    batches = _batches(config, objectives, number)
    loss_sum, rate, rows, structures = 0.0, 0.0, 0, 0
    run.model.train()
    for step, (index, places) in enumerate(batches):
        objective = objectives[index]
        done = (number + (step + 0.5) / len(batches)) / config.optim.epochs
        rate = learning_rate(config.optim, done)
        ramp = min(1.0, done / config.consistency.ramp) if config.consistency.ramp else 1.0
        chosen = objective.choose(places, np.random.default_rng([config.seed, number, step, _DRAWS]))
        loss_sum += take_step(run, objective, chosen, rate=rate, ramp=ramp)
        rows, structures = rows + len(places), structures + len(places) * objective.views_per_row
        bar.advance(len(places))
    train_loss = loss_sum * config.optim.batch_size / rows
    if not all(bool(weight.isfinite().all()) for weight in run.kept.parameters()):
        raise NonFiniteLoss("a weight became nan or infinite")
    val_mae = math.nan if val is None else _validate(run, val, course.store)
    run.keep_best(number, val_mae)
    return Epoch(number, train_loss, val_mae, rate, time.perf_counter() - start, structures)


_DRAWS = 0xA46  # keeps the generator of draws apart from that of batches


def _validate(run: Run, val: Part, store: GraphStore) -> float:
    """Mean absolute error of the averaged weights, in the task's unit."""
    error = float(np.abs(predict(run.kept, store, val.rows, cap=run.validation_cap) - val.targets).mean())
    if not math.isfinite(error):
        raise NonFiniteLoss(f"the validation error became {error}")
    return error


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


def _note(run: Run, task: Task) -> str:
    if not run.history:
        return ""
    last = run.history[-1]
    best = "" if math.isnan(last.val_mae) else f"val MAE {last.val_mae:.4g} (best {run.best_val_mae:.4g}) "
    return f"epoch {last.epoch + 1}/{run.config.optim.epochs} {best}{task.unit}"
