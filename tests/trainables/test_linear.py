"""Products by oneDNN equal torch's own, padded rows count for nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_data import tiny_run

from trainables.data.tasks import TASKS
from trainables.graphs.batch import collate
from trainables.model import engine as engine_module
from trainables.model import linear as linear_module
from trainables.model.chgnet import build_model
from trainables.model.engine import padded
from trainables.model.linear import has_onednn, linear, rows_for


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [3, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_torchs_own_with_its_gradients(biased: bool, rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    x, weight, bias = tensor(rows, 96), tensor(40, 96), tensor(40) if biased else None
    inputs = [value for value in (x, weight, bias) if value is not None]
    weights = torch.randn(rows, 40, dtype=dtype, generator=generator)
    found, expected = (
        [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]
        for out in (linear(x, weight, bias), F.linear(x, weight, bias))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-10)


def test_rows_with_gaps_between_them_are_multiplied_too() -> None:
    wide, weight = torch.randn(640, 64), torch.randn(32, 96)
    torch.testing.assert_close(linear(wide[:, 32:], weight[:, ::3]), F.linear(wide[:, 32:], weight[:, ::3]))


def test_a_torch_without_onednns_linear_uses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    linear_module._try_onednn.cache_clear()
    monkeypatch.setattr(linear_module, "onednn_linear", missing)
    assert not has_onednn()
    x, weight = torch.randn(700, 8), torch.randn(4, 8)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    linear_module._try_onednn.cache_clear()


def test_few_numbers_of_rows_are_met_and_few_rows_added() -> None:
    padded_to = [rows_for(n) for n in range(1, 20_000)]
    assert len(set(padded_to)) < 150
    assert all(n <= rows <= max(n + 15, n * 17 / 16) for n, rows in enumerate(padded_to, start=1))
    assert all(rows_for(rows) == rows for rows in set(padded_to))


def test_padding_changes_no_prediction_and_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, split, store, _ = tiny_run(tmp_path)
    model = build_model("scratch", TASKS["matbench_mp_e_form"]).double()
    batch, found = collate(store, split.train.rows[:7]), []
    longer = padded(batch)
    assert len(longer.bond) > len(batch.bond)
    assert float(longer.length.min()) > 0
    for pad in (padded, lambda unpadded: unpadded):
        monkeypatch.setattr(engine_module, "padded", pad)
        monkeypatch.setattr(engine_module, "has_onednn", lambda: True)
        model.zero_grad()
        energy = model(batch)
        energy.sum().backward()
        gradients = [w.grad.flatten() for w in model.parameters() if w.grad is not None]
        found.append((energy.detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-10)
