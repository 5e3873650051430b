"""The plan of an ablation: what is shared, what comes first, and that no model sees what it must not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import tiny_dataset

from orchestrator.ablation.ladder import Rung, build_ladder, parse_experiments
from orchestrator.execution.scheduler import ModelGraph, _job
from orchestrator.execution.scheduler import Resources as ExecuteResources
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import ModelSpec, fold_recipe, teachers_of, topological_levels
from search_spaces.experiments import EXPERIMENTS, LADDER, Experiment, configuration, lineage, with_parents
from trainables.config import RunConfig
from trainables.data.tasks import TASKS, custom_task
from trainables.errors import UserError
from trainables.levers import TtaConfig

EVERY = [name for name in EXPERIMENTS if name not in ("E5", "H0")]  # the tiny task is an energy, and alone
TINY = custom_task("tiny", "y", "eV/atom", "energy_per_atom")


@pytest.fixture(scope="module")
def context() -> TaskContext:
    return TaskContext(tiny_dataset(60), RunConfig(task="tiny"))


def ladder(
    names: list[str] | None = None, folds: tuple[int, ...] = (0, 3), seeds: int = 2, **settings: Any
) -> list[Rung]:
    changes = {"data.val_share": 0.2} | {key.replace("__", "."): value for key, value in settings.items()}
    return build_ladder(names or EVERY, TINY, changes, folds=folds, seeds=seeds)


def every_run(context: TaskContext, rungs: list[Rung]) -> list[ModelSpec]:
    runs = ModelGraph(context, [one for rung in rungs for one in rung.recipes.values()], lambda run: Path())
    return [run for wave in runs.levels() for run in wave]


def test_no_run_of_the_whole_plan_holds_a_test_row_of_its_fold(context: TaskContext) -> None:
    runs = every_run(context, ladder())
    assert len(runs) > 50
    for run in runs:
        split, held = context.split(run)
        test = set(context.test(run.config.fold).ids)
        assert split.test is None
        assert not test & set(split.train.ids + split.val.ids)
        assert held is None or not test & set(held.ids)


def test_no_teacher_of_the_whole_plan_labels_a_row_that_it_or_its_formula_saw(context: TaskContext) -> None:
    formula = dict(zip(context.dataset.ids, context.dataset.structures.reduced_formulas, strict=True))
    students = [run for run in every_run(context, ladder()) if run.teachers]
    assert students
    for student in students:
        labelled: dict[int, set[str]] = {}
        for teacher in student.teachers:
            split, held = context.split(teacher)
            assert held is not None
            seen = {formula[row] for row in split.train.ids + split.val.ids}
            assert not seen & {formula[row] for row in held.ids}
            labelled.setdefault(teacher.config.seed, set()).update(held.ids)
        own, _ = context.split(student)
        for ids in labelled.values():  # every teacher seed labels every row the student learns from
            assert ids == set(own.train.ids + own.val.ids)


def test_in_sample_teachers_are_made_only_where_they_are_asked_for_by_name() -> None:
    config = RunConfig(task="t").changed({"distil.weight": 0.5, "distil.seeds": 2})
    assert all(teacher.n_inner == config.distil.inner_folds for teacher in teachers_of(config))
    assert len(teachers_of(config)) == 2 * config.distil.inner_folds
    asked = teachers_of(config.changed({"distil.teachers": "in_sample"}))
    assert [(teacher.n_inner, teacher.config.seed) for teacher in asked] == [(0, 0), (0, 1)]


def test_the_seeds_of_e3_are_those_of_e0_and_the_label_only_student_is_e0(context: TaskContext) -> None:
    rungs = {rung.name: rung for rung in ladder(seeds=3)}

    def keys(name: str) -> set[str]:
        return {context.key(run) for one in rungs[name].recipes.values() for run in one.models}

    assert keys("E3") == keys("E0")
    assert keys("E2") == keys("E1")
    assert keys("E6") == keys("E4")
    assert not keys("E4") & keys("E0")
    assert rungs["E4"].control == "E0"
    student, baseline = rungs["E4"].config, rungs["E0"].config
    assert student.changed({"distil": {}}) == baseline


def test_views_are_no_reason_to_train_again_but_everything_else_is(context: TaskContext) -> None:
    base = RunConfig(task="tiny")
    key = context.key(fold_recipe(base).models[0])
    assert context.key(fold_recipe(base.changed({"tta.views": 4})).models[0]) == key
    assert context.key(fold_recipe(base.changed({"ensemble.members": 3})).models[0]) == key
    for change in ({"seed": 1}, {"fold": 2}, {"augment.strain": "free"}, {"optim.averaging": "swa"}):
        assert context.key(fold_recipe(base.changed(change)).models[0]) != key


def test_waves_put_every_run_after_what_it_needs_and_each_only_once(context: TaskContext) -> None:
    rungs = ladder(["B1", "W3", "E4"])
    runs = ModelGraph(context, [one for rung in rungs for one in rung.recipes.values()], lambda run: Path())
    place = {context.key(run): level for level, wave in enumerate(runs.levels()) for run in wave}
    everything = [run for wave in runs.levels() for run in wave]
    assert len(place) == len(everything)
    for run in everything:
        assert all(place[context.key(other)] < place[context.key(run)] for other in run.needs)
    assert topological_levels([], "data") == []


def test_jobs_hold_no_test_target(context: TaskContext, tmp_path: Path) -> None:
    rungs = ladder(["E2"], folds=(0,), seeds=1)
    runs = ModelGraph(
        context, [one for rung in rungs for one in rung.recipes.values()], lambda run: tmp_path / run.name("d")
    )
    test = context.test(0)
    for run in every_run(context, rungs):
        job = _job(runs, run, [TtaConfig()], ExecuteResources("cpu"))
        assert set(job.requests["test"].ids) == set(test.ids)
        assert set(vars(job.requests["test"])) == {"ids", "rows"}
        held = np.concatenate([job.split.train.targets, job.split.val.targets])
        assert len(held) + len(test) == len(context.dataset)


def test_a_teacher_predicts_plainly_however_else_it_is_asked_to(context: TaskContext) -> None:
    """An in-sample teacher may be a member that predicts by views alone."""
    settings = {"task": "tiny", "tta.views": 4, "ensemble.members": 2}
    member = fold_recipe(RunConfig(task="tiny").changed(settings))
    student = fold_recipe(
        RunConfig(task="tiny").changed({**settings, "distil.weight": 0.5, "distil.teachers": "in_sample"})
    )
    runs = ModelGraph(context, [member, student], lambda run: Path())
    assert {context.key(run) for run in member.models} <= set(runs.students)
    for views in (runs.views_of()[key] for key in runs.students):
        assert TtaConfig() in views
    assert {views.views for views in runs.views_of()[context.key(member.models[0])]} == {1, 4}


def test_every_experiment_is_one_readable_change_of_a_parent_that_exists() -> None:
    for name, experiment in EXPERIMENTS.items():
        assert experiment.parent is None or experiment.parent in EXPERIMENTS
        assert experiment.control is None or experiment.control in EXPERIMENTS
        assert experiment.description
        for task in (TASKS["matbench_mp_e_form"], TASKS["matbench_mp_gap"]):
            config = configuration(name, task, {"task": task.name}, auxiliary=("other",))
            parent = experiment.parent and configuration(
                experiment.parent, task, {"task": task.name}, auxiliary=("other",)
            )
            assert config != parent
    assert set(LADDER) <= set(EXPERIMENTS)


def test_a_user_adds_an_experiment_with_one_entry() -> None:
    known = {**EXPERIMENTS, "E7": Experiment("E7", "E1", "augmentation with SWA", {"optim.averaging": "swa"})}
    config = configuration("E7", TINY, {"task": "tiny"}, known=known)
    assert config.augment.active
    assert config.optim.averaging == "swa"
    assert with_parents(["E7"], known) == ["E0", "E1", "E7"]


def test_equal_steps_take_the_joint_training_from_the_epochs() -> None:
    settings = {"task": "tiny", "optim.epochs": 10, "multitask.epochs": 4}
    own = configuration("E5", TINY, settings, auxiliary=("other",))
    equal = configuration("E5", TINY, settings, auxiliary=("other",), equal_steps=True)
    assert (own.optim.epochs, equal.optim.epochs) == (10, 6)
    with pytest.raises(UserError, match="leave none"):
        configuration("E5", TINY, {**settings, "optim.epochs": 4}, auxiliary=("other",), equal_steps=True)


def test_twins_differ_in_their_start_alone_and_are_compared_with_their_own_parent() -> None:
    rungs = {
        rung.name: rung for rung in build_ladder(["E1"], TINY, {}, folds=(0,), seeds=1, starts=("0.3.0", "scratch"))
    }
    assert set(rungs) == {"E0", "E1", "E0-scratch", "E1-scratch"}
    assert rungs["E1-scratch"].parent == "E0-scratch"
    assert rungs["E1-scratch"].config == rungs["E1"].config.changed({"model.start": "scratch"})


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda: parse_experiments("E0,E9", with_auxiliary=True), "E0,E9`: names such as E0,E1"),
        (lambda: parse_experiments("", with_auxiliary=True), "names such as"),
        (lambda: lineage("E9"), "unknown experiment 'E9'"),
        (lambda: configuration("E5", TINY, {"task": "tiny"}), "`auxiliary=mp_gap`"),
        (lambda: lineage("A", {"A": Experiment("A", "B", ""), "B": Experiment("B", "A", "")}), "its own ancestor"),
    ],
)
def test_mistakes_are_one_line(function: Any, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as problem:
        function()
    assert "\n" not in str(problem.value)


def test_the_whole_ladder_leaves_joint_training_out_where_no_other_task_is_given() -> None:
    assert "E5" not in parse_experiments(None, with_auxiliary=False)
    assert "E5" in parse_experiments(None, with_auxiliary=True)
