"""What is used of torch that torch does not promise to keep, in one place.

tests/trainables/test_torch_internals.py says what is relied on, so that a new version of torch shows what it changed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias by oneDNN: (rows, K), (N, K), (N,) -> (rows, N), float32 on the CPU.

    Raises:
        AttributeError, RuntimeError: this torch has no such operator.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def move_towards(values: Sequence[Tensor], ends: Sequence[Tensor], share: float) -> None:
    """Set each value to value + share * (end - value), in a few operations for all of them."""
    torch._foreach_lerp_(list(values), list(ends), share)


def tell_equal_sizes_apart() -> None:
    """Keep torch.compile from taking sizes that are equal in the first batch for one size: others compile again."""
    import torch.fx.experimental._config  # on its own it loads no compiler

    torch.fx.experimental._config.use_duck_shape = False
