"""The energy path through torch.compile: the same operations, fused by a C++ (CPU) or Triton (GPU) compiler."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from trainables.choices import Compile
from trainables.data.cache import cache_home
from trainables.model.linear import has_onednn
from trainables.torch_internals import tell_equal_sizes_apart

Function = TypeVar("Function", bound=Callable[..., Any])

# Compiling takes 70 s on a CPU the first time and saves 30 % of every step: worth it from this much work on, in units
# of GraphStore.cost. The GPU's number is a guess from its speed, not measured.
_PAYS_FROM = {"cpu": 60e6, "cuda": 2e9}


def compiles(choice: Compile, work: float, device: torch.device) -> bool:
    """Whether a run that computes gradients for `work` (in units of GraphStore.cost) is to be compiled."""
    wanted = choice == "on" or (choice == "auto" and work >= _PAYS_FROM.get(device.type, float("inf")))
    return wanted and has_compiler(device.type)


@cache
def has_compiler(device_type: str) -> bool:
    """Return True where torch.compile works: it is tried on a small function, which takes some seconds."""
    try:
        tried = compiled_once(_one_more)(torch.ones(8, device=device_type))
        return bool((tried == 2).all())
    except Exception:  # no compiler, no headers, no Triton, no place to write: each raises something of its own
        return False


def _one_more(values: torch.Tensor) -> torch.Tensor:
    return values + 1


def trace_once_for_all_sizes() -> None:
    """Tell the compiler what it must know, so that one graph serves batches of every size."""
    tell_equal_sizes_apart()
    torch.compiler.assume_constant_result(has_onednn)  # not where it stands: that alone loads the compiler, for seconds


@cache
def compiled_once(function: Function) -> Function:
    """Return the function through torch.compile, for all sizes; its compiled code is shared by all processes."""
    # Before the compiler is loaded, which sets it to a temporary folder of its own.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "compiled"))
    trace_once_for_all_sizes()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a CUDA that a CPU has no use for
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # left off on purpose (training.compute)
    return cast(Function, torch.compile(function, dynamic=True))
