"""How many epochs fit into a time: from a speed that is measured on the run's own crystals."""

import math
from collections.abc import Sequence
from pathlib import Path

from orchestrator.execution.estimate import seconds_of, structures_per_second
from orchestrator.execution.resources import Resources
from orchestrator.inputs.context import TaskContext
from orchestrator.report.format import readable
from orchestrator.train.folder import read_manifest
from orchestrator.train.plan import RunPlan, plan_runs
from trainables.config import RunConfig
from trainables.errors import UserError

_SPARE, _SPARE_SECONDS = 0.15, 15.0  # of the time, for predictions, baselines and the report
MOST_EPOCHS = 500


def within_budget(
    context: TaskContext, config: RunConfig, out: Path, folds: Sequence[int], resources: Resources, seconds: float
) -> RunConfig:
    """Return the run's configuration with as many epochs as fit into a time; a run that has begun keeps its own.

    Raises:
        UserError: not one epoch fits, or a place whose speed cannot be measured here.
    """
    held = read_manifest(out)
    if held is not None:
        epochs = RunConfig.model_validate(held.config).optim.epochs
        context.progress.message(f"optim.epochs={epochs}, as this run began")
        return config.changed({"optim.epochs": epochs})
    if all(variant.model.family == "tabular" for variant in config.variants()):
        raise UserError("`time_budget`: model.family=tabular has no epochs; leave it out")
    if resources.cluster is not None:
        raise UserError("`time_budget` measures the speed of this machine, not of a cluster: set optim.epochs instead")
    graph = plan_runs(context, [RunPlan(config, out)], folds).graph
    where = resources.plan(graph.width(set(graph.specs())))
    trained = next(spec for spec in graph.specs().values() if spec.config.model.family == "chgnet")
    speed = structures_per_second(context, trained, where)

    def estimated(epochs: int) -> float:
        specs = plan_runs(context, [RunPlan(config.changed({"optim.epochs": epochs}), out)], folds).graph.specs()
        return seconds_of(context, specs, where, (), speed)

    one = estimated(1)
    per_epoch = (estimated(11) - one) / 10
    spare = seconds * _SPARE + min(_SPARE_SECONDS, 0.1 * seconds)
    fits = 1 + math.floor((seconds - spare - one) / per_epoch)
    if fits < 1:
        raise UserError(
            f"`time_budget`: one epoch of all models takes about {readable(one)} here, more than {readable(seconds)} "
            "allow: give more time, fewer folds or members, or fewer rows"
        )
    epochs = min(fits, MOST_EPOCHS)
    context.progress.message(
        f"optim.epochs={epochs}: about {readable(one + (epochs - 1) * per_epoch)} of {readable(seconds)}, at "
        f"{speed:.0f} structures/s measured here" + (", and more are of no use" if epochs < fits else "")
    )
    return config.changed({"optim.epochs": epochs})
