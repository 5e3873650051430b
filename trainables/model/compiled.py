"""The energy path through torch.compile: the same operations, fused by a C++ (CPU) or Triton (GPU) compiler."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_args

import torch

from trainables.data.locate import cache_home
from trainables.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])
Compile = Literal["auto", "on", "off"]

# Compiling takes 70 s on a CPU the first time and saves 30 % of every step: worth it from this much work on, in units
# of GraphStore.cost. The GPU's number is a guess from its speed, not measured.
_PAYS_FROM = {"cpu": 60e6, "cuda": 2e9}


def parse_compile(text: str) -> Compile:
    """Read auto, on or off.

    Raises:
        UserError: anything else.
    """
    if text not in get_args(Compile):
        raise UserError(f"--compile {text}: auto, on or off was wanted")
    return cast(Compile, text)


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


@cache
def compiled_once(function: Function) -> Function:
    """The function through torch.compile, for all sizes; its compiled code is shared by all processes."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "compiled"))
    return cast(Function, torch.compile(function, dynamic=True))
