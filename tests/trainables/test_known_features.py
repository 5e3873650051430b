"""Features that are kept beside graphs, curves of one read-out, and learning from rows of one composition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from small_data import lever_run, rocksalts

from orchestrator.evaluation.physics import one_variable
from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import custom_task
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, is_whole, open_or_build
from trainables.levers import ModelConfig
from trainables.tabular import known
from trainables.tabular.known import crystal_table
from trainables.tabular.learner import learn
from trainables.tabular.model import TabularModel
from trainables.tabular.shapes import shaped_batch
from trainables.training.predict import load_model, predict

PROPERTY = custom_task("mine", "y", "", "property")


def store_of(cells: list[Structure], folder: Path) -> GraphStore:
    return open_or_build(CrystalTable.pack(map(Crystal.from_structure, cells)), Cutoffs(), folder, workers=1)


# --- kept tables ------------------------------------------------------------------------------------------------------


def test_features_are_computed_once_and_again_where_their_file_is_damaged(tmp_path: Path) -> None:
    store = store_of(rocksalts(4), tmp_path)
    model, asked = TabularModel(ModelConfig(), PROPERTY), []

    def compute(of: GraphStore, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.append(len(rows))
        return np.asarray(model.features(shaped_batch(of, rows)).double().numpy())

    first = np.array(crystal_table(model, store, compute))
    np.testing.assert_array_equal(crystal_table(model, store, compute), first)
    assert asked == [4]
    (file,) = store.folder.glob("features-0.3.0-*.npy")
    file.write_bytes(b"")
    np.testing.assert_array_equal(crystal_table(model, store, compute), first)
    asked.pop()
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(crystal_table(model, store, compute), first)
    assert asked == [4, 4]
    other = TabularModel(ModelConfig(start="scratch"), PROPERTY)
    assert crystal_table(other, store, lambda of, rows: np.zeros((4, len(other.features.names)))).shape[1] < len(
        model.features.names
    )
    assert len(list(store.folder.glob("features-*.npy"))) == 2
    assert is_whole(store.folder)


def test_predictions_of_kept_features_are_those_of_batches(tmp_path: Path) -> None:
    run = lever_run(tmp_path / "graphs", "property", model__family="tabular")
    run.fit(tmp_path / "run")
    model, _, _ = load_model(tmp_path / "run" / "model")
    assert isinstance(model, TabularModel)
    rows = np.array([3, 1, 2])
    with torch.inference_mode():
        expected = model(shaped_batch(run.store, rows)).numpy()
    np.testing.assert_allclose(predict(model, run.store, rows), expected, rtol=1e-6)


def test_one_variable_is_the_column_that_says_most_of_rows_held_out() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 4))
    target = -np.exp(table[:, 2]) + 0.01 * rng.normal(size=200)
    found = one_variable(table, target, np.arange(200) // 2)
    assert found.column == 2
    assert found.error < 0.1 * np.abs(target - np.median(target)).mean()
    said = found.predict(np.array([[0, 0, 0.0, 0], [0, 0, 9.0, 0], [0, 0, -9.0, 0]]))
    assert said[0] == pytest.approx(-1, abs=0.1)
    assert (said[1], said[2]) == pytest.approx((target.min(), target.max()), rel=0.05)  # beyond the rows it stays
    memorised = np.arange(200) // 20  # each group's own level, which says nothing of the other groups
    own = rng.normal(size=10)[memorised]
    assert one_variable(table, own, memorised).error > 0.5 * np.abs(own - own.mean()).mean()


def test_features_that_cannot_be_kept_are_computed_once_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model, asked = store_of(rocksalts(3), tmp_path), TabularModel(ModelConfig(), PROPERTY), []

    def refused(path: Path, array: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    def compute(of: GraphStore, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.append(len(rows))
        return np.ones((len(rows), len(model.features.names)))

    monkeypatch.setattr(known, "write_array", refused)
    for _ in range(3):
        assert crystal_table(model, store, compute).shape == (3, len(model.features.names))
    assert asked == [3]


def test_crystals_without_any_graph_have_no_features(tmp_path: Path) -> None:
    store, model = store_of(rocksalts(2), tmp_path), TabularModel(ModelConfig(), PROPERTY)
    assert np.isnan(crystal_table(model, store, lambda of, rows: np.full(len(rows), np.nan))).all()


def test_rows_of_one_composition_are_learnt_from_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 5)).astype(np.float32)
    target = table[:, 0].astype(np.float64) * 2
    learnt = learn(table, target, np.zeros(60, dtype=np.int64), np.arange(5), most_trees=20)
    assert learnt.errors[2] < 0.5 * np.abs(target).mean()
    assert one_variable(table.astype(np.float64), target, np.zeros(60, dtype=np.int64)).column == 0
