"""A GPU that is there and that torch cannot use is told, with both versions, instead of being passed over."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

from trainables.progress import Progress

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_HIDDEN = ("", "-1", "NoDevFiles")
_SECONDS_FOR_SMI = 10


def unused_gpu() -> str:
    """Why torch uses no GPU although the machine seems to have one; empty where it does, or where none is seen."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available() or (visible is not None and visible.strip() in _HIDDEN):
        return ""
    driver = driver_version()
    if not driver:
        return ""
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA GPU (driver {driver}), but PyTorch {torch.__version__} was built without "
            "CUDA: install a CUDA build of PyTorch to use it"
        )
    if visible is not None:
        return (
            f"this machine has an NVIDIA GPU (driver {driver}), but CUDA_VISIBLE_DEVICES={visible} names none that "
            f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) can use: correct or unset it"
        )
    return (
        f"this machine has an NVIDIA GPU, but its driver {driver} does not support PyTorch {torch.__version__}, which "
        f"is built for CUDA {torch.version.cuda}: update the driver, or install a PyTorch built for an older CUDA"
    )


def driver_version() -> str:
    """Return the NVIDIA driver's version as the kernel module or nvidia-smi tell it; empty where there is neither."""
    try:
        found = re.search(r"(?:Kernel Module|Module for \S+)\s+(\d+[\d.]*)", _DRIVER_FILE.read_text())
        return found[1] if found else "unknown"
    except OSError:
        return _smi_version()


def _smi_version() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        told = subprocess.run(
            [command, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_SMI,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = told.stdout.strip().splitlines()
    return lines[0].strip() if told.returncode == 0 and lines else ""


def tell_unused_gpu(device: str, progress: Progress) -> None:
    """Say once that a GPU is passed over, where the device was left to us."""
    reason = unused_gpu() if device == "auto" else ""
    if reason:
        progress.message(f"{reason}. Running on the CPU.")
