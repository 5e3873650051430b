"""The Trainable without a cluster: steps, pauses, other trials in the same process, failures."""

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from small_data import LeverRun, lever_run, tiny_run

from trainables.config import RunConfig
from trainables.data.folds import make_split
from trainables.errors import UserError
from trainables.ray_trainable import FOLDER, TRIAL, FineTune, TrialFailed
from trainables.training import loop as loop_module
from trainables.training.data import TrainingData
from trainables.training.fit import fit
from trainables.training.trial import TrialData

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    config, split, store, dataset = tiny_run(tmp_path_factory.mktemp("data"), optim__epochs=3)
    return TrialData(config, dataset.task, split, {("0.3.0", 0.0): store.folder}, validations_per_epoch=2)


def trainable(data: TrialData, config: dict[str, Any], folder: Path) -> tune.Trainable:
    made = tune.with_parameters(FineTune, data=data)
    return made(config={FOLDER: str(folder), TRIAL: 0, **config})


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("step", "epoch", "mae", "current", "train_loss", "structures", "done")}


def every_step(trial: tune.Trainable) -> list[dict[str, Any]]:
    results = [timeless(trial.train())]
    while not results[-1]["done"]:
        results.append(timeless(trial.train()))
    return results


@pytest.fixture(scope="module")
def whole(data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All steps of a trial of the base configuration that nothing interrupts."""
    return every_step(trainable(data, {}, tmp_path_factory.mktemp("whole") / "trial"))


def test_a_trial_makes_all_its_steps_and_ends_with_what_fit_gives(data: TrialData, tmp_path: Path) -> None:
    results = every_step(trainable(data, {"optim.lr": 2e-3}, tmp_path / "trial"))
    assert [result["step"] for result in results] == [1, 2, 3, 4, 5, 6]
    assert [result["epoch"] for result in results] == [0.5, 1, 1.5, 2, 2.5, 3]
    store = data._open(data.stores["0.3.0", 0.0])
    whole = fit(data.base.changed({"optim.lr": 2e-3}), TrainingData(data.task, data.split, store), tmp_path / "fit")
    assert results[-1]["mae"] == whole.best_val_mae
    assert (tmp_path / "trial" / "model.safetensors").exists()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_trial_saved_and_restored_elsewhere_gives_the_steps_of_one_that_was_not(
    data: TrialData, whole: list[dict[str, Any]], tmp_path: Path, steps: int
) -> None:
    first = trainable(data, {}, tmp_path / "first")
    before = [timeless(first.train()) for _ in range(steps)]
    first.save(str(tmp_path / "saved"))
    second = trainable(data, {}, tmp_path / "second")
    second.restore(str(tmp_path / "saved"))
    assert [*before, *every_step(second)] == whole


def test_a_trial_saved_before_its_first_step_can_be_restored(data: TrialData, tmp_path: Path) -> None:
    trainable(data, {}, tmp_path / "first").save(str(tmp_path / "saved"))
    second = trainable(data, {}, tmp_path / "second")
    second.restore(str(tmp_path / "saved"))
    assert timeless(second.train())["step"] == 1


def test_a_checkpoint_of_another_configuration_is_refused(data: TrialData, tmp_path: Path) -> None:
    first = trainable(data, {}, tmp_path / "first")
    first.train()
    first.save(str(tmp_path / "saved"))
    with pytest.raises(TrialFailed, match="another configuration"):
        trainable(data, {"optim.lr": 5e-4}, tmp_path / "second").restore(str(tmp_path / "saved"))


def test_a_process_that_is_reused_gives_what_a_fresh_one_gives(data: TrialData, tmp_path: Path) -> None:
    fresh = every_step(trainable(data, {"optim.lr": 5e-4}, tmp_path / "fresh"))
    reused = trainable(data, {"optim.lr": 3e-3}, tmp_path / "before")
    reused.train()
    assert reused.reset({"optim.lr": 5e-4, FOLDER: str(tmp_path / "after"), TRIAL: 1})
    assert every_step(reused) == fresh


def test_a_trial_whose_folder_holds_steps_says_the_last_one_again_and_goes_on(
    data: TrialData, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = trainable(data, {}, tmp_path / "cut")
    before = [timeless(first.train()) for _ in range(3)]
    first.stop()
    again = every_step(trainable(data, {}, tmp_path / "cut"))
    assert again[0] == before[-1]
    assert [*before, *again[1:]] == whole


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(
    data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*args: object, **kwargs: object) -> float:
        raise loop_module.NonFiniteLoss("the loss became nan")

    monkeypatch.setattr(loop_module, "take_step", diverges)
    trial = trainable(data, {}, tmp_path / "trial")
    with pytest.raises(TrialFailed, match="the loss became nan in epoch 1"):
        trial.step()


def test_a_split_with_test_rows_is_no_material_for_a_search(tmp_path: Path) -> None:
    config, _, store, dataset = tiny_run(tmp_path)
    split = make_split(dataset, 0, val_share=0.2, seed=0)
    with pytest.raises(ValueError, match="without_test"):
        TrialData(config, dataset.task, split, {("0.3.0", 0.0): store.folder})


def test_graphs_that_were_not_prepared_are_named(data: TrialData, tmp_path: Path) -> None:
    changes = {"augment.strain": "symmetry", "augment.strain_size": 1e-3}
    with pytest.raises(UserError, match=r"no graphs were prepared for model\.start=0\.3\.0 with a skin of 0\.1 A"):
        trainable(data, changes, tmp_path / "trial")


def joint(tmp_path: Path) -> tuple[LeverRun, TrialData]:
    run = lever_run(tmp_path, auxiliary=("energy_per_atom",), multitask__epochs=2, optim__epochs=2)
    auxiliary = tuple((each.task, each.part, each.store.folder) for each in run.auxiliary)
    stores = {("0.3.0", 0.0): run.store.folder}
    return run, TrialData(run.config, run.dataset.task, run.split, stores, auxiliary=auxiliary)  # type: ignore[arg-type]


def test_joint_training_counts_as_steps_and_is_restored_in_its_middle(tmp_path: Path) -> None:
    run, data = joint(tmp_path)
    whole = every_step(trainable(data, {}, tmp_path / "whole"))
    assert [result["step"] for result in whole] == [1, 2, 3, 4]
    assert whole[-1]["mae"] == run.fit(tmp_path / "fit").best_val_mae
    for steps in (1, 3):
        first = trainable(data, {}, tmp_path / f"first{steps}")
        before = [timeless(first.train()) for _ in range(steps)]
        first.save(str(tmp_path / f"saved{steps}"))
        second = trainable(data, {}, tmp_path / f"second{steps}")
        second.restore(str(tmp_path / f"saved{steps}"))
        assert [*before, *every_step(second)] == whole


def test_a_trial_may_do_without_the_joint_training_of_others(tmp_path: Path) -> None:
    run, data = joint(tmp_path)
    results = every_step(trainable(data, {"multitask.tasks": []}, tmp_path / "alone"))
    assert [result["step"] for result in results] == [1, 2]
    alone = run.config.changed({"multitask.tasks": []})
    assert (
        results[-1]["mae"] == fit(alone, TrainingData(data.task, run.split, run.store), tmp_path / "fit").best_val_mae
    )


@pytest.mark.parametrize(("on_gpu", "gpus", "device"), [(True, 1.0, "cuda"), (True, 0.0, "cpu"), (False, 1.0, "cpu")])
def test_only_a_trial_that_was_given_a_gpu_uses_one(
    data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, gpus: float, device: str
) -> None:
    used = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(TrialData, "steps", lambda self, config, folder, device: used.append(device))
    resources = tune.PlacementGroupFactory([{"CPU": 1.0, "GPU": gpus}])
    monkeypatch.setattr(FineTune, "trial_resources", resources)
    trainable(dataclasses.replace(data, on_gpu=on_gpu), {}, tmp_path / "trial")
    assert used == [device]


def test_a_trial_that_predicts_takes_one_step_with_the_model_of_its_seed(data: TrialData, tmp_path: Path) -> None:
    store = data._open(data.stores["0.3.0", 0.0])
    trained = fit(data.base, TrainingData(data.task, data.split, store), tmp_path / "model")
    predicting = dataclasses.replace(data, models={0: tmp_path / "model" / "model"})
    results = every_step(trainable(predicting, {"tta.views": 1}, tmp_path / "trial"))
    assert len(results) == 1 or results[0]["done"]
    assert results[0]["mae"] == pytest.approx(trained.best_val_mae, rel=1e-6)


def test_refit_is_left_out_of_a_search(data: TrialData) -> None:
    base: RunConfig = data.base.changed({"data.refit": True})
    assert not dataclasses.replace(data, base=base).config({}).data.refit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB; a checkpoint is some megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk wants root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_the_trial_with_one_line(data: TrialData, small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        trainable(data, {}, small_disk / "trial").step()
