"""An ablation: plan the ladder, run it, and say what each lever did."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.ablation.analysis import Analysis, Outcome, analyse
from orchestrator.ablation.ladder import Rung, build_ladder
from orchestrator.ablation.plan import Planned, PlannedExperiment
from orchestrator.ablation.report import write_reports
from orchestrator.evaluation.ensemble import error_curve
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.published import published_scores
from orchestrator.evaluation.scores import TaskSummary, errors
from orchestrator.execution.combine import combined
from orchestrator.execution.estimate import estimate_of, seconds_of, structures_of, structures_per_second
from orchestrator.execution.folders import only_process
from orchestrator.execution.job import finished
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext, caveats, open_context, task_config
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec
from orchestrator.inputs.source import Source, auxiliary_sources
from orchestrator.provenance import device_name, versions
from trainables.config import validate_for_task
from trainables.crystals import chemical_system
from trainables.data.folds import N_FOLDS
from trainables.data.tasks import custom_task
from trainables.errors import UserError
from trainables.files import read_json, write_json, write_parquet
from trainables.progress import Progress, silent

RECORD = "record.json"


@dataclass(frozen=True)
class AblationOptions:
    """Which experiments, how often, and where.

    Attributes:
        starts: the weights that all experiments start from; further ones give twins.
        equal_steps: joint training is taken from the target's own epochs.
        command: what repeats this, for the report.
        plan_only: stop once the plan is shown.
        gpus: the plan says what it would take on so many.
        speed: structures a second of one model, for the plan; by default it is measured here.
    """

    experiments: tuple[str, ...]
    folds: tuple[int, ...] = tuple(range(N_FOLDS))
    seeds: int = 3
    starts: tuple[str, ...] = ()
    equal_steps: bool = False
    published: Path | None = None
    resources: Resources = field(default_factory=Resources)
    command: str = ""
    plan_only: bool = False
    gpus: int | None = None
    speed: float | None = None


def ablate(
    source: Source,
    out: Path,
    options: AblationOptions,
    *,
    settings: Mapping[str, Any] | None = None,
    auxiliary: Sequence[str] = (),
    progress: Progress = silent,
    show_plan: Callable[[Planned], None] = lambda planned: None,
) -> Analysis | None:
    """Run every experiment on every fold, resuming what `out` holds, and write ablation.json, .md, .html and .parquet.

    Args:
        settings: keys of RunConfig that hold for all experiments.
        auxiliary: tasks for joint training, as NAME or NAME=FILE.

    Raises:
        UserError: a mistake in what was asked, or no experiment that finished (what is done is kept).
    """
    options.resources.check(progress)
    _check_before_reading(source, options, settings or {}, auxiliary)
    context = open_context(
        source, settings or {}, auxiliary, published=options.published, folds=options.folds, progress=progress
    )
    base = task_config(context.dataset, settings or {}, began=_began(out))  # joint training is an experiment's own
    rungs = build_ladder(
        options.experiments,
        context.task,
        base.model_dump(mode="json"),
        folds=options.folds,
        seeds=options.seeds,
        starts=options.starts,
        auxiliary=tuple(auxiliary_sources(auxiliary)),
        equal_steps=options.equal_steps,
    )
    for rung in rungs:
        validate_for_task(rung.config, context.task)
    with nullcontext() if options.plan_only else only_process(out):  # a plan leaves nothing behind
        recipes = [recipe for rung in rungs for recipe in rung.recipes.values()]
        runs = ModelGraph(context, recipes, _folders(out, context))
        planned = plan_ablation(rungs, runs, options)
        show_plan(planned)
        if options.plan_only:
            return None
        _run(runs, out, options, progress)
        outcomes = [_outcome(rung, runs, options) for rung in rungs]
        analysis = _analysed(outcomes, context, options, progress)
        about = _about(context, rungs[0], options)
        write_reports(out, analysis, about)
        _write_predictions(out, outcomes)
    if all(outcome.failed for outcome in outcomes):
        raise UserError(f"every experiment failed, the first with: {outcomes[0].failed}")
    return analysis


def _began(out: Path) -> Mapping[str, Any] | None:
    """Return the configuration that the experiments in a folder start from; None where none is told."""
    try:
        base = read_json(out / "ablation.json")["about"]["base"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, Mapping) else None


def _check_before_reading(
    source: Source, options: AblationOptions, settings: Mapping[str, Any], auxiliary: Sequence[str]
) -> None:
    """Let mistakes in names and settings be told before minutes of reading; what the task allows is checked later."""
    anything = custom_task(source.task, "", "", "energy_per_atom" if source.energy else "property")
    build_ladder(
        options.experiments,
        anything,
        settings,
        folds=(0,),
        seeds=1,
        starts=options.starts,
        auxiliary=tuple(text.partition("=")[0] for text in auxiliary),
        equal_steps=options.equal_steps,
    )


def _folders(out: Path, context: TaskContext) -> Callable[[ModelSpec], Path]:
    return lambda run: out / "runs" / run.name(context.digest(run.config))


def plan_ablation(rungs: Sequence[Rung], runs: ModelGraph, options: AblationOptions) -> Planned:
    """Which models each experiment needs, which of them another one has made by then, and how long all will take."""
    context, experiments = runs.context, []
    known: dict[str, set[str]] = {}
    for rung in rungs:
        needed = _keys(runs, rung.recipes.values())
        new = needed - set().union(*known.values())
        shared = tuple(name for name, keys in known.items() if keys & needed)
        experiments.append(PlannedExperiment(rung.name, rung.experiment.description, len(needed), len(new), shared))
        known[rung.name] = needed
    every = runs.specs()
    done = {key for key, spec in every.items() if finished(runs.folder_of(spec)) is not None}
    where = options.resources.plan(runs.width(every.keys() - done))
    if len(done) == len(every):
        return Planned(experiments, len(every), len(done), where.processes, 0.0)
    here = structures_per_second(context, next(iter(every.values())), where)
    fleet = None
    if options.gpus is not None:
        workers = options.gpus * options.resources.per_gpu
        fleet = estimate_of(context, every, workers, done, options.speed or here)
    seconds = seconds_of(context, every, where, done, here)
    source = "" if options.speed else f"measured here, on {device_name(where.devices[0])}"
    return Planned(experiments, len(every), len(done), where.processes, seconds, fleet, options.gpus or 0, source)


def _keys(runs: ModelGraph, recipes: Iterable[FoldRecipe]) -> set[str]:
    """Every run that some recipes need, by key."""
    return set(ModelGraph(runs.context, list(recipes), runs.folder_of).specs())


def _run(runs: ModelGraph, out: Path, options: AblationOptions, progress: Progress) -> None:
    work = {key: structures_of(runs.context, spec) for key, spec in runs.specs().items()}
    with progress.stage("all runs", sum(work.values()), "structures") as bar:
        run_all(
            runs,
            options.resources,
            bar=bar,
            work=work,
            ended=lambda run, summary: _record(runs, run, summary, progress),
            log=out,
        )


def _record(runs: ModelGraph, run: ModelSpec, summary: RunSummary, progress: Progress) -> None:
    """Keep what a run was and became; test scores are computed here, where the test targets are."""
    context, folder = runs.context, runs.folder_of(run)
    digest = context.digest(run.config)
    name = run.name(digest)
    if summary.failed:
        progress.message(f"{name} failed: {summary.reason}")
    content = {
        "name": name,
        "status": summary.status,
        "reason": summary.reason,
        "config": run.config.model_dump(mode="json"),
        "held_out_part": [run.inner, run.n_inner] if run.n_inner else None,
        "teachers": [runs.folder_of(teacher).name for teacher in run.teachers],
        "soup_of": [runs.folder_of(member).name for member in run.soup_of],
        "fingerprint": run.config.fingerprint(digest),
        "data": digest,
        **{name: getattr(summary, name) for name in ("device", "versions", "threads", "tf32", "compiled")},
        "seconds": None if summary.failed else summary.seconds,
        "structures": None if summary.failed else summary.structures,
        "val_mae": summary.best_val_mae,
        "test": None if summary.failed else _test_scores(runs, run),
    }
    if run.config.multitask.tasks:
        rows = context.auxiliary_rows(run.config)
        content["auxiliary"] = [
            {
                "task": each.task.name,
                "rows": len(each.part),
                "removed": each.n_removed,
                "kept_overlap": each.n_kept_overlap,
            }
            for each in rows
        ]
    write_json(folder / RECORD, content)


def _test_scores(runs: ModelGraph, run: ModelSpec) -> dict[str, dict[str, Any]]:
    """By file of predictions; a teacher predicts no test rows."""
    test = runs.context.test(run.config.fold)
    target = pd.Series(test.targets, index=list(test.ids))
    found = {}
    for file in sorted(runs.folder_of(run).glob("predicted*.parquet")):
        predicted = Predictions.read(file).of("test")
        if len(predicted.ids):
            found[file.stem] = errors(np.asarray(target.loc[predicted.ids]), predicted.prediction).model_dump()
    return found


def _outcome(rung: Rung, runs: ModelGraph, options: AblationOptions) -> Outcome:
    """Gather what the recipes of an experiment predicted; replicates of which a model failed are left out."""
    replicates = sorted({replicate for _, replicate in rung.recipes})
    why = {replicate: _failure(rung, runs, replicate) for replicate in replicates}
    good = [replicate for replicate in replicates if not why[replicate]]
    first = next((reason for reason in why.values() if reason), "")
    told = caveats(runs.context, rung.config, options.folds) if good else []
    if good and len(good) < len(replicates):
        told.append(f"{len(replicates) - len(good)} of {len(replicates)} seeds failed and are left out: {first}")
    tables, members = [], []
    for (fold, replicate), one in sorted(rung.recipes.items()):
        if replicate in good:
            found = combined(runs, one)
            tables.append(_with_targets(found.table, runs.context, fold, replicate))
            if replicate == good[0] and len(found.members) > 1:
                members.append((found.members, tables[-1]))
    cost = [_cost(rung, runs, replicate) for replicate in good]
    return Outcome(
        name=rung.name,
        description=rung.experiment.description,
        parent=rung.parent,
        control=rung.control,
        change=rung.change,
        predictions=pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS),
        structures=round(float(np.mean([each[0] for each in cost]))) if cost else 0,
        seconds=float(np.mean([each[1] for each in cost])) if cost else 0.0,
        device=_devices(rung, runs),
        views=rung.config.tta.views,
        n_members=len(next(iter(rung.recipes.values())).models),
        n_models=len(_keys(runs, [next(iter(rung.recipes.values()))])),
        tier=runs.context.dataset.task.tier(rung.config.uses_pretrained),
        caveats=tuple(told),
        failed="" if good else first,
        curve=_curve(members),
    )


def _devices(rung: Rung, runs: ModelGraph) -> str:
    """Where the models of an experiment were made."""
    summaries = (runs.summaries.get(key) for key in _keys(runs, rung.recipes.values()))
    names = sorted({summary.device for summary in summaries if summary is not None and summary.device})
    return names[0] if len(names) == 1 else f"mixed: {', '.join(names)}" if names else ""


_COLUMNS = ["id", "fold", "replicate", "target", "prediction", "std", "fallback"]


def _with_targets(table: pd.DataFrame, context: TaskContext, fold: int, replicate: int) -> pd.DataFrame:
    test = context.test(fold)
    target = pd.Series(test.targets, index=list(test.ids))
    found = table.assign(fold=fold, replicate=replicate, target=target.loc[table["id"]].to_numpy())
    return found[_COLUMNS]


def _failure(rung: Rung, runs: ModelGraph, replicate: int) -> str:
    """Return the first reason why a replicate has no predictions, or nothing."""
    for (fold, number), one in sorted(rung.recipes.items()):
        if number == replicate:
            for run in one.models:
                reason = runs.failure_of(run)
                if reason:
                    return f"fold {fold}: {reason}"
    return ""


def _cost(rung: Rung, runs: ModelGraph, replicate: int) -> tuple[int, float]:
    """Structures and seconds of all the models of a replicate, teachers included."""
    keys = _keys(runs, [one for (_, number), one in rung.recipes.items() if number == replicate])
    told = [runs.summaries[key] for key in keys]
    return sum(summary.structures for summary in told), sum(summary.seconds for summary in told)


def _curve(members: list[tuple[np.ndarray, pd.DataFrame]]) -> tuple[dict[str, Any], ...]:
    """Error against the number of members, over all folds of the first replicate."""
    if not members:
        return ()
    predictions = np.concatenate([each for each, _ in members], axis=1)
    table = pd.concat([each for _, each in members], ignore_index=True)
    return tuple(error_curve(predictions, table["target"].to_numpy(float), table["fold"].to_numpy(int)))


def _analysed(
    outcomes: Sequence[Outcome], context: TaskContext, options: AblationOptions, progress: Progress
) -> Analysis:
    dataset = context.dataset
    formulas = dataset.structures.reduced_formulas
    systems = {row_id: chemical_system(formula) for row_id, formula in zip(dataset.ids, formulas, strict=True)}
    known = next((outcome.predictions for outcome in outcomes if len(outcome.predictions)), None)
    published = None
    if options.published is not None and known is not None:
        rows = known[known["replicate"] == known["replicate"].min()]
        published = {name: scores.mean.mae for name, scores in published_scores(options.published, rows).items()}
    return analyse(
        outcomes,
        systems,
        published=published,
        unit=dataset.task.unit,
        progress=progress,
        comparable=dataset.task.is_matbench and not dataset.partial and len(options.folds) == N_FOLDS,
    )


def _about(context: TaskContext, rung: Rung, options: AblationOptions) -> dict[str, Any]:
    """Return what the report says of where its numbers come from."""
    return TaskSummary.of(context.dataset, rung.config).model_dump(exclude_unset=True) | {
        "command": options.command,
        "versions": versions(),
        "data": context.dataset.digest,
        "auxiliary": {name: dataset.digest for name, dataset in context.auxiliary.items()},
        "folds": list(options.folds),
        "seeds": options.seeds,
        "device": device_name(options.resources.plan(1).devices[0]),
        "base": rung.config.model_dump(mode="json"),
    }


def _write_predictions(out: Path, outcomes: Sequence[Outcome]) -> None:
    """Every test prediction of every experiment, for whoever wants to look closer."""
    tables = [outcome.predictions.assign(experiment=outcome.name) for outcome in outcomes if len(outcome.predictions)]
    if tables:
        write_parquet(out / "ablation_predictions.parquet", pd.concat(tables, ignore_index=True))
