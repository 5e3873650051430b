"""A frozen trunk is computed once, and nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
from small_data import tiny_run

from trainables.graphs.batch import collate
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import CrystalModel, build_model
from trainables.training import loop as loop_module
from trainables.training.cached import TRUNK, trunk_is_known, with_known_trunk
from trainables.training.data import TrainingData
from trainables.training.fit import fit
from trainables.training.predict import load_model, predict

pytestmark = pytest.mark.trains


@pytest.mark.parametrize("energy", [True, False])
def test_known_features_give_the_predictions_of_the_whole_model(tmp_path: Path, energy: bool) -> None:
    _, split, store, dataset = tiny_run(tmp_path, energy=energy)
    model, rows = build_model("0.3.0", dataset.task), split.train.rows
    known = with_known_trunk(model, store, rows)
    np.testing.assert_allclose(predict(model, known, rows), predict(model, store, rows), atol=2e-6)
    pooled = predict(model, known, rows, output="pooled")
    np.testing.assert_allclose(pooled, predict(model, store, rows, output="pooled"), atol=1e-5)
    assert len(collate(known, rows[:3]).length) == 0
    assert store.trunk is None


@pytest.mark.parametrize("energy", [True, False])
@pytest.mark.parametrize("refit", [False, True])
def test_training_on_a_known_trunk_is_training_on_the_frozen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, energy: bool, refit: bool
) -> None:
    config, split, store, dataset = tiny_run(tmp_path, energy=energy, model__freeze=list(TRUNK), data__refit=refit)
    quick = fit(config, TrainingData(dataset.task, split, store), tmp_path / "quick")
    monkeypatch.setattr(loop_module, "trunk_is_known", lambda config: False)
    slow = fit(config, TrainingData(dataset.task, split, store), tmp_path / "slow")
    for first, second in zip(quick.history, slow.history, strict=True):
        assert first.train_loss == pytest.approx(second.train_loss, rel=1e-4)
        if not np.isnan(second.val_mae):
            assert first.val_mae == pytest.approx(second.val_mae, rel=1e-4)
    assert quick.model is not None
    model = load_model(quick.model)[0]
    error = np.abs(predict(model, store, split.val.rows) - split.val.targets).mean()
    if not refit:
        assert error == pytest.approx(quick.best_val_mae, rel=1e-4)


def test_the_trunk_is_run_once_for_each_crystal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, split, store, dataset = tiny_run(tmp_path, model__freeze=list(TRUNK), optim__epochs=5)
    passed, inner = [], with_known_trunk

    def watched(model: CrystalModel, store: GraphStore, rows: np.ndarray, *rest: object) -> GraphStore:
        passed.append(len(rows))
        return inner(model, store, rows)

    monkeypatch.setattr(loop_module, "with_known_trunk", watched)
    fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert passed == [len(split.train) + len(split.val)]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.freeze": list(TRUNK[:-1])},
        {"model.freeze": list(TRUNK), "augment.strain": "symmetry"},
        {},
    ],
)
def test_a_trunk_that_changes_is_not_kept(tmp_path: Path, changes: dict[str, object]) -> None:
    config = tiny_run(tmp_path)[0]
    assert not trunk_is_known(config.changed(changes))
    assert trunk_is_known(config.changed({"model.freeze": ["reference", *TRUNK]}))
