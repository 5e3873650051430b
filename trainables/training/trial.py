"""What every trial of a search shares, and a trial as steps. Test rows are nowhere in it."""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainables.choices import Compile
from trainables.config import RunConfig
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.levers import Start
from trainables.model.chgnet import cutoffs_of
from trainables.progress import Progress, silent
from trainables.training.augment import skin_for, skin_of
from trainables.training.cached import TRUNK
from trainables.training.compute import Compute
from trainables.training.data import TrainingData
from trainables.training.distill import SoftTargets
from trainables.training.fit import fit_steps
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import Auxiliary
from trainables.training.predict import load_model, with_graph
from trainables.training.result import FitResult, StepResult
from trainables.training.tta import predict_views


@dataclass(frozen=True, eq=False)
class TrialData:
    """Rows, graphs and choices that all trials of a search have in common; small, for graphs are paths.

    Attributes:
        base: the configuration that trials change.
        split: without test rows.
        stores: graph stores by starting weights and skin in A (0: the clean crystals).
        auxiliary: (task, rows, graph store) of joint training, without rows that are test crystals.
        soft: file of the teachers' labels, where trials distil.
        models: trained models (paths without suffix) by seed; where there are any, a trial only predicts in its own
            way with the model of its seed.
        on_gpu: trials that were given a GPU use it.
        probes: every trial trains its head alone, on a frozen trunk.
        validations_per_epoch: steps an epoch.
    """

    base: RunConfig
    task: Task
    split: FoldSplit
    stores: Mapping[tuple[Start, float], Path]
    auxiliary: tuple[tuple[Task, Part, Path], ...] = ()
    soft: Path | None = None
    models: Mapping[int, Path] = field(default_factory=dict)
    probes: bool = False
    validations_per_epoch: int = 1
    on_gpu: bool = True
    compiled: Compile = "auto"
    tf32: bool = False
    _opened: dict[Path, GraphStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split.test is not None:
            raise ValueError("a search takes a split without its test rows: split.without_test()")

    def config(self, changes: Mapping[str, Any]) -> RunConfig:
        """Return a trial's configuration: without a refit, for rows of validation are never trained on in a search.

        Nor has it patience: the scheduler of the search says when a trial ends.

        Raises:
            UserError: changes that make no valid configuration.
        """
        frozen = {"model.freeze": list(TRUNK)} if self.probes else {}
        return self.base.changed({**changes, **frozen, "data.refit": False, "optim.patience": 0})

    def n_steps(self, config: RunConfig) -> int:
        """Return steps of a whole trial: joint training counts by its passes over the target's rows."""
        if self.models:
            return 1
        joint = config.multitask.epochs if config.multitask.tasks else 0
        return self.validations_per_epoch * (joint + config.optim.epochs)

    def steps(
        self, config: RunConfig, folder: Path, device: str, progress: Progress = silent
    ) -> Generator[StepResult, None, FitResult | None]:
        """Run the trial in steps, continuing where `folder` ends; nothing happens before the first is asked for.

        Raises:
            UserError: as fit, or graphs that were not made for this configuration.
        """
        compute = Compute(device, self.compiled, self.tf32)
        if self.models:
            return self._prediction(config, compute)
        return fit_steps(
            config,
            self._training_data(config),
            folder,
            compute=compute,
            progress=progress,
            validations_per_epoch=self.validations_per_epoch,
        )

    def _training_data(self, config: RunConfig) -> TrainingData:
        distils = self.soft is not None and config.distil.weight > 0
        return TrainingData(
            self.task,
            self.split,
            self._store(config, 0.0),
            skinned=self._skinned(config) if config.augment.active else None,
            soft_targets=SoftTargets.load(self.soft) if self.soft is not None and distils else None,
            auxiliary=self._auxiliary(config),
        )

    def _prediction(self, config: RunConfig, compute: Compute) -> Generator[StepResult, None, None]:
        """One step: the validation error of the trained model's predictions in this configuration's way."""
        start = time.perf_counter()
        model, trained, task = load_model(self.models[config.seed], compute.device)
        store, val = self._store(config, 0.0), self.split.val
        val = val.keep(with_graph(store, val.rows, config))
        several = config.tta.views > 1
        frozen = None
        if several and config.tta.corrected:
            frozen = FrozenEnergies(trained.model.start, task, compute.torch_device)
        skinned = self._store(config, skin_of(config.tta, cutoffs_of(config.model.start))) if several else None
        found = predict_views(model, config.tta, store, skinned, val.rows, frozen=frozen)
        mae = float(np.abs(found.value - val.targets).mean())
        seconds = time.perf_counter() - start
        yield StepResult(1, 0.0, mae, mae, float("nan"), config.tta.views * len(val), seconds)

    def _auxiliary(self, config: RunConfig) -> list[Auxiliary]:
        """Return the tasks that this trial trains on jointly, in its order; it may do without some."""
        known = {task.name: Auxiliary(task, part, self._open(store)) for task, part, store in self.auxiliary}
        return [known[name] for name in config.multitask.tasks]

    def _skinned(self, config: RunConfig) -> GraphStore:
        return self._store(config, skin_for(config, cutoffs_of(config.model.start)))

    def _store(self, config: RunConfig, skin: float) -> GraphStore:
        path = self.stores.get((config.model.start, skin))
        if path is None:
            raise UserError(
                f"no graphs were prepared for model.start={config.model.start} with a skin of {skin} A: the space does "
                "not contain this configuration"
            )
        return self._open(path)

    def _open(self, path: Path) -> GraphStore:
        """Each store is opened once a process, and so is copied to a GPU once."""
        if path not in self._opened:
            self._opened[path] = GraphStore(path)
        return self._opened[path]
