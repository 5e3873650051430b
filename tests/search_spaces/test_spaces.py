"""Every shipped space, for an energy and for a property: what it draws runs, and its known points are what they say."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from orchestrator.inputs.recipe import teachers_of
from search_spaces import full, multitask, optim, ssa
from search_spaces.experiments import EXPERIMENTS
from search_spaces.presets import preset
from search_spaces.reading import load_space
from search_spaces.space import Space
from search_spaces.spaces import SPACES
from trainables.config import RunConfig, parse_config, validate_for_task
from trainables.data.tasks import SAMPLE_TASK, TASKS, Task

optuna.logging.set_verbosity(optuna.logging.ERROR)
ENERGY, PROPERTY = TASKS["matbench_mp_e_form"], TASKS["matbench_jdft2d"]
AUXILIARY = ["matbench_phonons"]
EVERY = pytest.mark.parametrize(("name", "task"), [(name, task) for name in SPACES for task in (ENERGY, PROPERTY)])


def base_of(name: str, task: Task) -> RunConfig:
    config = parse_config(preset(task), "preset")
    return config.changed({"multitask.tasks": AUXILIARY}) if name in ("multitask", "full") else config


def ready(name: str, task: Task) -> tuple[Space, RunConfig]:
    """A space for a task, and the base that its changes are laid on."""
    base = base_of(name, task)
    return SPACES[name].for_task(task, base.multitask.tasks), SPACES[name].base(base)


def random_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def asked(space: Space, parameters: dict[str, Any]) -> tuple[optuna.Trial, dict[str, Any]]:
    """A trial of these parameters through Optuna, and the changes that the space makes of it."""
    study = random_study()
    study.enqueue_trial(parameters)
    trial = study.ask()
    return trial, space.suggest(trial)


@pytest.mark.parametrize("task", [*TASKS.values(), SAMPLE_TASK], ids=lambda task: task.name)
@pytest.mark.parametrize("name", SPACES)
def test_every_space_passes_its_own_check_on_every_task(name: str, task: Task) -> None:
    config = parse_config(preset(task), "preset")
    auxiliary = next(other for other in TASKS if other != task.name)
    SPACES[name].check(config.changed({"multitask.tasks": [auxiliary]}), task, "test")
    if name != "multitask":
        SPACES[name].check(config, task, "test")


@EVERY
def test_every_random_draw_is_a_valid_run_of_json_values(name: str, task: Task) -> None:
    space, base = ready(name, task)
    study = random_study()
    seen = set()
    for _ in range(150):
        changes = space.suggest(study.ask())
        assert json.loads(json.dumps(changes)) == changes
        config = base.changed(changes)
        validate_for_task(config, task)
        seen.add(config)
    assert len(seen) > 20


@EVERY
def test_every_point_comes_back_from_optuna_as_it_was_asked_for(name: str, task: Task) -> None:
    space, base = ready(name, task)
    points = space.points_for(base)
    assert points[0][0] == "E0"
    assert len(points) > 2
    assert len({json.dumps(parameters, sort_keys=True) for _, parameters in points}) == len(points)
    stated = {point.name: point.values for point in space.points}
    for point, parameters in points:
        trial, changes = asked(space, parameters)
        assert trial.params == parameters  # nothing was left to the sampler
        validate_for_task(base.changed(changes), task)
        for key, value in stated.get(point, {}).items():
            choices = next(each for each in space.dimensions if each.key == key).choices
            if not isinstance(choices, dict):
                assert changes[key] == value
            elif not isinstance(choices[value], dict):
                assert changes[key] == list(choices[value])
            else:
                assert changes.items() >= choices[value].items()


@EVERY
def test_distributions_are_those_of_the_trial(name: str, task: Task) -> None:
    space, _ = ready(name, task)
    study = random_study()
    for _ in range(50):
        trial = study.ask()
        space.suggest(trial)
        assert space.distributions(trial.params) == trial.distributions


@EVERY
def test_a_rebuilt_trial_suggests_the_same_changes(name: str, task: Task) -> None:
    space, _ = ready(name, task)
    study = random_study(1)
    for _ in range(20):
        trial = study.ask()
        changes = space.suggest(trial)
        frozen = optuna.trial.create_trial(
            params=trial.params, distributions=space.distributions(trial.params), value=0.0
        )
        assert space.suggest(frozen) == changes


@EVERY
def test_e0_is_the_base_itself(name: str, task: Task) -> None:
    space, base = ready(name, task)
    given = base_of(name, task)
    _, changes = asked(space, space.points_for(given)[0][1])
    config = base.changed(changes)
    assert config == base
    assert not config.augment.active
    assert config.consistency.weight == config.distil.weight == 0
    # What `fixed` changed has no effect: the kinds of a perturbation of size 0, the start of teachers that are not.
    neutral = {"augment": {}, "distil": {}}
    assert config.changed(neutral) == given.changed(neutral)


@EVERY
def test_e0_of_a_user_who_already_uses_the_lever_is_that_lever(name: str, task: Task) -> None:
    settings = {"augment.strain": "symmetry", "augment.strain_size": 2e-3, "optim.lr": 2e-3}
    given = base_of(name, task).changed(settings)
    space = SPACES[name].for_task(task, given.multitask.tasks)
    SPACES[name].check(given, task, "test")
    config = space.base(given).changed(asked(space, space.points_for(given)[0][1])[1])
    assert config.augment.strain_size == 2e-3
    assert config.augment.strains
    assert not config.augment.displaces
    assert config.optim.lr == 2e-3


@pytest.mark.parametrize("task", [ENERGY, PROPERTY], ids=lambda task: task.name)
@pytest.mark.parametrize("name", SPACES)
def test_every_draw_is_valid_over_a_base_that_has_all_levers_on(name: str, task: Task) -> None:
    levers = dict(EXPERIMENTS["E2"].changes) | dict(EXPERIMENTS["E1"].changes)
    levers |= {"tta.identity": False, "distil.weight": 0.5, "distil.weighting": "noise", "loss.name": "huber"}
    given = base_of(name, task).changed(levers)
    SPACES[name].check(given, task, "test")
    space, base = SPACES[name].for_task(task, given.multitask.tasks), SPACES[name].base(given)
    assert base.changed(asked(space, space.points_for(given)[0][1])[1]) == base


@pytest.mark.parametrize("task", [ENERGY, PROPERTY], ids=lambda task: task.name)
def test_all_trials_of_distil_share_their_teachers(task: Task) -> None:
    space, base = ready("distil", task)
    study = random_study()
    drawn = [base.changed(space.suggest(study.ask())) for _ in range(100)]
    assert len({teachers_of(config) for config in drawn}) == 1
    assert {config.model.width for config in drawn} == {32, 64}
    assert any(config.distil.weight == 0 for config in drawn)


@pytest.mark.parametrize("task", [ENERGY, PROPERTY], ids=lambda task: task.name)
def test_tta_never_changes_what_is_trained(task: Task) -> None:
    space, base = ready("tta", task)
    study = random_study()
    drawn = [base.changed(space.suggest(study.ask())) for _ in range(100)]
    assert space.runs == "prediction"
    assert {config.member(0) for config in drawn} == {base.member(0)}
    assert {config.tta.views for config in drawn} == {1, 2, 4, 8, 16}


def test_a_zero_is_really_drawn_and_switches_the_lever_off() -> None:
    space, base = ready("ssa", ENERGY)
    study = random_study()
    drawn = [base.changed(space.suggest(study.ask())) for _ in range(200)]
    off = [config for config in drawn if not config.augment.active]
    assert 20 < len(off) < 90
    assert all(config.consistency.weight == 0 for config in off)
    assert any(config.augment.active and config.augment.strain_size == 0 for config in drawn)


def test_energies_only_levers_are_gone_for_properties_and_with_them_their_points() -> None:
    for name, key, point in (
        ("ssa", "augment.labels", "corrected labels"),
        ("tta", "tta.corrected", "corrected views"),
    ):
        for task, there in ((ENERGY, True), (PROPERTY, False)):
            space, base = ready(name, task)
            assert (key in [dimension.key for dimension in space.dimensions]) is there
            assert (point in [found for found, _ in space.points_for(base)]) is there


def test_full_is_made_of_the_other_spaces_dimensions_and_trains_jointly_only_with_auxiliary_tasks() -> None:
    for part in (ssa, optim):
        assert all(any(each is mine for mine in full.SPACE.dimensions) for each in part.SPACE.dimensions)
    keys = {dimension.key for dimension in full.SPACE.dimensions}
    assert keys >= {dimension.key for dimension in multitask.SPACE.dimensions}
    alone = full.SPACE.for_task(ENERGY)
    assert not any(dimension.joint for dimension in alone.dimensions)
    assert {point.name for point in alone.points} == {
        point.name for each in (ssa, optim) for point in each.SPACE.points
    }
    space, base = ready("full", ENERGY)
    parameters = dict(space.points_for(base))["alone"]
    assert base.changed(asked(space, parameters)[1]).multitask.tasks == ()


def test_no_space_searches_the_length_of_a_study_or_the_rows() -> None:
    for space in SPACES.values():
        for dimension in space.dimensions:
            assert not {"optim.epochs", "fold", "seed", "task"} & set(dimension.sets)


def test_points_of_the_ladder_are_its_experiments() -> None:
    for name, experiment in (("ssa", "E1"), ("ssa", "A1"), ("tta", "T4")):
        space, base = ready(name, PROPERTY)
        found = base.changed(asked(space, dict(space.points_for(base))[experiment])[1])
        assert found == base.changed(dict(EXPERIMENTS[experiment].changes))
    space, base = ready("distil", PROPERTY)
    assert base.changed(asked(space, dict(space.points_for(base))["E4"])[1]).distil.weight == 0.5


@pytest.mark.parametrize("name", SPACES)
def test_description_is_json_and_the_table_has_a_row_a_dimension(name: str) -> None:
    space = SPACES[name]
    assert json.loads(json.dumps(space.describe())) == space.describe()
    assert [row[0] for row in space.table()] == [dimension.key for dimension in space.dimensions]
    assert all(words and says for _, words, says in space.table())
    assert all(point.source for point in space.points)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_written_as_yaml_is_the_same_space(name: str, tmp_path: Path) -> None:
    described = SPACES[name].describe()
    dimensions = {}
    for given in described["dimensions"]:
        choices = given["choices"]
        if isinstance(SPACES[name].dimensions[len(dimensions)].choices, dict):
            given["choices"] = dict(choices)
        key = given.pop("key")
        dimensions[key] = {name: value for name, value in given.items() if value is not None}
    points = {point["name"]: point["values"] for point in described["points"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(described | {"dimensions": dimensions, "points": points}, sort_keys=False))
    assert load_space(str(path)).describe() == SPACES[name].describe()
