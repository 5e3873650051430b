"""Blends: members in parts see no row that they are judged by, weights are chosen on all of them, presets by rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from said import Said
from small_data import rocksalts, tiny_dataset

import crystaltune as ct
from orchestrator.evaluation.ensemble import OutOfFold, choose_weights
from orchestrator.evaluation.predictions import Predictions
from orchestrator.execution.combine import together_of
from orchestrator.execution.fold import read_fold
from orchestrator.inputs.context import TaskContext, task_config
from orchestrator.inputs.recipe import fold_recipe
from orchestrator.train.members import read_members
from orchestrator.train.preset import chosen_preset
from search_spaces.presets import PARTS, PARTS_UP_TO, blend, blends, preset
from trainables.config import RunConfig
from trainables.crystals import CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.tasks import custom_task
from trainables.errors import UserError
from trainables.files import read_json, write_json

PROPERTY, ENERGY = custom_task("mine", "y", "", "property"), custom_task("mine", "y", "", "energy_per_atom")
IN_PARTS = {"model.family": ["chgnet", "tabular"]}


def context_of(dataset: Dataset, **changes: Any) -> TaskContext:
    return TaskContext(dataset, RunConfig(task=dataset.task.name).changed(changes), {}, Said())


# --- parts ------------------------------------------------------------------------------------------------------------


def test_every_training_row_is_judged_once_by_a_model_that_did_not_see_it() -> None:
    dataset = tiny_dataset(60, energy=False)
    context = context_of(dataset, **{"ensemble.inner_folds": 4, "ensemble.members": 2})
    for fold in range(5):
        recipe = fold_recipe(context.config.changed({"fold": fold}))
        assert (len(recipe.models), recipe.per_member) == (8, 4)
        test = set(context.test(fold).ids)
        judged: dict[int, list[str]] = {0: [], 1: []}
        for spec in recipe.models:
            split, labelled = context.split(spec)
            assert labelled is None
            assert split.test is None
            assert not set(split.val.ids) & set(split.train.ids)
            assert not test & (set(split.val.ids) | set(split.train.ids))
            assert len(split.val) + len(split.train) == len(dataset) - len(test)
            formulas = dataset.structures.reduced_formulas
            assert not {formulas[row] for row in split.val.rows} & {formulas[row] for row in split.train.rows}
            judged[spec.config.seed] += split.val.ids
        assert all(sorted(ids) == sorted(set(dataset.ids) - test) for ids in judged.values())


def test_models_of_parts_have_keys_of_their_own_and_teachers_keep_theirs() -> None:
    config = RunConfig(task="t").changed({"ensemble.inner_folds": 3})
    models = fold_recipe(config).models
    assert len({spec.key("data") for spec in models}) == 3
    teacher = fold_recipe(RunConfig(task="t").changed({"distil.weight": 0.5, "distil.seeds": 1})).models[0].teachers[0]
    assert teacher.n_inner == 3
    assert teacher.name("data").split("-")[2] == "inner0of3"
    assert models[0].name("data").split("-")[2] == "part0of3"
    assert teacher.key("data") not in {spec.key("data") for spec in models}


def test_a_member_predicts_the_mean_of_its_models() -> None:
    models = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 10.0], [20.0, 30.0]])
    np.testing.assert_allclose(together_of("greedy", models, 2, np.array([0.25, 0.75])), [11.75, 15.75])
    np.testing.assert_allclose(together_of("median", models, 2, None), [8.5, 11.5])
    np.testing.assert_allclose(together_of("greedy", models[:2], 2, None), [2.0, 3.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.refit": True}, "a refit trains on the part that a model is validated on"),
        ({"distil.weight": 0.5}, "teachers would know the part"),
        ({"multitask.tasks": ["other"]}, "other tasks may hold the crystals of any part"),
        ({"ensemble.combine": "soup", "ensemble.members": 2}, "leave out ensemble.inner_folds"),
        ({"ensemble.inner_folds": 1}, "at least 2 parts were expected, or 0"),
        ({"ensemble.members": 40}, "make 200 models a fold; at most 160"),
    ],
)
def test_what_would_let_a_model_see_its_part_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RunConfig(task="t").changed({"ensemble.inner_folds": 5} | changes)


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> ct.Run:
    """Return a run of two unlike members, each in three parts, on 48 crystals and two folds."""
    data = tiny_dataset(48, energy=False)
    frame = pd.DataFrame({"structure": rocksalts(48), "y": data.targets})
    settings = {"optim.epochs": 2, "optim.batch_size": 8, "ensemble.inner_folds": 3, "ensemble.combine": "greedy"}
    settings |= {"ensemble.vary": IN_PARTS}
    out = tmp_path_factory.mktemp("blended") / "run"
    return ct.train(frame, target="y", settings=settings, folds="0,1", out=out, progress=False, device="cpu")


@pytest.mark.trains
def test_weights_are_those_of_the_rows_that_no_predicting_model_saw(blended: ct.Run) -> None:
    table = blended.predictions
    for fold in (0, 1):
        folder = blended.folder / f"fold_{fold}"
        manifest = read_fold(folder)
        assert manifest is not None
        assert (len(manifest.members), manifest.per_member, manifest.combine) == (6, 3, "greedy")
        found = [Predictions.read(folder / name / "predicted.parquet") for name in manifest.members]
        val = [predictions.of("val") for predictions in found]
        ids = [tuple(map(str, np.concatenate([each.ids for each in val[start : start + 3]]))) for start in (0, 3)]
        assert ids[0] == ids[1]
        assert not set(ids[0]) & set(table[table["fold"] == fold]["id"])
        assert len(set(ids[0])) == 48 - (table["fold"] == fold).sum()
        models = np.stack([predictions.of("test").prediction for predictions in found])
        expected = together_of("greedy", models, 3, np.array(manifest.weights))
        own = table[table["fold"] == fold].set_index("id")["prediction"]
        np.testing.assert_allclose(own.loc[list(found[0].of("test").ids)], expected, rtol=1e-6)
        np.testing.assert_allclose(
            table[table["fold"] == fold].set_index("id")["std"].loc[list(found[0].of("test").ids)],
            models.std(axis=0), rtol=1e-5,
        )  # fmt: skip
        again = choose_weights("greedy", _known(found, ids[0]))
        assert again is not None
        np.testing.assert_allclose(again, manifest.weights)


def _known(found: list[Predictions], ids: tuple[str, ...]) -> OutOfFold:
    """Return what both members say of the rows `ids`, which are numbered as the crystals are."""
    data, rows = tiny_dataset(48, energy=False), [int(row_id) for row_id in ids]
    said = [Predictions.join([each.of("val") for each in found[start : start + 3]]).for_ids(ids) for start in (0, 3)]
    formulas = [data.structures.reduced_formulas[row] for row in rows]
    return OutOfFold(np.stack([each.prediction for each in said]), data.targets[rows], formulas)


@pytest.mark.trains
def test_the_members_of_a_blend_are_told_as_two(blended: ct.Run) -> None:
    summary = read_members(blended.folder)
    assert summary is not None
    assert [member.varied for member in summary.members] == [{"model.family": "chgnet"}, {"model.family": "tabular"}]
    for fold in (0, 1):
        folder = blended.folder / f"fold_{fold}"
        manifest = read_fold(folder)
        assert manifest is not None
        errors = [read_json(folder / name / "done.json")["best_val_mae"] for name in manifest.members]
        assert [member.folds[fold].validation_mae for member in summary.members] == pytest.approx(
            [np.mean(errors[:3]), np.mean(errors[3:])]
        )
        assert [member.folds[fold].weight for member in summary.members] == list(manifest.weights or ())
    assert [each.predictions_per_crystal for each in summary.compared] == [3, 6]


@pytest.mark.trains
def test_a_blend_of_all_rows_predicts(blended: ct.Run) -> None:
    data, settings = tiny_dataset(48, energy=False), blended.config.model_dump(mode="json")
    frame = pd.DataFrame({"structure": rocksalts(48), "y": data.targets})
    kept = {key: settings[key] for key in ("optim", "ensemble")}
    again = ct.train(
        frame, target="y", settings=kept, folds="0,1", out=blended.folder, deploy=True, progress=False, device="cpu"
    )
    manifest = read_fold(again.folder / "all" / "fold_0")
    assert manifest is not None
    assert (len(manifest.members), manifest.per_member) == (6, 3)
    assert np.isfinite(ct.load(again.folder, device="cpu").predict(rocksalts(3))).all()


@pytest.mark.trains
def test_a_blend_predicts_new_crystals_as_it_predicted_its_test_rows(blended: ct.Run) -> None:
    cells = rocksalts(48)
    said = blended.predict(pd.DataFrame({"structure": cells}), device="cpu")
    assert np.isfinite(said["prediction"]).all()
    one_fold = ct.load(blended.folder, device="cpu")
    assert len(one_fold.predict(cells)) == 48


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rows", "wanted"),
    [
        (PROPERTY, 99, False), (PROPERTY, 100, True), (PROPERTY, 10_000, True), (PROPERTY, 10_001, False),
        (ENERGY, 1_000, False),
    ],
)  # fmt: skip
def test_properties_of_hundreds_and_thousands_of_rows_are_blended(task: Any, rows: int, wanted: bool) -> None:
    assert blends(task, rows) == wanted


def test_a_blend_by_its_rows() -> None:
    base = RunConfig(task="t")
    small, large, largest = (blend(base, PROPERTY, n) for n in (PARTS_UP_TO, PARTS_UP_TO + 1, 10_000))
    assert (small.ensemble.inner_folds, large.ensemble.inner_folds) == (PARTS, 0)
    assert (small.model.phonons, largest.model.phonons) == (True, False)
    assert [config.model.family for config in small.variants()] == ["chgnet", "tabular"]
    assert small.ensemble.combine == "greedy"
    assert not blend(base.changed({"model.start": "scratch"}), PROPERTY, 200).model.phonons
    assert (small.model.physics, blend(base, ENERGY, 200).model.physics) == (True, False)
    assert blend(base, PROPERTY, 200, in_parts=False).ensemble.inner_folds == 0
    assert not blend(base, PROPERTY, 200, named=["model.phonons"]).model.phonons


def preset_of(out: Path, settings: dict[str, Any], name: Any = "auto", rows: int = 120) -> tuple[RunConfig, Said]:
    dataset = tiny_dataset(rows, energy=False)
    context = context_of(dataset, **settings)
    said = context.progress
    assert isinstance(said, Said)
    return chosen_preset(context, settings, name, out, range(5)), said


def test_auto_blends_and_says_so_and_single_does_not(tmp_path: Path) -> None:
    found, said = preset_of(tmp_path, {})
    assert found.ensemble.size == 2
    assert any("a fine-tuned CHGNet and a tabular model, each in 5 parts" in line for line in said.lines)
    assert preset_of(tmp_path, {}, "single")[0].ensemble.size == 1
    assert preset_of(tmp_path, {}, rows=60)[0].ensemble.size == 1
    assert preset_of(tmp_path, {}, "blend", rows=60)[0].ensemble.size == 2


def test_few_formulas_make_no_parts(tmp_path: Path) -> None:
    found, _ = preset_of(tmp_path, {})
    assert found.ensemble.inner_folds == 5
    dataset = tiny_dataset(120, energy=False)  # of 32 formulas
    few = dataset.take(np.flatnonzero([formula.startswith("Li") for formula in dataset.structures.reduced_formulas]))
    fewer = Dataset(
        tuple(f"r{k}" for k in range(120)), CrystalTable.pack([few.structures[k % len(few)] for k in range(120)]),
        np.arange(120.0), PROPERTY,
    )  # fmt: skip
    context = context_of(fewer)
    blended = chosen_preset(context, {}, "auto", tmp_path, range(5))
    assert (blended.ensemble.size, blended.ensemble.inner_folds) == (2, 0)
    assert any("and a tabular model, weighted on held-out rows" in line for line in context.progress.lines)  # type: ignore[attr-defined]


def test_a_blend_of_energies_has_no_physics_and_what_is_named_stays(tmp_path: Path) -> None:
    energies = context_of(tiny_dataset(120))
    assert not chosen_preset(energies, {}, "blend", tmp_path, range(5)).model.physics
    found, _ = preset_of(tmp_path, {"model.phonons": False, "model.physics": False})
    assert (found.ensemble.size, found.model.phonons, found.model.physics) == (2, False, False)


@pytest.mark.parametrize("settings", [{"model.family": "tabular"}, {"ensemble.members": 1}, {"model.family": "chgnet"}])
def test_whoever_chooses_members_gets_them(settings: dict[str, Any], tmp_path: Path) -> None:
    found, said = preset_of(tmp_path, settings)
    assert not found.ensemble.vary
    assert not said.lines
    if settings == {"model.family": "tabular"}:
        with pytest.raises(UserError, match=r"chooses the members itself: leave out model\.family"):
            preset_of(tmp_path, settings, "blend")
    else:  # as a search's best.yaml names every key
        assert preset_of(tmp_path, settings, "blend")[0].ensemble.size == 2


def test_levers_that_a_blend_cannot_have_leave_one_model(tmp_path: Path) -> None:
    settings = {"model.transform": "asinh"}
    found, said = preset_of(tmp_path, settings)
    assert found.ensemble.size == 1
    assert any("one fine-tuned model a fold" in line and "model.transform" in line for line in said.lines)
    with pytest.raises(UserError, match=r"so model\.transform means nothing"):
        preset_of(tmp_path, settings, "blend")


def test_a_run_that_began_as_one_model_goes_on_as_one(tmp_path: Path) -> None:
    from orchestrator.train.folder import manifest_of

    context = context_of(tiny_dataset(120, energy=False))
    manifest = manifest_of(context, context.config.changed({"optim.epochs": 7}), {})
    write_json(tmp_path / "run.json", manifest.model_dump(mode="json"))
    assert preset_of(tmp_path, {})[0].ensemble.size == 1
    other = manifest_of(context, context.config.changed({"optim.lr": 0.5}), {})
    write_json(tmp_path / "run.json", other.model_dump(mode="json"))
    assert preset_of(tmp_path, {})[0].ensemble.size == 2


def test_an_unknown_preset_is_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"structure": rocksalts(10), "y": np.arange(10.0)})
    train: Callable[..., Any] = ct.train
    with pytest.raises(UserError, match="`preset=best`: must be one of auto, single, blend"):
        train(frame, target="y", preset="best", out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("task", "rows", "epochs"), [(PROPERTY, 100, 80), (PROPERTY, 636, 79), (PROPERTY, 1_000, 50), (PROPERTY, 1_500, 40)]
)
def test_small_tables_of_properties_take_as_many_steps_whatever_their_rows(task: Any, rows: int, epochs: int) -> None:
    small, general = preset(task, rows)["optim"], preset(task)["optim"]
    assert small["epochs"] == epochs
    assert {key for key in small if small[key] != general[key]} == {
        "lr", "layer_decay", "weight_decay", "batch_size", *(["epochs"] if epochs != 40 else []),
    }  # fmt: skip


def test_energies_and_other_sizes_have_the_general_preset() -> None:
    for task, rows in ((ENERGY, 636), (PROPERTY, 99), (PROPERTY, 1_501)):
        assert preset(task, rows) == preset(task)


def test_what_began_with_an_older_preset_goes_on_with_it() -> None:
    dataset = tiny_dataset(120, energy=False)
    general = RunConfig.model_validate(preset(dataset.task)).model_dump(mode="json")
    new, older = (task_config(dataset, {"seed": 3}, began=began) for began in (None, general))
    assert new.optim.lr == preset(dataset.task, 120)["optim"]["lr"]
    assert older.optim.lr == preset(dataset.task)["optim"]["lr"]
    assert older.seed == 3
    assert task_config(dataset, {}, began=new.model_dump(mode="json")) == task_config(dataset, {})
    other = older.changed({"optim.lr": 0.5}).model_dump(mode="json")
    assert task_config(dataset, {}, began=other) == task_config(dataset, {})


def test_an_ablation_goes_on_with_the_preset_that_it_began_with(tmp_path: Path) -> None:
    from orchestrator.ablation.run import _began

    assert _began(tmp_path) is None
    for content in ([], {"about": None}, {"about": {}}):
        write_json(tmp_path / "ablation.json", content)
        assert _began(tmp_path) is None
    dataset = tiny_dataset(120, energy=False)
    older = RunConfig.model_validate(preset(dataset.task)).model_dump(mode="json")
    write_json(tmp_path / "ablation.json", {"about": {"base": older}})
    assert task_config(dataset, {}, began=_began(tmp_path)).optim.lr == older["optim"]["lr"]
