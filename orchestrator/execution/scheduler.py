"""Runs become jobs, wave after wave, over processes; what is finished is not done again."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.execution.job import FEATURES, Job, Wanted, complete, do, predictions_file
from orchestrator.execution.pool import WorkerKilled, run_jobs
from orchestrator.execution.resources import Resources
from orchestrator.inputs.context import Material
from orchestrator.inputs.recipe import ModelRun, Recipe, waves
from trainables.data.folds import Part
from trainables.levers import TtaConfig
from trainables.progress import Bar
from trainables.training.distill import Labels, SoftTargets


@dataclass(eq=False)
class Runs:
    """All models that some recipes need, where they lie, and what became of them.

    Attributes:
        folder_of: a run's folder.
        summaries: by key, what a run reported; "status" is finished or failed.
    """

    material: Material
    recipes: Sequence[Recipe]
    folder_of: Callable[[ModelRun], Path]
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def waves(self) -> list[list[ModelRun]]:
        found: list[list[ModelRun]] = []
        for run in (run for recipe in self.recipes for run in recipe.members):
            for level, wave in enumerate(waves([run], self.material.digest(run.config))):
                found += [[] for _ in range(level + 1 - len(found))]
                found[level] += wave
        return [list({self.material.key(run): run for run in wave}.values()) for wave in found]

    @cached_property
    def students(self) -> dict[str, list[ModelRun]]:
        """Who learns from a run, by key."""
        found: dict[str, list[ModelRun]] = defaultdict(list)
        members = [member for recipe in self.recipes for member in recipe.members]
        for student in (*members, *(other for member in members for other in member.soup_of)):
            for teacher in student.teachers:
                found[self.material.key(teacher)].append(student)
        return found

    def views_of(self) -> dict[str, list[TtaConfig]]:
        """How each run is to predict, by key."""
        wanted: dict[str, dict[str, TtaConfig]] = {}
        for recipe in self.recipes:
            for run in recipe.members:
                views = recipe.views
                wanted.setdefault(self.material.key(run), {})[views.model_dump_json()] = views
        for key in self.students:  # whoever teaches does so by its plain predictions, however else it predicts
            wanted.setdefault(key, {})[TtaConfig().model_dump_json()] = TtaConfig()
        return {key: list(views.values()) for key, views in wanted.items()}

    def failed(self, run: ModelRun) -> str:
        """Why a run failed, or nothing."""
        summary = self.summaries.get(self.material.key(run))
        if summary is None:
            return "it was not run"
        return str(summary["reason"]) if summary["status"] == "failed" else ""


def execute(
    runs: Runs,
    resources: Resources,
    *,
    bar: Bar | None = None,
    work: Mapping[str, float] | None = None,
    ended: Callable[[ModelRun, dict[str, Any]], None] = lambda run, summary: None,
) -> None:
    """Make every model that is needed; failures are kept as such and stop only what needs them.

    Args:
        bar: advances by `work`, by key, as runs end.
        ended: told of every run that ends, failed or not.
    """
    views = runs.views_of()
    for wave in runs.waves():
        jobs: list[tuple[str, Job]] = []
        by_name: dict[str, ModelRun] = {}
        for run in wave:
            key = runs.material.key(run)
            refused = _refused(runs, run)
            if refused:
                _note(runs, run, {"status": "failed", "reason": refused}, bar, work, ended)
                continue
            job = _job(runs, run, views.get(key, [TtaConfig()]), resources)
            before = complete(job)
            if before is not None:
                _note(runs, run, before, bar, work, ended)
                continue
            if job.soft is not None:
                gather_soft_targets(runs, run.teachers, job.soft, features=run.config.distil.features > 0)
            name = _display_name(run, key, by_name)
            by_name[name] = run
            jobs.append((name, job))
        for name, summary in _all_jobs(jobs, resources, runs.material):
            _note(runs, by_name[name], summary, bar, work, ended)


def _display_name(run: ModelRun, key: str, taken: Container[str]) -> str:
    """As short as it can be and still be the run's own."""
    short = run.name_with(key).removesuffix(f"-{key}")
    return next(name for name in (short, f"{short}-{key[:4]}", f"{short}-{key}") if name not in taken)


def _note(
    runs: Runs,
    run: ModelRun,
    summary: dict[str, Any],
    bar: Bar | None,
    work: Mapping[str, float] | None,
    ended: Callable[[ModelRun, dict[str, Any]], None],
) -> None:
    key = runs.material.key(run)
    runs.summaries[key] = summary
    if bar is not None:
        bar.advance((work or {}).get(key, 1.0))
    ended(run, summary)


def _refused(runs: Runs, run: ModelRun) -> str:
    for other in run.needs:
        reason = runs.failed(other)
        if reason:
            return f"a model that it needs failed: {reason}"
    return ""


def _all_jobs(
    jobs: list[tuple[str, Job]], resources: Resources, material: Material
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Results as they come.

    Where a worker process was killed the rest is begun anew; where that happens again before any run has ended, each
    is run in a process of its own, and a run whose process is killed has failed.
    """
    left, apart = dict(jobs), False
    while left:
        where = resources.plan(len(left))
        chosen, before = list(left.items())[: 1 if apart else None], len(left)
        try:
            for name, summary in run_jobs(do, chosen, where, material.progress, apart=apart):
                del left[name]
                yield name, summary
        except WorkerKilled as killed:
            if apart:
                name = chosen[0][0]
                del left[name]
                yield name, {"status": "failed", "reason": "its process was killed (out of memory, most likely)"}
            else:
                apart = len(left) == before
                material.progress.message(f"{killed}; going on with {len(left)} runs left")


def _job(runs: Runs, run: ModelRun, views: Sequence[TtaConfig], resources: Resources) -> Job:
    material, config, start = runs.material, run.config, run.config.model.start
    split, held = material.split(run)
    students = runs.students.get(material.key(run), [])
    test = material.test(config.fold)
    wanted = {"val": _wanted(split.val), "test": _wanted(test)}
    if held is not None:
        wanted = {"labelled": _wanted(held)}
    elif any(student.config.distil.teachers == "in_sample" for student in students):
        wanted["labelled"] = _wanted(Part.join(split.train, split.val))
    folder = runs.folder_of(run)
    return Job(
        config=config,
        task=material.dataset.task,
        split=split,
        wanted=wanted,
        views=tuple((each, material.store(start, each) if each.views > 1 else None) for each in views),
        store=material.store(start),
        folder=folder,
        skinned=material.store(start, config.augment) if config.augment.active else None,
        soft=folder / "soft_targets.npz" if run.teachers else None,
        auxiliary=material.auxiliary_rows(config),
        soup_of=tuple(runs.folder_of(other) for other in run.soup_of),
        features=any(student.config.distil.features > 0 for student in students),
        compiled=resources.compiled,
        tf32=resources.tf32,
    )


def _wanted(part: Part) -> Wanted:
    return Wanted(part.ids, part.rows)


def gather_soft_targets(runs: Runs, teachers: Sequence[ModelRun], path: Path, *, features: bool) -> None:
    """Put the labels of teachers that are there into a file of a student's."""
    labels = [_labels(runs, teacher, features) for teacher in teachers]
    path.parent.mkdir(parents=True, exist_ok=True)
    SoftTargets.from_teachers(labels).save(path)


def _labels(runs: Runs, teacher: ModelRun, with_features: bool) -> Labels:
    """What a teacher says of the rows it may label, and which rows it has seen."""
    split, _ = runs.material.split(teacher)
    folder = runs.folder_of(teacher)
    table = pd.read_parquet(predictions_file(folder, TtaConfig()))
    table = table[table["part"] == "labelled"]
    features = np.load(folder / FEATURES, allow_pickle=False) if with_features else None
    seen = frozenset(split.train.ids) | frozenset(split.val.ids)
    known = ~table["fallback"].to_numpy()  # a fallback's prediction is no teacher's
    if features is not None:
        features = features[known]
    ids = tuple(str(row) for row in table["id"][known])
    return Labels(ids, table["prediction"].to_numpy(float)[known], seen, features)
