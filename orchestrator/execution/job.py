"""One model's run in a worker process: from a split to predictions on disk."""

import fcntl
import hashlib
import traceback
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from orchestrator.evaluation.ensemble import soup
from orchestrator.inputs.context import AuxiliaryRows
from orchestrator.provenance import device_name, versions
from trainables.choices import Compile
from trainables.config import RunConfig
from trainables.data.composition import CompositionModel
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import read_json, sha256_of_file, write_atomically, write_json, write_parquet, write_text
from trainables.graphs.store import GraphStore
from trainables.levers import TtaConfig
from trainables.model.chgnet import CrystalModel
from trainables.progress import Progress, silent
from trainables.training.checkpoint import DamagedCheckpoint, verified_manifest, write_checkpoint
from trainables.training.compute import Compute
from trainables.training.distill import SoftTargets
from trainables.training.fit import fit
from trainables.training.frozen import FrozenEnergies
from trainables.training.joint import Auxiliary
from trainables.training.predict import load_model, predict, save_model, with_graph
from trainables.training.tta import Predicted, predict_views

DONE = "done.json"
FEATURES = "features.npy"
_SUMMARY = {"status", "reason", "structures", "seconds", "structures_per_s"}  # what done.json holds of every run
_FITTED = {"best_val_mae", "best_epoch", "compiled", "before"}  # and of one that was trained, not averaged
HASHES = "sha256"  # of the run's other files, in done.json
COMPOSITION = "composition.json"  # coefficients by atomic number, in the target's unit


@dataclass(frozen=True, eq=False)
class Wanted:
    """Rows to predict; what their targets are is not said."""

    ids: tuple[str, ...]
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Job:
    """All a worker is told. Test rows come as ids and places only: their targets never leave the parent.

    Attributes:
        split: without test.
        wanted: rows to predict by the name of their part ("test", "val", "labelled").
        views: how they are predicted, each into a file of its own, with the skinned store where it has several views.
        soup_of: folders of the models whose weights are averaged; then nothing is trained.
        features: keep pooled atom features of the "labelled" rows, for a student to match.
    """

    config: RunConfig
    task: Task
    split: FoldSplit
    wanted: dict[str, Wanted]
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


def do(job: Job, device: str, progress: Progress) -> dict[str, Any]:
    """Make the model, predict what is wanted, and leave predictions and done.json in the run's folder.

    What fails is a result too: its status and reason are returned and kept, and nothing else stops.
    """
    with _alone(job.folder):
        try:
            summary = _make(job, device, progress)
            if summary["status"] == "finished":
                _predict_all(job, device, progress)
                summary = summary | {HASHES: _hashes(job, summary.get(HASHES, {}))}
                write_json(job.folder / DONE, summary)
        except UserError as error:
            summary = {"status": "failed", "reason": str(error)}
        except Exception as error:
            write_text(job.folder / "error.txt", traceback.format_exc())
            reason = f"{type(error).__name__}: {error} (see error.txt in its folder)"
            summary = {"status": "failed", "reason": " ".join(reason.split())}
    return summary


def _make(job: Job, device: str, progress: Progress) -> dict[str, Any]:
    """The model in the folder; what is there already, and whole, is not made again."""
    before = finished(job.folder)
    if before is not None:
        return before
    _clear(job.folder, progress)
    job.config.save(job.folder / "config.yaml")
    if job.soup_of:
        return _make_soup(job) | _made_by(device)
    store = GraphStore(job.store)
    auxiliary = [Auxiliary(rows.task, rows.part, GraphStore(rows.store)) for rows in job.auxiliary]
    fit(
        job.config,
        job.split,
        store,
        job.task,
        job.folder,
        skinned=None if job.skinned is None else GraphStore(job.skinned),
        soft=None if job.soft is None else SoftTargets.load(job.soft),
        auxiliary=auxiliary,
        compute=Compute(device, job.compiled, job.tf32),
        progress=progress,
    )
    summary: dict[str, Any] = read_json(job.folder / "fit.json") | _made_by(device) | {"tf32": job.tf32}
    known = Part.join(job.split.train, job.split.val)
    composition = CompositionModel.fit(store.composition(known.rows), known.targets)
    write_json(job.folder / COMPOSITION, {"coefficients": composition.coefficients.tolist()})
    return summary


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
    """A file of predictions for every way of predicting that has none yet."""
    left, features = _left_to_predict(job)
    if not left and not features:
        return
    run, store = LoadedRun.load(job.folder, device), GraphStore(job.store)
    damaged = _damaged_files(job.folder)
    for views, path in left:
        if predictions_file(job.folder, views).name in damaged:
            progress.message(f"{predictions_file(job.folder, views)} is damaged: it is predicted again")
        skinned = None if path is None else GraphStore(path)
        tables = []
        for name, wanted in job.wanted.items():
            found, fallback = run.predict(store, wanted.rows, views, skinned, progress)
            columns = {"id": wanted.ids, "part": name, "prediction": found.value, "std": found.std}
            tables.append(pd.DataFrame({**columns, "fallback": fallback}))
        write_parquet(predictions_file(job.folder, views), pd.concat(tables, ignore_index=True))
    if features:
        pooled = predict(run.model, store, job.wanted["labelled"].rows, output="pooled")
        write_atomically(job.folder / FEATURES, lambda path: _save_array(path, pooled))


def _save_array(path: Path, array: NDArray[np.float64]) -> None:
    with path.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)


def predictions_file(folder: Path, views: TtaConfig) -> Path:
    """Where a run keeps what it predicted that way."""
    if views.views == 1:
        return folder / "predicted.parquet"
    digest = hashlib.sha256(views.model_dump_json().encode()).hexdigest()[:8]
    return folder / f"predicted-{views.views}views-{digest}.parquet"


def _left_to_predict(job: Job) -> tuple[list[tuple[TtaConfig, Path | None]], bool]:
    """The ways of predicting that lack a whole file or a part in it, and whether features are missing."""
    damaged = _damaged_files(job.folder)
    left = [(views, path) for views, path in job.views if not set(job.wanted) <= _parts(job.folder, views, damaged)]
    return left, job.features and (FEATURES in damaged or not (job.folder / FEATURES).exists())


def _parts(folder: Path, views: TtaConfig, damaged: Container[str]) -> set[str]:
    file = predictions_file(folder, views)
    if file.name in damaged:
        return set()
    try:
        return set(pd.read_parquet(file)["part"])
    except (OSError, ValueError, KeyError):
        return set()


def complete(job: Job) -> dict[str, Any] | None:
    """What the run reported, where it is finished and everything wanted of it is there and whole."""
    left, features = _left_to_predict(job)
    return None if left or features else finished(job.folder)


def finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run with a whole model reported, or None."""
    summary = _done(folder)
    return None if summary is None or damage(folder) else summary


def _done(folder: Path) -> dict[str, Any] | None:
    """The content of done.json, or None where there is none that can be read."""
    try:
        summary = read_json(folder / DONE)
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict) or not set(summary) >= _SUMMARY:
        return None
    return summary if "history" not in summary or set(summary) >= _FITTED else None


def damage(folder: Path) -> str:
    """What is wrong with the model of a run that was finished (its weights, manifest or composition), or nothing."""
    try:
        about = verified_manifest(folder / "model")
        RunConfig.model_validate(about["config"])
        Task(**about["task"])
        _coefficients(folder)
    except (DamagedCheckpoint, OSError, ValueError, KeyError, TypeError) as error:
        return _within(folder, error)
    changed = _changed_files(folder, ("model.json", COMPOSITION))
    return f"{changed[0]} is not as it was written" if changed else ""


def _within(folder: Path, error: Exception) -> str:
    """An error in one line, with the names of files as they are in the folder."""
    return " ".join(str(error).replace(f"{folder}/", "").split())


def _coefficients(folder: Path) -> NDArray[np.float64]:
    return np.array(read_json(folder / COMPOSITION)["coefficients"], dtype=np.float64)


def _clear(folder: Path, progress: Progress) -> None:
    """Remove what was predicted by a model that has to be made (again).

    Its checkpoints stay: where they are whole, they give back the very same model without training.
    """
    if _done(folder) is not None:
        progress.message(f"{folder} is damaged ({damage(folder)}): its model is made again")
    for file in (folder / DONE, folder / FEATURES, *folder.glob("predicted*.parquet")):
        file.unlink(missing_ok=True)


def _hashes(job: Job, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the files of a finished run, by name: those that this job wants, and what is known of others."""
    names = ["model.json", COMPOSITION, *(predictions_file(job.folder, views).name for views, _ in job.views)]
    names += [FEATURES] if job.features else []
    return {**known, **{name: sha256_of_file(job.folder / name) for name in names}}


def _damaged_files(folder: Path) -> list[str]:
    """Names of files of predictions or features that are there, but not as they were written."""
    recorded = (_done(folder) or {}).get(HASHES, {})
    return _changed_files(folder, [name for name in recorded if name == FEATURES or name.startswith("predicted")])


def _changed_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of a folder's files that do not have the hash in done.json; runs of older versions have none there."""
    recorded = (_done(folder) or {}).get(HASHES, {})
    return [
        name
        for name in names
        if name in recorded and (folder / name).is_file() and sha256_of_file(folder / name) != recorded[name]
    ]


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A finished run's model and its fallback."""

    model: CrystalModel
    composition: CompositionModel
    config: RunConfig
    task: Task

    @classmethod
    def load(cls, folder: Path, device: str) -> "LoadedRun":
        """Read a run's folder.

        Raises:
            UserError: its files are damaged.
        """
        try:
            model, config, task = load_model(folder / "model", device)
            coefficients = _coefficients(folder)
        except (DamagedCheckpoint, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{folder} is damaged ({_within(folder, error)}): run its `crystaltune train` again, which mends it"
            ) from None
        return cls(model, CompositionModel(coefficients), config, task)

    def predict(
        self,
        store: GraphStore,
        rows: NDArray[np.int64],
        views: TtaConfig | None = None,
        skinned: GraphStore | None = None,
        progress: Progress = silent,
    ) -> tuple[Predicted, NDArray[np.bool_]]:
        """CHGNet where a row has a usable graph, else least squares on its composition.

        Returns:
            Predictions with their spread over views, and (n,) True where the composition model stood in.
        """
        views, frozen = views or TtaConfig(), None
        if views.views > 1 and views.corrected:
            frozen = FrozenEnergies(self.config.model.start, self.task, next(self.model.parameters()).device)
        found = predict_views(self.model, views, store, skinned, rows, frozen=frozen, progress=progress)
        fallback = ~with_graph(store, rows, self.config) | ~np.isfinite(found.value)
        value = found.value.copy()
        value[fallback] = self.composition.predict(store.composition(rows[fallback]))
        if self.model.floor is not None:
            value = np.maximum(value, self.model.floor)
        return Predicted(value, np.where(fallback, 0.0, found.std)), fallback


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works in this folder (one whose parent was just killed, for example)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
