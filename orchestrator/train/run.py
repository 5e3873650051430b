"""The main job: from a task's name to scores of its folds and, where it may be, a Matbench record."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.evaluation.baselines import (
    FEATURES_FROM,
    FEATURES_UP_TO,
    HELD_OUT,
    baseline_predictions,
    baseline_scores,
)
from orchestrator.evaluation.published import published_scores
from orchestrator.evaluation.scores import BaselineScores, Scores, TaskSummary, score_folds
from orchestrator.execution.fold import collect_predictions, read_fold, write_fold
from orchestrator.execution.folders import only_process
from orchestrator.execution.job import finished
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext, caveats, open_context, trained_also_on
from orchestrator.inputs.crystals import keep_crystals
from orchestrator.inputs.datasets import graph_store
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec
from orchestrator.inputs.source import Source
from orchestrator.train.budget import within_budget
from orchestrator.train.deploy import deploy
from orchestrator.train.folder import began_config, claim_folder
from orchestrator.train.plan import RunPlan, plan_runs
from orchestrator.train.preset import chosen_preset, require_preset
from search_spaces.presets import blend, blends
from trainables.choices import PresetName
from trainables.data.tasks import N_FOLDS
from trainables.errors import CannotWrite, UserError
from trainables.files import write_json, write_parquet
from trainables.graphs.store import GraphStore
from trainables.progress import Progress, silent

SCORES = "scores.json"


@dataclass(frozen=True)
class TrainOptions:
    """Which folds, where they are trained, and published predictions to score beside them.

    Attributes:
        deploy: then train on all rows as well, for use.
        time_budget: seconds; train for as many epochs as fit into them.
        preset: as chosen_preset.
    """

    folds: tuple[int, ...] = tuple(range(N_FOLDS))
    resources: Resources = field(default_factory=Resources)
    published: Path | None = None
    deploy: bool = False
    time_budget: float | None = None
    preset: PresetName = "auto"


def train(
    source: Source,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    options: TrainOptions | None = None,
    auxiliary: Sequence[str] = (),
    progress: Progress = silent,
) -> Scores:
    """Train and test every fold asked for, resuming what `out` already holds.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset.
        auxiliary: tasks to train on jointly, as NAME or NAME=FILE; they become multitask.tasks where that is empty.

    Returns:
        The content of out/scores.json.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is done is kept).
    """
    options = options or TrainOptions()
    options.resources.check(progress)
    require_preset(options.preset)
    context = open_context(
        source, settings or {}, auxiliary, began=began_config(out), published=options.published, folds=options.folds,
        progress=progress,
    )  # fmt: skip
    config = chosen_preset(context, settings or {}, options.preset, out, options.folds)
    if options.time_budget is not None:
        config = within_budget(context, config, out, options.folds, options.resources, options.time_budget)
    (scores,) = make_runs(context, [RunPlan(config, out)], options, rows_told(source, auxiliary))
    if options.deploy:
        deploy(context, config, out, options.resources, _tell)
    return scores


def rows_told(source: Source, auxiliary: Sequence[str]) -> dict[str, Any]:
    """Return the keywords that name the rows of a run, as RunManifest.rows."""
    return source.keywords() | ({"auxiliary": list(auxiliary)} if auxiliary else {})


def make_runs(
    context: TaskContext, plans: Sequence[RunPlan], options: TrainOptions, rows: Mapping[str, Any]
) -> list[Scores]:
    """Train and score several runs together, each in its own folder, resuming what the folders hold.

    The session is logged in the first one's.

    Args:
        rows: as RunManifest.rows.

    Returns:
        The content of each run's scores.json.

    Raises:
        UserError: a folder with another run, or folds that failed (what is done is kept, and scored).
    """
    with ExitStack() as held:
        for plan in plans:
            held.enter_context(only_process(plan.out))
            claim_folder(plan.out, context, plan.config, rows)
            keep_crystals(plan.out, context.dataset, context.progress)
        planned = plan_runs(context, plans, options.folds)
        run_all(planned.graph, options.resources, ended=partial(_tell, planned.graph), log=plans[0].out)
        failed = [_write_folds(planned.graph, recipes) for recipes in planned.recipes]
        scores = [_scored(context, plan, options, wrong) for plan, wrong in zip(plans, failed, strict=True)]
        for plan, found in zip(plans, scores, strict=True):
            _write_report(context, plan.out, found)
    _require_all(plans, failed, len(options.folds))
    return scores


def _require_all(plans: Sequence[RunPlan], failed: Sequence[Mapping[int, str]], n_folds: int) -> None:
    """Raise a UserError where folds have failed, with the reason of each."""
    reasons = [
        f"{plan.name} fold {fold}: {reason}".lstrip()
        for plan, wrong in zip(plans, failed, strict=True)
        for fold, reason in wrong.items()
    ]
    if reasons:
        raise UserError(
            f"{len(reasons)} of {n_folds * len(plans)} folds failed ({'; '.join(reasons)}); the rest is kept in "
            f"{plans[0].out}"
        )


def baseline_run(
    source: Source, folds: Sequence[int], published: Path | None = None, progress: Progress = silent
) -> BaselineScores:
    """Score all baselines of a task, and published predictions beside them.

    Raises:
        UserError: as open_context.
    """
    context = open_context(source, {}, published=published, folds=folds, progress=progress)
    dataset, config = context.dataset, context.config
    if blends(context.task, len(dataset)):  # the same baselines as `train` has beside it
        config = blend(config, context.task, len(dataset))
    wanted = dataset.task.is_energy or FEATURES_FROM <= len(dataset) <= FEATURES_UP_TO
    store = graph_store(dataset, "0.3.0", progress) if wanted else None
    predictions = baseline_predictions(dataset, folds, store, progress, config)
    others = {} if published is None else published_scores(published, predictions["dummy"])
    summary = TaskSummary.of(dataset, config).model_dump(exclude_unset=True)
    return BaselineScores(**summary, baselines=baseline_scores(predictions), published=others)


def _write_folds(graph: ModelGraph, recipes: Sequence[FoldRecipe]) -> dict[int, str]:
    """Write what each fold predicts; returns the reasons of those that failed."""
    failed = {}
    for recipe in recipes:
        reason = next(filter(None, map(graph.failure_of, recipe.models)), "")
        if reason:
            failed[recipe.config.fold] = reason
        else:
            write_fold(graph, recipe)
    return failed


def _tell(graph: ModelGraph, spec: ModelSpec, summary: RunSummary) -> None:
    context, key = graph.context, graph.context.key(spec)
    label, part = graph.labels.get(key, ""), f" without part {spec.inner}" if spec.n_inner else ""
    before = " (trained before)" * (key in graph.found)
    name = f"fold {spec.config.fold} seed {spec.config.seed}{f' {label}' if label else ''}{part}{before}"
    if summary.failed:
        context.progress.message(f"{name} failed: {summary.reason}")
    elif not spec.soup_of:
        how = f" in epoch {(summary.best_epoch or 0) + 1}, {summary.structures_per_s:.0f} structures/s"
        tabular = spec.config.model.family == "tabular"
        context.progress.message(f"{name}: validation MAE {summary.best_val_mae:.4g}{'' if tabular else how}")


def _scored(context: TaskContext, plan: RunPlan, options: TrainOptions, failed: Mapping[int, str]) -> Scores:
    """Write scores.json, and the Matbench record where there can be one."""
    scores = _score(context, plan, options, failed)
    write_json(plan.out / SCORES, scores.content())
    scores = _with_record(scores, plan.out)
    write_json(plan.out / SCORES, scores.content())
    return scores


def _score(context: TaskContext, plan: RunPlan, options: TrainOptions, failed: Mapping[int, str]) -> Scores:
    """Write predictions.parquet and score every fold that is finished, asked for now or before."""
    dataset, config, out = context.dataset, plan.config, plan.out
    predictions = collect_predictions(dataset, range(N_FOLDS), out, context.progress)
    write_parquet(out / "predictions.parquet", predictions)
    content = TaskSummary.of(dataset, config).model_dump(exclude_unset=True)
    content |= {"fingerprint": config.fingerprint(context.digest(config)), "failed": dict(failed)}
    if not len(predictions):
        return Scores(**content)
    own = score_folds(predictions)
    content["folds"] = {
        fold: score.model_copy(update={"structures_per_s": _speed(out / f"fold_{fold}")})
        for fold, score in own.folds.items()
    }
    content |= {
        "marks": caveats(context, config, own.folds),
        "trained_also_on": trained_also_on(context, config, own.folds),
    }
    store = GraphStore(context.store(config.model.start))
    baselines = baseline_predictions(dataset, sorted(own.folds), store, context.progress, config)
    content["baselines"] = baseline_scores(baselines)
    content["held_out"] = _held_out(out, sorted(own.folds), baselines)
    if options.published is not None:
        content["published"] = published_scores(options.published, predictions)
    return Scores(**content, mean=own.mean, std=own.std)


def _held_out(out: Path, folds: Sequence[int], baselines: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Return errors on rows held out of training, of the run's own single models and of the features baseline."""
    found = {name: table.attrs[HELD_OUT] for name, table in baselines.items() if HELD_OUT in table.attrs}
    single = [done for fold in folds if (done := finished(out / f"fold_{fold}")) is not None]
    errors = [summary.best_val_mae for summary in single if summary.best_val_mae is not None]
    return found | ({"crystaltune": float(np.mean(errors))} if len(errors) == len(folds) else {})


def _speed(folder: Path) -> float:
    manifest = read_fold(folder)
    return 0.0 if manifest is None else manifest.structures_per_s


def _write_report(context: TaskContext, out: Path, scores: Scores) -> None:
    """Write report.html; whatever goes wrong with it, the scores are there."""
    from orchestrator.train.report import write_report
    from orchestrator.train.rows import write_rows

    if scores.mean is None:
        return
    try:
        write_rows(out, context.dataset, list(pd.read_parquet(out / "predictions.parquet", columns=["id"])["id"]))
        write_report(out)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        context.progress.message(f"report.html could not be written ({type(error).__name__}: {reason})")


def _with_record(scores: Scores, out: Path) -> Scores:
    """Write the Matbench record where there can be one, and say in the scores what became of it."""
    from orchestrator.record.submission import record_run, refusal_of

    refusal, record = refusal_of(scores), None
    if refusal is None:
        try:
            record = record_run(out)
        except CannotWrite:
            raise
        except (UserError, RuntimeError) as error:  # days of training must not end without their scores
            refusal = str(error)
    return scores.model_copy(
        update={
            "record": None if record is None else str(record.path.relative_to(out)),
            "record_validated_by": None if record is None else record.validated_by,
            "no_record_because": refusal,
        }
    )
