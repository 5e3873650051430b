"""Soft targets: who may label what, how much a row counts, and what of it enters the loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_data import lever_run, soft_targets

from trainables.errors import UserError
from trainables.levers import DistilConfig
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.training.distill import Labels, SoftTargets
from trainables.training.objective import Objective
from trainables.training.predict import predict


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def labels(ids: str, prediction: list[float], seen: str = "", features: list[list[float]] | None = None) -> Labels:
    wide = None if features is None else np.array(features)
    return Labels(tuple(ids), np.array(prediction), frozenset(seen), wide)


def weighted(std: list[float], **config: object) -> NDArray[np.float64]:
    n = len(std)
    soft = SoftTargets(tuple(map(str, range(n))), np.zeros(n), np.array(std), np.zeros(n, dtype=bool))
    return soft.row_weights(DistilConfig.model_validate(config))


def test_soft_targets_are_mean_and_deviation_of_the_teachers_of_each_row() -> None:
    soft = SoftTargets.from_teachers(
        [labels("cab", [3.0, 1.0, 2.0], seen="xz"), labels("bc", [4.0, 6.0], seen="b"), labels("d", [7.0])]
    )
    assert soft.ids == ("a", "b", "c", "d")
    assert soft.mean.tolist() == [1.0, 3.0, 4.5, 7.0]
    assert soft.std.tolist() == [0.0, 1.0, 1.5, 0.0]
    assert soft.in_sample.tolist() == [False, True, False, False]
    assert soft.features is None


def test_features_are_the_mean_of_the_teachers_that_labelled_the_row() -> None:
    first = labels("ba", [0.0, 0.0], features=[[1.0, 2.0], [3.0, 4.0]])
    second = labels("b", [0.0], features=[[5.0, 6.0]])
    soft = SoftTargets.from_teachers([first, second])
    assert soft.features is not None
    assert soft.features.tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert SoftTargets.from_teachers([first, labels("b", [0.0])]).features is None  # one teacher without


def test_teachers_that_saw_a_row_are_refused_unless_asked_for_by_name() -> None:
    soft = SoftTargets.from_teachers([labels("abc", [1.0, 2.0, 3.0], seen="b"), labels("abc", [1.0, 2.0, 3.0])])
    with pytest.raises(UserError, match=r"^1 soft targets .* trained on those rows \(b\).*distil.teachers=in_sample"):
        soft.check(DistilConfig(), "ac")
    soft.check(DistilConfig(teachers="in_sample"), "abc")


@pytest.mark.parametrize("lacking", ["absent", "nan"])
def test_rows_without_a_soft_target_are_refused_and_named(lacking: str) -> None:
    teacher = labels("ab", [1.0, 2.0]) if lacking == "absent" else labels("abd", [1.0, 2.0, np.nan])
    soft = SoftTargets.from_teachers([teacher])
    soft.check(DistilConfig(), "ba")
    with pytest.raises(UserError, match=r"1 training rows have no soft target \(d\)"):
        soft.check(DistilConfig(), "dab")


def test_aligned_rows_come_in_the_order_asked_for() -> None:
    wide = [[1.0], [2.0], [3.0]]
    teachers = [labels("abc", [1.0, 2.0, 3.0], seen="c", features=wide), labels("abc", [3.0, 2.0, 5.0], features=wide)]
    soft = SoftTargets.from_teachers(teachers)
    found = soft.aligned("cab")
    assert found.ids == ("c", "a", "b")
    assert found.mean.tolist() == [4.0, 2.0, 2.0]
    assert found.std.tolist() == [1.0, 1.0, 0.0]
    assert found.in_sample.tolist() == [True, False, False]
    assert found.features is not None
    assert found.features[:, 0].tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("with_features", [True, False])
def test_saved_soft_targets_load_as_they_were(with_features: bool, tmp_path: Path) -> None:
    features = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]] if with_features else None
    soft = SoftTargets.from_teachers([labels("bca", [0.1, 0.2, 0.3], seen="c", features=features)])
    soft.save(tmp_path / "soft.npz")
    again = SoftTargets.load(tmp_path / "soft.npz")
    assert again.ids == soft.ids
    for name in ("mean", "std", "in_sample", "features"):
        before, after = getattr(soft, name), getattr(again, name)
        assert (before is None and after is None) or (before.dtype == after.dtype and np.array_equal(before, after))
    with pytest.raises(UserError, match="in_sample"):
        again.check(DistilConfig(), "ab")


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3, 100.0])
@pytest.mark.parametrize(("weighting", "sign"), [("noise", -1), ("hardness", 1)])
def test_row_weights_have_mean_one_and_follow_the_disagreement(weighting: str, sign: int, temperature: float) -> None:
    std = [0.3, 0.0, 0.1, 0.9, 0.2]
    found = weighted(std, weighting=weighting, temperature=temperature)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.mean() == pytest.approx(1.0)
    assert np.all(sign * np.diff(found[np.argsort(std)]) >= 0)
    if temperature >= 0.1:
        assert len(set(found.tolist())) == len(std)
        expected = np.exp(sign * np.array(std) / np.mean(std) / temperature)
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-9)


def test_rows_weigh_the_same_without_weighting_or_without_disagreement() -> None:
    assert weighted([0.1, 0.5, 0.0]).tolist() == [1.0, 1.0, 1.0]
    assert weighted([0.0, 0.0], weighting="noise").tolist() == [1.0, 1.0]
    assert weighted([0.3], weighting="hardness", temperature=1e-3).tolist() == [1.0]


def loss_of(objective: Objective, model: CrystalModel) -> float:
    chosen = objective.choose(np.arange(len(objective.data.part)), np.random.default_rng(0))
    with torch.no_grad():
        return float(objective.loss(model, chosen, 1.0))


@pytest.mark.parametrize("kind", ["energy_per_atom", "gap"])
def test_at_weight_one_labels_are_not_looked_at(kind: str, graphs: Path) -> None:
    for weight, differs in ((1.0, False), (0.5, True)):
        run = lever_run(graphs, kind, distil__weight=weight, distil__weighting="noise")
        model = configured_model(run.config.model, run.dataset.task)
        other = run.objective(part=replace(run.split.train, targets=run.split.train.targets + 9))
        assert (loss_of(run.objective(), model) != loss_of(other, model)) == differs


def test_the_loss_is_the_weighted_sum_of_labels_and_teachers(graphs: Path) -> None:
    run = lever_run(graphs, distil__weight=0.3, distil__weighting="hardness", loss__name="l1")
    model = configured_model(run.config.model, run.dataset.task)
    objective, soft, part = run.objective(), run.soft, run.split.train
    assert soft is not None
    found, here = predict(model, run.store, part.rows), soft.aligned(part.ids)
    hard, teachers = np.abs(found - part.targets), np.abs(found - here.mean)
    weights = here.row_weights(run.config.distil)
    expected = (weights * (0.7 * hard + 0.3 * teachers)).sum() / run.config.optim.batch_size
    assert loss_of(objective, model) == pytest.approx(expected, rel=1e-4)
    assert weights.mean() == pytest.approx(1.0)


def test_features_are_matched_through_a_layer_of_their_own(graphs: Path) -> None:
    run = lever_run(graphs, distil__weight=0.5, distil__features=2.0)
    model = configured_model(run.config.model, run.dataset.task)
    without = loss_of(run.objective(), model)
    model.match = torch.nn.Linear(64, 64)
    assert run.soft is not None
    pooled = torch.from_numpy(predict(model, run.store, run.split.train.rows, output="pooled")).float()
    wanted = torch.from_numpy(run.soft.aligned(run.split.train.ids).features)
    apart = (model.match(pooled) - wanted).square().mean(dim=1).sum().item()
    expected = without + 2.0 * apart / run.config.optim.batch_size
    assert loss_of(run.objective(), model) == pytest.approx(expected, rel=1e-5)


def test_a_run_without_distillation_wants_no_soft_targets(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, optim__epochs=1)
    assert run.soft is None
    first = run.fit(tmp_path / "a")
    second = run.fit(tmp_path / "b", soft_targets=soft_targets(run.dataset))  # not looked at either
    assert first.history[0].train_loss == second.history[0].train_loss
    with pytest.raises(ValueError, match="soft_targets="):
        lever_run(graphs, distil__weight=0.5).fit(tmp_path / "c", soft_targets=None)


def test_soft_targets_that_a_run_may_not_use_are_refused(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, distil__weight=0.5, distil__features=1.0)
    assert run.soft is not None
    memorised = SoftTargets(run.soft.ids, run.soft.mean, run.soft.std, np.ones_like(run.soft.in_sample))
    with pytest.raises(ValueError, match="features"):
        run.fit(tmp_path / "run", soft_targets=memorised)
    plain = lever_run(graphs, distil__weight=0.5)
    with pytest.raises(UserError, match="in_sample"):
        plain.fit(tmp_path / "run", soft_targets=memorised)
    lost = run.split.train.ids[3]
    fewer = plain.soft
    assert fewer is not None
    with pytest.raises(UserError, match=rf"1 training rows have no soft target \({lost}\)"):
        plain.fit(tmp_path / "run", soft_targets=fewer.aligned([row for row in fewer.ids if row != lost]))


def test_validation_rows_want_a_soft_target_for_a_refit_only(graphs: Path, tmp_path: Path) -> None:
    for refit in (False, True):
        run = lever_run(graphs, distil__weight=0.5, optim__epochs=1, data__refit=refit)
        assert run.soft is not None
        alone = run.soft.aligned(run.split.train.ids)
        if refit:
            with pytest.raises(UserError, match="no soft target"):
                run.fit(tmp_path / "refit", soft_targets=alone)
        else:
            assert run.fit(tmp_path / "run", soft_targets=alone).status == "finished"
