"""What a run leaves behind, and how it is written down."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class Epoch:
    """One line of the history; errors in the task's unit, times in seconds.

    Attributes:
        structures: crystals whose prediction and gradient were computed, every view of them counted.
    """

    epoch: int
    train_loss: float
    val_mae: float
    learning_rate: float
    seconds: float
    structures: int


@dataclass(frozen=True)
class StepResult:
    """Where a run stands after one of its steps; sums are since its beginning, joint training included.

    Attributes:
        step: counted from 1; a step is a share of an epoch.
        epoch: epochs of the target's rows that are done.
        mae: best validation MAE so far, in the task's unit: what the run would give if it ended here.
        current: validation MAE after this very step.
        structures: crystals whose prediction and gradient were computed.
        seconds: of training and validation.
    """

    step: int
    epoch: float
    mae: float
    current: float
    train_loss: float
    structures: int
    seconds: float


@dataclass
class FitResult:
    """What a run leaves behind.

    Attributes:
        model: path of the trained model without suffix (model.safetensors and model.json).
        best_val_mae: of the kept epoch, in the task's unit, on the inner validation part.
        history: of the training that chose the model, and of the refit.
        reason: why the run failed, in plain words; empty when it finished.
        before: epochs of the joint training on several tasks.
        halved_batches: memory ran out once, and less was computed at a time from there on.
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
    before: list[Epoch] = field(default_factory=list)
    halved_batches: bool = False

    @property
    def seconds(self) -> float:
        """Return the seconds of training and validation."""
        return sum(epoch.seconds for epoch in self.before + self.history)

    @property
    def structures(self) -> int:
        """All structures processed, joint training and refit included."""
        return sum(epoch.structures for epoch in self.before + self.history)

    @property
    def structures_per_second(self) -> float:
        """Return the structures processed a second."""
        return self.structures / max(self.seconds, 1e-9)

    def summary(self) -> dict[str, Any]:
        """Return the content of fit.json."""
        content = asdict(self) | {
            "model": None if self.model is None else self.model.name,
            "history": [plain(asdict(epoch)) for epoch in self.history],
            "before": [plain(asdict(epoch)) for epoch in self.before],
            "seconds": self.seconds,
            "structures": self.structures,
            "structures_per_s": self.structures_per_second,
        }
        return plain(content)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity become None, which JSON has."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
