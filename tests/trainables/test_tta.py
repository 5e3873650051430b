"""Test-time augmentation and energies of the frozen model: one view is the plain prediction, many are exact."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from chgnet.graph import CrystalGraphConverter
from chgnet.model import CHGNet
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.stats import trim_mean

from trainables.config import RunConfig
from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS, Task
from trainables.errors import UserError
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build
from trainables.levers import PerturbConfig, Start, TtaConfig
from trainables.model.chgnet import build_model
from trainables.training.augment import draw, gathered, moved, skin_of
from trainables.training.frozen import FrozenEnergies
from trainables.training.predict import predict
from trainables.training.tta import AGGREGATES, Predicted, _own_draw, _own_seed, predict_views

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
ENERGY, PROPERTY, PER_CELL = TASKS["matbench_mp_e_form"], TASKS["matbench_mp_gap"], TASKS["matbench_perovskites"]
CPU = torch.device("cpu")
NAMES = ("rocksalt", "perovskite", "hcp", "triclinic", "layer in vacuum", "outside the cell")
NEEDLE = Crystal(np.diag([0.04, 10.0, 10.0]), np.array([1], dtype=np.uint8), np.zeros((1, 3)))  # has no graph


def views(number: int = 4, **changes: object) -> TtaConfig:
    return TtaConfig.model_validate({"views": number, "strain_size": 0.004, "displacement_size": 0.02} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def table(made: dict[str, Structure]) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(made[name]) for name in NAMES)


def stores(table: CrystalTable, folder: Path, config: PerturbConfig) -> tuple[GraphStore, GraphStore]:
    skin = skin_of(config, Cutoffs())
    return tuple(open_or_build(table, Cutoffs(skin=s), folder, workers=1) for s in (0.0, skin))  # type: ignore[return-value]


def predicted(
    config: TtaConfig, table: CrystalTable, folder: Path, rows: NDArray[np.int64] | None = None, task: Task = ENERGY
) -> Predicted:
    plain, skinned = stores(table, folder, config)
    frozen = FrozenEnergies("0.3.0", task, CPU) if config.corrected else None
    rows = np.arange(len(table)) if rows is None else rows
    return predict_views(build_model("0.3.0", task, seed=3), config, plain, skinned, rows, frozen=frozen)


@pytest.mark.parametrize("task", [ENERGY, PROPERTY, PER_CELL], ids=lambda task: task.quantity)
def test_one_view_is_exactly_the_plain_prediction(task: Task, table: CrystalTable, folder: Path) -> None:
    store = open_or_build(table, Cutoffs(), folder, workers=1)
    model, rows = build_model("0.3.0", task, seed=3), np.array([4, 0, 2, 2])
    for aggregate in AGGREGATES:
        config = TtaConfig.model_validate({"aggregate": aggregate, "strain": "free", "strain_size": 0.01})
        found = predict_views(model, config, store, None, rows)
        assert np.array_equal(found.value, predict(model, store, rows))
        assert np.array_equal(found.std, np.zeros(4))


def test_views_of_size_zero_all_equal_the_plain_prediction(table: CrystalTable, folder: Path) -> None:
    """With a size too small to see; several views of size 0 are refused."""
    config = views(3, strain_size=1e-12, displacement="none")
    plain = predict(build_model("0.3.0", ENERGY), stores(table, folder, config)[0], np.arange(len(table)))
    found = predicted(config, table, folder)
    np.testing.assert_allclose(found.value, plain, atol=1e-5)
    assert found.std.max() < 1e-5
    with pytest.raises(UserError, match="requires a perturbation"):
        RunConfig(task="t").changed({"tta.views": 3, "tta.strain_size": 0, "tta.displacement": "none"})


@pytest.mark.parametrize("kinds", [("symmetry", "symmetry"), ("free", "free"), ("symmetry", "free")])
def test_a_crystals_views_depend_on_the_crystal_alone(
    kinds: tuple[str, str], table: CrystalTable, folder: Path
) -> None:
    config, every = views(3, strain=kinds[0], displacement=kinds[1]), np.arange(len(table))
    whole = predicted(config, table, folder)
    assert whole.std.min() > 1e-5  # every crystal did move
    again = predicted(config, table, folder)
    assert np.array_equal(again.value, whole.value)
    for rows in (every[::-1], np.array([3]), np.array([5, 3, 5, 0])):
        found = predicted(config, table, folder, rows)
        np.testing.assert_allclose(found.value, whole.value[rows], atol=1e-5)
        np.testing.assert_allclose(found.std, whole.std[rows], atol=1e-5)
    fewer = table[1:4]
    elsewhere = predicted(config, fewer, folder)  # at other places of another store
    np.testing.assert_allclose(elsewhere.value, whole.value[1:4], atol=1e-5)


def test_every_crystal_and_every_view_has_a_draw_of_its_own(table: CrystalTable, folder: Path) -> None:
    config = views(2, strain="isotropic")
    store = stores(table, folder, config)[1]
    drawn = {own_strain(config, store, row, number) for row in range(len(table)) for number in range(3)}
    assert len(drawn) == 3 * len(table)


def by_hand(config: TtaConfig, table: CrystalTable, folder: Path) -> NDArray[np.float64]:
    """(views, n) one view at a time: a run of 1 + k views holds that of k views and one more."""
    found = [predicted(views(1), table, folder).value]
    for number in range(2, config.views + 1):
        mean = predicted(config.model_copy(update={"views": number, "aggregate": "mean"}), table, folder).value
        found.append(number * mean - sum(found))
    return np.array(found)


def test_aggregates_are_numpys(table: CrystalTable, folder: Path) -> None:
    config = views(5, strain="free", displacement="free")
    values = by_hand(config, table, folder)
    for aggregate, expected in (
        ("mean", values.mean(axis=0)),
        ("median", np.median(values, axis=0)),
        ("trimmed", np.sort(values, axis=0)[1:4].mean(axis=0)),
    ):
        found = predicted(config.model_copy(update={"aggregate": aggregate}), table, folder)
        np.testing.assert_allclose(found.value, expected, atol=3e-6)
        np.testing.assert_allclose(found.std, values.std(axis=0), atol=3e-6)


def test_every_aggregate_takes_views_by_rows() -> None:
    values = np.random.default_rng(0).normal(size=(8, 5))
    assert {name: aggregate(values).shape for name, aggregate in AGGREGATES.items()} == dict.fromkeys(AGGREGATES, (5,))
    np.testing.assert_allclose(AGGREGATES["trimmed"](values), trim_mean(values, 0.25, axis=0))
    np.testing.assert_allclose(AGGREGATES["trimmed"](values), np.sort(values, axis=0)[2:6].mean(axis=0))


def test_without_identity_the_unmoved_crystal_is_no_view(table: CrystalTable, folder: Path) -> None:
    config = views(4, strain="free", displacement="none")
    without = predicted(config.model_copy(update={"views": 3, "identity": False}), table, folder)
    plain = predict(build_model("0.3.0", ENERGY), stores(table, folder, config)[0], np.arange(len(table)))
    np.testing.assert_allclose(predicted(config, table, folder).value, (3 * without.value + plain) / 4, atol=2e-6)
    assert np.abs(without.value - plain).max() > 1e-4


def test_a_view_is_the_prediction_of_the_moved_crystal(table: CrystalTable, folder: Path) -> None:
    """Converted anew at positions that no code of the views has touched."""
    config = views(2, strain="isotropic", displacement="none", strain_size=0.01, identity=False)
    clean, skinned = stores(table, folder, config)
    model, rows = build_model("0.3.0", ENERGY), np.arange(len(table))
    found = predict_views(model, config, clean, skinned, rows)
    scaled = []
    for number in range(2):
        strains = [own_strain(config, skinned, row, number) for row in rows]
        crystals = [Crystal(c.lattice * (1 + s), c.numbers, c.frac) for c, s in zip(table, strains, strict=True)]
        again = open_or_build(CrystalTable.pack(crystals), Cutoffs(), folder, workers=1)
        scaled.append(predict(model, again, rows))
    np.testing.assert_allclose(found.value, np.mean(scaled, axis=0), atol=1e-5)
    assert np.abs(found.std).min() > 1e-5


def own_strain(config: TtaConfig, store: GraphStore, row: int, number: int) -> float:
    strain = _own_draw(config, int(store.counts[row, 0]), _own_seed(store, row), number).strain
    assert strain is not None
    return float(strain[0, 0, 0])


@pytest.mark.parametrize("task", [ENERGY, PER_CELL], ids=lambda task: task.quantity)
@pytest.mark.parametrize("kinds", [("symmetry", "symmetry"), ("free", "free")])
def test_corrected_views_of_the_untouched_model_are_the_plain_prediction(
    kinds: tuple[str, str], task: Task, table: CrystalTable, folder: Path
) -> None:
    config = views(4, strain=kinds[0], displacement=kinds[1])
    n_atoms = table.n_atoms if task is PER_CELL else 1
    plain = predict(build_model("0.3.0", task), stores(table, folder, config)[0], np.arange(len(table)))
    corrected = predicted(config.model_copy(update={"corrected": True}), table, folder, task=task)
    raw = predicted(config, table, folder, task=task)
    assert np.all(np.abs(corrected.value - plain) / n_atoms <= 1e-5)
    assert np.all(corrected.std / n_atoms <= 1e-5)
    assert (raw.std / n_atoms).min() > 2e-5
    assert (raw.std / n_atoms).max() > 1e-3


def test_a_crystal_without_a_graph_is_nan_and_disturbs_no_other(table: CrystalTable, folder: Path) -> None:
    config = views(3, strain="free")
    for aggregate in AGGREGATES:
        config = config.model_copy(update={"aggregate": aggregate})
        expected = predicted(config, table, folder)
        found = predicted(config, CrystalTable.pack([*table, NEEDLE]), folder)
        assert np.isnan(found.value[-1])
        assert np.isnan(found.std[-1])
        np.testing.assert_allclose(found.value[:-1], expected.value, atol=1e-5)
    alone = predicted(config, CrystalTable.pack([NEEDLE]), folder)
    assert np.isnan(alone.value).all()


def test_what_views_need_is_refused_where_it_is_missing(table: CrystalTable, folder: Path) -> None:
    config = views(2)
    store, skinned = stores(table, folder, config)
    model, rows = build_model("0.3.0", ENERGY), np.arange(2)
    with pytest.raises(ValueError, match="skinned="):
        predict_views(model, config, store, None, rows)
    with pytest.raises(ValueError, match="frozen="):
        predict_views(model, config.model_copy(update={"corrected": True}), store, skinned, rows)


def stock_energies(start: str, crystals: CrystalTable) -> NDArray[np.float64]:
    """chgnet's own converter and model, (n,) eV/atom."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(model_name=start, use_device="cpu", verbose=False)
    converter = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3, on_isolated_atoms="ignore")
    graphs = [converter(crystal.to_structure()) for crystal in crystals]
    with torch.no_grad():
        return model(graphs, task="e")["e"].double().numpy()


@pytest.mark.parametrize(
    ("start", "task", "kinds"),
    [
        ("0.3.0", ENERGY, ("free", "free")),
        ("0.3.0", ENERGY, ("symmetry", "symmetry")),
        ("0.3.0", PER_CELL, ("symmetry", "free")),
        ("r2scan", ENERGY, ("free", "none")),
        ("scratch", PER_CELL, ("isotropic", "none")),
    ],
)
def test_what_the_frozen_model_adds_is_the_difference_of_stock_energies(
    start: Start, task: Task, kinds: tuple[str, str], table: CrystalTable, folder: Path
) -> None:
    config = views(2, strain=kinds[0], displacement=kinds[1])
    store, skinned = stores(table, folder, config)
    rows = np.arange(len(table))
    after = moved(
        config, skinned, rows, gathered(config, skinned, rows), draw(config, table.n_atoms, np.random.default_rng(0))
    )
    atoms = np.split(after.frac.numpy(), np.cumsum(table.n_atoms)[:-1])
    rebuilt = CrystalTable.pack(
        Crystal(lattice, crystal.numbers, frac)
        for lattice, crystal, frac in zip(after.lattice.numpy(), table, atoms, strict=True)
    )
    name = "0.3.0" if start == "scratch" else start
    expected = stock_energies(name, rebuilt) - stock_energies(name, table)
    frozen = FrozenEnergies(start, task, CPU)
    frozen.know(store, rows)
    found = frozen.difference(after.batch(), rows).double().numpy()
    per_atom = table.n_atoms if task is PER_CELL else 1
    np.testing.assert_allclose(found / per_atom, expected, atol=3e-5)
    assert np.abs(expected).max() > 1e-3
    part = np.array([3, 1])
    batch = gathered(config, skinned, part).batch()
    assert frozen.difference(batch, part).abs().max() < 1e-3 * len(atoms)  # in any order; unmoved: nothing


def test_properties_cannot_be_corrected_by_energies() -> None:
    with pytest.raises(UserError, match=r"matbench_mp_gap \(eV\).*augment.labels=kept and tta.corrected=false"):
        FrozenEnergies("0.3.0", PROPERTY, CPU)
