"""An ensemble and a student in one command: which models there are, what their weights know, what is left behind."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from members_data import members_summary
from pymatgen.core import Lattice, Structure
from rich.console import Console
from said import Said
from small_data import rocksalts, tiny_dataset

from orchestrator.cli.status import status as show_status
from orchestrator.execution import scheduler as execute_module
from orchestrator.execution.job import Job
from orchestrator.execution.resources import Resources
from orchestrator.execution.status import ModelState, read_status
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import fold_recipe
from orchestrator.inputs.source import Source
from orchestrator.predict.run import predict_file
from orchestrator.train.ensemble import EnsembleScores, make_ensemble
from orchestrator.train.members import EnsembleSummary, _spearman, read_members
from orchestrator.train.members_report import compared_table, members_section, members_table
from orchestrator.train.options import EnsembleOptions, validate_ensemble
from orchestrator.train.plan import RunPlan, plan_runs
from orchestrator.train.report import write_report
from orchestrator.train.rows import PredictedRows
from orchestrator.train.run import TrainOptions, train
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.files import read_json

SMALL: dict[str, Any] = {
    "model.start": "scratch",
    "model.width": 8,
    "optim.epochs": 2,
    "optim.batch_size": 8,
    "data.val_share": 0.3,
    "distil.inner_folds": 2,
    "distil.seeds": 1,
}
RATES = {"optim.lr": [3e-3, 3e-2]}
ASKED = EnsembleOptions(seeds=2, vary=RATES, distil=True)
BASE = RunConfig(task="tiny").changed(SMALL)


def write_table(path: Path, structures: list[Structure], values: list[float]) -> Path:
    cells = [structure.to(fmt="cif") for structure in structures]
    rows = pd.DataFrame({"id": [f"tiny-{i:03d}" for i in range(len(values))], "structure": cells, "y": values})
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    return write_table(folder / "table.csv", rocksalts(24), tiny_dataset(24).targets.tolist())


def run(
    table: Path, out: Path, asked: EnsembleOptions = ASKED, *, folds: tuple[int, ...] = (0,), **changes: Any
) -> EnsembleScores:
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    source, options = Source("tiny", table, unit="eV/atom", energy=True), TrainOptions(folds, Resources("cpu", 1))
    return make_ensemble(source, out, asked, settings=settings, options=options)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are done meanwhile."""
    done: list[Job] = []
    inner = execute_module.run_job

    def watched(job: Job, *rest: Any) -> RunSummary:
        done.append(job)
        return inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", watched)
    return done


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EnsembleScores]:
    """Two seeds of two rates and a student on two folds; to be read, not changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, run(table, out, folds=(0, 1))


def members_of(config: RunConfig) -> list[RunConfig]:
    return [spec.config for spec in fold_recipe(config).models]


def test_members_are_the_models_that_a_plain_run_of_each_variant_has() -> None:
    config, context = ASKED.ensemble(BASE), TaskContext(tiny_dataset(24), BASE)
    assert [(each.optim.lr, each.seed) for each in members_of(config)] == [(3e-3, 0), (3e-3, 1), (3e-2, 0), (3e-2, 1)]
    plain = [
        BASE.changed({"optim.lr": rate, "seed": seed, "distil": {}}) for rate in RATES["optim.lr"] for seed in (0, 1)
    ]
    assert [context.key(spec) for spec in fold_recipe(config).models] == [
        context.key(fold_recipe(each).models[0]) for each in plain
    ]


def test_what_is_made_of_a_configuration() -> None:
    assert members_of(EnsembleOptions().ensemble(BASE)) == [BASE.member(0).changed({"seed": seed}) for seed in range(4)]
    assert EnsembleOptions().ensemble(BASE.changed({"ensemble.members": 3})).ensemble.size == 3
    assert EnsembleOptions(2).ensemble(BASE.changed({"ensemble.members": 3})).ensemble.size == 2
    assert EnsembleOptions().student(BASE) is None
    student = EnsembleOptions(distil=True, views=4).student(BASE.changed({"ensemble.vary": RATES}))
    assert student == BASE.changed({"distil.weight": 0.5, "tta.views": 4})
    taught = BASE.changed({"distil.weight": 0.3})
    assert EnsembleOptions(distil=True).student(taught) == taught
    assert all(spec.teachers == () for spec in fold_recipe(ASKED.ensemble(taught)).models)
    assert all(spec.teachers for spec in fold_recipe(EnsembleOptions(2).ensemble(taught)).models)


@pytest.mark.parametrize(
    ("asked", "changes", "wanted"),
    [
        (EnsembleOptions(), {}, "mean"),
        (EnsembleOptions(vary=RATES), {}, "greedy"),
        (EnsembleOptions(vary=RATES, combine="mean"), {}, "mean"),
        (EnsembleOptions(vary=RATES), {"ensemble.combine": "median"}, "median"),
        (EnsembleOptions(vary=RATES), {"data.refit": True}, "mean"),
        (EnsembleOptions(), {"ensemble.vary": RATES}, "greedy"),
        (EnsembleOptions(combine="soup"), {"model.init_seed": 0}, "soup"),
    ],
)
def test_how_members_are_combined_by_default(asked: EnsembleOptions, changes: dict[str, Any], wanted: str) -> None:
    assert asked.ensemble(BASE.changed(changes)).ensemble.combine == wanted


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (EnsembleOptions(seeds=0), "`seeds=0`: must be a whole number of at least 1"),
        (EnsembleOptions(seeds=True), "`seeds=True`: must be a whole number"),
        (EnsembleOptions(views=1.5), "`views=1.5`: must be a whole number"),  # type: ignore[arg-type]
        (EnsembleOptions(distil="yes"), "`distil=yes`: True or False"),  # type: ignore[arg-type]
        (EnsembleOptions(vary=["optim.lr"]), "`vary` of type list: a dictionary was expected"),  # type: ignore[arg-type]
        (EnsembleOptions(vary={"optim.lr": 3}), "`vary`: optim.lr has 3; a list of values was expected, such as [3]"),  # type: ignore[dict-item]
        (EnsembleOptions(vary={"optim.lrr": [1, 2]}), "did you mean 'optim.lr'"),
        (EnsembleOptions(vary={"multitask": {"tasks": [["a"], ["b"]]}}), "multitask.tasks cannot be varied"),  # type: ignore[dict-item]
        (EnsembleOptions(combine="best"), "ensemble.combine='best'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_asked_for_is_one_line(asked: EnsembleOptions, wanted: str) -> None:
    with pytest.raises(UserError) as told:
        validate_ensemble(asked, "tiny", {})
    assert wanted in str(told.value)
    assert "\n" not in str(told.value)


def test_all_models_are_one_graph_and_each_has_a_folder_of_its_own(tmp_path: Path) -> None:
    context, configs = TaskContext(tiny_dataset(40), BASE), ASKED.configurations(BASE)
    plans = [RunPlan(configs[0], tmp_path), RunPlan(configs[1], tmp_path / "student", "student")]
    planned = plan_runs(context, plans, (0, 1))
    specs = planned.graph.specs()
    assert len(specs) == 2 * (4 + 2 + 1)
    folders = [planned.graph.folder_of(spec) for spec in specs.values()]
    assert len(set(folders)) == len(folders)
    assert tmp_path / "student" / "fold_1" in folders
    assert planned.graph.width(specs.keys()) == 2 * (4 + 2)  # members and teachers wait for nothing
    labels = {(spec.config.fold, spec.config.seed): planned.graph.labels[key] for key, spec in specs.items()}
    assert labels[1, 1] == "optim.lr=0.03"
    assert sorted(set(planned.graph.labels.values())) == ["", "optim.lr=0.003", "optim.lr=0.03", "student"]


@pytest.mark.trains
def test_both_runs_are_whole_and_the_ensemble_tells_of_its_members(
    whole: tuple[Path, EnsembleScores], table: Path
) -> None:
    out, found = whole
    for folder, scores in ((out, found.scores), (out / "student", found.student)):
        assert scores is not None
        assert scores.content() == read_json(folder / "scores.json")
        assert set(scores.folds) == {0, 1}
        assert scores.no_record_because
        predictions = pd.read_parquet(folder / "predictions.parquet")
        new, _ = predict_file(folder, table, device="cpu")
        assert len(new) == 24
        assert (folder / "report.html").is_file()
        assert (predictions["std"] > 0).any() == (folder == out)
    student = read_json(out / "student" / "run.json")["config"]
    assert (student["distil"]["weight"], student["ensemble"]) == (0.5, {"members": 1, "combine": "mean"})
    with np.load(out / "student" / "fold_0" / "soft_targets.npz", allow_pickle=False) as soft:
        assert not soft["in_sample"].any()
    assert len(list((out / "student" / "fold_0").glob("fold0-seed0-inner*/model.json"))) == 2
    status = read_status(out)
    assert status is not None
    assert status.count(ModelState.FINISHED) == len(status.models) == 14
    assert {"fold0-seed1 optim.lr=0.03", "fold1-seed0 student"} <= {model.name for model in status.models}
    with pytest.raises(UserError, match="its models are told with its ensemble's"):
        show_status(out / "student")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The members and the ensemble" in page
    assert "The members and the ensemble" not in (out / "student" / "report.html").read_text(encoding="utf-8")


@pytest.mark.trains
def test_the_summary_repeats_what_the_folders_hold(whole: tuple[Path, EnsembleScores]) -> None:
    out, found = whole
    summary = found.members
    assert summary is not None
    assert EnsembleSummary.model_validate(read_json(out / "ensemble.json")) == summary == read_members(out)
    assert [(member.varied, member.seed) for member in summary.members] == [
        ({"optim.lr": rate}, seed) for rate in RATES["optim.lr"] for seed in (0, 1)
    ]
    truth = pd.read_parquet(out / "predictions.parquet").set_index("id")
    for fold in (0, 1):
        about = read_json(out / f"fold_{fold}" / "fold.json")
        rows = truth[truth["fold"] == fold]
        maes = []
        for name, member in zip(about["members"], summary.members, strict=True):
            folder = out / f"fold_{fold}" / name
            predicted = (
                pd.read_parquet(folder / "predicted.parquet").query("part == 'test'").set_index("id")["prediction"]
            )
            maes.append((predicted.loc[rows.index] - rows["target"]).abs().mean())
            assert member.folds[fold].test_mae == pytest.approx(maes[-1])
            assert member.folds[fold].validation_mae == read_json(folder / "done.json")["best_val_mae"]
        assert [member.folds[fold].weight for member in summary.members] == about["weights"]
        assert summary.compared[0].mae[fold] == pytest.approx(np.mean(maes))
    single, ensemble, student = summary.compared
    assert (ensemble.mae, student.mae) == tuple(
        {fold: values.mae for fold, values in scores.folds.items()}
        for scores in (found.scores, found.student)
        if scores
    )
    assert ensemble.structures == pytest.approx(4 * single.structures)
    trained = [read_json(file)["structures"] for file in (out / "student").glob("fold_*/**/done.json")]
    assert len(trained) == 2 * 3
    assert student.structures == sum(trained)
    assert [point.n_members for point in summary.curve] == [1, 2, 3, 4]
    assert summary.curve[0].mae == pytest.approx(single.mean)
    assert sum(each.rows for each in summary.spread) == len(truth)
    spearman = truth["std"].corr((truth["prediction"] - truth["target"]).abs(), method="spearman")
    assert summary.spearman == pytest.approx(spearman)


def test_members_that_say_the_same_have_no_rank_correlation() -> None:
    """What is left of a spread is the rounding of their numbers."""
    rows = pd.DataFrame({"id": list("abcd"), "fold": 0, "target": 1.0, "prediction": [1.0, 1.1, 1.2, 1.3]})
    rounded = PredictedRows.of(rows.assign(std=[1e-8, 3e-8, 2e-8, 5e-8], fallback=False))
    assert _spearman(rounded) is None
    assert _spearman(PredictedRows.of(rows.assign(std=[0.1, 0.3, 0.2, 0.5], fallback=False))) == pytest.approx(0.8)


@pytest.mark.trains
def test_where_nothing_varies_it_is_the_run_of_train_digit_for_digit(table: Path, tmp_path: Path) -> None:
    run(table, tmp_path / "one", EnsembleOptions(seeds=2), distil__inner_folds=3, distil__seeds=3)
    source = Source("tiny", table, unit="eV/atom", energy=True)
    settings = SMALL | {"ensemble.members": 2, "distil.inner_folds": 3, "distil.seeds": 3}
    train(source, tmp_path / "other", settings=settings, options=TrainOptions((0,), Resources("cpu", 1)))
    for name in ("predictions.parquet",):
        pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / each / name) for each in ("one", "other")))
    one, other = (read_json(tmp_path / each / "run.json") for each in ("one", "other"))
    assert one["fingerprint"] == other["fingerprint"]


@pytest.mark.trains
@pytest.mark.parametrize("method", ["greedy", "stacked"])
def test_no_weight_and_no_prediction_knows_a_test_target(method: Any, table: Path, tmp_path: Path) -> None:
    asked = EnsembleOptions(seeds=2, vary=RATES, distil=True, combine=method)
    run(table, tmp_path / "one", asked)
    test = set(pd.read_parquet(tmp_path / "one" / "predictions.parquet")["id"])
    content = pd.read_csv(table)
    content.loc[content["id"].isin(test), "y"] += np.random.default_rng(0).normal(0, 5, len(test))
    content.to_csv(tmp_path / "table.csv", index=False)
    run(tmp_path / "table.csv", tmp_path / "other", asked)
    about = [read_json(tmp_path / each / "fold_0" / "fold.json") for each in ("one", "other")]
    assert about[0]["weights"] == about[1]["weights"]
    assert about[0]["combine"] == method
    for place in (".", "student"):
        one, other = (pd.read_parquet(tmp_path / each / place / "predictions.parquet") for each in ("one", "other"))
        assert set(one["id"]) == test
        assert not one["target"].equals(other["target"])
        pd.testing.assert_frame_equal(one.drop(columns="target"), other.drop(columns="target"))


@pytest.mark.trains
def test_an_interrupted_one_goes_on_and_trains_nothing_twice(
    table: Path, tmp_path: Path, whole: tuple[Path, EnsembleScores], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    inner = execute_module.run_job

    def stopping(job: Job, *rest: Any) -> RunSummary:
        if len(folders) == 5:
            folders.append(tmp_path)  # once
            raise KeyboardInterrupt
        folders.append(job.folder)
        return inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(table, out, folds=(0, 1))
    run(table, out, folds=(0, 1))
    assert len(folders) == len(set(folders)) == 14 + 1
    for place in (".", "student"):
        files = [each / place / "predictions.parquet" for each in (out, whole[0])]
        pd.testing.assert_frame_equal(*map(pd.read_parquet, files))
    before = len(folders)
    run(table, out, folds=(0, 1))
    assert len(folders) == before


@pytest.mark.trains
def test_a_student_that_fails_leaves_the_ensemble_whole(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = execute_module.run_job

    def failing(job: Job, *rest: Any) -> RunSummary:
        return RunSummary.failure("the loss became nan") if job.soft is not None else inner(job, *rest)

    monkeypatch.setattr(execute_module, "run_job", failing)
    with pytest.raises(UserError, match=r"1 of 2 folds failed \(student fold 0: the loss became nan\)"):
        run(table, tmp_path / "out")
    assert read_json(tmp_path / "out" / "scores.json")["mean"]["n"] > 0
    assert read_json(tmp_path / "out" / "student" / "scores.json")["failed"] == {"0": "the loss became nan"}
    summary = EnsembleSummary.model_validate(read_json(tmp_path / "out" / "ensemble.json"))
    assert [contender.name for contender in summary.compared] == ["single member", "ensemble"]


@pytest.mark.trains
def test_a_folder_of_another_ensemble_is_refused_with_what_varies(
    whole: tuple[Path, EnsembleScores], table: Path, tmp_path: Path, jobs: list[Job]
) -> None:
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    with pytest.raises(UserError, match=r"a different run .*ensemble.vary.optim.lr was \[0.003, 0.03\]"):
        run(table, out, EnsembleOptions(seeds=2, vary={"optim.lr": [1e-3, 3e-2]}))
    assert not jobs


@pytest.mark.trains
def test_starts_with_other_cutoffs_have_graphs_of_their_own(tmp_path: Path) -> None:
    """Atoms 5.5 A apart are isolated for 0.2.0 (cutoff 5 A) and not for 0.3.0 (6 A)."""
    structures, values = rocksalts(24), tiny_dataset(24).targets.tolist()
    structures[:8] = [
        Structure(Lattice.cubic(5.5), [symbol], [[0, 0, 0]])
        for symbol in ["Li", "Na", "K", "Mg", "Ca", "Sr", "Fe", "Ni"]
    ]
    table = write_table(tmp_path / "table.csv", structures, values)
    asked = EnsembleOptions(seeds=1, vary={"model.start": ["0.3.0", "0.2.0"]}, combine="greedy", views=2)
    run(table, tmp_path / "out", asked, model__start="0.3.0", model__width=64, optim__epochs=1)
    fold = tmp_path / "out" / "fold_0"
    wide, narrow = (
        pd.read_parquet(next((fold / name).glob("predicted-*.parquet")))
        for name in read_json(fold / "fold.json")["members"]
    )
    odd = {f"tiny-{number:03d}" for number in range(8)}
    assert not wide["fallback"].any()
    assert set(narrow.loc[narrow["fallback"], "id"]) == odd & set(narrow["id"])
    assert narrow["fallback"].any()
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("id")
    assert set(predictions.index[predictions["fallback"]]) == odd & set(predictions.index)
    new, _ = predict_file(tmp_path / "out", table, device="cpu")
    again = new.set_index("id")["prediction"].loc[predictions.index]
    assert np.allclose(again, predictions["prediction"], atol=1e-5)


@pytest.mark.trains
def test_a_soup_tells_of_the_models_it_is_made_of(table: Path, tmp_path: Path) -> None:
    found = run(table, tmp_path / "out", EnsembleOptions(seeds=2, combine="soup"), model__init_seed=0)
    assert found.members is not None
    assert [member.folds[0].weight for member in found.members.members] == [0.5, 0.5]
    assert found.members.compared[1].predictions_per_crystal == 1
    assert found.members.spread == ()


@pytest.mark.trains
def test_the_report_is_written_again_also_without_a_members_file(
    whole: tuple[Path, EnsembleScores], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    (out / "report.html").unlink()
    (out / "ensemble.json").unlink()
    write_report(out)
    assert "The members and the ensemble" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "ensemble.json").is_file()
    next(out.glob("fold_0/fold0-seed1-*/predicted.parquet")).unlink()
    write_report(out)
    assert "The members and the ensemble" not in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.trains
def test_messages_name_what_varies_and_the_student(table: Path, tmp_path: Path) -> None:
    said = Said()
    source, options = Source("tiny", table, unit="eV/atom", energy=True), TrainOptions((0,), Resources("cpu", 1))
    make_ensemble(source, tmp_path / "out", ASKED, settings=SMALL, options=options, progress=said)
    told = "\n".join(said.lines)
    assert "fold 0 seed 1 optim.lr=0.03: validation MAE" in told
    assert "fold 0 seed 0 student: validation MAE" in told
    assert "fold 0 seed 0 without part 1: validation MAE" in told


@pytest.mark.parametrize("scale", [2e-3, 0.02, 40.0])
def test_tables_fit_a_terminal_of_eighty_columns(scale: float) -> None:
    console = Console(width=80, record=True, force_terminal=False)
    summary = members_summary(n_seeds=8, scale=scale)
    console.print(compared_table(summary))
    console.print(members_table(summary))
    text = console.export_text()
    assert "…" not in text
    assert "and 16 more in report.html" in text
    for words in ("single member", "ensemble", "student", "0.3.0", "11.1 h"):
        assert words in text
    section = members_section(summary, " (eV/atom)")
    assert len(section.tables[1].rows) == 32
    assert section.sentences[0].startswith(
        "Members: 32, 8 seeds of each variant (model.start: 0.3.0, r2scan; optim.lr:"
    )
