"""What all runs of a command draw on: rows, splits, graph stores, and auxiliary rows without test crystals."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from orchestrator.inputs.datasets import graph_store
from orchestrator.inputs.recipe import ModelRun
from trainables.config import RunConfig
from trainables.data.cache import cache_home
from trainables.data.dataset import Dataset
from trainables.data.folds import FoldSplit, Part, fold_of_rows, inner_split, make_split
from trainables.data.overlap import Overlap, find_overlap
from trainables.data.tasks import Task
from trainables.levers import PerturbConfig, Start
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
class Material:
    """The rows of a task and of the auxiliary ones, with everything made from them, each made once."""

    dataset: Dataset
    auxiliary: Mapping[str, Dataset] = field(default_factory=dict)
    progress: Progress = silent
    _stores: dict[tuple[str, str, float], Path] = field(default_factory=dict)
    _splits: dict[tuple[object, ...], tuple[FoldSplit, Part | None]] = field(default_factory=dict)
    _auxiliary_rows: dict[tuple[object, ...], AuxiliaryRows] = field(default_factory=dict)

    def digest(self, config: RunConfig) -> str:
        """The hash of all rows that a configuration learns from."""
        if not config.multitask.tasks:
            return self.dataset.digest
        parts = [self.dataset.digest, *(self.auxiliary[name].digest for name in config.multitask.tasks)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def key(self, run: ModelRun) -> str:
        return run.key(self.digest(run.config))

    def store(self, start: Start, views: PerturbConfig | None = None, dataset: Dataset | None = None) -> Path:
        """The graphs for these weights; with the skin that `views` want."""
        skin = 0.0 if views is None else skin_of(views, cutoffs_of(start))
        return self.store_with_skin(start, skin, dataset)

    def store_with_skin(self, start: Start, skin: float, dataset: Dataset | None = None) -> Path:
        """The graphs for these weights with cutoffs wider by `skin` (A)."""
        dataset = dataset or self.dataset
        key = (dataset.digest, start, skin)
        if key not in self._stores:
            self._stores[key] = graph_store(dataset, start, self.progress, skin=skin).folder
        return self._stores[key]

    def split(self, run: ModelRun) -> tuple[FoldSplit, Part | None]:
        """The rows a run learns from (test rows are not among them), and those held out for it to label; None
        where nothing is.
        """
        data, fold = run.config.data, run.config.fold
        key = (fold, run.inner, run.n_inner, data.val_share, data.split_seed)
        if key not in self._splits:
            share, seed = data.val_share, data.split_seed
            if run.n_inner:
                self._splits[key] = inner_split(self.dataset, fold, run.inner, run.n_inner, val_share=share, seed=seed)
            else:
                self._splits[key] = make_split(self.dataset, fold, val_share=share, seed=seed).without_test(), None
        return self._splits[key]

    def test(self, fold: int) -> Part:
        """The test rows of a fold. Their targets stay here, in the parent process."""
        rows = np.flatnonzero(self._folds == fold)
        return Part(tuple(self.dataset.ids[row] for row in rows), rows, self.dataset.targets[rows])

    @cached_property
    def _folds(self) -> np.ndarray:
        return fold_of_rows(self.dataset)

    def auxiliary_rows(self, config: RunConfig) -> tuple[AuxiliaryRows, ...]:
        """The rows of the auxiliary tasks of a configuration, in its order."""
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
        split, _ = self.split(ModelRun(config))
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
