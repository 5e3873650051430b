"""Models become jobs over processes, each as soon as it can; what is finished is not done again."""

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from orchestrator.evaluation.predictions import Predictions
from orchestrator.execution.dependencies import TaskQueue
from orchestrator.execution.estimate import structures_of
from orchestrator.execution.job import FEATURES, Job, PredictionRequest, complete, predictions_file, run_job
from orchestrator.execution.log import ExecutionLog, PlannedModel
from orchestrator.execution.pool import Source, WorkerKilled, run_jobs
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
        found: keys of the models that were finished before.
        labels: by key, what tells a model from others of its fold and seed, where there is anything to tell.
    """

    context: TaskContext
    recipes: Sequence[FoldRecipe]
    folder_of: Callable[[ModelSpec], Path]
    summaries: dict[str, RunSummary] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    labels: Mapping[str, str] = field(default_factory=dict)

    def levels(self) -> list[list[ModelSpec]]:
        """Return every model once, in levels: a level needs nothing but the levels before it."""
        levels: list[list[ModelSpec]] = []
        for member in (member for recipe in self.recipes for member in recipe.models):
            for depth, specs in enumerate(topological_levels([member], self.context.digest(member.config))):
                levels += [[] for _ in range(depth + 1 - len(levels))]
                levels[depth] += specs
        return [list({self.context.key(spec): spec for spec in specs}.values()) for specs in levels]

    def specs(self) -> dict[str, ModelSpec]:
        """Return every model once, by key; none comes before one that it needs."""
        return {self.context.key(spec): spec for level in self.levels() for spec in level}

    def width(self, keys: Container[str]) -> int:
        """Return how many of these models, at most, could be made at the same time (of one level)."""
        return max((sum(self.context.key(spec) in keys for spec in level) for level in self.levels()), default=0)

    @cached_property
    def students(self) -> dict[str, list[ModelSpec]]:
        """Return who learns from a model, by its key."""
        students: dict[str, list[ModelSpec]] = defaultdict(list)
        members = [member for recipe in self.recipes for member in recipe.models]
        for student in (*members, *(other for member in members for other in member.soup_of)):
            for teacher in student.teachers:
                students[self.context.key(teacher)].append(student)
        return students

    def views_of(self) -> dict[str, list[TtaConfig]]:
        """Return how each model is to predict, by its key."""
        wanted: dict[str, dict[str, TtaConfig]] = {}
        for recipe in self.recipes:
            for member in recipe.models:
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


def run_all(
    graph: ModelGraph,
    resources: Resources,
    *,
    bar: Bar | None = None,
    work: Mapping[str, float] | None = None,
    ended: Ended = lambda spec, summary: None,
    log: Path | None = None,
) -> None:
    """Make every model that is needed, each as soon as those that it needs are there, the longest path first.

    Failures are kept as such and stop only what needs them; but where one's files could not be written, nothing more is
    begun.

    Args:
        bar: advances by `work`, by key, as models end.
        ended: called with every model that ends, failed or not.
        log: folder in which the session is logged, for `status`; the models lie in it or below, so that on a cluster
            all nodes have to share it.
    """
    _Execution(graph, resources, bar, work or {}, ended, log).run()


class _Execution:
    """The models of a graph on their way: those that wait, run and are done.

    It is the source of jobs of `run_jobs`.
    """

    def __init__(
        self,
        graph: ModelGraph,
        resources: Resources,
        bar: Bar | None,
        work: Mapping[str, float],
        ended: Ended,
        folder: Path | None,
    ) -> None:
        self._graph, self._resources, self._bar, self._work, self._ended = graph, resources, bar, work, ended
        self._folder, self._log = folder, None if folder is None else ExecutionLog(folder)
        self._views = graph.views_of()
        self._specs = graph.specs()
        self._names = _display_names(self._specs, graph.labels)
        self._running: dict[str, str] = {}  # by shown name, key
        self._given_up = ""  # why nothing more is begun
        self._queue = self._unfinished()

    def _unfinished(self) -> TaskQueue:
        """Note what is finished already, and queue the rest."""
        done = {}
        for key in self._specs:
            if (before := complete(self._job(key))) is not None:
                done[key] = before
        context, left = self._graph.context, [key for key in self._specs if key not in done]
        needs = {key: [context.key(other) for other in self._specs[key].needs] for key in left}
        structures = {key: structures_of(context, self._specs[key]) for key in left}
        queue = TaskQueue({key: [other for other in needs[key] if other not in done] for key in left}, structures)
        self._log_session(structures)
        for key, summary in done.items():
            self._note(key, summary, before=True)
        return queue

    def _log_session(self, structures: Mapping[str, float]) -> None:
        if self._log is None:
            return
        key_of, cluster = self._graph.context.key, self._resources.cluster
        models = [
            PlannedModel(key, self._names[key], tuple(map(key_of, spec.needs)), structures.get(key, 0.0))
            for key, spec in self._specs.items()
        ]
        if cluster is not None:
            self._log.session(models, 0, (), on_ray=True)
        else:
            where = self._resources.plan(self._graph.width(structures))
            self._log.session(models, where.processes, where.devices)

    def _job(self, key: str) -> Job:
        return _job(self._graph, self._specs[key], self._views.get(key, [TtaConfig()]), self._resources)

    def run(self) -> None:
        """Run until nothing is left.

        Where a worker process was killed the rest is started anew, and no longer in this process; where that happens
        again before any job has ended, each is run in a process of its own, and one whose process is killed has failed.
        """
        try:
            if self._resources.cluster is not None:
                self._run_on_cluster()
            else:
                self._run_all()
        finally:
            if self._log is not None:
                self._log.closed()

    def _run_on_cluster(self) -> None:
        if not len(self._queue):  # starting Ray takes seconds
            return
        from orchestrator.execution.on_cluster import run_on_cluster

        progress = self._graph.context.progress
        for name, summary in run_on_cluster(
            self, self._resources, self._folder, progress, begun=self._begun, workers_changed=self._workers
        ):
            self._end(name, summary)

    def _workers(self, count: int, gpus: bool) -> None:
        if self._log is not None:
            self._log.workers(count, gpus=gpus)

    def put_back(self, name: str, reason: str) -> None:
        """Offer a model again whose worker was lost."""
        key = self._running.pop(name)
        self._queue.put_back(key)
        if self._log is not None:
            self._log.put_back(key, reason)

    def _run_all(self) -> None:
        isolate = one_by_one = False
        while len(self._queue):
            before = len(self._queue)
            try:
                self._run_some(isolate, one_by_one)
            except WorkerKilled as killed:
                if one_by_one:
                    (name,) = self._running
                    self._end(name, RunSummary.failure("its process was killed (out of memory, most likely)"))
                    continue
                for name in list(self._running):
                    self._queue.put_back(self._running.pop(name))
                isolate, one_by_one = True, len(self._queue) == before
                self._graph.context.progress.message(f"{killed}; continuing with the remaining {len(self._queue)}")

    def _run_some(self, isolate: bool, one_by_one: bool) -> None:
        where = self._resources.plan(1 if one_by_one else self._graph.width(self._queue.left))
        source: Source[Job] = _OneOf(self) if one_by_one else self
        progress = self._graph.context.progress
        for name, summary in run_jobs(run_job, source, where, progress, isolate=isolate, begun=self._begun):
            self._end(name, summary)

    def _begun(self, name: str, device: str) -> None:
        if self._log is not None:
            self._log.begin(self._running[name], device)

    @property
    def n_ready(self) -> int:
        """Return how many models could begin now."""
        return self._queue.n_ready

    def take(self) -> tuple[str, Job] | None:
        """Return the next model to make, or None where none can begin before another is made."""
        key = self._queue.take()
        if key is None:
            return None
        spec, job = self._specs[key], self._job(key)
        if job.soft is not None:
            gather_soft_targets(self._graph, spec.teachers, job.soft, features=spec.config.distil.features > 0)
        self._running[self._names[key]] = key
        return self._names[key], job if self._resources.cluster is None else job.with_absolute_paths()

    def _end(self, name: str, summary: RunSummary) -> None:
        key = self._running.pop(name)
        self._note(key, summary)
        if summary.failed:
            self._drop(key, f"a model that it needs failed: {summary.reason}")
        else:
            self._queue.done(key)
        if summary.cannot_write:
            self._given_up = f"not begun, as another's files could not be written: {summary.reason}"
        while self._given_up and (ready := self._queue.take()) is not None:
            self._note(ready, RunSummary.failure(self._given_up))
            self._drop(ready, self._given_up)

    def _drop(self, key: str, reason: str) -> None:
        """Let all fail that need a model."""
        for other in self._queue.drop(key):
            self._note(other, RunSummary.failure(reason))

    def _note(self, key: str, summary: RunSummary, *, before: bool = False) -> None:
        self._graph.summaries[key] = summary
        if before:
            self._graph.found.add(key)
        if self._log is not None:
            self._log.end(key, summary, before=before)
        if self._bar is not None:
            self._bar.advance(self._work.get(key, 1.0))
        self._ended(self._specs[key], summary)


@dataclass
class _OneOf:
    """A source with the next job of another alone."""

    execution: "_Execution"
    taken: bool = False
    n_ready: int = 0

    def take(self) -> tuple[str, Job] | None:
        """Return the job, once."""
        if self.taken:
            return None
        self.taken = True
        return self.execution.take()


def _display_names(specs: Mapping[str, ModelSpec], labels: Mapping[str, str]) -> dict[str, str]:
    """Return a name for each model, by key, that is as short as it can be and still the model's own."""
    taken: dict[str, str] = {}
    for key, spec in specs.items():
        short = " ".join([spec.name_with(key).removesuffix(f"-{key}"), *filter(None, [labels.get(key)])])
        taken[next(name for name in (short, f"{short}-{key[:4]}", f"{short}-{key}") if name not in taken)] = key
    return {key: name for name, key in taken.items()}


def _job(graph: ModelGraph, spec: ModelSpec, views: Sequence[TtaConfig], resources: Resources) -> Job:
    context, config, start = graph.context, spec.config, spec.config.model.start
    split, held_out = context.split(spec)
    students = graph.students.get(context.key(spec), [])
    requests = {"val": _request(split.val), "test": _request(context.test(config.fold))}
    if not len(requests["test"].rows):  # a model of all rows
        del requests["test"]
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
