"""Matrix products by oneDNN where it is the faster library.

torch hands float32 products on x86 to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which torch
ships as well, uses AVX-512 wherever there is any: 2.2 times faster on an AMD EPYC.
"""

import os
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.torch_internals import onednn_linear

_FEWEST_ROWS = 512  # a shorter product does not earn a kernel of its own


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, as torch.nn.functional.linear: (rows, K), (N, K), (N,) -> (rows, N)."""
    # A compiled graph would be compiled again on either side of a bound on the rows.
    long = torch.compiler.is_compiling() or len(x) >= _FEWEST_ROWS
    if x.device.type == "cpu" and x.dtype == torch.float32 and long and has_onednn():
        out: Tensor = _OneDNNLinear.apply(x, weight, bias)
        return out
    return F.linear(x, weight, bias)


def has_onednn() -> bool:
    """Return True where torch has oneDNN's linear (an operator of torch.compile's own, not public) and it uses AVX-512.

    A constant to torch.compile (model.compiled says so).
    """
    return _try_onednn()


@cache
def _try_onednn() -> bool:
    # Kernels are made for every shape (3 ms) and kept; torch's default keeps fewer than a run meets.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(64, 48), torch.ones(32, 48)
    try:
        return bool(torch.allclose(_product(x, weight), F.linear(x, weight)))
    except (AttributeError, RuntimeError):  # another torch
        return False


def rows_for(n: int) -> int:
    """Return the number of rows to pad `n` to, so that a run meets few different shapes: at most a sixteenth more."""
    step = max(16, 2 ** max(n.bit_length() - 5, 0))
    return -(-n // step) * step


# torch.compile takes oneDNN's own operator with constant weights only, so it gets it in a wrapper.
_library = torch.library.Library("crystaltune", "DEF")
_library.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("onednn_linear", onednn_linear, "CPU")


@torch.library.register_fake("crystaltune::onednn_linear", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.crystaltune.onednn_linear(x, weight, bias)
        return out
    return onednn_linear(x, weight, bias)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # oneDNN answers rows with gaps between them from reference loops that are thousands of times slower.
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        gradient = gradients[0].contiguous()
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.T) if needs_x else None,
            _product(gradient.T, x.T) if needs_weight else None,
            gradient.sum(dim=0) if needs_bias else None,
        )
