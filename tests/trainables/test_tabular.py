"""Models of tables: their numbers are those of the crystal, their forest is scikit-learn's, and they learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from chgnet.model import CHGNet
from pymatgen.core import Element, Lattice, Structure
from sklearn.ensemble import ExtraTreesRegressor
from small_data import lever_run, rocksalts

import crystaltune as ct
from orchestrator.cli.asked import after_training
from orchestrator.evaluation.baselines import HELD_OUT, baseline_predictions
from orchestrator.inputs.source import Source
from orchestrator.predict.export import export_run
from trainables.config import RunConfig, parse_config
from trainables.crystals import Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.tasks import custom_task
from trainables.errors import UserError
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.view import full_view
from trainables.levers import ModelConfig
from trainables.model.chgnet import build_model
from trainables.model.readout_names import PHYSICS
from trainables.progress import silent
from trainables.tabular.crystal_features import CrystalFeatures
from trainables.tabular.elements import ELEMENT_NAMES, _valence, element_table
from trainables.tabular.learner import _RidgePath, done, learn, parts_of, undone
from trainables.tabular.model import TabularModel, tree_columns
from trainables.tabular.shapes import shaped, shaped_batch
from trainables.tabular.trees import Forest
from trainables.tabular.vibrations import gamma_frequencies
from trainables.training.predict import load_model, predict

PROPERTY = custom_task("mine", "y", "", "property")


def store_of(cells: list[Structure], folder: Path) -> GraphStore:
    return open_or_build(CrystalTable.pack(map(Crystal.from_structure, cells)), Cutoffs(), folder, workers=1)


@pytest.fixture(scope="module")
def features() -> CrystalFeatures:
    trunk = build_model("0.3.0", PROPERTY)
    trunk.head = None
    return CrystalFeatures(trunk.double())


def table_of(features: CrystalFeatures, store: GraphStore) -> np.ndarray[Any, Any]:
    return features(shaped_batch(store, np.arange(len(store)))).numpy()


# --- features ---------------------------------------------------------------------------------------------------------


def test_elements_have_their_valence_and_no_gaps() -> None:
    table = element_table()
    assert table.shape == (94, len(ELEMENT_NAMES))
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-12)
    counts = {symbol: sum(_valence(Element(symbol))) for symbol in ("H", "O", "Si", "Cl", "Fe", "Se", "La", "U")}
    assert counts == {"H": 1, "O": 6, "Si": 4, "Cl": 7, "Fe": 8, "Se": 16, "La": 3, "U": 6}


def test_a_supercell_and_unfolded_graphs_have_the_same_numbers(features: CrystalFeatures, tmp_path: Path) -> None:
    cells = rocksalts(3)
    store = store_of([*cells, *(cell * (2, 1, 1) for cell in cells)], tmp_path)
    table, names = table_of(features, store), np.array(features.names)
    assert table.shape == (6, len(names))
    assert np.isfinite(table).all()
    same = names != "log atoms"
    np.testing.assert_allclose(table[:3, same], table[3:, same], rtol=2e-4, atol=2e-3)
    every = np.arange(6)
    whole = features(shaped(full_view(store, every).batch(), store, every)).numpy()
    np.testing.assert_allclose(whole, table, rtol=2e-4, atol=2e-3)


def test_stiffness_is_that_of_stock_chgnet(features: CrystalFeatures, tmp_path: Path) -> None:
    """Stock CHGNet makes new graphs for the strained cells; so small a compression needs none."""
    sites = {"MgO": [[0, 0, 0], [0.5] * 3], "Si": [[0, 0, 0]]}
    cells = [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.21), ["Mg", "O"], sites["MgO"]),
        Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.47), ["Si"], sites["Si"]),
    ]
    found, place = table_of(features, store_of(cells, tmp_path)), features.names.index
    stock, step = CHGNet.load(verbose=False), 0.015
    for row, (cell, measured) in enumerate(zip(cells, (160, 98), strict=True)):  # GPa
        strained = [cell.copy().apply_strain(strain) for strain in (-step, 0.0, step)]
        below, here, above = (float(stock.predict_structure(each, task="e")["e"]) for each in strained)
        volume = cell.volume / len(cell)
        modulus = (below - 2 * here + above) / step**2 / (9 * volume) * 160.21766
        ours = 10 ** found[row, place("log bulk modulus")]
        assert ours == pytest.approx(modulus, rel=0.03)
        assert ours == pytest.approx(measured, rel=0.3)
        stress = np.trace(stock.predict_structure(cell, task="efs")["s"]) / 3  # GPa; chgnet's sign
        assert abs(found[row, place("pressure")]) == pytest.approx(abs(stress), abs=0.6)


def test_scratch_has_no_numbers_of_chgnet() -> None:
    model = TabularModel(ModelConfig(start="scratch"), PROPERTY)
    assert not set(PHYSICS) & set(model.features.names)
    assert not any(name.startswith("block") for name in model.features.names)
    assert not RunConfig.model_validate(
        {"task": "mine", "model": {"family": "tabular", "start": "scratch"}}
    ).uses_pretrained


# --- learning ---------------------------------------------------------------------------------------------------------


def made_table(n: int = 150) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n, 12)).astype(np.float32)
    table[:, 3] = 2.0
    return table, np.asarray(table[:, 0] * 2 - table[:, 1] + 0.1 * rng.normal(size=n), dtype=np.float64)


def test_the_forest_says_what_scikit_learn_s_does() -> None:
    table, target = made_table()
    grown = ExtraTreesRegressor(20, random_state=0).fit(table[:100], target[:100])
    forest = Forest(grown)
    np.testing.assert_allclose(forest(torch.from_numpy(table)).numpy(), grown.predict(table), atol=1e-12)
    other = Forest()
    other.load_state_dict(forest.state_dict())
    assert torch.equal(other(torch.from_numpy(table)), forest(torch.from_numpy(table)))
    assert forest(torch.empty(0, 12)).shape == (0,)


@pytest.mark.parametrize("n", [8, 60])
def test_a_regression_of_every_strength_is_that_of_the_formula(n: int) -> None:
    table, target = made_table(n)
    path = _RidgePath(table, np.column_stack([target, target**2]))
    x = np.clip((table - path.center) / path.scale, -8, 8)
    for alpha in (1.0, 300.0):
        for column, wanted in enumerate((target, target**2)):
            expected = np.linalg.solve(x.T @ x + alpha * np.eye(12), x.T @ (wanted - wanted.mean()))
            np.testing.assert_allclose(path.weights(alpha)[:, column], expected, atol=1e-8)
    assert np.abs(path.weights(1.0)[3]).max() < 1e-12  # a constant column


def test_a_linear_law_is_left_to_the_regression_and_wide_targets_to_asinh() -> None:
    table, target = made_table()
    columns = np.arange(12)
    linear = learn(table, target, np.arange(150), columns)
    assert linear.share < 0.3
    assert linear.errors[2] <= min(linear.errors[:2])
    wide = learn(table, np.exp(2 * target), np.arange(150), columns)
    assert wide.forest_unit > 0
    assert np.abs(wide.predict(table, columns) - np.exp(2 * target)).mean() < np.exp(2 * target).mean()
    np.testing.assert_allclose(undone(done(np.array([-5.0, 0.0, 1e4]), 2.0), 2.0), [-5.0, 0.0, 1e4], atol=1e-9)


def test_rows_of_one_composition_are_in_one_part() -> None:
    groups = np.repeat(np.arange(10), 3)
    parts = parts_of(groups, 0)
    assert len(set(zip(groups.tolist(), parts.tolist(), strict=True))) == 10
    assert sorted(set(parts.tolist())) == [0, 1, 2, 3, 4]
    assert sorted(parts_of(np.zeros(4, dtype=int), 0).tolist()) == [0, 1, 2, 3]  # of one alone, each row is its own


@pytest.mark.trains
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("property", {}), ("energy_per_atom", {"data__refit": True}), ("energy_per_cell", {}),
     ("gap", {"model__floor": 0.0}), ("property", {"model__start": "scratch"})],
)  # fmt: skip
def test_a_run_is_fitted_kept_and_read_again(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    run = lever_run(tmp_path / "graphs", kind, model__family="tabular", **changes)
    result = run.fit(tmp_path / "run")
    assert (result.status, result.best_epoch) == ("finished", 0)
    assert result.model is not None
    model, config, _ = load_model(result.model)
    assert isinstance(model, TabularModel)
    assert config.model.family == "tabular"
    predicted = predict(model, run.store, run.split.val.rows)
    if not changes.get("data__refit"):
        assert np.abs(predicted - run.split.val.targets).mean() == pytest.approx(result.best_val_mae, rel=1e-6)
    known = predict(model, run.store, run.split.train.rows)
    spread = np.abs(run.split.train.targets - run.split.train.targets.mean()).mean()
    assert np.abs(known - run.split.train.targets).mean() < 0.7 * spread
    if "model__floor" in changes:
        assert predicted.min() >= 0


@pytest.mark.trains
def test_validation_targets_have_no_part_in_it(tmp_path: Path) -> None:
    weights = []
    for change in (0.0, 100.0):
        run = lever_run(tmp_path / "graphs", "property", model__family="tabular")
        run.split.val.targets[:] += change
        result = run.fit(tmp_path / f"run{change}")
        assert result.model is not None
        weights.append(load_model(result.model)[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "settings",
    [{"augment": {"strain": "free"}}, {"distil": {"weight": 0.5}}, {"multitask": {"tasks": ["mp_gap"]}},
     {"ensemble": {"members": 2, "combine": "soup"}}, {"model": {"family": "tabular", "head": "hurdle"}},
     {"model": {"family": "tabular", "freeze": ["head"]}}, {"model": {"family": "tabular", "transform": "log"}}],
)  # fmt: skip
def test_what_it_cannot_have_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model.family=tabular takes no training steps"):
        parse_config({"task": "mine", "model": {"family": "tabular"}} | settings, "the settings")


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.trains
def test_it_is_a_member_beside_a_fine_tuned_model(tmp_path: Path) -> None:
    cells = rocksalts(40)
    frame = pd.DataFrame({"structure": cells, "y": [cell.volume / len(cell) for cell in cells]})
    run = ct.train(
        frame, target="y", folds=[0], out=tmp_path / "out", device="cpu", progress=False,
        settings={
            "optim.epochs": 1, "ensemble.combine": "greedy", "ensemble.vary": {"model.family": ["chgnet", "tabular"]}
        },
    )  # fmt: skip
    assert run.scores.mean is not None
    found = run.predict(cells[:3], device="cpu", progress=False)
    assert np.isfinite(found["prediction"]).all()
    assert (found["std"] > 0).all()
    with pytest.raises(UserError, match=r"only models of energies|only fine-tuned CHGNets"):
        export_run(run.folder)


@pytest.mark.trains
def test_features_are_a_baseline_of_tables_of_some_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [
        cell.copy().scale_lattice(cell.volume * rng.uniform(0.95, 1.05)) for cell in rocksalts(24) for _ in range(5)
    ]
    table = CrystalTable.pack(map(Crystal.from_structure, cells))
    targets = np.array([cell.volume / len(cell) for cell in cells])
    dataset = Dataset(tuple(f"r{k}" for k in range(120)), table, targets, PROPERTY)
    store = open_or_build(table, Cutoffs(), tmp_path, workers=1)
    tables = baseline_predictions(dataset, [0, 1], store, silent, RunConfig(task="mine"))
    errors = {name: float((each["prediction"] - each["target"]).abs().mean()) for name, each in tables.items()}
    assert set(errors) == {"dummy", "linear", "features", "physics"}
    assert errors["physics"] < errors["dummy"]
    assert errors["features"] < 0.5 * min(errors["dummy"], errors["linear"])
    assert 0 < tables["features"].attrs[HELD_OUT] < errors["dummy"]
    few = dataset.take(np.arange(60))
    assert set(baseline_predictions(few, [0], store, silent, RunConfig(task="mine"))) == {"dummy", "linear"}


@pytest.mark.trains
def test_a_run_that_features_beat_on_rows_held_out_is_told_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    salts = [cell for cell in rocksalts(22) for _ in range(5)]
    cells = [cell.copy().scale_lattice(cell.volume * rng.uniform(0.95, 1.05)) for cell in salts]
    frame = pd.DataFrame({"structure": cells, "y": [cell.volume / len(cell) for cell in cells]})
    run = ct.train(
        frame, target="y", folds=[0], out=tmp_path / "out", device="cpu", progress=False,
        settings={"optim.epochs": 1, "model.start": "scratch", "model.width": 8}, preset="single",
    )  # fmt: skip
    held_out = run.scores.held_out
    assert 0 < held_out["features"] < held_out["crystaltune"]
    source = Source("mine", Path("t.csv"), "y")
    told = after_training(source, Path("runs/mine"), None, (), held_out)
    assert told[0][0].startswith(f"features: {held_out['features']:.4g} on rows held out of training")
    assert told[0][1].endswith("--set model.family=tabular --out runs/mine-tabular")
    assert after_training(source, Path("runs/mine"), None, (), {"crystaltune": 1.0, "features": 2.0})[0][0] == (
        "search better settings"
    )


def test_trees_see_no_numbers_that_say_nothing_by_themselves() -> None:
    names = TabularModel(ModelConfig(), PROPERTY).features.names
    seen = [names[k] for k in tree_columns(names)]
    assert "log bulk modulus" in seen
    assert "mean of X" in seen
    assert not any(name.startswith(("block", "share of")) for name in seen)


# --- frequencies ------------------------------------------------------------------------------------------------------


def crystals() -> list[Structure]:
    low = Lattice([[4.3, 0.1, 0], [0, 4.4, 0.2], [0.1, 0, 4.2]])
    return [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.25), ["Mg", "O"], [[0, 0, 0], [0.5] * 3]),
        Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.47), ["Si"], [[0, 0, 0]]).get_primitive_structure(),
        Structure(low, ["Ca", "O", "Mg"], [[0.02, 0, 0.01], [0.5, 0.47, 0.52], [0.5, 0.02, 0.03]]),
    ]


def dynamical_matrix(stock: CHGNet, cell: Structure) -> np.ndarray[Any, Any]:
    """From stock CHGNet's forces, one displacement at a time, (3 N, 3 N)."""
    columns, step = [], 0.01
    for atom, axis in np.ndindex(len(cell), 3):
        forces = []
        for sign in (1, -1):
            moved = cell.copy().translate_sites([atom], sign * step * np.eye(3)[axis], frac_coords=False)
            forces.append(stock.predict_structure(moved, task="ef")["f"].ravel())
        columns.append((forces[1] - forces[0]) / (2 * step))
    mass = np.repeat([float(site.specie.atomic_mass) for site in cell], 3)
    matrix = np.array(columns) / np.sqrt(np.outer(mass, mass))
    return (matrix + matrix.T) / 2


@pytest.mark.trains
def test_frequencies_are_those_of_the_whole_dynamical_matrix_of_stock_chgnet(
    features: CrystalFeatures, tmp_path: Path
) -> None:
    cells, stock = crystals(), CHGNet.load(verbose=False)
    found = gamma_frequencies(features.trunk, store_of(cells, tmp_path), np.arange(3))
    for row, cell in enumerate(cells):
        values = np.linalg.eigvalsh(dynamical_matrix(stock, cell))
        assert found[row, 0] == pytest.approx(521.471 * np.sqrt(values.max()), rel=0.04)
    alone = gamma_frequencies(features.trunk, store_of(cells[2:], tmp_path), np.arange(1))
    assert alone[0, 0] == pytest.approx(found[2, 0], rel=0.02)


@pytest.mark.trains
def test_a_run_with_frequencies_keeps_and_predicts_with_them(tmp_path: Path) -> None:
    run = lever_run(tmp_path / "graphs", "property", model__family="tabular", model__phonons=True)
    result = run.fit(tmp_path / "run")
    assert result.model is not None
    model, _, _ = load_model(result.model)
    assert isinstance(model, TabularModel)
    assert "highest frequency" in model.features.names
    predicted = predict(model, run.store, run.split.val.rows)
    assert np.abs(predicted - run.split.val.targets).mean() == pytest.approx(result.best_val_mae, rel=1e-6)
    with pytest.raises(UserError, match=r"model.start=scratch has none"):
        parse_config({"task": "mine", "model": {"phonons": True, "start": "scratch"}}, "the settings")
