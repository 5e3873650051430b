"""The main job with levers: ensembles, students, views and joint training in a run's folder, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_data import rocksalts, tiny_dataset

from orchestrator.evaluation.published import check_published
from orchestrator.execution import scheduler as execute_module
from orchestrator.execution.pool import WorkerKilled
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.datasets import load_auxiliary
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec, fold_recipe, topological_levels
from orchestrator.inputs.source import Source
from orchestrator.predict.run import predict_file
from orchestrator.train.folder import model_folder
from orchestrator.train.run import TrainOptions, train
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.files import read_json
from trainables.progress import silent

pytestmark = pytest.mark.trains

SETTINGS = {"optim.epochs": 1, "optim.batch_size": 8, "data.val_share": 0.3}


def write_table(path: Path, name: str, values: list[float]) -> Path:
    cells = [structure.to(fmt="cif") for structure in rocksalts(len(values))]
    rows = pd.DataFrame({"id": [f"tiny-{i:03d}" for i in range(len(values))], "structure": cells, name: values})
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "table.csv", "y", tiny_dataset(24).targets.tolist())


def run(table: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items() if key != "auxiliary"}
    options, source = TrainOptions((0,), Resources("cpu", 1)), Source("tiny", table, unit="eV/atom", energy=True)
    return train(source, out, settings=settings, options=options, auxiliary=changes.get("auxiliary", ())).content()


@pytest.mark.parametrize("method", ["mean", "median", "stacked"])
def test_an_ensemble_is_one_folder_a_member_and_predicts_new_crystals_together(
    method: str, table: Path, tmp_path: Path
) -> None:
    scores = run(table, tmp_path / "out", ensemble__members=2, ensemble__combine=method)
    fold = tmp_path / "out" / "fold_0"
    about, predictions = read_json(fold / "fold.json"), pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(about["members"]) == 2
    members = [
        pd.read_parquet(fold / name / "predicted.parquet").query("part == 'test'").set_index("id")["prediction"]
        for name in about["members"]
    ]
    weights = [0.5, 0.5] if about["weights"] is None else about["weights"]
    together = sum(weight * each for weight, each in zip(weights, members, strict=True))
    assert np.allclose(predictions.set_index("id")["prediction"], together.loc[predictions["id"]])  # type: ignore[union-attr]
    assert (predictions["std"] > 0).any()
    assert scores["mean"]["n"] == len(predictions)
    new, _ = predict_file(tmp_path / "out", table, device="cpu")
    again = new.set_index("id")["prediction"].loc[predictions["id"]]
    assert np.allclose(again, predictions["prediction"], atol=1e-5)


def test_views_are_used_for_test_rows_and_for_new_crystals(table: Path, tmp_path: Path) -> None:
    run(table, tmp_path / "out", tta__views=3, tta__strain_size=5e-3)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert (predictions["std"] > 0).all()
    new, _ = predict_file(tmp_path / "out", table, device="cpu")
    again = new.set_index("id")["prediction"].loc[predictions["id"]]
    assert np.allclose(again, predictions["prediction"], atol=1e-5)


def test_a_student_trains_on_labels_that_no_teacher_saw_and_is_the_fold(table: Path, tmp_path: Path) -> None:
    run(table, tmp_path / "out", distil__weight=0.5, distil__inner_folds=2, distil__seeds=1)
    fold = tmp_path / "out" / "fold_0"
    assert read_json(fold / "fold.json")["members"] == ["."]
    assert len(list(fold.glob("fold0-seed0-inner*/model.json"))) == 2
    with np.load(fold / "soft_targets.npz", allow_pickle=False) as soft:
        assert not soft["in_sample"].any()
        assert not set(soft["ids"]) & set(pd.read_parquet(fold / "predictions.parquet")["id"])


def test_joint_training_is_told_with_the_rows_it_left_out(table: Path, tmp_path: Path) -> None:
    volumes = [structure.volume for structure in rocksalts(24)]
    other = write_table(tmp_path / "volumes.csv", "volume", volumes)
    scores = run(table, tmp_path / "out", auxiliary=[f"volume={other}"], multitask__epochs=1)
    n_test = scores["mean"]["n"]
    assert scores["trained_also_on"]["volume"] <= 24 - n_test  # the same crystals: test rows are out
    assert scores["marks"] == []
    kept = run(
        table, tmp_path / "kept", auxiliary=[f"volume={other}"], multitask__epochs=1, multitask__keep_overlap=True
    )
    assert f"{n_test} auxiliary rows are test crystals and were KEPT" in kept["marks"][0]
    assert "keep_overlap=false" in kept["no_record_because"]


def test_no_two_models_of_a_fold_share_a_folder(tmp_path: Path) -> None:
    context = TaskContext(tiny_dataset(40), RunConfig(task="tiny"))
    for changes in (
        {"ensemble.members": 3, "ensemble.combine": "soup", "distil.weight": 0.5, "distil.teachers": "in_sample"},
        {"ensemble.members": 3, "distil.weight": 0.5},
        {"distil.weight": 0.5, "distil.teachers": "in_sample"},
    ):
        config = RunConfig(task="tiny").changed(changes)
        recipe = fold_recipe(config)
        every = [each for wave in topological_levels(recipe.models, context.digest(config)) for each in wave]
        folders = [model_folder(tmp_path, recipe, each, context.key(each)) for each in every]
        assert len(set(folders)) == len(every) > 3


def test_a_killed_worker_is_a_failure_of_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four seeds the third always kills its process: together, together again, and then one by one."""
    asked: list[tuple[list[str], bool]] = []
    done = RunSummary(status="finished", reason="", structures=0, seconds=0.0, structures_per_s=0.0)

    def killing(
        work: Any, source: Any, where: Any, progress: Any, *, isolate: bool, begun: Any
    ) -> Iterator[tuple[str, RunSummary]]:
        names: list[str] = []
        asked.append((names, isolate))
        while (item := source.take()) is not None:
            names.append(item[0])
            if item[0] == "fold0-seed2":
                raise WorkerKilled("a worker process was killed")
            yield item[0], done

    monkeypatch.setattr(execute_module, "run_jobs", killing)
    monkeypatch.setattr(execute_module, "_job", lambda *_: SimpleNamespace(soft=None))
    monkeypatch.setattr(execute_module, "complete", lambda _: None)
    config = RunConfig(task="tiny").changed({"ensemble.members": 4, "distil.weight": 0.5, "distil.inner_folds": 2})
    student = fold_recipe(config).models[0]
    seeds = [ModelSpec(RunConfig(task="tiny").changed({"seed": seed})) for seed in range(4)]
    waits = replace(student, teachers=(seeds[2],))
    graph = ModelGraph(TaskContext(tiny_dataset(24), config), [FoldRecipe(config, (*seeds, waits))], lambda _: tmp_path)
    told: list[ModelSpec] = []
    run_all(graph, Resources("cpu", 2), ended=lambda spec, summary: told.append(spec))
    assert [names[-1] for names, _ in asked[:2]] == ["fold0-seed2", "fold0-seed2"]
    assert [isolate for _, isolate in asked] == [False, *[True] * (len(asked) - 1)]
    assert all(len(names) == 1 for names, _ in asked[2:])
    assert graph.summary_of(seeds[2]).reason == "its process was killed (out of memory, most likely)"
    assert "a model that it needs failed: its process was killed" in graph.summary_of(waits).reason
    assert [graph.summary_of(seeds[place]).status for place in (0, 1, 3)] == ["finished"] * 3
    assert len(told) == 5


def test_published_predictions_of_another_task_are_refused_before_training(tmp_path: Path) -> None:
    data = tiny_dataset(24)
    rows = pd.DataFrame({"mbid": data.ids, "fold": 0, "y": data.targets, "other": 0.0})
    rows.to_csv(tmp_path / "right.csv", index=False)
    check_published(tmp_path / "right.csv", data, (0, 1))
    rows.assign(y=rows["y"] + 1).to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(UserError, match="targets that differ from the data"):
        check_published(tmp_path / "wrong.csv", data, (0, 1))
    rows.assign(mbid="x").to_csv(tmp_path / "lacking.csv", index=False)
    with pytest.raises(UserError, match=r"lacks tiny-.* is it the table of this task"):
        check_published(tmp_path / "lacking.csv", data, (0, 1))


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [(["=x.csv"], "NAME or NAME=FILE"), (["volume=missing.csv"], "no such file"), (["mp_gpa"], "did you mean")],
)
def test_a_mistyped_auxiliary_task_is_one_line(texts: list[str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as problem:
        load_auxiliary(texts, silent)
    assert "\n" not in str(problem.value)
