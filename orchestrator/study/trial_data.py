"""What a search needs before its first trial: rows without test, graphs, teachers, a model to predict with."""

import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial

from orchestrator.execution.job import Job, run_job
from orchestrator.execution.pool import Listed, run_jobs
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import ModelGraph, gather_soft_targets, run_all
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext, open_context
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec, teachers_of
from orchestrator.inputs.source import Source
from search_spaces.dimension import Draws
from search_spaces.reading import load_space
from search_spaces.space import Space
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.levers import Start
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import SKIN_STEP, skin_for
from trainables.training.trial import TrialData

_DRAWS = 300  # configurations of a space that are looked at for the graphs they want
_BYTES_PER_WEIGHT = 4 * 5  # the model, its average, the best of it, and AdamW's two moments
_N_WEIGHTS = 420_000
_KEPT_CHECKPOINTS = 3  # of a running trial: two, and one being written
_SPARE_BYTES = 200_000_000  # Ray's own files, TensorBoard's, the reports


def trial_data(
    context: TaskContext,
    space: Space,
    base: RunConfig,
    folder: Path,
    *,
    validations_per_epoch: int,
    resources: Resources,
) -> TrialData:
    """Return everything that trials share, made where it is not there yet.

    Args:
        base: space.base() of the configuration that is searched around; its fold and split are the study's.
        folder: teachers and models to predict with are kept under it.

    Raises:
        UserError: teachers or models that failed, or levers that a search does not have.
    """
    _validate_levers(space, base)
    folder = folder.resolve()  # trials run elsewhere
    split, _ = context.split(ModelSpec(base.member(0)))
    stores = {key: _store(context, *key) for key in sorted(stores_wanted(space, base))}
    distils = base.distil.weight > 0 or any("distil.weight" in dimension.sets for dimension in space.dimensions)
    auxiliary = context.auxiliary_rows(base)
    data = TrialData(
        base=base,
        task=context.dataset.task,
        split=split,
        stores=stores,
        auxiliary=tuple((rows.task, rows.part, rows.store) for rows in auxiliary),
        soft=_teachers(context, space, base, folder / "teachers", resources) if distils else None,
        validations_per_epoch=validations_per_epoch,
        on_gpu=resources.device != "cpu",
        compiled=resources.compiled,
        tf32=resources.tf32,
    )
    return with_models(data, (base.seed,), folder, context, resources) if space.runs == "prediction" else data


def stores_wanted(space: Space, base: RunConfig) -> set[tuple[Start, float]]:
    """Return starting weights and skins of all graphs that the space's configurations ask for.

    A trial gets graphs of exactly the skin that it asks for: with a wider one the sums run in another order, and
    training again would not end with the same digits.
    """
    wanted: dict[Start, set[float]] = {}
    for config in _some(space, base):
        start = config.model.start
        wanted.setdefault(start, set()).add(skin_for(config, cutoffs_of(start)))
    found: set[tuple[Start, float]] = set()
    for start, skins in wanted.items():
        last = round(max(skins) / SKIN_STEP)
        found |= {(start, 0.0)} | {(start, round(number * SKIN_STEP, 6)) for number in range(1, last + 1)}
    return found


def _some(space: Space, base: RunConfig) -> Iterator[RunConfig]:
    """Yield the starting points, and random configurations."""
    for _, params in space.points_for(base):
        yield base.changed(space.suggest(FixedTrial(params)))
    draws = Draws(random.Random(0))
    for _ in range(_DRAWS):
        yield base.changed(space.suggest(draws))


def _store(context: TaskContext, start: Start, skin: float) -> Path:
    return context.store(start) if skin == 0 else context.store_with_skin(start, skin)


def _validate_levers(space: Space, base: RunConfig) -> None:
    varied = {key for dimension in space.dimensions for key in dimension.sets}
    if base.model.family == "tabular" and "model.family" not in varied:
        raise UserError(
            "model.family=tabular chooses its own strengths and has nothing that a search could vary: train it as it is"
        )
    if base.multitask.keep_overlap:
        raise UserError("multitask.keep_overlap=true would show test crystals to a search: leave it false")
    if base.distil.features > 0 or "distil.features" in varied:
        raise UserError("distil.features > 0: trials share their teachers' labels, not their features; set it to 0")
    if space.runs == "prediction" and base.distil.weight > 0:
        raise UserError(f"space {space.name} predicts with a model of its own: set distil.weight=0")
    if base.ensemble.size > 1:
        raise UserError(
            "a trial is one model: set ensemble.members=1, leave out ensemble.vary, and train the ensemble with the "
            "best.yaml"
        )


def _teachers(context: TaskContext, space: Space, base: RunConfig, folder: Path, resources: Resources) -> Path:
    """Return the file of out-of-fold labels; teachers that are there are not trained again."""
    if base.distil.teachers == "in_sample":
        raise UserError("a search distils from out-of-fold teachers only: set distil.teachers=out_of_fold")
    student = base.member(0)
    teachers = teachers_of(student)
    if any(config.distil.weight > 0 and teachers_of(config.member(0)) != teachers for config in _some(space, base)):
        raise UserError(
            f"space {space.name} changes the teachers from trial to trial: search distil.* and model.width together "
            "with nothing that a teacher is trained by"
        )
    graph = ModelGraph(
        context, [FoldRecipe(student, teachers)], lambda spec: folder / spec.name_with(context.key(spec))
    )
    context.progress.message(
        f"the space uses distillation: training {len(teachers)} teachers first, which all trials share"
    )
    run_all(graph, resources, log=folder)
    failed = [reason for teacher in teachers if (reason := graph.failure_of(teacher))]
    if failed:
        raise UserError(f"{len(failed)} of {len(teachers)} teachers failed ({failed[0]})")
    path = folder / "soft_targets.npz"
    gather_soft_targets(graph, teachers, path, features=False)
    return path


def with_models(
    data: TrialData, seeds: Iterable[int], folder: Path, context: TaskContext, resources: Resources
) -> TrialData:
    """Return the data with a trained model for each of these seeds, for trials that only predict."""
    configs = {seed: data.base.member(0).changed({"seed": seed, "data.refit": False}) for seed in seeds}
    jobs = [(f"model-seed{seed}", _model_job(config, data, folder, context)) for seed, config in configs.items()]
    for name, summary in _made(Listed(jobs), len(jobs), resources, folder, context.progress):
        if summary.failed:
            raise UserError(f"{name}, which trials predict with, failed: {summary.reason}")
    return replace(data, models={**data.models, **{seed: _model_folder(folder, seed) / "model" for seed in configs}})


def _made(
    jobs: Listed[Job], count: int, resources: Resources, folder: Path, progress: Progress
) -> Iterator[tuple[str, RunSummary]]:
    if resources.cluster is None:
        return run_jobs(run_job, jobs, resources.plan(count), progress)
    from orchestrator.execution.on_cluster import run_on_cluster

    return run_on_cluster(jobs, resources, folder, progress)


def _model_folder(folder: Path, seed: int) -> Path:
    return folder.resolve() / "models" / f"seed_{seed}"


def _model_job(config: RunConfig, data: TrialData, folder: Path, context: TaskContext) -> Job:
    """Training alone: nothing is predicted, so no row of the test part has a place in it."""
    return Job(
        config=config,
        task=data.task,
        split=data.split,
        requests={},
        views=(),
        store=data.stores[config.model.start, 0.0],
        folder=_model_folder(folder, config.seed),
        skinned=data.stores.get((config.model.start, skin_for(config, cutoffs_of(config.model.start)))),
        auxiliary=context.auxiliary_rows(config),
        compiled=data.compiled,
        tf32=data.tf32,
    )


def require_disk_space(folder: Path, at_once: int) -> None:
    """Raise a UserError where the study's files would not fit."""
    wanted = (at_once * _KEPT_CHECKPOINTS + 2) * _N_WEIGHTS * _BYTES_PER_WEIGHT + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(
            f"`out={folder}`: {free / 1e6:,.0f} MB are free, but {at_once} concurrent trials need "
            f"{wanted / 1e6:,.0f} MB: free some space or use another folder"
        )


def prepare_trials(
    source: Source,
    space: str | Space,
    folder: Path,
    *,
    fold: int = 0,
    settings: Mapping[str, Any] | None = None,
    validations_per_epoch: int = 1,
    progress: Progress = silent,
) -> TrialData:
    """Return what trials of a space share, for a notebook that runs Ray Tune by itself.

    `tune.Tuner(tune.with_parameters(FineTune, data=prepare_trials(...)), param_space=...)` then searches whatever the
    space holds, with whatever searcher and scheduler. A study by `search` also resumes, confirms and reports.

    Args:
        folder: for teachers and models that trials share.

    Raises:
        UserError: as load_dataset and Space.check.
    """
    space = load_space(space) if isinstance(space, str) else space
    context = open_context(source, settings or {}, progress=progress)
    config = context.config.changed({"fold": fold})
    space.check(config, context.task, space.name)
    space = space.for_task(context.task, config.multitask.tasks)
    return trial_data(
        context, space, space.base(config), folder, validations_per_epoch=validations_per_epoch, resources=Resources()
    )
