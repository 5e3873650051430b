"""Where results come from: versions, device and the manifest of a run, as they are kept beside them."""

import platform
from importlib.metadata import version
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict


class RunManifest(BaseModel):
    """The content of run.json.

    Attributes:
        fingerprint: of the configuration (fold 0), the data and the code.
        data: digest of all rows that it learns from.
        config: the configuration of fold 0, as it was written.
        versions: of the packages that decide a result.
        rows: keywords of crystaltune.train that name the rows, and `data`, its first argument; runs of older versions
            have none.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    data: str = ""
    config: dict[str, Any]
    versions: dict[str, str] = {}
    rows: dict[str, Any] = {}


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    return {name: version(name) for name in ("crystaltune", "chgnet", "torch", "pymatgen", "numpy")}


def device_name(device: str) -> str:
    """Return a GPU's own name, or the processor's kind."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()})"
