"""How a run computes: device, compilation, precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.choices import Compile
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel
from trainables.model.compiled import compiles, has_compiler
from trainables.training.predict import predict

# TF32's largest error on a sample, as a share of the predictions' standard deviation. For formation energies
# (1 eV/atom) that is 0.5 meV/atom, a fortieth of a good model's error.
TF32_BOUND = 5e-4
_TF32_SAMPLE = 256  # crystals


@dataclass(frozen=True)
class Compute:
    """Choices that change a run's speed and, but for rounding, not its result.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...
        compiled: torch.compile; "auto" where the run is long enough to repay the minute it takes.
        tf32: matrix products in TF32 on a GPU; refused where a sample's error is above TF32_BOUND.
    """

    device: str = "cpu"
    compiled: Compile = "auto"
    tf32: bool = False

    @property
    def torch_device(self) -> torch.device:
        """Return the device for torch."""
        device = torch.device(self.device)
        if device.type == "cuda" and device.index is None:  # as tensors on it will say
            return torch.device("cuda", torch.cuda.current_device())
        return device

    def check(self) -> None:
        """Raise a UserError where a choice makes no sense on the device."""
        if self.tf32 and self.torch_device.type != "cuda":
            raise UserError(
                f"TF32 is a number format of NVIDIA GPUs, but this run is on the {self.device}: leave out `tf32`"
            )
        if self.compiled == "on" and not has_compiler(self.torch_device.type):
            raise UserError(
                "`compiled=on`: no C++ compiler (CPU) or Triton (GPU) is installed; install one, or use auto"
            )

    def compiles(self, work: float) -> bool:
        """Whether a run that takes gradients of `work` (in units of GraphStore.cost) goes through torch.compile.

        Compiled parts of a batch hold Python's lock, so on a CPU they are for processes of one thread. A run that is
        resumed keeps to what was decided when it began.
        """
        alone = self.torch_device.type != "cpu" or torch.get_num_threads() == 1
        return compiles(self.compiled, work if alone else 0.0, self.torch_device)


@contextmanager
def precision(compute: Compute) -> Iterator[None]:
    """TF32 products inside, where they were asked for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = compute.tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def require_exact_tf32(model: CrystalModel, store: GraphStore, rows: NDArray[np.int64]) -> None:
    """Raise a UserError where TF32 changes these predictions by more than TF32_BOUND."""
    error = tf32_error(model, store, rows)
    if not error <= TF32_BOUND:
        raise UserError(
            f"TF32 changes predictions by up to {error:.1e} of their standard deviation, {TF32_BOUND:.0e} is allowed: "
            "leave out `tf32`"
        )


def tf32_error(model: CrystalModel, store: GraphStore, rows: NDArray[np.int64]) -> float:
    """Largest difference that TF32 makes on a sample of rows, over the predictions' standard deviation."""
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _TF32_SAMPLE)).astype(int)]
    found = []
    for allowed in (False, True):
        with precision(Compute(tf32=allowed)):
            found.append(predict(model, store, sample))
    return float(np.abs(found[1] - found[0]).max() / max(found[0].std(), 1e-12))
