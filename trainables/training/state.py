"""The state of a training, and its checkpoints."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from trainables.config import RunConfig
from trainables.model.chgnet import CrystalModel
from trainables.model.compiled import has_compiler
from trainables.training.checkpoint import Checkpoint
from trainables.training.memory import BatchBudget
from trainables.training.optim import Anchor
from trainables.training.parallel import Map
from trainables.training.result import Epoch, plain


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite."""


@dataclass
class PartOfEpoch:
    """What of the running epoch is done: shares of it, and sums over them.

    Attributes:
        step: batches of the running share that are done; above 0 only where training was asked to stop.
        val_mae: after the last share, in the task's unit.
    """

    share: int = 0
    step: int = 0
    loss_sum: float = 0.0
    rows: int = 0
    structures: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    val_mae: float = math.nan


@dataclass
class TrainState:
    """Everything that changes while a model is trained; a checkpoint holds all of it."""

    config: RunConfig
    epochs: int
    model: CrystalModel
    averaged: AveragedModel
    optimiser: torch.optim.Optimizer
    cap: BatchBudget
    validation_cap: BatchBudget
    anchor: Anchor
    over_parts: Map = map
    history: list[Epoch] = field(default_factory=list)
    part: PartOfEpoch = field(default_factory=PartOfEpoch)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_val_mae: float = math.inf

    @property
    def kept(self) -> CrystalModel:
        """The averaged weights, which are validated and kept."""
        return cast(CrystalModel, self.averaged.module)

    @property
    def ended(self) -> bool:
        """True after all epochs, or after `patience` of them without a better validation error."""
        done, patience = len(self.history), self.config.optim.patience
        tired = patience > 0 and done > 0 and not math.isnan(self.history[-1].val_mae)
        return done >= self.epochs or (tired and self.part.share == 0 and done - 1 - self.best_epoch >= patience)

    def keep_best(self, number: int, val_mae: float) -> None:
        """Remember the averaged weights where they are better than before, or where nothing validates them."""
        if math.isnan(val_mae) or val_mae < self.best_val_mae:
            self.best = {name: tensor.detach().clone() for name, tensor in self.kept.state_dict().items()}
            self.best_epoch, self.best_val_mae = number, val_mae

    def checkpoint(self) -> Checkpoint:
        """Everything the next step depends on; batches, draws and learning rates follow from the epoch's number."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.kept.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors["n_averaged"] = self.averaged.n_averaged
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items() if value is not None}
        about: dict[str, Any] = {"history": [plain(asdict(e)) for e in self.history], "best_epoch": self.best_epoch}
        about["part"] = plain(asdict(self.part))
        about["compiled"] = self.model.compiled  # another way would differ in the last digits
        return Checkpoint({name: tensor.clone() for name, tensor in tensors.items()}, about)

    def restore(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Take a checkpoint's place in training."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.kept.load_state_dict(under("averaged."))
        self.averaged.n_averaged.copy_(checkpoint.tensors["n_averaged"])
        self.best = {name: tensor.to(device) for name, tensor in under("best.").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimiser.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.history = [Epoch(**_with_nan(line)) for line in checkpoint.about["history"]]
        self.part = PartOfEpoch(**_with_nan(checkpoint.about.get("part", {})))
        self.model.compiled = bool(checkpoint.about["compiled"]) and has_compiler(device.type)
        self.best_epoch = checkpoint.about["best_epoch"]
        self.best_val_mae = self.history[self.best_epoch].val_mae if self.best else math.inf


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in values.items()}
