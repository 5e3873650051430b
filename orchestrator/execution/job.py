"""One model in a worker process: from a split to predictions on disk."""

import errno
import hashlib
import traceback
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from orchestrator.evaluation.ensemble import soup
from orchestrator.evaluation.predictions import Predictions
from orchestrator.execution.folders import wait_for_folder
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.context import AuxiliaryRows
from orchestrator.provenance import device_name, versions
from trainables.choices import Compile
from trainables.config import RunConfig
from trainables.data.composition import CompositionModel
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import CannotWrite, UserError
from trainables.files import read_json, sha256_of_file, write_array, write_json, write_parquet, write_text
from trainables.graphs.store import GraphStore
from trainables.levers import TtaConfig
from trainables.preemption import Preempted
from trainables.progress import Progress, silent
from trainables.training.checkpoint import DamagedCheckpoint, verified_manifest, write_checkpoint
from trainables.training.compute import Compute
from trainables.training.data import TrainingData
from trainables.training.distill import SoftTargets
from trainables.training.fit import fit
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import Auxiliary
from trainables.training.predict import Model, load_model, predict, save_model, with_graph
from trainables.training.tta import Predicted, predict_views

DONE = "done.json"
FEATURES = "features.npy"
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO, errno.ENOTCONN}
COMPOSITION = "composition.json"  # coefficients by atomic number, in the target's unit


@dataclass(frozen=True, eq=False)
class PredictionRequest:
    """Rows to predict, without their targets."""

    ids: tuple[str, ...]
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Job:
    """All that a worker is told. Test rows come as ids and places only: their targets never leave the parent.

    Attributes:
        split: without test.
        requests: rows to predict, by the name of their part ("test", "val", "labelled").
        views: how they are predicted, each into a file of its own, with the skinned store where it has several views.
        soup_of: folders of the models whose weights are averaged; then nothing is trained.
        features: keep pooled atom features of the "labelled" rows, for a student to match.
    """

    config: RunConfig
    task: Task
    split: FoldSplit
    requests: dict[str, PredictionRequest]
    views: tuple[tuple[TtaConfig, Path | None], ...]
    store: Path
    folder: Path
    skinned: Path | None = None
    soft: Path | None = None
    auxiliary: tuple[AuxiliaryRows, ...] = ()
    soup_of: tuple[Path, ...] = ()
    features: bool = False
    compiled: Compile = "auto"
    tf32: bool = False

    def with_absolute_paths(self) -> "Job":
        """Return this job for a process that works in another folder."""
        return replace(
            self,
            folder=self.folder.absolute(),
            soft=None if self.soft is None else self.soft.absolute(),
            soup_of=tuple(folder.absolute() for folder in self.soup_of),
        )


def run_job(job: Job, device: str, progress: Progress) -> RunSummary:
    """Make the model, predict what is requested, and leave predictions and done.json in the run's folder.

    A failure is a result too: it is returned with its reason, and stops nothing else.

    Raises:
        Preempted: the process was asked to stop; a checkpoint is left.
    """
    try:
        with wait_for_folder(job.folder):
            summary = _make(job, device, progress)
            if not summary.failed:
                _predict_all(job, device, progress)
                summary = summary.with_fields(sha256=_hashes(job, summary.sha256))
                write_json(job.folder / DONE, summary.content())
            return summary
    except Preempted:  # no result: the run is to be done elsewhere
        raise
    except Exception as error:
        return _failure(job.folder, error)


def _failure(folder: Path, error: Exception) -> RunSummary:
    """Return the failure of a run, with its traceback in a file where nobody expected it."""
    if isinstance(error, UserError):
        return RunSummary.failure(str(error), cannot_write=isinstance(error, CannotWrite))
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
        reason = f"{error.filename or folder} cannot be written ({error.strerror})"
        return RunSummary.failure(f"{reason}: free space there and run the command again", cannot_write=True)
    with suppress(OSError):
        write_text(folder / "error.txt", traceback.format_exc())
    reason = f"{type(error).__name__}: {error} (see error.txt in its folder)"
    return RunSummary.failure(" ".join(reason.split()))


def _make(job: Job, device: str, progress: Progress) -> RunSummary:
    """Make the model in the folder, unless a whole one is there already."""
    before = finished(job.folder)
    if before is not None:
        return before
    _clear(job.folder, progress)
    job.config.save(job.folder / "config.yaml")
    if job.soup_of:
        return RunSummary.model_validate(_make_soup(job) | _made_by(device))
    store = GraphStore(job.store)
    auxiliary = [Auxiliary(rows.task, rows.part, GraphStore(rows.store)) for rows in job.auxiliary]
    data = TrainingData(
        job.task,
        job.split,
        store,
        skinned=None if job.skinned is None else GraphStore(job.skinned),
        soft_targets=None if job.soft is None else SoftTargets.load(job.soft),
        auxiliary=auxiliary,
    )
    fit(job.config, data, job.folder, compute=Compute(device, job.compiled, job.tf32), progress=progress)
    summary = read_json(job.folder / "fit.json") | _made_by(device) | {"tf32": job.tf32}
    known = Part.join(job.split.train, job.split.val)
    fractions, targets = store.composition(known.rows), known.targets / _atoms(job.task, store, known.rows)
    composition = CompositionModel.fit(fractions, targets).with_unseen(fractions, targets)
    write_json(job.folder / COMPOSITION, {"coefficients": composition.coefficients.tolist()})
    return RunSummary.model_validate(summary)


def _atoms(task: Task, store: GraphStore, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what a composition's value is multiplied by, (n,): the atoms of a cell, where it has the property."""
    return store.counts[rows, 0].astype(np.float64) if task.is_sum else np.ones(len(rows))


def _made_by(device: str) -> dict[str, Any]:
    return {"device": device_name(device), "versions": versions(), "threads": torch.get_num_threads()}


def _make_soup(job: Job) -> dict[str, Any]:
    """Average the weights of models that began as the same one."""
    members = [load_model(folder / "model") for folder in job.soup_of]
    states = soup([model.state_dict() for model, _, _ in members])
    model = members[0][0]
    model.load_state_dict(states)
    write_checkpoint(job.folder / "model", save_model(model, job.config, job.task, {"soup_of": len(members)}))
    write_json(job.folder / COMPOSITION, read_json(job.soup_of[0] / COMPOSITION))
    return {"status": "finished", "reason": "", "structures": 0, "seconds": 0.0, "structures_per_s": 0.0}


def _predict_all(job: Job, device: str, progress: Progress) -> None:
    """Write a file of predictions for every way of predicting that has none yet."""
    left, features = _left_to_predict(job)
    if not left and not features:
        return
    loaded, store = LoadedModel.load(job.folder, device), GraphStore(job.store)
    damaged = _damaged_files(job.folder)
    for views, path in left:
        if predictions_file(job.folder, views).name in damaged:
            progress.message(f"{predictions_file(job.folder, views)} is damaged: it is predicted again")
        skinned = None if path is None else GraphStore(path)
        tables = []
        for name, request in job.requests.items():
            found, fallback = loaded.predict(store, request.rows, views, skinned, progress)
            columns = {"id": request.ids, "part": name, "prediction": found.value, "std": found.std}
            tables.append(pd.DataFrame({**columns, "fallback": fallback}))
        write_parquet(predictions_file(job.folder, views), pd.concat(tables, ignore_index=True))
    if features:
        pooled = predict(loaded.model, store, job.requests["labelled"].rows, output="pooled")
        write_array(job.folder / FEATURES, pooled)


def predictions_file(folder: Path, views: TtaConfig) -> Path:
    """Return the file of what a model predicted that way."""
    if views.views == 1:
        return folder / "predicted.parquet"
    digest = hashlib.sha256(views.model_dump_json().encode()).hexdigest()[:8]
    return folder / f"predicted-{views.views}views-{digest}.parquet"


def _left_to_predict(job: Job) -> tuple[list[tuple[TtaConfig, Path | None]], bool]:
    """Return the ways of predicting that lack a whole file or a part in it, and whether features are missing."""
    damaged = _damaged_files(job.folder)
    left = [(views, path) for views, path in job.views if not set(job.requests) <= _parts(job.folder, views, damaged)]
    return left, job.features and (FEATURES in damaged or not (job.folder / FEATURES).exists())


def _parts(folder: Path, views: TtaConfig, damaged: Container[str]) -> set[str]:
    file = predictions_file(folder, views)
    if file.name in damaged:
        return set()
    try:
        return set(Predictions.read(file).part)
    except (OSError, ValueError, KeyError):
        return set()


def complete(job: Job) -> RunSummary | None:
    """Return what the model reported, where it is finished and everything requested of it is there and whole."""
    left, features = _left_to_predict(job)
    return None if left or features else finished(job.folder)


def finished(folder: Path) -> RunSummary | None:
    """Return what a finished run with a whole model reported, or None."""
    summary = _done(folder)
    return None if summary is None or damage(folder) else summary


def _done(folder: Path) -> RunSummary | None:
    """Read done.json; None where there is none that can be read."""
    try:
        return RunSummary.model_validate(read_json(folder / DONE))
    except (OSError, ValueError):
        return None


def damage(folder: Path) -> str:
    """Return what is wrong with the model of a finished run (weights, manifest or composition), or an empty string."""
    try:
        about = verified_manifest(folder / "model")
        RunConfig.model_validate(about["config"])
        Task(**about["task"])
        _coefficients(folder)
    except (DamagedCheckpoint, OSError, ValueError, KeyError, TypeError) as error:
        return _within(folder, error)
    changed = _changed_files(folder, ("model.json", COMPOSITION))
    return f"{changed[0]} has changed since it was written" if changed else ""


def _within(folder: Path, error: Exception) -> str:
    """Return an error as one line, with the names of files as they are in the folder."""
    return " ".join(str(error).replace(f"{folder}/", "").split())


def _coefficients(folder: Path) -> NDArray[np.float64]:
    return np.array(read_json(folder / COMPOSITION)["coefficients"], dtype=np.float64)


def _clear(folder: Path, progress: Progress) -> None:
    """Remove what was predicted by a model that has to be made (again).

    Its checkpoints stay: where they are whole, they give back the very same model without training.
    """
    if _done(folder) is not None:
        progress.message(f"{folder} is damaged ({damage(folder)}): its model is rebuilt")
    for file in (folder / DONE, folder / FEATURES, *folder.glob("predicted*.parquet")):
        file.unlink(missing_ok=True)


def _hashes(job: Job, known: Mapping[str, str]) -> dict[str, str]:
    """Return SHA-256 of the files of a finished run by name, those of other jobs as they are known."""
    names = ["model.json", COMPOSITION, *(predictions_file(job.folder, views).name for views, _ in job.views)]
    names += [FEATURES] if job.features else []
    return {**known, **{name: sha256_of_file(job.folder / name) for name in names}}


def _damaged_files(folder: Path) -> list[str]:
    """Return the files of predictions or features that have changed since they were written."""
    recorded = _recorded(folder)
    return _changed_files(folder, [name for name in recorded if name == FEATURES or name.startswith("predicted")])


def _recorded(folder: Path) -> dict[str, str]:
    summary = _done(folder)
    return {} if summary is None else summary.sha256


def _changed_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of a folder's files that do not have the hash in done.json."""
    recorded = _recorded(folder)
    return [
        name
        for name in names
        if name in recorded and (folder / name).is_file() and sha256_of_file(folder / name) != recorded[name]
    ]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A finished run's model and its fallback."""

    model: Model
    composition: CompositionModel
    config: RunConfig
    task: Task

    @classmethod
    def load(cls, folder: Path, device: str) -> "LoadedModel":
        """Read a run's folder.

        Raises:
            UserError: its files are damaged.
        """
        try:
            model, config, task = load_model(folder / "model", device)
            coefficients = _coefficients(folder)
        except (DamagedCheckpoint, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder} is damaged ({_within(folder, error)}): train again to repair it") from None
        return cls(model, CompositionModel(coefficients), config, task)

    def predict(
        self,
        store: GraphStore,
        rows: NDArray[np.int64],
        views: TtaConfig | None = None,
        skinned: GraphStore | None = None,
        progress: Progress = silent,
    ) -> tuple[Predicted, NDArray[np.bool_]]:
        """Predict with CHGNet where a row has a usable graph, else by least squares on its composition.

        Returns:
            Predictions with their spread over views, and (n,) True where the composition model was used.
        """
        views, frozen = views or TtaConfig(), None
        if views.views > 1 and views.corrected:
            frozen = FrozenEnergies(self.config.model.start, self.task, next(self.model.parameters()).device)
        found = predict_views(self.model, views, store, skinned, rows, frozen=frozen, progress=progress)
        fallback = ~with_graph(store, rows, self.config) | ~np.isfinite(found.value)
        value = found.value.copy()
        stand_in = self.composition.predict(store.composition(rows[fallback]))
        value[fallback] = stand_in * _atoms(self.task, store, rows[fallback])
        if self.model.floor is not None:
            value = np.maximum(value, self.model.floor)
        return Predicted(value, np.where(fallback, 0.0, found.std)), fallback
