"""The packed energy path against stock CHGNet: same weights, same crystals, same numbers and gradients."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from chgnet.model import CHGNet
from chgnet.model.composition_model import AtomRef
from numpy.typing import NDArray
from pymatgen.core import Structure
from torch import Tensor

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS, Task
from trainables.graphs.batch import Batch, collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import open_or_build
from trainables.graphs.view import full_view
from trainables.model.chgnet import CrystalModel, Start, build_model, cutoffs_of

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # stock's own
ENERGY, PROPERTY, PER_CELL = TASKS["matbench_mp_e_form"], TASKS["matbench_mp_gap"], TASKS["matbench_perovskites"]
SHIPPED: tuple[Start, ...] = ("0.3.0", "r2scan", "0.2.0")
STARTS: tuple[Start, ...] = (*SHIPPED, "scratch")


def stock_model(start: Start) -> CHGNet:
    """chgnet's own model with its own loader, or the constructor and our random weights for scratch."""
    with contextlib.redirect_stdout(io.StringIO()):
        if start != "scratch":
            return CHGNet.load(model_name=start, use_device="cpu", verbose=False)
        ours = build_model("scratch", ENERGY, seed=4)
        model = CHGNet(**ours.model_args)
        model.load_state_dict(ours.state_dict())
        return model


def our_model(start: Start, task: Task = ENERGY) -> CrystalModel:
    return build_model(start, task, seed=4)


def stock_graphs(structures: Sequence[Structure], cutoff: float) -> list[CrystalGraph]:
    converter = CrystalGraphConverter(atom_graph_cutoff=cutoff, bond_graph_cutoff=3, on_isolated_atoms="ignore")
    return [converter(structure) for structure in structures]


def our_batch(structures: Sequence[Structure], folder: Path, cutoffs: Cutoffs, *, folded: bool = False) -> Batch:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)
    store, rows = open_or_build(table, cutoffs, folder), np.arange(len(table))
    return collate(store, rows) if folded else full_view(store, rows).batch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stock CHGNet compute in float64 from the structure to the energy."""
    monkeypatch.setattr("chgnet.graph.converter.TORCH_DTYPE", torch.float64)
    monkeypatch.setattr("chgnet.model.model.TORCH_DTYPE", torch.float64)

    def fractions(self: AtomRef, graphs: list[CrystalGraph]) -> Tensor:
        numbers = [graph.atomic_number - 1 for graph in graphs]
        return torch.stack([torch.bincount(z, minlength=self.max_num_elements).double() / len(z) for z in numbers])

    monkeypatch.setattr(AtomRef, "_assemble_graphs", fractions)  # stock's own ends in .float()


def energies(model: CHGNet, graphs: list[CrystalGraph]) -> NDArray[np.float64]:
    with torch.no_grad():
        return model(graphs, task="e")["e"].double().numpy()


def our_energies(model: CrystalModel, batch: Batch) -> NDArray[np.float64]:
    with torch.no_grad():
        return model(batch).double().numpy()


def largest_difference(start: Start, structures: Sequence[Structure], folder: Path, dtype: torch.dtype) -> float:
    stock, ours = stock_model(start).to(dtype), our_model(start).to(dtype)
    cutoffs = cutoffs_of(start)
    theirs = energies(stock, stock_graphs(structures, cutoffs.atom))
    mine = our_energies(ours, our_batch(structures, folder, cutoffs))
    assert np.std(theirs) > 0.01  # the crystals do differ
    return float(np.abs(mine - theirs).max())


@pytest.mark.parametrize("start", STARTS)
def test_made_crystals_have_stock_energies(start: Start, made: dict[str, Structure], folder: Path) -> None:
    assert largest_difference(start, list(made.values()), folder, torch.float32) <= 3e-5


@pytest.mark.parametrize("start", STARTS)
def test_made_crystals_have_stock_energies_to_the_last_digits_in_double(
    start: Start, made: dict[str, Structure], folder: Path, in_double: None
) -> None:
    assert largest_difference(start, list(made.values()), folder, torch.float64) <= 1e-10


@pytest.mark.parametrize("start", SHIPPED)
def test_real_crystals_have_stock_energies(
    start: Start, real_bulk: list[Structure], real_layers: list[Structure], folder: Path
) -> None:
    assert largest_difference(start, [*real_bulk[::5], *real_layers[::3]], folder, torch.float32) <= 3e-5


@pytest.mark.parametrize("start", SHIPPED)
def test_real_crystals_have_stock_energies_to_the_last_digits_in_double(
    start: Start, real_bulk: list[Structure], real_layers: list[Structure], folder: Path, in_double: None
) -> None:
    assert largest_difference(start, [*real_bulk[2::9], *real_layers[1::3]], folder, torch.float64) <= 1e-10


def gradients(model: CHGNet, energy: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean absolute error over every parameter; 0 where nothing arrives."""
    (energy - targets.to(energy)).abs().mean().backward()
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.named_parameters()
    }


def gradient_difference(start: Start, structures: Sequence[Structure], folder: Path, dtype: torch.dtype) -> float:
    """Relative L2 difference of our gradient from stock's, over all parameters at once."""
    stock, ours = stock_model(start).to(dtype), our_model(start).to(dtype)
    for weight in stock.composition_model.parameters():
        weight.requires_grad = True
    cutoffs = cutoffs_of(start)
    theirs = stock(stock_graphs(structures, cutoffs.atom), task="e")["e"]
    # errors of both signs and none near 0, where the sign of an L1 loss would hang on rounding
    targets = theirs.detach() + torch.where(torch.arange(len(theirs)) % 3 == 0, 0.3, -0.2)
    expected = gradients(stock, theirs, targets)
    found = gradients(ours, ours(our_batch(structures, folder, cutoffs)), targets)
    assert found.keys() == expected.keys()
    assert expected["composition_model.fc.weight"].abs().sum() > 0
    apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return (apart / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


@pytest.mark.parametrize("start", STARTS)
def test_gradients_are_stock_autograds(start: Start, made: dict[str, Structure], folder: Path) -> None:
    # stock 0.2.0's own gradient is 7e-6 from its float64 one on these crystals, that of the others 2e-6 at most
    tolerance = 2e-5 if start == "0.2.0" else 1e-5
    assert gradient_difference(start, list(made.values()), folder, torch.float32) <= tolerance


@pytest.mark.parametrize("start", STARTS)
def test_gradients_are_stock_autograds_on_real_crystals(start: Start, real_bulk: list[Structure], folder: Path) -> None:
    assert gradient_difference(start, real_bulk[1::16], folder, torch.float32) <= 1e-5


@pytest.mark.parametrize("start", STARTS)
def test_gradients_are_stock_autograds_to_the_last_digits_in_double(
    start: Start, made: dict[str, Structure], folder: Path, in_double: None
) -> None:
    assert gradient_difference(start, list(made.values()), folder, torch.float64) <= 1e-10


def test_020_adds_its_bond_bias_whether_or_not_the_batch_has_an_angle(
    made: dict[str, Structure], folder: Path, in_double: None
) -> None:
    """Stock 0.2.0 skips its bond convolutions, and the bias they add to every bond, in a batch without any angle.

    So stock's energy of a crystal without angles depends on its batch mates. Ours is the one it has beside a
    crystal with angles, always.
    """
    stock, ours, cutoffs = stock_model("0.2.0").double(), our_model("0.2.0").double(), cutoffs_of("0.2.0")
    plain, mate = made["bonds but no angles"], made["perovskite"]
    alone = energies(stock, stock_graphs([plain], cutoffs.atom))[0]
    beside = energies(stock, stock_graphs([plain, mate], cutoffs.atom))[0]
    assert abs(alone - beside) > 1e-6
    assert our_energies(ours, our_batch([plain], folder, cutoffs))[0] == pytest.approx(beside, abs=1e-10)
    assert our_energies(ours, our_batch([plain, mate], folder, cutoffs))[0] == pytest.approx(beside, abs=1e-10)


@pytest.mark.parametrize("start", ["0.3.0", "r2scan"])
def test_without_output_biases_a_crystal_without_angles_is_stocks_own(
    start: Start, made: dict[str, Structure], folder: Path, in_double: None
) -> None:
    plain = [made["bonds but no angles"]]
    theirs = energies(stock_model(start).double(), stock_graphs(plain, 6.0))
    assert our_energies(our_model(start).double(), our_batch(plain, folder, Cutoffs())) == pytest.approx(
        theirs, abs=1e-10
    )


@pytest.mark.parametrize("start", ["0.3.0", "scratch"])
def test_a_skin_changes_no_energy(start: Start, made: dict[str, Structure], folder: Path) -> None:
    model, structures = our_model(start).double(), list(made.values())
    plain, skinned = (our_batch(structures, folder, Cutoffs(skin=skin)) for skin in (0.0, 0.4))
    assert len(skinned.length) > len(plain.length)
    assert len(skinned.left) > len(plain.left)
    np.testing.assert_allclose(our_energies(model, skinned), our_energies(model, plain), atol=1e-10, rtol=0)


@pytest.mark.parametrize("start", STARTS)
def test_an_energy_model_has_exactly_stocks_keys(start: Start) -> None:
    ours, theirs = our_model(start).state_dict(), stock_model(start).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_property_model_has_stocks_keys_and_a_head() -> None:
    model = our_model("0.3.0", PROPERTY)
    extra = set(model.state_dict()) - set(stock_model("0.3.0").state_dict())
    assert extra == {f"head.{name}" for name in model.head.state_dict()}


def test_a_property_is_predicted_by_its_head_and_an_energy_without_one(
    made: dict[str, Structure], folder: Path
) -> None:
    batch = our_batch(list(made.values()), folder, Cutoffs())
    energy, other = our_model("0.3.0"), our_model("0.3.0", PROPERTY)
    assert energy.head is None
    torch.nn.init.zeros_(other.head.mlp[-1].weight)
    torch.nn.init.constant_(other.head.mlp[-1].bias, 0.5)
    other.head.set_scale(torch.tensor([3.0, 5.0]))
    assert our_energies(other, batch) == pytest.approx(np.full(len(batch), 4.5), abs=1e-6)


def test_every_weight_of_a_head_is_trained(made: dict[str, Structure], folder: Path) -> None:
    batch = our_batch(list(made.values()), folder, Cutoffs())
    for pooling in ("mean", "attention"):
        model = build_model("0.3.0", PROPERTY, pooling=pooling, seed=4)
        (model(batch) - 1).square().mean().backward()
        assert all(float(weight.grad.abs().sum()) > 0 for weight in model.head.parameters())


@pytest.mark.parametrize("start", STARTS)
def test_every_parameter_can_be_trained(start: Start) -> None:
    assert all(weight.requires_grad for weight in our_model(start).parameters())


@pytest.mark.parametrize("start", STARTS)
def test_cutoffs_are_those_the_weights_were_trained_with(start: Start) -> None:
    expected = Cutoffs(5.0 if start == "0.2.0" else 6.0, 3.0)
    assert cutoffs_of(start) == expected
    assert our_model(start).cutoffs == expected


@pytest.mark.parametrize("start", STARTS)
def test_the_shipped_architectures_have_no_dropout(start: Start) -> None:
    """The packed pass leaves Dropout layers out, which is right only where their rate is 0."""
    arguments = our_model(start).model_args
    assert (arguments["conv_dropout"], arguments["mlp_dropout"]) == (0, 0)


def weights(model: CrystalModel) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_scratch_weights_follow_from_the_seed_alone() -> None:
    first = build_model("scratch", ENERGY, seed=7)
    torch.rand(3)
    assert torch.equal(weights(build_model("scratch", ENERGY, seed=7)), weights(first))
    assert not torch.equal(weights(build_model("scratch", ENERGY, seed=8)), weights(first))


def test_a_fresh_head_follows_from_the_seed_and_the_rest_from_the_weights() -> None:
    first, again, other = (build_model("0.3.0", PROPERTY, pooling="attention", seed=seed) for seed in (7, 7, 8))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(first.head.mlp[0].weight, other.head.mlp[0].weight)
    assert torch.equal(first.atom_embedding.embedding.weight, other.atom_embedding.embedding.weight)


@pytest.mark.parametrize(("start", "task"), [("scratch", ENERGY), ("0.3.0", PROPERTY)])
def test_building_a_model_leaves_the_global_generator_alone(start: Start, task: Task) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    build_model(start, task, seed=3)
    assert torch.equal(torch.rand(4), expected)


def test_building_a_model_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    build_model("0.3.0", ENERGY)
    assert capsys.readouterr().out == ""


def test_graph_energy_and_reference_add_up_to_the_energy(made: dict[str, Structure], folder: Path) -> None:
    batch, model = our_batch(list(made.values()), folder, Cutoffs()), our_model("0.3.0").double()
    with torch.no_grad():
        graph, reference, total = model.graph_energy(batch), model.reference(batch), model(batch)
    np.testing.assert_allclose((graph + reference).numpy(), total.numpy(), atol=1e-12, rtol=0)
    assert float(reference.abs().min()) > 0.01
    place = list(made).index("rocksalt")
    sodium, chlorine = model.composition_model.fc.weight[0][[10, 16]].tolist()
    assert float(reference[place]) == pytest.approx((sodium + chlorine) / 2, abs=1e-12)


def test_an_energy_per_cell_is_the_energy_per_atom_times_the_atoms(made: dict[str, Structure], folder: Path) -> None:
    batch = our_batch(list(made.values()), folder, Cutoffs())
    per_atom, per_cell = our_energies(our_model("0.3.0"), batch), our_energies(our_model("0.3.0", PER_CELL), batch)
    np.testing.assert_allclose(per_cell, per_atom * [len(cell) for cell in made.values()], rtol=1e-6)


@pytest.fixture
def batches_of_every_kind(made: dict[str, Structure], folder: Path) -> Iterator[Batch]:
    """One batch for each kind of missing neighbours, and a mixed one."""
    names = (["no bonds at all"], ["one isolated atom"], ["bonds but no angles"], ["no bonds at all", "rocksalt"])
    return (our_batch([made[name] for name in chosen], folder, Cutoffs(5.0)) for chosen in names)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("task", [ENERGY, PROPERTY], ids=["energy", "property"])
def test_atoms_without_neighbours_give_finite_values_and_gradients(
    start: Start, task: Task, batches_of_every_kind: Iterator[Batch]
) -> None:
    model = our_model(start, task)
    for batch in batches_of_every_kind:
        model.zero_grad()
        prediction = model(batch)
        prediction.sum().backward()
        assert prediction.shape == (len(batch),)
        assert bool(torch.isfinite(prediction).all())
        assert all(bool(torch.isfinite(w.grad).all()) for w in model.parameters() if w.grad is not None)


def test_a_crystal_whose_conversion_failed_gives_a_finite_value(made: dict[str, Structure], tmp_path: Path) -> None:
    needle = Crystal(np.diag([0.04, 10.0, 10.0]), np.array([1], dtype=np.uint8), np.zeros((1, 3)))
    store = open_or_build(CrystalTable.pack([needle, Crystal.from_structure(made["hcp"])]), Cutoffs(), tmp_path)
    assert store.failed.tolist() == [True, False]
    assert np.isfinite(our_energies(our_model("0.3.0"), collate(store, np.arange(2)))).all()


@pytest.mark.parametrize("start", STARTS)
def test_modules_have_stock_names_and_draw_the_same_random_weights(start: Start) -> None:
    ours = build_model(start, ENERGY, seed=11)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(11)
        stock = CHGNet(**ours.model_args)
    if start != "scratch":
        stock = stock_model(start)
    expected = stock.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


def test_a_variant_that_the_packed_pass_does_not_cover_is_refused() -> None:
    arguments = our_model("0.3.0").model_args
    for other in ({"mlp_first": False}, {"non_linearity": "relu"}, {"gMLP_norm": "batch"}, {"conv_dropout": 0.1}):
        with pytest.raises(NotImplementedError, match="no packed energy path"):
            CrystalModel(arguments | other)
