"""Where jobs run. What looks at the machine loads torch, so it is imported only when it is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from trainables.choices import Compile, Device
from trainables.errors import UserError
from trainables.progress import Progress

if TYPE_CHECKING:
    from orchestrator.execution.pool import Allocation


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each model gets of it.

    Attributes:
        address: HOST:PORT, or "auto" for the cluster that this machine belongs to; None: a Ray of one's own, or the
            one that the environment names.
        cpus: cores of a model.
        gpus: of a model, a fraction where several share one; None: one divided by `per_gpu`, where there are GPUs.
        per_gpu: models that share a GPU.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    per_gpu: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.cpus, bool) or not (math.isfinite(self.cpus) and self.cpus > 0):
            raise UserError(f"`cpus_per_model={self.cpus}`: must be a number above 0")

    @property
    def gpus_of_a_model(self) -> float:
        """Return the share of a GPU that a model gets where there are GPUs; Ray counts in ten-thousandths."""
        return math.floor(1e4 / self.per_gpu) / 1e4 if self.gpus is None else self.gpus


@dataclass(frozen=True)
class Resources:
    """Where jobs run: in processes of this machine or, with a `cluster`, on Ray.

    On a CPU, processes and threads change nothing but whether a long run is compiled, in its last digits.

    Raises:
        UserError: a device or a number that there is not, or TF32 on a CPU.
    """

    device: str = "auto"
    processes: int | None = None
    per_gpu: int = 1
    compiled: Compile = "auto"
    tf32: bool = False
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise UserError(f"`device={self.device}`: must be one of {', '.join(get_args(Device))}")
        if self.compiled not in get_args(Compile):
            raise UserError(f"`compiled={self.compiled}`: must be one of {', '.join(get_args(Compile))}")
        for name, value in (("processes", self.processes), ("per_gpu", self.per_gpu)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"`{name}={value}`: must be a whole number of at least 1")
        if self.tf32 and self.device == "cpu":  # what else does not fit, only the machine says: check
            raise UserError("TF32 is a number format of NVIDIA GPUs, but this run is on the cpu: leave out `tf32`")

    def plan(self, n_jobs: int) -> Allocation:
        """Return how that many jobs run here."""
        from orchestrator.execution.pool import allocate

        return allocate(n_jobs, self.device, self.processes, self.per_gpu)

    def check(self, progress: Progress) -> None:
        """Raise a UserError where a choice makes no sense on this machine, and tell of a GPU that is passed over."""
        if self.cluster is not None:  # its nodes look at themselves
            return
        from orchestrator.execution.gpu_check import tell_unused_gpu
        from trainables.training.compute import Compute

        Compute(self.plan(1).devices[0], self.compiled, self.tf32).check()
        tell_unused_gpu(self.device, progress)
