"""A trained fold's folder: its members, how they are combined, and what they predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from orchestrator.execution.combine import combined, method_of, together_of
from orchestrator.execution.job import LoadedModel
from orchestrator.execution.scheduler import ModelGraph
from orchestrator.inputs.recipe import FoldRecipe
from trainables.config import RunConfig
from trainables.data.dataset import Dataset
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import read_json, sha256_of_file, write_json, write_parquet
from trainables.levers import Combine
from trainables.progress import Progress, silent

FOLD = "fold.json"
PREDICTIONS = "predictions.parquet"
ALL_ROWS = "all"  # folder, in a run's, of the models that were trained on all rows for use


class FoldManifest(BaseModel):
    """How a finished fold is made up: the content of fold.json.

    Attributes:
        members: folders of the models, within the fold's.
        per_member: how many of these models, one after the other, are one member, which predicts their mean.
        combine, weights: how the members' predictions become one; no weights for a median or a single member.
        config: of the fold, as it was written; another version of crystaltune may not accept it.
        sha256: of the fold's predictions; folds of older versions have none.
    """

    model_config = ConfigDict(frozen=True)

    members: tuple[str, ...]
    combine: Combine
    weights: tuple[float, ...] | None
    config: dict[str, Any]
    structures_per_s: float
    sha256: str | None = None
    per_member: int = 1


def write_fold(graph: ModelGraph, recipe: FoldRecipe) -> None:
    """Leave the fold's test predictions, and how its members are combined, in its folder."""
    folders = [graph.folder_of(spec) for spec in recipe.models]
    folder = folders[0] if len(folders) == 1 else folders[0].parent
    found = combined(graph, recipe)
    table = found.table.copy()
    table.insert(1, "fold", recipe.config.fold)
    write_parquet(folder / PREDICTIONS, table)
    speeds = [graph.summary_of(spec).structures_per_s for spec in recipe.models]
    manifest = FoldManifest(
        members=tuple(str(member.relative_to(folder)) for member in folders),
        combine=method_of(recipe),
        weights=None if found.weights is None else tuple(found.weights.tolist()),
        config=recipe.config.model_dump(mode="json"),
        structures_per_s=float(np.mean(speeds)),
        sha256=sha256_of_file(folder / PREDICTIONS),
        per_member=recipe.per_member,
    )
    same = {"per_member"} if recipe.per_member == 1 else set()  # files of other runs stay as they were
    write_json(folder / FOLD, manifest.model_dump(mode="json", exclude=same))


def read_fold(folder: Path) -> FoldManifest | None:
    """Read how a finished fold is made up; None where its files are not there or not whole."""
    try:
        manifest = FoldManifest.model_validate(read_json(folder / FOLD))
        if manifest.sha256 not in (None, sha256_of_file(folder / PREDICTIONS)):
            return None
        pd.read_parquet(folder / PREDICTIONS, columns=["id"])
    except (OSError, ValueError):
        return None
    return manifest


def collect_predictions(dataset: Dataset, folds: Sequence[int], out: Path, progress: Progress = silent) -> pd.DataFrame:
    """Return the predictions of all finished folds beside their targets: id, fold, target, prediction, std, fallback.

    A finished fold whose files are damaged is left out, which `progress` is told.
    """
    target = pd.Series(dataset.targets, index=list(dataset.ids))
    tables = []
    for fold in folds:
        folder = out / f"fold_{fold}"
        if read_fold(folder) is not None:
            tables.append(pd.read_parquet(folder / PREDICTIONS))
        elif (folder / FOLD).exists():
            progress.message(f"{folder} is damaged and left out of the scores: train fold {fold} again to repair it")
    if not tables:
        return pd.DataFrame(columns=["id", "fold", "target", "prediction", "std", "fallback"])
    table = pd.concat(tables, ignore_index=True)
    table.insert(2, "target", target.loc[table["id"]].to_numpy())
    return table


@dataclass(frozen=True, eq=False)
class LoadedFold:
    """A finished fold's models, and how they predict together.

    Attributes:
        deployed: they were trained on all rows, for use.
    """

    members: list[LoadedModel]
    config: RunConfig
    manifest: FoldManifest
    deployed: bool = False

    @classmethod
    def load(cls, folder: Path, device: str) -> "LoadedFold":
        """Read a fold's folder.

        Raises:
            UserError: it is damaged.
        """
        manifest = read_fold(folder)
        if manifest is None:
            raise UserError(f"{folder} is damaged: train again to repair it")
        members = [LoadedModel.load(folder / member, device) for member in manifest.members]
        try:
            config = RunConfig.model_validate(manifest.config)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder / FOLD} is damaged or of another version of crystaltune ({reason})") from None
        return cls(members, config, manifest, folder.parent.name == ALL_ROWS)

    @property
    def number(self) -> int | None:
        """Return the outer fold whose rows the models have not seen; None where they were trained on all rows."""
        return None if self.deployed else self.config.fold

    @property
    def task(self) -> Task:
        """Return the task that the models were trained on."""
        return self.members[0].task

    def combine(self, predictions: list[np.ndarray]) -> np.ndarray:
        """Combine the predictions of all models, each (n,), into one (n,)."""
        weights = None if self.manifest.weights is None else np.array(self.manifest.weights)
        return together_of(self.manifest.combine, np.stack(predictions), self.manifest.per_member, weights)
