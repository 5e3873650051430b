"""What trainables relies on of torch that torch does not promise to keep."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from trainables.torch_internals import move_towards, onednn_linear, tell_equal_sizes_apart


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("biased", [True, False])
def test_onednns_linear_is_torchs(biased: bool) -> None:
    x, weight = torch.randn(40, 24), torch.randn(8, 24)
    bias = torch.randn(8) if biased else None
    torch.testing.assert_close(onednn_linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.75, 1.0])
def test_values_move_towards_their_ends_in_place(share: float) -> None:
    values = [torch.randn(3, 4), torch.randn(5)]
    ends = [torch.randn(3, 4), torch.randn(5)]
    expected = [torch.lerp(value, end, share) for value, end in zip(values, ends, strict=True)]
    move_towards(values, ends, share)
    for value, wanted in zip(values, expected, strict=True):
        assert torch.equal(value, wanted)


def test_the_compiler_has_the_setting_that_tells_equal_sizes_apart() -> None:
    from torch.fx.experimental import _config

    with _config.patch(use_duck_shape=True):  # fails where there is none
        tell_equal_sizes_apart()
        assert _config.use_duck_shape is False


def test_importing_it_does_not_load_the_compiler() -> None:
    code = "import sys, trainables.torch_internals; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
