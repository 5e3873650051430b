"""What is wrong with the sections of a configuration together: levers that exclude or need each other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainables.errors import UserError
from trainables.levers import FULL_WIDTH

if TYPE_CHECKING:  # it asks this module
    from trainables.config import RunConfig


def lever_problems(config: "RunConfig") -> list[str]:
    """Return what is wrong with the sections together, one sentence each."""
    return list(_problems(config))


def _not_of_tables(config: "RunConfig") -> Iterator[str]:
    """Tell what a model of tables, which takes no steps, cannot have."""
    for key, used in (
        ("augment", config.augment.active), ("distil.weight", config.distil.weight > 0),
        ("multitask.tasks", bool(config.multitask.tasks)), ("ensemble.combine=soup", config.ensemble.combine == "soup"),
        ("model.head=hurdle", config.model.head == "hurdle"), ("model.freeze", bool(config.model.freeze)),
        ("model.transform", config.model.transform != "none"), ("model.scale", config.model.scale != "std"),
    ):  # fmt: skip
        if used:
            yield f"model.family=tabular takes no training steps, so {key} means nothing to it: leave it out"


def _not_in_parts(config: "RunConfig") -> Iterator[str]:
    """Tell what would let a model see the part that it is validated on."""
    for key, used, why in (
        ("data.refit=true", config.data.refit, "a refit trains on the part that a model is validated on"),
        ("distil.weight > 0", config.distil.weight > 0, "teachers would know the part that a student is validated on"),
        ("multitask.tasks", bool(config.multitask.tasks), "other tasks may hold the crystals of any part"),
    ):
        if used and config.ensemble.inner_folds:
            yield f"ensemble.inner_folds and {key} exclude each other: {why}; leave one of them out"


def _problems(config: "RunConfig") -> Iterator[str]:
    if config.model.width < FULL_WIDTH and config.model.start != "scratch":
        yield (
            f"model.width={config.model.width}: the shipped weights are {FULL_WIDTH} wide, a narrower model requires "
            "model.start=scratch"
        )
    if config.model.family == "tabular":
        yield from _not_of_tables(config)
    if config.model.phonons and config.model.start == "scratch":
        yield "model.phonons=true asks for frequencies of a pretrained CHGNet: model.start=scratch has none"
    if config.model.physics and config.model.start == "scratch":
        yield "model.physics=true asks for read-outs of a pretrained CHGNet: model.start=scratch has none"
    if config.model.transform == "log" and config.model.head == "hurdle" and config.distil.weight > 0:
        yield (
            "model.transform=log cannot be distilled with model.head=hurdle, whose teachers may say exactly zero: use "
            "model.transform=asinh"
        )
    if config.optim.towards_start and config.model.start == "scratch":
        yield "optim.towards_start holds on to pretrained weights: model.start=scratch has none"
    if config.consistency.weight > 0 and not config.augment.active:
        yield (
            "consistency.weight > 0 requires a perturbation: set augment.strain or augment.displacement (with a size "
            "above 0)"
        )
    if config.tta.views == 1 and not config.tta.identity:
        yield "tta.identity=false requires tta.views of at least 2: a single view is the plain prediction"
    if config.tta.views > 1 and not config.tta.active:
        yield "tta.views > 1 requires a perturbation: set tta.strain or tta.displacement (size above 0)"
    if config.ensemble.combine == "soup" and config.model.start == "scratch" and config.model.init_seed is None:
        yield (
            "ensemble.combine=soup requires members with the same start; model.start=scratch gives every seed its own: "
            "set model.init_seed"
        )
    if config.data.refit and config.ensemble.size > 1 and config.ensemble.combine in ("greedy", "stacked"):
        yield (
            f"ensemble.combine={config.ensemble.combine} chooses weights on the inner validation rows, which "
            "data.refit=true trains on: use mean or median, or set data.refit=false"
        )
    yield from _not_in_parts(config)
    teacher = config.distil.teacher_start
    if config.distil.weight > 0 and teacher is not None and (teacher == "0.2.0") != (config.model.start == "0.2.0"):
        yield (
            "0.2.0 has a cutoff of 5 A, the other weights 6 A: distil.teacher_start and model.start must have the same "
            "cutoff"
        )
    if config.task in config.multitask.tasks:
        yield f"multitask.tasks contains the target itself ({config.task}): name other tasks"
    if len(set(config.multitask.tasks)) < len(config.multitask.tasks):
        yield "multitask.tasks names a task twice"
    try:
        config.variants()  # each is checked as a whole
    except UserError as error:
        yield f"ensemble.vary: {str(error).removeprefix('settings: ')}"
