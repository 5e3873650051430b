"""The energy path through torch.compile: the same operations, fused by a C++ (CPU) or Triton (GPU) compiler."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from trainables.data.locate import cache_home
from trainables.graphs.batch import Batch
from trainables.model.engine import atom_features

Compile = Literal["auto", "on", "off"]

# Compiling takes 70 s on a CPU the first time and saves 30 % of every step: worth it from this much work on, in units
# of GraphStore.cost. The GPU's number is a guess from its speed, not measured.
_PAYS_FROM = {"cpu": 60e6, "cuda": 2e9}


def compiles(choice: Compile, work: float, device: torch.device) -> bool:
    """Whether a run that computes gradients for `work` (in units of GraphStore.cost) is to be compiled."""
    if choice == "off" or not has_compiler(device.type):
        return False
    return choice == "on" or work >= _PAYS_FROM.get(device.type, float("inf"))


@cache
def has_compiler(device_type: str) -> bool:
    """True where torch.compile finds what it needs: a C++ compiler for a CPU, Triton for a GPU."""
    if device_type == "cuda":
        return importlib.util.find_spec("triton") is not None
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"]))


def compiled_atom_features(net: Any, batch: Batch) -> Tensor:
    """model.engine.atom_features, compiled once a process for all sizes; (A, D).

    Batches with a dimension of 0 or 1, which a compiler would specialise on, go the plain way.
    """
    if min(len(batch), len(batch.length), len(batch.short), len(batch.left)) < 2:
        return atom_features(net, batch)
    features: Tensor = _compiled()(net, batch)
    return features


@cache
def _compiled() -> Callable[[Any, Batch], Tensor]:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "compiled"))  # one for all workers
    return torch.compile(atom_features, dynamic=True)
