"""A whole search on a table of a few crystals, and every mistake that is refused before one begins."""

import fcntl
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from small_data import tiny_dataset

from orchestrator.cli.search import loggers
from orchestrator.execution.resources import Resources
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.source import Source
from orchestrator.study import run as study_module
from orchestrator.study import trial_data as study_material
from orchestrator.study.journal import Journal, Trial, TrialState, trials_of
from orchestrator.study.manifest import ConfirmationPlan
from orchestrator.study.options import SearchOptions, TrialResources, budget_seconds
from orchestrator.study.report.analysis import Analysis
from orchestrator.study.run import planned_checks, report, search
from orchestrator.study.trial_data import require_disk_space, stores_wanted, trial_data
from orchestrator.train.run import TrainOptions, train
from search_spaces.spaces import SPACES
from trainables.config import RunConfig, load_config
from trainables.errors import UserError
from trainables.files import read_json
from trainables.training.result import StepResult

pytestmark = pytest.mark.trains

SETTINGS = {"optim.epochs": 3, "optim.batch_size": 8, "data.val_share": 0.2}
OPTIONS = SearchOptions("optim", trials=4, probes=3, top=1, check_seeds=2, place=TrialResources(max_concurrent=1))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny_dataset(24)
    rows = [
        {"id": row_id, "structure": crystal.to_structure().to(fmt="cif"), "y": target}
        for row_id, crystal, target in zip(data.ids, data.structures, data.targets, strict=True)
    ]
    path = tmp_path_factory.mktemp("table") / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def source(table: Path) -> Source:
    return Source("tiny", table, unit="eV/atom", energy=True)


@dataclass(frozen=True)
class Studied:
    folder: Path
    analysis: Analysis
    table: Path


@pytest.fixture(scope="module")
def studied(table: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """A study of four trials and the checks of its best."""
    folder = tmp_path_factory.mktemp("study") / "out"
    found = search(source(table), folder, replace(OPTIONS, loggers=loggers(None, None)), settings=SETTINGS)
    return Studied(folder, found, table)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_ray", lambda options: pytest.fail("Ray was started"))


def test_a_search_leaves_every_file_that_it_promises(studied: Studied) -> None:
    names = {path.name for path in studied.folder.iterdir()}
    assert {"best.yaml", "report.html", "report.md", "trials.parquet", "optuna.db", "study.json"} <= names
    assert list((studied.folder / "ray").rglob("events.out.tfevents*")), "TensorBoard's"
    assert len(pd.read_parquet(studied.folder / "trials.parquet")) == len(studied.analysis.trials)


def test_training_with_best_yaml_ends_with_the_validation_mae_that_the_study_says(
    studied: Studied, tmp_path: Path
) -> None:
    settings = load_config(studied.folder / "best.yaml")
    options = TrainOptions((0,), Resources("cpu", 1))
    train(source(studied.table), tmp_path / "again", settings=settings, options=options)
    assert studied.analysis.repeated is not None
    assert read_json(tmp_path / "again" / "fold_0" / "fit.json")["best_val_mae"] == studied.analysis.repeated.values[0]


def test_the_best_probes_are_tried_right_after_the_baseline(studied: Studied) -> None:
    probes = trials_of(Journal(studied.folder / "probes" / "journal.jsonl").read())
    ranked = sorted(probes.values(), key=lambda trial: (trial.values[0], trial.number))
    searched = list(studied.analysis.searched.values())
    assert searched[0].origin == "E0"
    asked = [trial.params for trial in searched[1:4]]
    expected = [trial.params for trial in ranked if trial.params != searched[0].params]
    assert asked[: len(expected)] == expected
    assert {trial.origin for trial in searched[1 : 1 + len(expected)]} <= {f"probe {n}" for n in probes}


def test_the_sqlite_mirror_has_the_states_and_values_of_the_journal(studied: Studied) -> None:
    storage = f"sqlite:///{studied.folder / 'optuna.db'}"
    name = optuna.get_all_study_names(storage)[0]
    mirrored = optuna.load_study(study_name=name, storage=storage).trials
    searched = studied.analysis.searched.values()
    assert [(trial.state.name, trial.params) for trial in mirrored] == [(t.state, t.params) for t in searched]
    assert [trial.values for trial in mirrored] == [list(trial.values) or None for trial in searched]
    steps = [{result.step: result.mae for result in trial.results} for trial in searched]
    assert [trial.intermediate_values for trial in mirrored] == steps


def test_of_all_trials_only_the_best_ones_model_stays_on_disk(studied: Studied) -> None:
    left = sorted(path.name for path in (studied.folder / "trials").iterdir())
    complete = [trial for trial in studied.analysis.trials.values() if trial.state == "COMPLETE"]
    best = {
        min((t for t in complete if (t.of is None) is searching), key=lambda t: t.values[0]).number
        for searching in (True, False)
    }
    assert left == sorted(f"{number:05d}" for number in best)
    assert not list((studied.folder / "trials").rglob("checkpoints*"))
    assert list((studied.folder / "trials").rglob("model.safetensors"))


def test_early_stopped_trials_are_pruned_at_their_step_with_their_value(studied: Studied) -> None:
    for trial in studied.analysis.searched.values():
        assert trial.state in ("COMPLETE", "PRUNED")
        assert trial.values == (trial.results[-1].mae,)
        assert (trial.state == "COMPLETE") == (trial.last == 3)


def test_a_report_can_be_written_anew(studied: Studied) -> None:
    (studied.folder / "report.html").unlink()
    assert report(studied.folder).sentences == studied.analysis.sentences
    assert (studied.folder / "report.html").exists()


def test_a_study_goes_on_with_more_trials_and_repeats_none(studied: Studied, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(studied.folder, folder)
    before = (folder / "journal.jsonl").read_text()
    more = search(
        source(studied.table), folder, replace(OPTIONS, trials=6, resume=True, loggers=tuple), settings=SETTINGS
    )
    assert (folder / "journal.jsonl").read_text().startswith(before)
    assert len(more.searched) == 6
    changes = [str(trial.changes) for trial in more.searched.values()]
    assert len(set(changes)) == 6
    assert all(number in more.trials for number in studied.analysis.trials)


@pytest.mark.parametrize(
    ("changed", "settings", "words"),
    [
        ({"space": "ssa", "probes": 0}, {}, "space.name was optim, is ssa"),
        ({"seed": 7}, {}, "seed was 0, is 7"),
        ({"fold": 1}, {}, "fold was 0, is 1"),
        ({}, {"loss.delta": 0.2}, "base.loss.delta was 0.1, is 0.2"),
        ({"factor": 4}, {}, "scheduler.factor was 3, is 4"),
        ({"probes": 4}, {}, "probes was 3, is 4"),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_another_study_is_not_gone_on_with(
    studied: Studied, changed: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match="already contains a different study") as caught:
        search(
            source(studied.table),
            studied.folder,
            replace(OPTIONS, resume=True, **changed),
            settings=SETTINGS | settings,
        )
    assert words in str(caught.value)


@pytest.mark.usefixtures("no_ray")
def test_other_data_or_another_version_is_not_gone_on_with(
    studied: Studied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.read_csv(studied.table)
    rows.loc[0, "y"] += 0.5
    rows.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(UserError, match="data: the rows differ"):
        search(source(tmp_path / "table.csv"), studied.folder, replace(OPTIONS, resume=True), settings=SETTINGS)
    monkeypatch.setattr("orchestrator.study.manifest.versions", lambda: {"chgnet": "9.9"})
    with pytest.raises(UserError, match=r"versions\.chgnet was .*, is 9\.9"):
        search(source(studied.table), studied.folder, replace(OPTIONS, resume=True), settings=SETTINGS)


@pytest.mark.usefixtures("no_ray")
def test_a_folder_with_a_study_wants_resume_and_one_without_does_not(studied: Studied, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already contains a study: continue it with `resume=True`"):
        search(source(studied.table), studied.folder, OPTIONS, settings=SETTINGS)
    with pytest.raises(UserError, match="contains no study"):
        search(source(studied.table), tmp_path / "new", replace(OPTIONS, resume=True), settings=SETTINGS)


@pytest.mark.usefixtures("no_ray")
def test_a_journal_that_was_cut_to_nothing_is_refused_and_not_begun_anew(studied: Studied, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(studied.folder, folder)
    (folder / "journal.jsonl").write_text("")
    with pytest.raises(UserError, match="does not begin as a study's journal does"):
        search(source(studied.table), folder, replace(OPTIONS, resume=True), settings=SETTINGS)
    assert (folder / "journal.jsonl").read_text() == ""


@pytest.mark.usefixtures("no_ray")
def test_a_second_process_ends_at_once_and_names_the_first(table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("process 4321 on somewhere\n")
        handle.flush()
        with pytest.raises(UserError, match="process 4321 on somewhere"):
            search(source(table), tmp_path / "out", OPTIONS, settings=SETTINGS)


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"space": "optimm"}, {}, "did you mean optim"),
        ({"trials": 0}, {}, "`trials=0`"),
        ({"objectives": ("mae", "cost")}, {}, "use `scheduler=none`"),
        ({"objectives": ("cost",)}, {}, "must be mae, or mae,cost"),
        ({}, {"optim.lrr": 1}, "did you mean 'optim.lr'"),
        ({"space": "multitask", "probes": 0}, {}, "`auxiliary`"),
        ({"space": "ssa"}, {}, "`probes` train the head"),
        ({"space": "tta"}, {}, "`probes` train the head"),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_mistakes_are_told_before_ray_starts(
    table: Path,
    tmp_path: Path,
    options: dict[str, Any],
    settings: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(UserError) as caught:
        search(source(table), tmp_path / "out", replace(OPTIONS, **options), settings=SETTINGS | settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_ray")
def test_all_typos_of_a_space_are_told_at_once(table: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsays: mine\ndimensions:\n"
        "  optim.lrr: {low: 1.0e-4, high: 1.0e-3}\n  optim.weight_decay: {low: 1, high: 0.1}\n"
    )
    with pytest.raises(UserError) as caught:
        search(source(table), tmp_path / "out", replace(OPTIONS, space=str(tmp_path / "mine.yaml")), settings=SETTINGS)
    assert "optim.lrr" in str(caught.value)
    assert "optim.weight_decay" in str(caught.value)


def test_a_disk_without_room_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_material.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 10**8))
    with pytest.raises(UserError, match="100 MB are free"):
        require_disk_space(tmp_path, 2)


def test_trials_never_get_a_test_row_or_its_target(tmp_path: Path) -> None:
    dataset = tiny_dataset(24)
    config = RunConfig(task="tiny").changed(SETTINGS)
    space = SPACES["optim"]
    found = []
    for targets in (dataset.targets, None):
        test = TaskContext(dataset, RunConfig(task="tiny")).test(0)
        poisoned = dataset.targets.copy()
        poisoned[test.rows] = 1e9
        here = replace(dataset, targets=poisoned) if targets is None else dataset
        data = trial_data(
            TaskContext(here, config),
            space,
            space.base(config),
            tmp_path,
            validations_per_epoch=1,
            resources=Resources("cpu", 1),
        )
        assert data.split.test is None
        for part in (data.split.train, data.split.val):
            assert not set(part.ids) & set(test.ids)
            assert not set(part.rows.tolist()) & set(test.rows.tolist())
        found.append(np.concatenate([data.split.train.targets, data.split.val.targets]))
    assert np.array_equal(found[0], found[1])


def test_graphs_are_made_for_every_skin_a_space_can_ask_for() -> None:
    base = RunConfig(task="tiny")
    assert stores_wanted(SPACES["optim"], base) == {("0.3.0", 0.0)}
    space = SPACES["ssa"]
    wanted = stores_wanted(space, space.base(base))
    skins = sorted(skin for _, skin in wanted)
    assert skins[0] == 0.0
    assert np.allclose(np.diff(skins), 0.1)


def ended(number: int, state: str, mae: float, last: int) -> Trial:
    result = StepResult(last, float(last), mae, mae, 0.1, 10 * last, 1.0)
    return Trial(number, {"n": number}, {}, state=TrialState(state), values=(mae,), results=[result])


def test_checks_take_the_best_that_ended_then_those_stopped_last_and_always_e0() -> None:
    trials = [
        ended(0, "PRUNED", 9.0, 1),
        ended(1, "COMPLETE", 3.0, 9),
        ended(2, "PRUNED", 1.0, 1),
        ended(3, "PRUNED", 2.0, 3),
        replace(ended(4, "FAIL", math.nan, 1), values=()),
    ]
    planned = planned_checks(trials, ConfirmationPlan(top=2, seeds=(1, 2)), 2)
    assert [(trial.of, trial.seed) for trial in planned] == [(0, 1), (1, 1), (3, 1), (0, 2), (1, 2), (3, 2)]
    assert planned[1].changes == {"n": 1}
    assert planned_checks(trials, ConfirmationPlan(top=2, seeds=(1, 2)), 0) == []
    known = replace(planned[0], number=5)
    again = planned_checks([*trials, known], ConfirmationPlan(top=2, seeds=(1, 2)), 2)
    assert [(trial.of, trial.seed) for trial in again] == [(0, 1), (1, 1), (3, 1), (0, 2), (1, 2), (3, 2)]


def test_a_study_whose_trials_all_failed_is_no_success_and_groups_the_reasons(table: Path, tmp_path: Path) -> None:
    (tmp_path / "mad.yaml").write_text(
        "name: mad\nsays: diverges\ndimensions:\n  optim.lr: {low: 1.0e+30, high: 1.0e+35, log: true}\n"
    )
    options = replace(OPTIONS, space=str(tmp_path / "mad.yaml"), trials=2, probes=0)
    with pytest.raises(UserError, match=r"all 2 trials failed: .*\(2 times\); see .*report\.html"):
        search(source(table), tmp_path / "out", options, settings=SETTINGS | {"optim.lr": 1e31})
    trials = trials_of(Journal(tmp_path / "out" / "journal.jsonl").read())
    assert [trial.state for trial in trials.values()] == ["FAIL"] * 2
    assert "became" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multitask.keep_overlap": True}, "would show test crystals to a search"),
        ({"distil.features": 1.0}, "not their features"),
        ({"ensemble.members": 3}, "a trial is one model"),
    ],
)
def test_levers_that_a_search_cannot_have_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    base = RunConfig(task="tiny").changed(SETTINGS | settings)
    with pytest.raises(UserError, match=words):
        trial_data(
            TaskContext(tiny_dataset(24), base),
            SPACES["optim"],
            base,
            tmp_path,
            validations_per_epoch=1,
            resources=Resources("cpu", 1),
        )


def test_what_a_mistyped_option_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="a time such as 90s, 30min or 2h"):
        budget_seconds("two hours")
    assert [budget_seconds(text) for text in ("90", "30min", "2h")] == [90, 1800, 7200]
    with pytest.raises(UserError, match=r"--mlflow requires the package mlflow: .* --extra mlflow"):
        loggers("http://somewhere", None)
