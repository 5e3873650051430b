"""Runs that are made together: their models are one graph, so that nothing waits that could run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.execution.scheduler import ModelGraph
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec, fold_recipe, topological_levels
from orchestrator.train.folder import model_folder
from search_spaces.dimension import flat
from trainables.config import RunConfig


@dataclass(frozen=True)
class RunPlan:
    """A configuration, and the folder of its run.

    Attributes:
        name: what messages call it where several runs are made, such as "student".
    """

    config: RunConfig
    out: Path
    name: str = ""


@dataclass(frozen=True, eq=False)
class PlannedRuns:
    """Runs with the models of their folds.

    Attributes:
        graph: the models of all runs.
        recipes: of each run, one a fold, in the order of the plans.
    """

    graph: ModelGraph
    recipes: tuple[tuple[FoldRecipe, ...], ...]


def plan_runs(context: TaskContext, plans: Sequence[RunPlan], folds: Sequence[int]) -> PlannedRuns:
    """Return the models of several runs; one that two of them need lies in the folder of the first."""
    recipes = tuple(tuple(fold_recipe(plan.config.changed({"fold": fold})) for fold in folds) for plan in plans)
    folders: dict[str, Path] = {}
    labels: dict[str, str] = {}
    for plan, own in zip(plans, recipes, strict=True):
        for recipe in own:
            for spec in _models(context, recipe):
                key = context.key(spec)
                folders.setdefault(key, model_folder(plan.out, recipe, spec, key))
                labels.setdefault(key, _label(plan, recipe, spec))
    every = [recipe for own in recipes for recipe in own]
    graph = ModelGraph(context, every, lambda spec: folders[context.key(spec)], labels=labels)
    return PlannedRuns(graph, recipes)


def _models(context: TaskContext, recipe: FoldRecipe) -> list[ModelSpec]:
    """Return the members of a recipe, and all that they need."""
    levels = topological_levels(recipe.models, context.digest(recipe.config))
    return [spec for level in levels for spec in level]


def _label(plan: RunPlan, recipe: FoldRecipe, spec: ModelSpec) -> str:
    """Return what a model has of the varied settings, or the run that it is of: its name in messages has no more."""
    settings = flat(spec.config)
    varied = [f"{key}={settings.get(key)}" for key in plan.config.ensemble.vary]
    return " ".join([*varied, *([plan.name] if plan.name and spec in recipe.models else [])])
