"""Where models are trained: keywords that several functions share."""

from collections.abc import Mapping
from typing import Any, TypedDict

from crystaltune._rows import picked
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.ray_environment import check_address
from trainables.choices import Compile, Device
from trainables.errors import UserError


class MachineOptions(TypedDict, total=False):
    """Where models are trained.

    Attributes:
        device: "auto", "cpu" or "cuda".
        compiled: torch.compile: "auto" (for long runs), "on" or "off".
        tf32: TF32 matrix products on a GPU, where they are exact enough on a sample.
    """

    device: Device
    compiled: Compile
    tf32: bool


class ProcessOptions(MachineOptions, total=False):
    """Where models are trained, and how many at once.

    Attributes:
        processes: models trained at the same time; by default one a core, or one a GPU.
        per_gpu: models that share a GPU.
        ray: train on Ray: on the cluster that RAY_ADDRESS names, else on a Ray started here.
        address: a Ray cluster to train on, as HOST:PORT, or "auto".
        cpus_per_model: cores for each model on Ray.
    """

    processes: int
    per_gpu: int
    ray: bool
    address: str
    cpus_per_model: float


def machine_of(options: Mapping[str, Any]) -> Resources:
    """Return where models are made on this machine."""
    return Resources(**picked(options, "device", "processes", "per_gpu", "compiled", "tf32"))


def resources_of(options: Mapping[str, Any]) -> Resources:
    """Return where models are made: on this machine, or on the Ray cluster that was asked for.

    Raises:
        UserError: as Resources, or a cluster that does not answer.
    """
    address, cpus = options.get("address"), options.get("cpus_per_model", 1.0)
    cluster = None
    if options.get("ray") or address is not None:
        check_address(address)
        cluster = Cluster(address, cpus, per_gpu=options.get("per_gpu", 1))
    elif "cpus_per_model" in options:
        raise UserError(f"`cpus_per_model={cpus:g}` is for models on Ray: add `ray=True` or `address`")
    return Resources(
        **picked(options, "device", "processes", "per_gpu", "compiled", "tf32"),
        cluster=cluster,
    )
