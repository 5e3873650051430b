"""Models become jobs, level after level, over processes; what is finished is not done again."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from orchestrator.evaluation.predictions import Predictions
from orchestrator.execution.job import FEATURES, Job, PredictionRequest, complete, predictions_file, run_job
from orchestrator.execution.pool import WorkerKilled, run_jobs
from orchestrator.execution.resources import Resources
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec, topological_levels
from trainables.data.folds import Part
from trainables.levers import TtaConfig
from trainables.progress import Bar
from trainables.training.distill import Labels, SoftTargets

Ended = Callable[[ModelSpec, RunSummary], None]


@dataclass(eq=False)
class ModelGraph:
    """All models that some recipes need, where they lie, and what became of them.

    Attributes:
        folder_of: a model's folder.
        summaries: by key, what a model's run reported.
    """

    context: TaskContext
    recipes: Sequence[FoldRecipe]
    folder_of: Callable[[ModelSpec], Path]
    summaries: dict[str, RunSummary] = field(default_factory=dict)

    def levels(self) -> list[list[ModelSpec]]:
        """Return every model once, in levels: a level needs nothing but the levels before it."""
        levels: list[list[ModelSpec]] = []
        for member in (member for recipe in self.recipes for member in recipe.members):
            for depth, specs in enumerate(topological_levels([member], self.context.digest(member.config))):
                levels += [[] for _ in range(depth + 1 - len(levels))]
                levels[depth] += specs
        return [list({self.context.key(spec): spec for spec in specs}.values()) for specs in levels]

    @cached_property
    def students(self) -> dict[str, list[ModelSpec]]:
        """Return who learns from a model, by its key."""
        students: dict[str, list[ModelSpec]] = defaultdict(list)
        members = [member for recipe in self.recipes for member in recipe.members]
        for student in (*members, *(other for member in members for other in member.soup_of)):
            for teacher in student.teachers:
                students[self.context.key(teacher)].append(student)
        return students

    def views_of(self) -> dict[str, list[TtaConfig]]:
        """Return how each model is to predict, by its key."""
        wanted: dict[str, dict[str, TtaConfig]] = {}
        for recipe in self.recipes:
            for member in recipe.members:
                wanted.setdefault(self.context.key(member), {})[recipe.views.model_dump_json()] = recipe.views
        for key in self.students:  # whoever teaches does so by its plain predictions, however else it predicts
            wanted.setdefault(key, {})[TtaConfig().model_dump_json()] = TtaConfig()
        return {key: list(views.values()) for key, views in wanted.items()}

    def summary_of(self, spec: ModelSpec) -> RunSummary:
        """Return what a model's run reported; a failure where it was not run."""
        return self.summaries.get(self.context.key(spec), RunSummary.failure("it was not run"))

    def failure_of(self, spec: ModelSpec) -> str:
        """Return why a model failed, or an empty string."""
        summary = self.summary_of(spec)
        return summary.reason if summary.failed else ""


@dataclass(eq=False)
class _Watch:
    """Who is told of models that end.

    Attributes:
        bar: advances by `work`, by key; by 1 where that says nothing.
        ended: called with every model that ends, failed or not.
    """

    graph: ModelGraph
    bar: Bar | None
    work: Mapping[str, float]
    ended: Ended

    def note(self, spec: ModelSpec, summary: RunSummary) -> None:
        key = self.graph.context.key(spec)
        self.graph.summaries[key] = summary
        if self.bar is not None:
            self.bar.advance(self.work.get(key, 1.0))
        self.ended(spec, summary)


def run_all(
    graph: ModelGraph,
    resources: Resources,
    *,
    bar: Bar | None = None,
    work: Mapping[str, float] | None = None,
    ended: Ended = lambda spec, summary: None,
) -> None:
    """Make every model that is needed; failures are kept as such and stop only what needs them.

    Args:
        bar: advances by `work`, by key, as models end.
        ended: called with every model that ends, failed or not.
    """
    watch, views = _Watch(graph, bar, work or {}, ended), graph.views_of()
    for level in graph.levels():
        _run_level(level, views, resources, watch)


def _run_level(
    level: Sequence[ModelSpec], views: Mapping[str, list[TtaConfig]], resources: Resources, watch: _Watch
) -> None:
    graph = watch.graph
    jobs: dict[str, Job] = {}
    by_name: dict[str, ModelSpec] = {}
    for spec in level:
        key = graph.context.key(spec)
        if reason := next(filter(None, map(graph.failure_of, spec.needs)), ""):
            watch.note(spec, RunSummary.failure(f"a model that it needs failed: {reason}"))
            continue
        job = _job(graph, spec, views.get(key, [TtaConfig()]), resources)
        if before := complete(job):
            watch.note(spec, before)
            continue
        if job.soft is not None:
            gather_soft_targets(graph, spec.teachers, job.soft, features=spec.config.distil.features > 0)
        name = _display_name(spec, key, by_name)
        by_name[name], jobs[name] = spec, job
    for name, summary in run_despite_kills(jobs, resources, graph.context):
        watch.note(by_name[name], summary)


def _display_name(spec: ModelSpec, key: str, taken: Container[str]) -> str:
    """Return a name that is as short as it can be and still the model's own."""
    short = spec.name_with(key).removesuffix(f"-{key}")
    return next(name for name in (short, f"{short}-{key[:4]}", f"{short}-{key}") if name not in taken)


def run_despite_kills(
    jobs: Mapping[str, Job], resources: Resources, context: TaskContext
) -> Iterable[tuple[str, RunSummary]]:
    """Yield results as they come.

    Where a worker process was killed the rest is started anew; where that happens again before any job has ended, each
    is run in a process of its own, and a job whose process is killed has failed.
    """
    left, isolate = dict(jobs), False
    while left:
        where = resources.plan(len(left))
        chosen, before = list(left.items())[: 1 if isolate else None], len(left)
        try:
            for name, summary in run_jobs(run_job, chosen, where, context.progress, isolate=isolate):
                del left[name]
                yield name, summary
        except WorkerKilled as killed:
            if isolate:
                name = chosen[0][0]
                del left[name]
                yield name, RunSummary.failure("its process was killed (out of memory, most likely)")
            else:
                isolate = len(left) == before
                context.progress.message(f"{killed}; continuing with the remaining {len(left)}")


def _job(graph: ModelGraph, spec: ModelSpec, views: Sequence[TtaConfig], resources: Resources) -> Job:
    context, config, start = graph.context, spec.config, spec.config.model.start
    split, held_out = context.split(spec)
    students = graph.students.get(context.key(spec), [])
    requests = {"val": _request(split.val), "test": _request(context.test(config.fold))}
    if held_out is not None:
        requests = {"labelled": _request(held_out)}
    elif any(student.config.distil.teachers == "in_sample" for student in students):
        requests["labelled"] = _request(Part.join(split.train, split.val))
    folder = graph.folder_of(spec)
    return Job(
        config=config,
        task=context.task,
        split=split,
        requests=requests,
        views=tuple((way, context.store(start, way) if way.views > 1 else None) for way in views),
        store=context.store(start),
        folder=folder,
        skinned=context.store(start, config.augment) if config.augment.active else None,
        soft=folder / "soft_targets.npz" if spec.teachers else None,
        auxiliary=context.auxiliary_rows(config),
        soup_of=tuple(graph.folder_of(other) for other in spec.soup_of),
        features=any(student.config.distil.features > 0 for student in students),
        compiled=resources.compiled,
        tf32=resources.tf32,
    )


def _request(part: Part) -> PredictionRequest:
    return PredictionRequest(part.ids, part.rows)


def gather_soft_targets(graph: ModelGraph, teachers: Sequence[ModelSpec], path: Path, *, features: bool) -> None:
    """Write the labels of finished teachers into a file of a student's."""
    labels = [_labels(graph, teacher, features) for teacher in teachers]
    path.parent.mkdir(parents=True, exist_ok=True)
    SoftTargets.from_teachers(labels).save(path)


def _labels(graph: ModelGraph, teacher: ModelSpec, with_features: bool) -> Labels:
    """Return what a teacher says of the rows it may label, and which rows it has seen."""
    split, _ = graph.context.split(teacher)
    folder = graph.folder_of(teacher)
    labelled = Predictions.read(predictions_file(folder, TtaConfig())).of("labelled")
    features = np.load(folder / FEATURES, allow_pickle=False) if with_features else None
    seen = frozenset(split.train.ids) | frozenset(split.val.ids)
    known = ~labelled.fallback  # a fallback's prediction is no teacher's
    if features is not None:
        features = features[known]
    ids = tuple(str(row_id) for row_id in labelled.ids[known])
    return Labels(ids, labelled.prediction[known], seen, features)
