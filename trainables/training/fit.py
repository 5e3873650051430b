"""One training run: from a split without test rows to the best checkpoint."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from trainables.config import RunConfig
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import write_json
from trainables.graphs.batch import collate, cut_by_cost, training_batches
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel, build_model
from trainables.model.compiled import has_compiler
from trainables.model.reference import fit_reference, set_reference
from trainables.progress import Bar, Progress, silent
from trainables.training.checkpoint import Checkpoint, CheckpointFolder, write_checkpoint
from trainables.training.compute import Compute, precision, refuse_inexact_tf32
from trainables.training.losses import batch_loss
from trainables.training.memory import GRADIENT_COST, PREDICTION_COST, CostCap
from trainables.training.optim import (
    averaged_weights,
    freeze,
    learning_rate,
    make_optimiser,
    set_learning_rate,
)
from trainables.training.parallel import Map, parts_mapper
from trainables.training.predict import predict, save_model, with_graph


@dataclass
class Epoch:
    """One line of the history; errors in the task's unit, times in seconds."""

    epoch: int
    train_loss: float
    val_mae: float
    learning_rate: float
    seconds: float
    structures: int


@dataclass
class FitResult:
    """What a run leaves behind.

    Attributes:
        model: path of the trained model without suffix (model.safetensors and model.json).
        best_val_mae: of the kept epoch, in the task's unit, on the inner validation part.
        reason: why the run failed, in plain words; empty when it finished.
    """

    status: Literal["finished", "failed"]
    model: Path | None
    best_epoch: int
    best_val_mae: float
    history: list[Epoch]
    n_train: int
    n_val: int
    n_left_out: int
    reason: str = ""
    refit_epochs: int = 0
    compiled: bool = False

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.history)

    @property
    def structures_per_second(self) -> float:
        return sum(epoch.structures for epoch in self.history) / max(self.seconds, 1e-9)


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, eq=False)
class _Course:
    """What every course of training of a run shares."""

    task: Task
    store: GraphStore
    device: torch.device
    compute: Compute
    progress: Progress


@dataclass
class _Run:
    """The moving parts of one run; everything a checkpoint holds is here."""

    config: RunConfig
    task: Task
    model: CrystalModel
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    scale: Tensor
    device: torch.device
    cap: CostCap
    validation_cap: CostCap
    over_parts: Map = map
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_val_mae: float = math.inf

    @property
    def kept(self) -> CrystalModel:
        """The averaged weights, which are validated and kept."""
        return cast(CrystalModel, self.averaged.module)


def fit(
    config: RunConfig,
    split: FoldSplit,
    store: GraphStore,
    task: Task,
    folder: Path,
    *,
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
        stop_early: asked after every epoch; True ends the run with the best epoch so far.

    Raises:
        ValueError: the split holds test rows.
        UserError: no usable training rows, or a folder that cannot be written.
    """
    if split.test is not None:
        raise ValueError("fit takes a split without its test rows: split.without_test()")
    compute = compute or Compute()
    compute.check()
    course = _Course(task, store.near(compute.torch_device), compute.torch_device, compute, progress)
    train = split.train.keep(with_graph(store, split.train.rows, config))
    val = split.val.keep(with_graph(store, split.val.rows, config))
    for role, part in (("training", train), ("validation", val)):
        if len(part) == 0:
            raise UserError(
                f"fold {split.fold} of {task.name} has no {role} rows with a graph; give more rows, or set "
                "data.isolated_atoms=keep if their atoms are merely far apart"
            )
    left_out = len(split.train) + len(split.val) - len(train) - len(val)
    if compute.tf32:
        start = build_model(config.model.start, task, pooling=config.model.pooling, seed=config.seed)
        refuse_inexact_tf32(start.to(course.device), course.store, train.rows)
    result = FitResult("finished", None, -1, math.inf, [], len(train), len(val), left_out)
    try:
        run = _train(config, train, val, course, folder, stop_early)
    except _Failed as failure:
        run, result.status, result.reason = failure.run, "failed", failure.reason
    result.compiled = run.model.compiled
    _keep(result, run, folder / "model")
    if config.data.refit and result.status == "finished":
        try:
            _refit(result, config, Part.join(train, val), course, folder)
        except _Failed as failure:  # the model chosen by validation stays
            result.status, result.reason = "failed", f"refit: {failure.reason}"
    write_json(folder / "fit.json", _summary(result))
    return result


class _Failed(Exception):
    def __init__(self, run: _Run, reason: str) -> None:
        super().__init__(reason)
        self.run, self.reason = run, reason


def _refit(result: FitResult, config: RunConfig, rows: Part, course: _Course, folder: Path) -> None:
    """Train anew on train + validation, for as many epochs as validation chose."""
    epochs = result.best_epoch + 1
    shorter = config.changed({"optim.epochs": epochs})
    run = _train(shorter, rows, None, course, folder / "refit", None)
    write_checkpoint(folder / "model", save_model(run.kept, config, course.task, {"refit_epochs": epochs}))
    result.refit_epochs = epochs
    result.history += run.history


def _train(
    config: RunConfig,
    train: Part,
    val: Part | None,
    course: _Course,
    folder: Path,
    stop_early: Callable[[Epoch], bool] | None,
) -> _Run:
    """All epochs of one course of training, resumed where its checkpoints end."""
    run, store, progress = _prepare(config, train, course), course.store, course.progress
    checkpoints = CheckpointFolder(folder / "checkpoints", progress)
    restored = checkpoints.latest()
    if restored is not None:
        _restore(run, restored)
    if run.model.compiled and len(run.history) < config.optim.epochs:
        progress.message("the model is compiled first: a minute or two on a CPU, less when it was done before")
    seen = sum(epoch.structures for epoch in run.history)
    total = config.optim.epochs * len(train)
    with (
        precision(course.compute),
        parts_mapper(course.device) as run.over_parts,
        progress.stage("train", total, "structures") as bar,
    ):
        bar.advance(seen, _note(run))
        for number in range(len(run.history), config.optim.epochs):
            try:
                epoch = _one_epoch(run, number, train, val, store, bar)
            except NonFiniteLoss as error:
                raise _Failed(run, f"{error} in epoch {number + 1}; the last good epoch is kept") from None
            run.history.append(epoch)
            checkpoints.save(number, _checkpoint(run))
            bar.advance(0, _note(run))
            if stop_early is not None and stop_early(epoch):
                break
    return run


def _prepare(config: RunConfig, train: Part, course: _Course) -> _Run:
    """The model with its reference or scale fitted on the training part, and its optimiser."""
    task, store, device = course.task, course.store, course.device
    model = build_model(config.model.start, task, pooling=config.model.pooling, seed=config.seed).to(device)
    scale = torch.ones((), device=device)
    if task.is_energy:
        set_reference(model, training_reference(model, store, train, task))
    elif model.head is not None:
        model.head.set_scale(torch.from_numpy(train.targets))
        scale = model.head.std.clone()
    freeze(model, config.model.freeze)
    averaged = averaged_weights(model, config.optim.ema_decay)
    model.compiled = course.compute.compiles(config.optim.epochs * float(store.cost[train.rows].sum()))
    caps = [CostCap(cost[device.type], course.progress) for cost in (GRADIENT_COST, PREDICTION_COST)]
    return _Run(config, task, model, averaged, make_optimiser(model, config.optim), scale, device, caps[0], caps[1])


def training_reference(model: CrystalModel, store: GraphStore, train: Part, task: Task) -> NDArray[np.float64]:
    """Per-element reference (119,) eV of an untouched model, fitted on these rows."""
    n_atoms = store.counts[train.rows, 0]
    energy = train.targets / n_atoms if task.quantity == "energy_per_cell" else train.targets
    graph_energy = predict(model, store, train.rows, output="graph_energy")
    return fit_reference(store.composition(train.rows), graph_energy, energy)


def _one_epoch(run: _Run, number: int, train: Part, val: Part | None, store: GraphStore, bar: Bar) -> Epoch:
    start, config = time.perf_counter(), run.config
    batches = training_batches(store.cost[train.rows], config.optim.batch_size, seed=config.seed, epoch=number)
    loss_sum, rate = 0.0, 0.0
    run.model.train()
    for step, places in enumerate(batches):
        rate = learning_rate(config.optim, (number + (step + 0.5) / len(batches)) / config.optim.epochs)
        loss_sum += _step(run, store, train.rows[places], train.targets[places], rate)
        bar.advance(len(places))
    train_loss = loss_sum * config.optim.batch_size / len(train)
    if not all(bool(weight.isfinite().all()) for weight in run.kept.parameters()):
        raise NonFiniteLoss("a weight became nan or infinite")
    val_mae = math.nan if val is None else _validate(run, val, store)
    if val is None or val_mae < run.best_val_mae:
        run.best = {name: tensor.detach().clone() for name, tensor in run.kept.state_dict().items()}
        run.best_epoch, run.best_val_mae = number, val_mae
    return Epoch(number, train_loss, val_mae, rate, time.perf_counter() - start, len(train))


def _step(run: _Run, store: GraphStore, rows: NDArray[np.int64], targets: NDArray[np.float64], rate: float) -> float:
    """One optimiser step; returns the batch's loss.

    Gradients are summed over parts of bounded cost: memory stays bounded whatever the batch size, on a CPU the
    smaller arrays are faster, and the parts run in parallel.
    """
    optim = run.config.optim
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]

    def one_part(part: NDArray[np.int64]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        prediction = run.model(collate(store, rows[part]).to(run.device))
        target = torch.from_numpy(targets[part]).to(prediction)
        loss = batch_loss(run.config.loss, prediction, target, scale=run.scale, batch_size=optim.batch_size)
        return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)

    def whole_batch(cost: float) -> list[tuple[Tensor, tuple[Tensor | None, ...]]]:
        return list(run.over_parts(one_part, cut_by_cost(np.arange(len(rows)), store.cost[rows], cost)))

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
    run.averaged.update_parameters(run.model)
    return batch_value


def _validate(run: _Run, val: Part, store: GraphStore) -> float:
    """Mean absolute error of the averaged weights, in the task's unit."""
    error = float(np.abs(predict(run.kept, store, val.rows, cap=run.validation_cap) - val.targets).mean())
    if not math.isfinite(error):
        raise NonFiniteLoss(f"the validation error became {error}")
    return error


def _checkpoint(run: _Run) -> Checkpoint:
    """Everything the next epoch depends on; batches and learning rates follow from the epoch's number."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in run.kept.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in run.best.items()}
    tensors["n_averaged"] = run.averaged.n_averaged
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if value is not None}
    about: dict[str, Any] = {"history": [_plain(asdict(epoch)) for epoch in run.history], "best_epoch": run.best_epoch}
    about["compiled"] = run.model.compiled  # another way would differ in the last digits
    return Checkpoint({name: tensor.clone() for name, tensor in tensors.items()}, about)


def _restore(run: _Run, checkpoint: Checkpoint) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}

    run.model.load_state_dict(under("model."))
    run.kept.load_state_dict(under("averaged."))
    run.averaged.n_averaged.copy_(checkpoint.tensors["n_averaged"])
    run.best = {name: tensor.to(run.device) for name, tensor in under("best.").items()}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimiser.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    run.optimiser.load_state_dict({**run.optimiser.state_dict(), "state": state})
    for line in checkpoint.about["history"]:
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in line.items()}
        run.history.append(Epoch(**values))
    run.model.compiled = bool(checkpoint.about["compiled"]) and has_compiler(run.device.type)
    run.best_epoch = checkpoint.about["best_epoch"]
    run.best_val_mae = run.history[run.best_epoch].val_mae


def _keep(result: FitResult, run: _Run, path: Path) -> None:
    """Put the run's best epoch into the result and on disk."""
    result.history = run.history
    result.best_epoch, result.best_val_mae = run.best_epoch, run.best_val_mae
    if not run.best:
        return
    run.kept.load_state_dict(run.best)
    about = {"best_epoch": run.best_epoch, "best_val_mae": run.best_val_mae}
    write_checkpoint(path, save_model(run.kept, run.config, run.task, about))
    result.model = path


def _note(run: _Run) -> str:
    if not run.history:
        return ""
    last = run.history[-1]
    best = "" if math.isnan(last.val_mae) else f"val MAE {last.val_mae:.4g} (best {run.best_val_mae:.4g}) "
    return f"epoch {last.epoch + 1}/{run.config.optim.epochs} {best}{run.task.unit}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity become None, which JSON has."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _summary(result: FitResult) -> dict[str, Any]:
    content = asdict(result) | {
        "model": None if result.model is None else result.model.name,
        "history": [_plain(asdict(epoch)) for epoch in result.history],
        "seconds": result.seconds,
        "structures_per_s": result.structures_per_second,
    }
    return _plain(content)
