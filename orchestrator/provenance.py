"""What ran something: versions and device, as they are kept beside results."""

import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Of the packages that decide a result."""
    return {name: version(name) for name in ("crystaltune", "chgnet", "torch", "pymatgen", "numpy")}


def device_name(device: str) -> str:
    """A GPU's own name, or the processor's kind."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()})"
