"""Spaces of one's own: how they are read, and that every mistake is told before anything starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from search_spaces.presets import preset
from search_spaces.reading import load_space
from search_spaces.space import Dimension, Point, Space
from search_spaces.spaces import SPACES
from trainables.config import RunConfig, parse_config
from trainables.data.tasks import TASKS
from trainables.errors import UserError

optuna.logging.set_verbosity(optuna.logging.ERROR)
TASK = TASKS["matbench_jdft2d"]
ENERGY = TASKS["matbench_mp_e_form"]
BASE = parse_config(preset(TASK), "preset")
LR = Dimension("optim.lr", 1e-4, 5e-3, log=True)
MINE = """
name: mine
description: what I want to know
fixed: {augment.strain: symmetry}
dimensions:
  augment.strain_size: {low: 1e-4, high: 5e-3, log: true, zero: true}
  optim.lr: {low: 1.0e-4, high: 3.0e-3, log: true}
  loss.name: {choices: [l1, huber]}
  loss.delta: {low: 0.01, high: 1, log: true, when: {loss.name: [huber]}}
  model.freeze: {choices: {nothing: [], inputs: [embedding, basis]}}
  optim.warmup: {low: 0.02, high: 0.2, otherwise: 0.05, when: {augment.strain_size: nonzero}}
points:
  literature: {optim.lr: 3e-4, model.freeze: inputs}
"""


def test_files_of_earlier_versions_call_the_description_says(tmp_path: Path) -> None:
    earlier = "name: mine\nsays: old words\ndimensions:\n  optim.lr: {low: 1e-4, high: 3e-3, log: true, says: rate}\n"
    (tmp_path / "old.yaml").write_text(earlier)
    (tmp_path / "new.yaml").write_text(earlier.replace("says:", "description:"))
    assert load_space(str(tmp_path / "old.yaml")) == load_space(str(tmp_path / "new.yaml"))
    assert load_space(str(tmp_path / "old.yaml")).dimensions[0].description == "rate"


def one(*dimensions: Dimension, **fields: Any) -> Space:
    return Space("mine", "", dimensions, **fields)


def problem(space: Space, base: RunConfig = BASE) -> str:
    with pytest.raises(UserError) as error:
        space.check(base, TASK, "--space mine.yaml")
    text = str(error.value)
    assert text.startswith("--space mine.yaml: ")
    assert "\n" not in text
    return text


def written(folder: Path, content: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def refused(name_or_path: str) -> str:
    with pytest.raises(UserError) as error:
        load_space(name_or_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_yaml_is_read_as_it_is_meant(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, MINE))
    space.check(BASE, TASK, "mine")
    assert space.dimensions[0].low == 1e-4  # PyYAML alone gives a text
    assert space.dimensions[3].when == {"loss.name": ("huber",)}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    (first, start), (second, literature) = space.points_for(BASE)
    assert (first, second) == ("E0", "literature")
    study.enqueue_trial(start)
    study.enqueue_trial(literature)
    here = space.base(BASE)
    assert here.changed(space.suggest(study.ask())) == here
    assert not here.augment.active
    changed = here.changed(space.suggest(study.ask()))
    assert (changed.optim.lr, changed.model.freeze) == (3e-4, ("embedding", "basis"))


def test_python_file_gives_its_space(tmp_path: Path) -> None:
    code = "from search_spaces.space import *\nSPACE = Space('mine', '', (Dimension('optim.lr', 1e-4, 1e-2),))"
    space = load_space(written(tmp_path, code, "mine.py"))
    space.check(BASE, TASK, "mine")
    assert not list(tmp_path.glob("__pycache__"))
    assert "does not define SPACE" in refused(written(tmp_path, "space = 3", "other.py"))
    for broken in ("import missing_module_x", "x = (", "raise SystemExit(3)", "1 / 0"):
        assert "cannot be run" in refused(written(tmp_path, broken, "broken.py"))


def test_shipped_space_is_found_by_name_and_a_wrong_one_is_told_the_nearest() -> None:
    assert load_space("ssa") is SPACES["ssa"]
    assert "did you mean distil?" in refused("distill")
    assert "known: ssa" in refused("xyz")
    assert "cannot be read" in refused("missing.yaml")
    assert "is not a file" in refused("missing.py")


def test_yaml_mistakes_of_form_are_told_at_once_with_the_nearest_names(tmp_path: Path) -> None:
    content = """
    nam: mine
    runs: predictions
    fixed: [1]
    dimensions:
      optim.lr: {lo: 1.0e-4, high: 3.0e-3, log: maybe}
      loss.name: [l1, huber]
      loss.delta: {choices: 3, when: huber}
    points: {literature: 3}
    """
    text = refused(written(tmp_path, content))
    for part in (
        "unknown field 'nam' (did you mean 'name'?)",
        "runs='predictions'",
        "fixed: a mapping",
        "optim.lr: unknown field 'lo' (did you mean 'low'?)",
        "optim.lr: log='maybe'",
        "loss.name: a mapping such as",
        "loss.delta: choices=3",
        "loss.delta: when='huber'",
        "point literature",
    ):
        assert part in text
    assert "dimensions are missing" in refused(written(tmp_path, "name: mine"))


def test_mistakes_of_content_are_told_at_once_before_anything_starts(tmp_path: Path) -> None:
    content = """
    fixed: {optim.schedul: cosine, optim.warmup: 3}
    dimensions:
      optim.learning_rate: {low: 1.0e-4, high: 3.0e-3}
      optim.lr: {low: 3.0e-3, high: 1.0e-4}
      optim.weight_decay: {low: 0, high: 1, log: true}
      optim.grad_clip: {}
      optim.ema_decay: {low: 0.9, high: 1.5}
      optim.batch_size: {low: 4, high: 64}
      loss.name: {choices: [l1, hubber]}
      loss.delta: {low: 0.01, high: 1, when: {los.name: [huber]}}
      optim.final_lr: {low: 0.0, high: 0.5, when: {loss.name: [huber]}}
      optim.layer_decay: {low: 0.5, high: 0.8}
      optim.epochs: {low: 1, high: 5, integer: true}
      tta.views: {choices: [1, 4]}
      model.freeze: {choices: [[basis], []]}
      model.pooling: {choices: {on: mean}}
    points:
      one: {optim.layer_decay: 0.9}
      two: {optim.layer_deca: 0.7}
      E0: {}
    """
    text = problem(load_space(written(tmp_path, content)))
    for part in (
        "fixed: unknown key 'optim.schedul' (did you mean 'optim.schedule'?)",
        "optim.warmup=3: input should be less than 1",
        "unknown key 'optim.learning_rate'",
        "optim.lr: low=3e-3 is not below high=1e-4",
        "optim.weight_decay: a log range requires low above 0",
        "optim.grad_clip: neither a range",
        "optim.ema_decay=1.5: input should be less than 1",
        "optim.batch_size=28.6: input should be a valid integer",
        "(integer: true?)",
        "did you mean 'huber'?",
        "loss.delta: when names 'los.name', which is no dimension before it",
        "optim.final_lr: when loss.name=huber is never true (l1, hubber)",
        "the base's optim.layer_decay=1 is outside 0.5 .. 0.8",
        "optim.epochs cannot be searched here: it is the study's length",
        "tta.views cannot be searched here",
        "model.freeze: choices that are not plain values need names",
        "model.pooling: names of choices must be text",
        "point one: optim.layer_decay=0.9 is outside",
        "point two: 'optim.layer_deca' is no dimension (did you mean 'optim.layer_decay'?)",
        "point E0: the name is taken by the base itself",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        (one(LR, LR), "optim.lr is searched by more than one dimension"),
        (one(LR, Dimension("x", choices={"a": {"optim.lr": 1e-3}})), "optim.lr is searched by more than one dimension"),
        (one(LR, fixed={"optim.lr": 1e-3}), "optim.lr is both fixed and searched"),
        (one(LR, fixed={"fold": 1}), "fixed: fold is given with the command"),
        (one(), "nothing is left to search"),
        (one(Dimension("augment.labels", choices=("kept",), tasks="energies")), "nothing is left to search"),
        (one(Dimension("optim.lr", 1e-4, 1e-2, choices=(1e-3,))), "both a range"),
        (one(Dimension("optim.lr", 1e-4, float("inf"))), "high=inf: a number was expected"),
        (one(Dimension("optim.lr", "1e-4", 1.0)), "low='1e-4': a number was expected"),  # type: ignore[arg-type]
        (one(Dimension("optim.batch_size", 0.5, 64, integer=True)), "low=0.5 is not a whole number"),
        (one(Dimension("optim.grad_clip", 0.0, 20.0, zero=True)), "zero adds an exact 0"),
        (one(Dimension("loss.name", choices=("l1", "l1"))), "a choice stands twice"),
        (one(Dimension("loss.name", choices=())), "at least one value"),
        (one(Dimension("fold", choices=(0, 1))), "fold cannot be searched here"),
        (one(Dimension("data.val_share", 0.05, 0.3)), "decides the rows"),
        (one(replace(LR), runs="prediction"), "one model for all trials"),
        (one(replace(LR, when={"loss.name": ("l1",)}), Dimension("loss.name", choices=("l1",))), "no dimension before"),
        (one(LR, replace(LR, key="loss.delta", when={"optim.lr": (1e-3,)})), "requires 'nonzero' for a range"),
        (one(LR, fixed={"consistency.weight": 1.0}), "fixed: consistency.weight > 0 requires a perturbation"),
        (one(LR, Dimension("model.width", choices=(32, 64))), "model.width=32 is refused: model.width=32: the shipped"),
        (one(LR, points=(Point("p", {"optim.lr": 1.0}),)), "point p: optim.lr=1 is outside 1e-4 .. 5e-3, log"),
        (one(LR, points=(Point("p", {"optim.lr": True}),)), "point p: optim.lr=true is outside"),
        (
            one(Dimension("optim.batch_size", choices=(1, 16)), points=(Point("p", {"optim.batch_size": True}),)),
            "point p: optim.batch_size=true is outside 1, 16",
        ),
        (
            one(
                Dimension("loss.name", choices=("l1", "huber")),
                Dimension("loss.delta", 0.01, 1.0, when={"loss.name": ("huber",)}),
                points=(Point("p", {"loss.delta": 0.5}),),
            ),
            "point p: loss.delta is not in use there",
        ),
        (
            one(LR, Dimension("loss.name", choices=("l1", "huber")),
                Dimension("optim.warmup", 0.01, 0.1, when={"loss.name": ("huber",)}, otherwise=0.2)),
            "the base's optim.warmup=0.05 would become 0.2",
        ),
    ],
)  # fmt: skip
def test_check_refuses(space: Space, wanted: str) -> None:
    assert wanted in problem(space)


def test_a_base_outside_the_space_is_told_what_to_change() -> None:
    text = problem(one(LR), BASE.changed({"optim.lr": 0.1}))
    assert "the base's optim.lr=0.1 is outside 1e-4 .. 5e-3, log: widen the space or change the base" in text
    lite = BASE.changed({"model.width": 16, "model.start": "scratch"})
    assert "model.width=16" in problem(SPACES["distil"], lite)
    assert "augment.strain=free" in problem(SPACES["ssa"], BASE.changed({"augment.strain": "free"}))


def test_equal_points_are_tried_once() -> None:
    points = (
        Point("base", {"optim.lr": BASE.optim.lr}),
        Point("a", {"optim.lr": 3e-4}),
        Point("b", {"optim.lr": 3e-4}),
    )
    assert one(LR, points=points).points_for(BASE) == [("E0", {"optim.lr": 1e-3}), ("a", {"optim.lr": 3e-4})]


def test_multitask_wants_auxiliary_tasks() -> None:
    assert "space multitask needs auxiliary tasks: name them with `auxiliary`" in problem(SPACES["multitask"])


def test_correction_that_a_task_does_not_allow_is_found_by_the_draws() -> None:
    labels = Dimension("augment.labels", choices=("kept", "corrected"))
    space = one(labels, fixed={"augment.strain": "symmetry"})
    assert "the combination augment.labels=corrected is refused: labels of matbench_jdft2d" in problem(space)
    space.check(parse_config(preset(ENERGY), "preset"), ENERGY, "mine")


def test_a_dimension_never_outlives_what_it_depends_on() -> None:
    space = one(
        LR,
        Dimension("augment.labels", choices=("kept", "corrected"), tasks="energies"),
        Dimension("optim.warmup", 0.01, 0.1, when={"augment.labels": ("corrected",)}),
        Dimension("optim.layer_decay", 0.5, 1.0, when={"augment.labels": ("corrected",), "optim.lr": "nonzero"}),
    )
    narrow = space.for_task(TASK)
    assert [dimension.key for dimension in narrow.dimensions] == ["optim.lr", "optim.layer_decay"]
    assert narrow.dimensions[1].when == {"optim.lr": "nonzero"}
    assert space.for_task(ENERGY) is space


OTHER = {
    "key": "optim.final_lr",
    "low": 2e-4,
    "high": 6e-3,
    "log": False,
    "integer": True,
    "choices": (1e-3, 2e-3),
    "zero": True,
    "when": {"loss.name": ("l1",)},
    "otherwise": 1e-3,
    "tasks": "energies",
}


@pytest.mark.parametrize("field", OTHER)
def test_description_changes_with_all_that_is_searched(field: str) -> None:
    assert one(replace(LR, **{field: OTHER[field]})).describe() != one(LR).describe()


def test_description_holds_all_but_words_and_the_order_of_choices() -> None:
    assert {*OTHER, "description"} == set(Dimension.__dataclass_fields__)
    space = one(LR)
    others = [{"fixed": {"optim.warmup": 0.1}}, {"points": (Point("p", {}),)}, {"runs": "prediction"}, {"name": "x"}]
    for changes in [*others, {"auxiliary": "optional"}, {"dimensions": ()}]:
        assert replace(space, **changes).describe() != space.describe()
    assert replace(space, description="other words").describe() == space.describe()
    named = {"a": [], "b": ["basis"]}
    turned = dict(reversed(named.items()))
    first, second = (one(Dimension("model.freeze", choices=choices)) for choices in (named, turned))
    assert str(first.describe()) != str(second.describe())
    assert first.describe() != second.describe()


def test_parameters_of_another_space_are_refused() -> None:
    with pytest.raises(UserError, match=r"no parameter 'optim.lrr'"):
        one(LR).distributions({"optim.lrr": 1.0})


def test_table_says_ranges_in_words(tmp_path: Path) -> None:
    rows = {key: words for key, words, _ in load_space(written(tmp_path, MINE)).table()}
    assert rows["augment.strain_size"] == "1e-4 .. 5e-3, log, or 0"
    assert rows["loss.delta"] == "0.01 .. 1, log; when loss.name is huber"
    assert rows["model.freeze"] == "nothing, inputs"
    assert rows["optim.warmup"] == "0.02 .. 0.2; when augment.strain_size is not 0"
