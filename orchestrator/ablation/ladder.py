"""The experiments of an ablation as recipes: folds, replicates and twins of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from orchestrator.inputs.recipe import FoldRecipe, fold_recipe
from search_spaces.experiments import EXPERIMENTS, LADDER, Experiment, configuration, with_parents
from trainables.config import RunConfig, merged
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.levers import Start


@dataclass(frozen=True, eq=False)
class Rung:
    """One experiment with the start it has here.

    Attributes:
        name: the experiment's, with the start where it is a twin.
        recipes: by (fold, replicate); a replicate is a run with other seeds.
    """

    name: str
    experiment: Experiment
    parent: str | None
    control: str | None
    config: RunConfig
    recipes: dict[tuple[int, int], FoldRecipe]

    @property
    def change(self) -> str:
        """What the experiment changes, as settings."""
        changes = [f"{key}={_text(value)}" for key, value in self.experiment.changes.items()]
        changes += [f"optim.epochs={self.config.optim.epochs}"] if self.experiment.longer != 1 else []
        return " ".join(changes)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def build_ladder(
    names: Sequence[str],
    task: Task,
    settings: Mapping[str, Any],
    *,
    folds: Sequence[int],
    seeds: int,
    starts: Sequence[str] = (),
    auxiliary: tuple[str, ...] = (),
    equal_steps: bool = False,
) -> list[Rung]:
    """All experiments asked for with their parents and controls, for every start.

    The first start's experiments keep their names, those of others have theirs added ("E1-scratch").

    Raises:
        UserError: unknown experiments, or levers that do not fit together.
    """
    found = []
    for place, start in enumerate(starts or ("",)):
        suffix = f"-{start}" if place else ""
        own = merged(settings, {"model": {"start": start}}) if start else dict(settings)
        for name in with_parents(names):
            experiment = EXPERIMENTS[name]
            config = configuration(name, task, own, auxiliary=auxiliary, equal_steps=equal_steps)
            recipes = {
                (fold, replicate): fold_recipe(config.changed({"fold": fold, "seed": seed}))
                for fold in folds
                for replicate, seed in enumerate(_first_seeds(config, seeds))
            }
            parent, control = (
                None if other is None else other + suffix for other in (experiment.parent, experiment.control)
            )
            found.append(Rung(name + suffix, experiment, parent, control, config, recipes))
    return found


def _first_seeds(config: RunConfig, seeds: int) -> list[int]:
    """Return the first seed of each replicate: an ensemble takes as many seeds as it has members."""
    members = config.ensemble.members
    return [config.seed + members * replicate for replicate in range(max(1, seeds // members))]


def parse_experiments(text: str | None, *, with_auxiliary: bool) -> tuple[str, ...]:
    """Read "E0,E1"; nothing is the whole ladder, joint training only where auxiliary tasks are given.

    Raises:
        UserError: an unknown experiment.
    """
    if text is None:
        return tuple(name for name in LADDER if name != "E5" or with_auxiliary)
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        raise UserError(f"`experiments={text}`: names such as E0,E1 were expected; available: {', '.join(EXPERIMENTS)}")
    return names


def parse_starts(texts: Sequence[str]) -> tuple[str, ...]:
    """Check the weights to start from.

    Raises:
        UserError: unknown ones.
    """
    for text in texts:
        if text not in get_args(Start):
            raise UserError(f"`start={text}`: one of {', '.join(get_args(Start))} was expected")
    return tuple(dict.fromkeys(texts))
