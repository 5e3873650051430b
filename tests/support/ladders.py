"""A plan of seeds, out-of-fold teachers and students on a tiny table."""

from pathlib import Path

from small_data import tiny_dataset

from orchestrator.execution.scheduler import ModelGraph
from orchestrator.inputs.context import TaskContext, task_config
from orchestrator.inputs.recipe import fold_recipe
from trainables.progress import Progress, silent


def plan_of(out: Path, progress: Progress = silent, *, seeds: int = 3, epochs: int = 2) -> ModelGraph:
    """Return 2 folds of students with `seeds` seeds, taught by as many teachers of 2 inner folds."""
    dataset = tiny_dataset(40)
    distil = {"weight": 0.5, "inner_folds": 2, "seeds": seeds}
    config = task_config(
        dataset, {"ensemble.members": seeds, "distil": distil, "optim.epochs": epochs, "optim.batch_size": 8}
    )
    context = TaskContext(dataset, config, progress=progress)
    recipes = [fold_recipe(config.changed({"fold": fold})) for fold in (0, 1)]
    return ModelGraph(context, recipes, lambda spec: out / spec.name_with(context.key(spec)))
