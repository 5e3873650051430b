"""The main job: from a task's name to scores of its folds and, where it may be, a Matbench record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.evaluation.baselines import baseline_predictions, baseline_scores
from orchestrator.evaluation.published import published_scores
from orchestrator.evaluation.scores import BaselineScores, Scores, TaskSummary, score_folds
from orchestrator.execution.fold import collect_predictions, read_fold, write_fold
from orchestrator.execution.folders import only_process
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext, caveats, open_context, trained_also_on
from orchestrator.inputs.datasets import graph_store
from orchestrator.inputs.recipe import ModelSpec, fold_recipe
from orchestrator.inputs.source import Source
from orchestrator.train.folder import claim_folder, model_folder
from trainables.data.tasks import N_FOLDS
from trainables.errors import CannotWrite, UserError
from trainables.files import write_json, write_parquet
from trainables.graphs.store import GraphStore
from trainables.progress import Progress, silent

SCORES = "scores.json"


@dataclass(frozen=True)
class TrainOptions:
    """Which folds, where they are trained, and published predictions to score beside them."""

    folds: tuple[int, ...] = tuple(range(N_FOLDS))
    resources: Resources = field(default_factory=Resources)
    published: Path | None = None


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
    context = open_context(
        source, settings or {}, auxiliary, published=options.published, folds=options.folds, progress=progress
    )
    with only_process(out):
        claim_folder(out, context, source.keywords() | ({"auxiliary": list(auxiliary)} if auxiliary else {}))
        failed = _train_folds(context, options, out)
        scores = _score(context, options, out, failed)
        write_json(out / SCORES, scores.content())
        scores = _with_record(scores, out)
        write_json(out / SCORES, scores.content())
        _write_report(context, out, scores)
    if failed:
        reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(options.folds)} folds failed ({reasons}); the rest is kept in {out}")
    return scores


def baseline_run(
    source: Source, folds: Sequence[int], published: Path | None = None, progress: Progress = silent
) -> BaselineScores:
    """Score all baselines of a task, and published predictions beside them.

    Raises:
        UserError: as open_context.
    """
    context = open_context(source, {}, published=published, folds=folds, progress=progress)
    dataset, config = context.dataset, context.config
    store = graph_store(dataset, "0.3.0", progress) if dataset.task.is_energy else None
    predictions = baseline_predictions(dataset, folds, store, progress, config)
    others = {} if published is None else published_scores(published, predictions["dummy"])
    summary = TaskSummary.of(dataset, config).model_dump(exclude_unset=True)
    return BaselineScores(**summary, baselines=baseline_scores(predictions), published=others)


def _train_folds(context: TaskContext, options: TrainOptions, out: Path) -> dict[int, str]:
    """Make the models of all folds and write what each fold predicts; returns the reasons of those that failed."""
    config = context.config
    recipes = [fold_recipe(config.changed({"fold": fold})) for fold in options.folds]
    graph = ModelGraph(context, recipes, lambda spec: model_folder(out, config, spec, context.key(spec)))
    run_all(graph, options.resources, ended=lambda spec, summary: _tell(graph, spec, summary), log=out)
    failed = {}
    for recipe in recipes:
        reason = next(filter(None, map(graph.failure_of, recipe.members)), "")
        if reason:
            failed[recipe.config.fold] = reason
        else:
            write_fold(graph, recipe)
    return failed


def _tell(graph: ModelGraph, spec: ModelSpec, summary: RunSummary) -> None:
    progress, before = graph.context.progress, graph.context.key(spec) in graph.found
    part = f" without part {spec.inner}" if spec.n_inner else ""
    name = f"fold {spec.config.fold} seed {spec.config.seed}{part}{' (trained before)' * before}"
    if summary.failed:
        progress.message(f"{name} failed: {summary.reason}")
    elif not spec.soup_of:
        progress.message(
            f"{name}: validation MAE {summary.best_val_mae:.4g} in epoch {(summary.best_epoch or 0) + 1}, "
            f"{summary.structures_per_s:.0f} structures/s"
        )


def _score(context: TaskContext, options: TrainOptions, out: Path, failed: Mapping[int, str]) -> Scores:
    """Write predictions.parquet and score every fold that is finished, asked for now or before."""
    dataset, config = context.dataset, context.config
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
    if options.published is not None:
        content["published"] = published_scores(options.published, predictions)
    return Scores(**content, mean=own.mean, std=own.std)


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
