"""Models for use, trained on all rows, beside the folds that measured how good such models are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from orchestrator.execution.fold import ALL_ROWS, write_fold
from orchestrator.execution.folders import only_process
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import ModelSpec
from orchestrator.train.folder import claim_folder
from orchestrator.train.plan import RunPlan, plan_runs
from trainables.config import RunConfig
from trainables.errors import UserError


def deploy(
    context: TaskContext,
    config: RunConfig,
    run: Path,
    resources: Resources,
    tell: Callable[[ModelGraph, ModelSpec, RunSummary], None] = lambda graph, spec, summary: None,
) -> None:
    """Train a run's configuration on all of its rows, into its folder `all`; resumes what is there.

    An inner validation part is split off as in every fold, which chooses the epoch and the weights of an ensemble; no
    row is tested. What such a model is worth, the folds say.

    Raises:
        UserError: it failed (what is finished is kept).
    """
    dataset = replace(context.dataset, official_row=None, outer=np.full(len(context.dataset), -1, dtype=np.int8))
    own = TaskContext(dataset, context.config, context.auxiliary, context.progress)
    plan = RunPlan(config, run / ALL_ROWS, "all rows")
    with only_process(plan.out):
        claim_folder(plan.out, own, config, {})
        planned = plan_runs(own, [plan], (0,))
        ((recipe,),) = planned.recipes
        run_all(planned.graph, resources, ended=partial(tell, planned.graph), log=plan.out)
        reason = next(filter(None, map(planned.graph.failure_of, recipe.models)), "")
        if reason:
            raise UserError(f"the model of all rows failed ({reason}); the folds are kept in {run}")
        write_fold(planned.graph, recipe)
