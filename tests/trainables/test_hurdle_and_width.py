"""The hurdle head (zero or not, then how much), the floor, and models narrower than CHGNet's own."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from chgnet.graph import CrystalGraphConverter
from chgnet.model import CHGNet
from pymatgen.core import Structure
from small_data import lever_run

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.batch import Batch, collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import open_or_build
from trainables.graphs.view import full_view
from trainables.levers import LossConfig
from trainables.model.chgnet import CrystalModel, build_model, configured_model
from trainables.model.compiled import has_compiler
from trainables.model.heads import HurdleHead, Outputs
from trainables.training.losses import supervised

ENERGY, GAP = TASKS["matbench_mp_e_form"], TASKS["matbench_mp_gap"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def batch_of(made: dict[str, Structure], folder: Path, *, folded: bool) -> Batch:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())
    store = open_or_build(table, Cutoffs(), folder, workers=1)
    rows = np.arange(len(table))
    return collate(store, rows) if folded else full_view(store, rows).batch()


def hurdle(batch: Batch, floor: float | None = None) -> CrystalModel:
    """A hurdle model that answers both ways, and values of both signs, for crystals of the batch."""
    model = build_model("0.3.0", GAP, seed=1, head="hurdle", floor=floor).eval()
    assert isinstance(model.head, HurdleHead)
    last = model.head.mlp[-1]
    with torch.no_grad():
        last.weight.mul_(40)
        outputs = model.outputs(model.features(batch), batch)
        assert outputs.logit is not None
        last.bias.sub_(torch.stack([outputs.value.quantile(0.3), outputs.logit.quantile(0.4)]))
    return model


def test_a_hurdle_predicts_exactly_zero_or_its_value(made: dict[str, Structure], folder: Path) -> None:
    batch = batch_of(made, folder, folded=True)
    model = hurdle(batch)
    with torch.no_grad():
        outputs, found = model.outputs(model.features(batch), batch), model(batch)
    assert outputs.logit is not None
    above = outputs.logit > 0
    assert 0 < int(above.sum()) < len(batch)
    assert torch.equal(found[above], outputs.value[above])
    assert torch.equal(found[~above], torch.zeros(int((~above).sum())))
    assert torch.allclose(outputs.expected(), torch.sigmoid(outputs.logit) * outputs.value)


def test_a_floor_raises_what_is_below_it_and_nothing_else(made: dict[str, Structure], folder: Path) -> None:
    batch = batch_of(made, folder, folded=True)
    with torch.no_grad():
        free, floored, high = (model(batch) for model in (hurdle(batch), hurdle(batch, 0.0), hurdle(batch, 1.5)))
    assert float(free.min()) < 0
    assert torch.equal(floored, free.clamp(min=0.0))
    assert torch.equal(high, free.clamp(min=1.5))
    assert (floored == 0).any()


def test_a_floor_and_a_hurdle_travel_with_the_configuration(folder: Path) -> None:
    config = lever_run(folder, "gap", model__head="hurdle", model__floor=0.25).config
    model = configured_model(config.model, GAP)
    assert isinstance(model.head, HurdleHead)
    assert model.floor == 0.25


def test_the_scale_of_a_hurdle_is_of_the_targets_above_zero() -> None:
    head = HurdleHead(8)
    head.set_scale(torch.tensor([0.0, 2.0, 0.0, 6.0, 0.0], dtype=torch.float64))
    assert (float(head.mean), float(head.std)) == (4.0, 2.0)


@pytest.mark.parametrize("targets", [[0.0, 0.0, 0.0], [0.0, 0.7, 0.0], [0.7, 0.7]])
def test_targets_without_a_spread_above_zero_give_no_nan(
    targets: list[float], made: dict[str, Structure], folder: Path
) -> None:
    model = build_model("0.3.0", GAP, seed=1, head="hurdle")
    assert isinstance(model.head, HurdleHead)
    wanted = torch.tensor(targets)
    model.head.set_scale(wanted)
    batch = batch_of(dict(list(made.items())[: len(targets)]), folder, folded=True)
    outputs = model.outputs(model.features(batch), batch)
    loss = supervised(LossConfig(), outputs, wanted, model.head.std).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)
    assert bool(torch.isfinite(model(batch)).all())


def test_a_run_on_zeros_alone_is_finite(folder: Path, tmp_path: Path) -> None:
    run = lever_run(folder, "gap", model__head="hurdle", optim__epochs=2)
    run.split.train.targets[:] = 0.0
    result = run.fit(tmp_path / "run")
    assert result.status == "finished"
    assert np.isfinite([epoch.train_loss for epoch in result.history]).all()


def test_the_side_of_a_hurdle_is_learnt_from_every_row_and_its_value_from_those_above() -> None:
    value = torch.tensor([1.0, 5.0, -3.0], requires_grad=True)
    logit = torch.tensor([0.5, 0.5, -0.5], requires_grad=True)
    target = torch.tensor([2.0, 0.0, 0.0])
    supervised(LossConfig(), Outputs(value, logit), target, torch.ones(())).sum().backward()
    assert value.grad is not None
    assert logit.grad is not None
    assert value.grad.tolist() == [-1.0, 0.0, 0.0]
    assert logit.grad.tolist() == pytest.approx((torch.sigmoid(logit) - (target > 0).float()).tolist())


@pytest.mark.parametrize("width", [16, 32, 48])
def test_a_narrow_model_predicts_what_stock_chgnet_of_that_width_does(
    width: int, made: dict[str, Structure], folder: Path
) -> None:
    ours = build_model("scratch", ENERGY, seed=4, width=width).eval()
    with torch.no_grad():  # random weights answer nearly alike: let the crystals differ
        ours.mlp.layers[-1].weight.mul_(20)
    with contextlib.redirect_stdout(io.StringIO()):
        stock = CHGNet(**ours.model_args)
    stock.load_state_dict(ours.state_dict())
    converter = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3, on_isolated_atoms="ignore")
    with torch.no_grad():
        expected = stock([converter(structure) for structure in made.values()], task="e")["e"].numpy()
        for folded in (True, False):
            found = ours(batch_of(made, folder, folded=folded)).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std() > 0.01
    assert {parameter.shape[0] for parameter in ours.mlp.parameters()} <= {width, 1}
    assert sum(p.numel() for p in ours.parameters()) < (0.6 if width == 48 else 0.35) * 412_525


@pytest.mark.slow
def test_a_narrow_model_predicts_the_same_compiled(made: dict[str, Structure], folder: Path) -> None:
    assert has_compiler("cpu"), "this test wants a C++ compiler"
    model, batch = build_model("scratch", ENERGY, seed=4, width=32).eval(), batch_of(made, folder, folded=True)
    with torch.no_grad():
        plain = model(batch)
        model.compiled = True
        torch.testing.assert_close(model(batch), plain, atol=1e-5, rtol=0)
