"""A search space: dimensions, what is fixed, and known good points; how it is sampled and checked.

A space is a table of changes to a base configuration. `suggest` asks anything that suggests as an Optuna trial does;
`check` finds what is wrong with a space before anything starts.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.distributions import BaseDistribution
from pydantic import ValidationError

from search_spaces.dimension import LEAVE, Asked, Dimension, Draws, Values, flat, plain, same, word
from trainables.config import RunConfig, dotted_names, validate_for_task
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.hints import did_you_mean

__all__ = ["LEAVE", "Asked", "Dimension", "Point", "Space", "Values"]

Step = tuple["Dimension", bool, Any]  # a dimension, whether it is in use, and its value
_DRAWS = 200
_PERTURBATIONS = ("augment.strain", "augment.displacement", "tta.strain", "tta.displacement")
_NOT_SEARCHED = {
    "task": "is what the study is about",
    "fold": "decides the rows on which trials are compared",
    "data.": "decides the rows on which trials are compared",
    "seed": "is the study's own, not a choice to be made by its score",
    "optim.epochs": "is the study's length",
    "ensemble.": "takes several models, and a trial is one",
    "multitask.keep_overlap": "would show test crystals to a search",
    "multitask.max_rows": "decides the rows that trials share",
}


@dataclass(frozen=True)
class Point:
    """A known good place to start from.

    Attributes:
        values: of dimensions (names for choices with names); dimensions not named take the base configuration's.
        source: where it comes from, short.
    """

    name: str
    values: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True)
class Space:
    """What a study varies.

    Attributes:
        fixed: dotted changes to the base that hold for every trial. A perturbation that the base has not is switched
            on at size 0 where its size is a dimension, so that E0 stays the base.
        points: tried first, after the base itself.
        runs: prediction: only how a model predicts varies, and one trained model serves all trials.
        auxiliary: whether dimensions of joint training are dropped (optional) or refused (wanted) where the base has
            no auxiliary tasks.
    """

    name: str
    description: str
    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    runs: Literal["training", "prediction"] = "training"
    auxiliary: Literal["wanted", "optional"] = "wanted"

    def for_task(self, task: Task, auxiliary: Iterable[str] = ()) -> "Space":
        """Return the space without what makes no sense for the task: dimensions, their dependents and their points.

        Args:
            auxiliary: the base's multitask.tasks.
        """
        without_joint = self.auxiliary == "optional" and not tuple(auxiliary)
        kept: dict[str, Dimension] = {}
        dropped: set[str] = set()
        for dimension in self.dimensions:
            when = {key: wanted for key, wanted in dimension.when.items() if key not in dropped}
            orphan = bool(dimension.when) and not when
            if orphan or not dimension.suits(task) or (without_joint and dimension.joint):
                dropped.add(dimension.key)
            else:
                kept[dimension.key] = dimension if when == dimension.when else replace(dimension, when=when)
        if not dropped:
            return self
        points = tuple(point for point in self.points if not dropped & set(point.values))
        return replace(self, dimensions=tuple(kept.values()), points=points)

    def base(self, config: RunConfig) -> RunConfig:
        """Return the configuration that a trial's changes are laid on: with `fixed`, and still E0 in its result.

        Raises:
            UserError: `fixed` does not fit.
        """
        here, changes = flat(config), dict(self.fixed)
        searched = {key for dimension in self.dimensions for key in dimension.sets}
        for kind in _PERTURBATIONS:
            if self.fixed.get(kind, "none") != here[kind] == "none" and f"{kind}_size" in searched:
                changes[f"{kind}_size"] = 0.0
        return config.changed(changes)

    def suggest(self, trial: Asked) -> dict[str, Any]:
        """Return a trial's dotted changes to the base."""
        return _changes(self.walk(lambda dimension: dimension.ask(trial)))

    def points_for(self, base: RunConfig) -> list[tuple[str, dict[str, Any]]]:
        """Name and Optuna parameters of every starting point, the base itself first as "E0"; equal ones once.

        Raises:
            ValueError: a point lies outside the space (`check` tells it with a reason).
        """
        here = flat(self.base(base))
        found: list[tuple[str, dict[str, Any]]] = []
        for point in self.starts():
            steps = self.walk(_chooser(point, here))
            parameters: dict[str, Any] = {}
            for dimension, in_use, value in steps:
                parameters |= dimension.parameters(value) if in_use else {}
            if all(parameters != known for _, known in found):
                found.append((point.name, parameters))
        return found

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Optuna's distributions of these parameters.

        Raises:
            UserError: the space has no such parameter.
        """
        known: dict[str, BaseDistribution] = {}
        for dimension in self.dimensions:
            known |= dimension.distributions()
        for name in params:
            if name not in known:
                raise UserError(f"space {self.name} has no parameter '{name}'{did_you_mean(name, known)}")
        return {name: known[name] for name in params}

    def describe(self) -> dict[str, Any]:
        """All that decides what is searched, as JSON holds it: spaces are the same where this is (words left out)."""
        return {
            "name": self.name,
            "runs": self.runs,
            "auxiliary": self.auxiliary,
            "fixed": plain(self.fixed),
            "dimensions": [dimension.describe() for dimension in self.dimensions],
            "points": [{"name": point.name, "values": plain(point.values)} for point in self.points],
        }

    def table(self) -> list[tuple[str, str, str]]:
        """Return a row a dimension: its key, its range and condition in words, and what it says."""
        rows = []
        for dimension in self.dimensions:
            when = " or ".join(
                f"{key} is not 0" if wanted == "nonzero" else f"{key} is {' or '.join(map(word, wanted))}"
                for key, wanted in dimension.when.items()
            )
            rows.append(
                (dimension.key, dimension.range_in_words() + (f"; when {when}" if when else ""), dimension.description)
            )
        return rows

    def check(self, base: RunConfig, task: Task, source: str) -> None:
        """Refuse a space that a study could not search, before anything starts.

        Raises:
            UserError: all problems at once, in one line.
        """
        problems = [*_table_problems(self), *_fixed_problems(self, base)]
        try:
            config = self.base(base)
        except UserError as error:
            config = base
            problems = problems or [f"fixed: {_reason(error)}"]  # single values were looked at
        narrow = self.for_task(task, config.multitask.tasks)
        if not narrow.dimensions:
            problems.append(f"nothing is left to search for {task.name}")
        if not config.multitask.tasks and any(dimension.joint for dimension in narrow.dimensions):
            problems.append(f"space {self.name} needs auxiliary tasks: name them with `auxiliary`")
        problems += _value_problems(narrow, config)
        problems += _outside(narrow, config)
        # What only whole configurations show is of use once every part is right.
        problems = problems or [*_misfits(narrow, config, task), *_draw_problems(narrow, config, task)]
        if problems:
            raise UserError(f"{source}: " + "; ".join(dict.fromkeys(problems)))

    def starts(self) -> tuple[Point, ...]:
        """Return the base itself, as E0, and the known good points."""
        return (Point("E0", {}, "the base itself"), *self.points)

    def walk(self, choose: Callable[[Dimension], Any]) -> list[Step]:
        """Every dimension that has a value, in order: chosen where it is in use, else its `otherwise`."""
        chosen: dict[str, Any] = {}
        steps: list[Step] = []
        for dimension in self.dimensions:
            in_use = dimension.in_use(chosen)
            if in_use:
                chosen[dimension.key] = choose(dimension)
            elif dimension.otherwise is not LEAVE:
                chosen[dimension.key] = dimension.otherwise
            else:
                continue
            steps.append((dimension, in_use, chosen[dimension.key]))
        return steps


def _changes(steps: Iterable[Step]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dimension, _, value in steps:
        found |= dimension.changes(value)
    return found


def _chooser(point: Point, base: Mapping[str, Any]) -> Callable[[Dimension], Any]:
    def choose(dimension: Dimension) -> Any:
        if dimension.key in point.values:
            return dimension.admit(point.values[dimension.key])
        return dimension.value_in(base)

    return choose


def _reason(error: UserError) -> str:
    return str(error).removeprefix("settings: ")


def _table_problems(space: Space) -> Iterator[str]:
    """Yield the problems that can be seen without a base."""
    known = set(dotted_names())
    earlier: dict[str, Dimension] = {}
    counts = Counter(key for each in space.dimensions for key in {each.key, *each.sets})
    yield from (f"{key} is searched by more than one dimension" for key, count in counts.items() if count > 1)
    for name, count in Counter(point.name for point in space.starts()).items():
        if count > 1:
            yield f"point {name}: the name is taken" + (" by the base itself" if name == "E0" else "")
    for dimension in space.dimensions:
        yield from dimension.problems()
        yield from (
            f"unknown key '{key}'{did_you_mean(key, dotted_names())}" for key in dimension.sets if key not in known
        )
        yield from (f"{key} cannot be searched here: it {why}" for key in dimension.sets for why in _banned(space, key))
        for key, wanted in dimension.when.items():
            if key not in earlier:
                yield f"{dimension.key}: when names '{key}', which is no dimension before it"
            else:
                yield from _when_problems(dimension.key, earlier[key], wanted)
        earlier[dimension.key] = dimension


def _banned(space: Space, key: str) -> Iterator[str]:
    for start, why in _NOT_SEARCHED.items():
        if key == start or (start.endswith(".") and key.startswith(start)):
            yield why
            return
    if key.startswith("tta.") and space.runs == "training":
        yield "has no part in training (a space with runs: prediction searches it on a trained model)"
    elif not key.startswith("tta.") and space.runs == "prediction" and key in dotted_names():
        yield "changes the training, and runs: prediction trains one model for all trials"


def _when_problems(key: str, condition: Dimension, wanted: Any) -> Iterator[str]:
    if wanted == "nonzero" or condition.choices is None:
        if condition.choices is not None or wanted != "nonzero":
            yield f"{key}: when {condition.key} requires 'nonzero' for a range, and a list of values for choices"
        return
    for value in wanted:
        if not any(same(value, choice) for choice in condition.choices):
            yield f"{key}: when {condition.key}={word(value)} is never true ({condition.range_in_words()})"


def _value_problems(space: Space, base: RunConfig) -> Iterator[str]:
    """Values that RunConfig refuses, whatever the other keys are."""
    for dimension in _sound(space):
        values = [] if dimension.otherwise is LEAVE else [dimension.otherwise]
        if dimension.choices is not None:
            values += list(dimension.choices)
        elif dimension.low is not None and dimension.high is not None:
            inner = dimension.low + 0.41 * (dimension.high - dimension.low)
            values += [dimension.low, round(inner) if dimension.integer else float(f"{inner:.3g}"), dimension.high]
            values += [0] * dimension.zero
        for value in values:
            for key, each in dimension.changes(value).items():
                yield from _refusal(base, key, each)


def _sound(space: Space) -> Iterator[Dimension]:
    """Yield the dimensions that are sound enough to look for further problems."""
    known = set(dotted_names())
    for dimension in space.dimensions:
        if not list(dimension.problems()) and known.issuperset(dimension.sets):
            yield dimension


def _refusal(base: RunConfig, key: str, value: Any) -> Iterator[str]:
    """Why the key's own field refuses the value; what other keys have to say shows in whole configurations."""
    section, _, name = key.rpartition(".")
    if not section:  # task, fold and seed, which no space may set
        return
    owner = getattr(base, section)
    try:
        type(owner).model_validate(owner.model_dump() | {name: value})
    except ValidationError:
        try:
            base.changed({key: value})
        except UserError as error:
            yield _reason(error) + (" (integer: true?)" if "valid integer" in str(error) else "")


def _fixed_problems(space: Space, base: RunConfig) -> Iterator[str]:
    """Yield what cannot be fixed, and choices of the base that would silently be undone: E0 would not be the base."""
    here, usual = flat(base), flat(RunConfig(task=base.task))
    searched = {key for each in space.dimensions for key in each.sets}
    for key, value in space.fixed.items():
        if key not in here:
            yield f"fixed: unknown key '{key}'{did_you_mean(key, here)}"
        elif key in ("task", "fold", "seed"):
            yield f"fixed: {key} is given with the command, not by a space"
        elif key in searched:
            yield f"{key} is both fixed and searched"
        else:
            yield from _refusal(base, key, value)
        if key in here and not same(here[key], value) and not same(here[key], usual[key]):
            yield (
                f"the base's {key}={word(here[key])} is not in space {space.name}, which fixes {key}={word(value)}: "
                f"leave {key} out of the base"
            )


def _outside(space: Space, base: RunConfig) -> Iterator[str]:
    """Values of the base and of the points that lie outside the space."""
    here, keys = flat(base), [dimension.key for dimension in space.dimensions]
    sound = replace(space, dimensions=tuple(_sound(space)))
    for point in space.starts():
        unknown = [key for key in point.values if key not in keys]
        yield from (f"point {point.name}: '{key}' is no dimension{did_you_mean(key, keys)}" for key in unknown)
        outside: list[str] = []
        sound.walk(_tolerant(_chooser(point, here), outside))
        if point.name == "E0":
            yield from (f"the base's {problem}: widen the space or change the base" for problem in outside)
        else:
            yield from (f"point {point.name}: {problem}" for problem in outside)


def _tolerant(choose: Callable[[Dimension], Any], outside: list[str]) -> Callable[[Dimension], Any]:
    def attempt(dimension: Dimension) -> Any:
        try:
            return choose(dimension)
        except ValueError as error:
            outside.append(str(error))
            return None

    return attempt


def _misfits(space: Space, base: RunConfig, task: Task) -> Iterator[str]:
    """Points that are no valid run, name a value that is not in use there, or (E0) are not the base."""
    here = flat(base)
    for point in space.starts():
        label = "the base" if point.name == "E0" else f"point {point.name}"
        steps = space.walk(_chooser(point, here))
        used = {dimension.key for dimension, in_use, _ in steps if in_use}
        yield from (f"{label}: {key} is not in use there (see its `when`)" for key in point.values if key not in used)
        try:
            config = base.changed(_changes(steps))
            validate_for_task(config, task)
        except UserError as error:
            yield f"{label}: {_reason(error)}"
            continue
        after = flat(config) if point.name == "E0" else here
        changed = [key for key in here if not same(here[key], after[key])]
        yield from (f"the base's {key}={word(here[key])} would become {word(after[key])}" for key in changed)


def _draw_problems(space: Space, base: RunConfig, task: Task) -> Iterator[str]:
    draws = Draws(random.Random(0))
    for _ in range(_DRAWS):
        changes = space.suggest(draws)
        try:
            validate_for_task(base.changed(changes), task)
        except UserError as error:
            combination = ", ".join(f"{key}={word(value)}" for key, value in changes.items())
            yield f"the combination {combination} is refused: {_reason(error)}"
            return
