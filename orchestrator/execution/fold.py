"""A trained fold's folder: its members, how they are combined, and what they predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.evaluation.ensemble import combine
from orchestrator.execution.combine import combined, method_of
from orchestrator.execution.job import LoadedRun
from orchestrator.execution.scheduler import Runs
from orchestrator.inputs.recipe import Recipe
from trainables.config import RunConfig
from trainables.data.dataset import Dataset
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import read_json, sha256_of_file, write_json, write_parquet
from trainables.progress import Progress, silent

FOLD = "fold.json"
PREDICTIONS = "predictions.parquet"
_KEYS = {"members", "combine", "weights", "config", "structures_per_s"}


def write_fold(runs: Runs, recipe: Recipe) -> None:
    """Leave the fold's test predictions, and how its members are combined, in its folder."""
    folders = [runs.folder_of(run) for run in recipe.members]
    folder = folders[0] if len(folders) == 1 else folders[0].parent
    found = combined(runs, recipe)
    table = found.table.copy()
    table.insert(1, "fold", recipe.config.fold)
    write_parquet(folder / PREDICTIONS, table)
    speeds = [runs.summaries[runs.material.key(run)]["structures_per_s"] for run in recipe.members]
    about = {
        "members": [str(each.relative_to(folder)) for each in folders],
        "combine": method_of(recipe),
        "weights": None if found.weights is None else found.weights.tolist(),
        "config": recipe.config.model_dump(mode="json"),
        "structures_per_s": float(np.mean(speeds)),
        "sha256": sha256_of_file(folder / PREDICTIONS),
    }
    write_json(folder / FOLD, about)


def read_fold(folder: Path) -> dict[str, Any] | None:
    """How a finished fold is made up, or None where its files are not there or not whole."""
    try:
        about = read_json(folder / FOLD)
        if not isinstance(about, dict) or not set(about) >= _KEYS:
            return None
        if about.get("sha256") not in (None, sha256_of_file(folder / PREDICTIONS)):  # older versions wrote no hash
            return None
        pd.read_parquet(folder / PREDICTIONS, columns=["id"])
    except (OSError, ValueError):
        return None
    return about


def collect_predictions(dataset: Dataset, folds: Sequence[int], out: Path, progress: Progress = silent) -> pd.DataFrame:
    """Predictions of all finished folds beside their targets: id, fold, target, prediction, std, fallback.

    A finished fold whose files are damaged is left out, which `progress` is told.
    """
    target = pd.Series(dataset.targets, index=list(dataset.ids))
    tables = []
    for fold in folds:
        folder = out / f"fold_{fold}"
        if read_fold(folder) is not None:
            tables.append(pd.read_parquet(folder / PREDICTIONS))
        elif (folder / FOLD).exists():
            progress.message(f"{folder} is damaged and left out of the scores: train fold {fold} again, which mends it")
    if not tables:
        return pd.DataFrame(columns=["id", "fold", "target", "prediction", "std", "fallback"])
    table = pd.concat(tables, ignore_index=True)
    table.insert(2, "target", target.loc[table["id"]].to_numpy())
    return table


@dataclass(frozen=True, eq=False)
class LoadedFold:
    """A finished fold's models, and how they predict together."""

    members: list[LoadedRun]
    config: RunConfig
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, device: str) -> "LoadedFold":
        """Read a fold's folder.

        Raises:
            UserError: it is damaged.
        """
        about = read_fold(folder)
        if about is None:
            raise UserError(f"{folder} is damaged: run its `crystaltune train` again, which mends it")
        members = [LoadedRun.load(folder / member, device) for member in about["members"]]
        try:
            config = RunConfig.model_validate(about["config"])
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / FOLD} is damaged or of another version of crystaltune ({reason})") from None
        return cls(members, config, about)

    @property
    def task(self) -> Task:
        return self.members[0].task

    def combine(self, predictions: list[np.ndarray]) -> np.ndarray:
        """The members' predictions, each (n,), as one (n,)."""
        if len(predictions) == 1:
            return predictions[0]
        weights = self.about["weights"]
        return combine(self.about["combine"], np.stack(predictions), None if weights is None else np.array(weights))
