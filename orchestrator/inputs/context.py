"""What all models of a command draw on: rows, settings, splits, graph stores, auxiliary rows without test crystals."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.evaluation.published import check_published, read_published
from orchestrator.inputs.datasets import graph_store, load_auxiliary, load_dataset
from orchestrator.inputs.recipe import ModelSpec
from orchestrator.inputs.source import Source
from search_spaces.presets import preset
from trainables.config import RunConfig, merged, parse_config, validate_for_task
from trainables.data.cache import cache_home
from trainables.data.dataset import Dataset
from trainables.data.folds import FoldSplit, Part, fold_of_rows, inner_split, make_split, validated_part
from trainables.data.overlap import Overlap, find_overlap
from trainables.data.tasks import Task, full_name
from trainables.errors import UserError
from trainables.levers import PerturbConfig, Start
from trainables.mappings import differences, flattened
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import skin_of


@dataclass(frozen=True, eq=False)
class AuxiliaryRows:
    """An auxiliary task's rows for one fold, and how many were left out because they are test crystals."""

    task: Task
    part: Part
    store: Path
    n_removed: int
    n_kept_overlap: int


@dataclass(eq=False)
class TaskContext:
    """The rows of a task and of the auxiliary ones, with everything made from them, each made once.

    Attributes:
        config: the task's preset with the user's settings over it.
        auxiliary: datasets of the tasks for joint training, by their whole names.
    """

    dataset: Dataset
    config: RunConfig
    auxiliary: Mapping[str, Dataset] = field(default_factory=dict)
    progress: Progress = silent
    _stores: dict[tuple[str, str, float], Path] = field(default_factory=dict)
    _splits: dict[tuple[object, ...], tuple[FoldSplit, Part | None]] = field(default_factory=dict)
    _auxiliary_rows: dict[tuple[object, ...], AuxiliaryRows] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """Return the task whose rows these are."""
        return self.dataset.task

    def digest(self, config: RunConfig) -> str:
        """Return the hash of all rows that a configuration learns from."""
        if not config.multitask.tasks:
            return self.dataset.digest
        parts = [self.dataset.digest, *(self.auxiliary[name].digest for name in config.multitask.tasks)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def key(self, run: ModelSpec) -> str:
        """Return what identifies a model: a hash of all that decides its result."""
        return run.key(self.digest(run.config))

    def store(self, start: Start, views: PerturbConfig | None = None, dataset: Dataset | None = None) -> Path:
        """Return the folder of the graphs for these weights, with the skin that `views` want."""
        skin = 0.0 if views is None else skin_of(views, cutoffs_of(start))
        return self.store_with_skin(start, skin, dataset)

    def store_with_skin(self, start: Start, skin: float, dataset: Dataset | None = None) -> Path:
        """Return the folder of the graphs for these weights with cutoffs wider by `skin` (A)."""
        dataset = dataset or self.dataset
        key = (dataset.digest, start, skin)
        if key not in self._stores:
            self._stores[key] = graph_store(dataset, start, self.progress, skin=skin).folder
        return self._stores[key]

    def split(self, run: ModelSpec) -> tuple[FoldSplit, Part | None]:
        """Return the rows a model learns from (no test rows among them) and those held out for it to label, or None."""
        data, fold = run.config.data, run.config.fold
        key = (fold, run.inner, run.n_inner, run.validated, data.val_share, data.split_seed)
        if key not in self._splits:
            share, seed = data.val_share, data.split_seed
            if run.validated:
                self._splits[key] = validated_part(self.dataset, fold, run.inner, run.n_inner, seed=seed), None
            elif run.n_inner:
                self._splits[key] = inner_split(self.dataset, fold, run.inner, run.n_inner, val_share=share, seed=seed)
            else:
                self._splits[key] = make_split(self.dataset, fold, val_share=share, seed=seed).without_test(), None
        return self._splits[key]

    def test(self, fold: int) -> Part:
        """Return the test rows of a fold. Their targets stay here, in the parent process."""
        rows = np.flatnonzero(self._folds == fold)
        return Part(tuple(self.dataset.ids[row] for row in rows), rows, self.dataset.targets[rows])

    @cached_property
    def _folds(self) -> np.ndarray:
        return fold_of_rows(self.dataset)

    def auxiliary_rows(self, config: RunConfig) -> tuple[AuxiliaryRows, ...]:
        """Return the rows of the auxiliary tasks of a configuration, in its order."""
        return tuple(self._rows_of(name, config) for name in config.multitask.tasks)

    def _rows_of(self, name: str, config: RunConfig) -> AuxiliaryRows:
        choices = config.multitask
        key = (name, config.fold, config.model.start, choices.keep_overlap, choices.max_rows, config.data)
        if key not in self._auxiliary_rows:
            self._auxiliary_rows[key] = self._without_test_crystals(name, config)
        return self._auxiliary_rows[key]

    def _without_test_crystals(self, name: str, config: RunConfig) -> AuxiliaryRows:
        dataset, choices = self.auxiliary[name], config.multitask
        test = self._overlap(name, self.test(config.fold))
        self.progress.message(f"fold {config.fold}, {name}: {test.describe()}")
        # Not test rows, but they choose the epoch: a model that saw their crystals would be flattered.
        split, _ = self.split(ModelSpec(config))
        matched, chosen_by = test.matched, self._overlap(name, split.val).matched
        rows = np.arange(len(dataset)) if choices.keep_overlap else np.flatnonzero(~(matched | chosen_by))
        if choices.max_rows is not None and choices.max_rows < len(rows):
            rows = np.sort(np.random.default_rng(config.data.split_seed).choice(rows, choices.max_rows, replace=False))
        part = Part(tuple(dataset.ids[row] for row in rows), rows, dataset.targets[rows])
        n_removed, n_kept = int(matched.sum()), int(matched[rows].sum())
        store = self.store(config.model.start, dataset=dataset)
        return AuxiliaryRows(dataset.task, part, store, 0 if choices.keep_overlap else n_removed, n_kept)

    def _overlap(self, name: str, part: Part) -> Overlap:
        crystals = self.dataset.structures.take(part.rows)
        others = self.auxiliary[name].structures
        return find_overlap(others, crystals, cache=cache_home() / "overlap", progress=self.progress)


def open_context(
    source: Source,
    settings: Mapping[str, Any],
    auxiliary: Sequence[str] = (),
    *,
    began: Mapping[str, Any] | None = None,
    published: Path | None = None,
    folds: Sequence[int] = (),
    progress: Progress = silent,
) -> TaskContext:
    """Read and check everything that a command was asked to work on, mistakes that are cheap to see first.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset.
        auxiliary: tasks to train on jointly, as NAME or NAME=FILE; they become multitask.tasks where that is empty.
        began: as task_config.
        published: a table of published predictions, checked against the test rows of `folds`.

    Raises:
        UserError: settings that make no valid configuration, rows that cannot be read, or a table that does not fit.
    """
    parse_config(merged({"task": source.task}, settings), "configuration")  # before minutes of reading
    if published is not None:
        read_published(published)
    dataset, others = load_dataset(source, progress), load_auxiliary(auxiliary, progress)
    if published is not None:
        check_published(published, dataset, folds)
    config = task_config(dataset, settings, others, began)
    lacking = [name for name in config.multitask.tasks if name not in others]
    return TaskContext(dataset, config, {**others, **load_auxiliary(lacking, progress)}, progress)


def task_config(
    dataset: Dataset,
    settings: Mapping[str, Any],
    auxiliary: Mapping[str, Dataset] | None = None,
    began: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the task's preset with the user's settings over it, checked as a whole.

    Auxiliary tasks that were read are those of the joint training, unless the settings name them.

    Args:
        began: content of the configuration that a run or a study in the same folder began with, before presets
            depended on the number of rows, perhaps; it goes on with the preset that it began with.
    """
    config = parse_config(merged(preset(dataset.task, len(dataset)), settings), "configuration")
    older = parse_config(merged(preset(dataset.task), settings), "configuration")
    if began is not None and _holds(began, older, but_not=config):
        config = older
    if config.task != dataset.task.name:
        raise UserError(f"the configuration is for task '{config.task}', not for '{dataset.task.name}'")
    named = [full_name(name) for name in config.multitask.tasks] or list(auxiliary or {})
    unused = sorted(set(auxiliary or {}) - set(named))
    if unused:
        raise UserError(f"`auxiliary={unused[0]}`: multitask.tasks does not name it ({', '.join(named)})")
    validate_for_task(config, dataset.task)
    return config.changed({"multitask.tasks": named})


def _holds(began: Mapping[str, Any], older: RunConfig, *, but_not: RunConfig) -> bool:
    """Return whether a configuration has the values of another wherever that differs from a third."""
    changed = differences(but_not.model_dump(mode="json"), older.model_dump(mode="json"))
    known = flattened(began)
    changed.pop("optim.epochs", None)  # which a time budget chooses
    return bool(changed) and all(known.get(key) == value for key, (_, value) in changed.items())


def caveats(context: TaskContext, config: RunConfig, folds: Iterable[int]) -> list[str]:
    """Return what must be said beside every number of a configuration."""
    n_kept = sum(rows.n_kept_overlap for rows in _auxiliary_of(context, config, folds))
    return [f"{n_kept} auxiliary rows are test crystals and were KEPT"] if n_kept else []


def trained_also_on(context: TaskContext, config: RunConfig, folds: Iterable[int]) -> dict[str, int]:
    """Return the rows of other tasks that took part in training, by task: the most of any fold."""
    counts: dict[str, int] = {}
    for rows in _auxiliary_of(context, config, folds):
        counts[rows.task.name] = max(counts.get(rows.task.name, 0), len(rows.part))
    return counts


def _auxiliary_of(context: TaskContext, config: RunConfig, folds: Iterable[int]) -> list[AuxiliaryRows]:
    return [rows for fold in folds for rows in context.auxiliary_rows(config.changed({"fold": fold}))]
