"""fit and predict: resume, failure, leaks, scale."""

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import tiny_dataset, tiny_run

from trainables import preemption
from trainables.data.folds import make_split
from trainables.errors import UserError
from trainables.graphs.batch import collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import open_or_build
from trainables.model.chgnet import build_model
from trainables.model.reference import fit_reference
from trainables.training import loop as loop_module
from trainables.training.data import TrainingData
from trainables.training.fit import fit, fit_steps
from trainables.training.loop import training_reference
from trainables.training.objective import Objective
from trainables.training.predict import load_model, predict, with_graph
from trainables.training.result import FitResult, StepResult
from trainables.training.trial import TrialData

pytestmark = pytest.mark.trains


def numbers(result: FitResult) -> list[tuple[float, float]]:
    return [(epoch.train_loss, epoch.val_mae) for epoch in result.history]


@pytest.mark.parametrize("energy", [True, False])
def test_fit_learns_and_its_model_can_be_loaded_alone(tmp_path: Path, energy: bool) -> None:
    config, split, store, dataset = tiny_run(tmp_path, energy=energy, optim__epochs=15, optim__lr=3e-3)
    result = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert result.status == "finished"
    assert result.history[-1].train_loss < 0.8 * result.history[0].train_loss
    assert result.best_val_mae == min(epoch.val_mae for epoch in result.history)
    assert result.model is not None
    model, loaded_config, task = load_model(result.model)
    assert (loaded_config, task) == (config, dataset.task)
    again = np.abs(predict(model, store, split.val.rows) - split.val.targets).mean()
    assert again == pytest.approx(result.best_val_mae, rel=1e-6)
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["status"] == "finished"


def test_interrupted_run_resumed_gives_the_losses_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=4)
    n_batches = math.ceil(len(split.train) / config.optim.batch_size)
    whole = fit(config, TrainingData(dataset.task, split, store), tmp_path / "whole")
    steps, inner = 0, loop_module.take_step

    def dies_in_the_third_epoch(*args: object, **kwargs: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 2 * n_batches + 2:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return inner(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "take_step", dies_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(config, TrainingData(dataset.task, split, store), tmp_path / "cut")
    monkeypatch.setattr(loop_module, "take_step", inner)
    resumed = fit(config, TrainingData(dataset.task, split, store), tmp_path / "cut")
    assert numbers(resumed) == numbers(whole)
    assert whole.model is not None
    assert resumed.model is not None
    first, second = load_model(whole.model)[0].state_dict(), load_model(resumed.model)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_finished_run_asked_for_again_trains_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2)
    before = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    monkeypatch.setattr(loop_module, "take_step", lambda *args, **kwargs: pytest.fail("a step was taken"))
    assert numbers(fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")) == numbers(before)


def test_same_seed_repeats_and_another_seed_differs(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path, energy=False, optim__epochs=2)
    first = fit(config, TrainingData(dataset.task, split, store), tmp_path / "a")
    assert numbers(fit(config, TrainingData(dataset.task, split, store), tmp_path / "b")) == numbers(first)
    other = fit(config.changed({"seed": 1}), TrainingData(dataset.task, split, store), tmp_path / "c")
    assert numbers(other) != numbers(first)


def test_fit_refuses_a_split_with_test_rows(tmp_path: Path) -> None:
    config, _, store, dataset = tiny_run(tmp_path)
    split = make_split(dataset, 0, val_share=0.2, seed=0)
    with pytest.raises(ValueError, match="without_test"):
        fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")


def test_test_targets_change_nothing_of_a_fit(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2)
    first = fit(config, TrainingData(dataset.task, split, store), tmp_path / "a")
    test = make_split(dataset, 0, val_share=0.2, seed=0).test
    assert test is not None
    dataset.targets[test.rows] += 1000.0
    poisoned = make_split(dataset, 0, val_share=config.data.val_share, seed=0).without_test()
    assert numbers(fit(config, TrainingData(dataset.task, poisoned, store), tmp_path / "b")) == numbers(first)


def test_nan_loss_ends_the_run_as_failed_with_the_last_good_epoch_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=5)
    inner, steps = Objective.loss, 0
    n_batches = math.ceil(len(split.train) / config.optim.batch_size)

    def nan_in_the_third_epoch(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        loss = inner(*args, **kwargs)  # type: ignore[arg-type]
        return loss * math.nan if steps > 2 * n_batches else loss

    monkeypatch.setattr(Objective, "loss", nan_in_the_third_epoch)
    result = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert result.status == "failed"
    assert "nan" in result.reason
    assert "epoch 3" in result.reason
    assert len(result.history) == 2
    assert result.model is not None
    assert np.isfinite(predict(load_model(result.model)[0], store, split.val.rows)).all()
    assert json.loads((tmp_path / "run" / "fit.json").read_text())["status"] == "failed"


def test_refit_trains_on_train_and_validation_for_the_chosen_epochs(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=3, data__refit=True)
    result = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert result.refit_epochs == result.best_epoch + 1
    refitted = result.history[3:]
    assert len(refitted) == result.refit_epochs
    assert all(epoch.structures == len(split.train) + len(split.val) for epoch in refitted)


def test_a_refit_that_fails_keeps_the_model_validation_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2, data__refit=True)
    inner, n_rows = loop_module._one_share, len(split.train)

    def fails_in_the_refit(run: object, tasks: list[Objective], *rest: object) -> float:
        if len(tasks[0].data.part) > n_rows:
            raise loop_module.NonFiniteLoss("the loss became nan")
        return inner(run, tasks, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "_one_share", fails_in_the_refit)
    result = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert result.status == "failed"
    assert result.reason.startswith("refit: the loss became nan")
    assert result.model is not None
    error = np.abs(predict(load_model(result.model)[0], store, split.val.rows) - split.val.targets).mean()
    assert error == pytest.approx(result.best_val_mae, rel=1e-6)


def test_steps_of_a_share_of_an_epoch_train_what_whole_epochs_train(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=3)
    whole = fit(config, TrainingData(dataset.task, split, store), tmp_path / "whole")
    steps = list(fit_steps(config, TrainingData(dataset.task, split, store), tmp_path / "cut", validations_per_epoch=2))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.epoch for step in steps] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [step.current for step in steps[1::2]] == [epoch.val_mae for epoch in whole.history]
    assert steps[-1].mae == whole.best_val_mae
    assert steps[0].mae == steps[0].current
    assert steps[-1].structures == whole.structures
    first, second = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_steps_go_on_in_the_middle_of_an_epoch_and_say_the_last_one_again(tmp_path: Path, done: int) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2)
    whole = list(
        fit_steps(config, TrainingData(dataset.task, split, store), tmp_path / "whole", validations_per_epoch=3)
    )
    begun = fit_steps(config, TrainingData(dataset.task, split, store), tmp_path / "cut", validations_per_epoch=3)
    before = [next(begun) for _ in range(done)]
    begun.close()
    after = list(fit_steps(config, TrainingData(dataset.task, split, store), tmp_path / "cut", validations_per_epoch=3))
    assert timeless([*before, *after[1:]]) == timeless(whole)
    assert timeless(after[:1]) == timeless(before[-1:])


def timeless(steps: Sequence[StepResult]) -> list[StepResult]:
    return [replace(step, seconds=0.0) for step in steps]


def test_frozen_parts_keep_their_starting_weights(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path, model__freeze=["embedding", "basis", "block_1"])
    result = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    assert result.model is not None
    after = load_model(result.model)[0].state_dict()
    before = build_model("0.3.0", dataset.task).state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("atom_embedding", "atom_conv_layers.0", "bond_basis"))} <= same
    assert not {name for name in before if name.startswith("atom_conv_layers.1")} & same


def test_predictions_come_in_the_order_of_the_rows_asked_for(tmp_path: Path) -> None:
    _, _, store, dataset = tiny_run(tmp_path)
    model = build_model("0.3.0", dataset.task)
    rows = np.random.default_rng(0).permutation(len(dataset))
    alone = np.array([float(model(collate(store, np.array([row])))[0].detach()) for row in rows])
    assert np.allclose(predict(model, store, rows), alone, atol=1e-5)


def test_reference_is_least_squares_on_the_training_rows_only(tmp_path: Path) -> None:
    _, split, store, dataset = tiny_run(tmp_path)
    model = build_model("0.3.0", dataset.task)
    reference = training_reference(model, store, split.train, dataset.task)
    energy = predict(model, store, split.train.rows, output="graph_energy")
    composition = dataset.structures.composition[split.train.rows]
    residual = split.train.targets - energy - composition @ reference
    assert np.abs(composition.T @ residual).max() < 1e-8  # the normal equations


def test_reference_of_an_unseen_element_is_the_mean_residual() -> None:
    composition = np.zeros((3, 119))
    composition[:, 8] = [1, 0.5, 0]
    composition[:, 26] = [0, 0.5, 1]
    reference = fit_reference(composition, np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert np.allclose(reference[[8, 26, 79]], [1.0, 3.0, 2.0])


def test_isolated_atoms_follow_the_named_policy(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    store = open_or_build(dataset.structures, Cutoffs(atom=1.0, bond=0.9), tmp_path, workers=1)
    config, split, _, _ = tiny_run(tmp_path)
    rows = np.arange(len(dataset))
    assert not with_graph(store, rows, config).any()
    assert with_graph(store, rows, config.changed({"data.isolated_atoms": "keep"})).all()
    with pytest.raises(UserError, match="isolated_atoms"):
        fit(config, TrainingData(dataset.task, split, store), tmp_path / "run")
    model = build_model("0.3.0", dataset.task)
    assert np.isfinite(predict(model, store, rows)).all()


@pytest.mark.parametrize(
    ("after", "changes"), [(1, {}), (4, {"augment__strain": "symmetry"}), (6, {"data__refit": True})]
)
def test_a_run_that_is_asked_to_stop_leaves_its_step_and_goes_on_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, changes: dict[str, object]
) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=3, optim__batch_size=4, **changes)
    skinned = open_or_build(dataset.structures, Cutoffs(skin=0.1), tmp_path / "graphs", workers=1)
    data = TrainingData(dataset.task, split, store, skinned=skinned if config.augment.active else None)
    whole = fit(config, data, tmp_path / "whole")
    monkeypatch.setattr(preemption, "_asked", threading.Event())
    steps, inner = 0, loop_module.take_step

    def asks(*args: Any, **kwargs: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == after:
            preemption.ask_to_stop()
        return inner(*args, **kwargs)

    monkeypatch.setattr(loop_module, "take_step", asks)
    with pytest.raises(preemption.Preempted):
        fit(config, data, tmp_path / "stopped")
    assert steps == after
    preemption.forget()
    again = fit(config, data, tmp_path / "stopped")
    n_batches = math.ceil(len(split.train) / config.optim.batch_size)
    assert n_batches > 1
    assert numbers(again) == numbers(whole)
    taken_twice = steps - after - (len(whole.history) * n_batches - after)
    assert taken_twice == 0 or config.data.refit  # a refit has more rows, so that its epochs have other steps
    first, second = (load_model(tmp_path / folder / "model")[0].state_dict() for folder in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.trains
def test_patience_ends_a_training_that_no_longer_improves_and_resumes_the_same(tmp_path: Path) -> None:
    course: dict[str, object] = {"optim__lr": 0.05, "optim__schedule": "constant", "optim__warmup": 0.0}
    config, split, store, dataset = tiny_run(tmp_path, energy=False, optim__epochs=60, optim__patience=3, **course)
    data = TrainingData(dataset.task, split, store)
    result = fit(config, data, tmp_path / "run")
    done = len(result.history)
    assert done < 60
    assert done - 1 - result.best_epoch == 3
    errors = [epoch.val_mae for epoch in result.history]
    assert result.best_val_mae == min(errors) == errors[result.best_epoch]
    again = fit(config, data, tmp_path / "run")  # its checkpoints say that it has ended
    assert [epoch.val_mae for epoch in again.history] == errors
    whole = fit(config.changed({"optim.patience": 0, "optim.epochs": done}), data, tmp_path / "whole")
    assert [epoch.val_mae for epoch in whole.history] == errors


def test_trials_of_a_search_have_no_patience(tmp_path: Path) -> None:
    config, split, _, dataset = tiny_run(tmp_path, energy=False, optim__patience=3)
    data = TrialData(config, dataset.task, split, {})
    assert data.config({}).optim.patience == 0
