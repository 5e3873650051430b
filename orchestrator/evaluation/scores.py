"""Errors of predictions, per fold and over folds, as they stand in scores.json."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trainables.config import RunConfig
from trainables.data.dataset import Dataset
from trainables.data.tasks import Tier


class Errors(BaseModel):
    """Mean absolute, root-mean-square and largest absolute error, in the target's unit."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    mae: float
    rmse: float
    max_error: float


class CountedErrors(Errors):
    """Errors of `n` rows, of which `n_fallback` were predicted from their composition alone."""

    n: int
    n_fallback: int


class FoldScores(CountedErrors):
    """Errors on the test rows of a fold, and the speed at which its models were trained."""

    structures_per_s: float | None = None


class PredictorScores(BaseModel):
    """What one predictor scores.

    Attributes:
        folds: by fold.
        mean: mean over folds; its n and n_fallback are sums.
        std: the population's standard deviation over folds, as Matbench gives it.
    """

    model_config = ConfigDict(frozen=True)

    folds: dict[int, FoldScores]
    mean: CountedErrors
    std: Errors


class TaskSummary(BaseModel):
    """What was scored, with everything that limits what it may be compared with.

    Attributes:
        tier: honesty tier: how the pretraining data overlap with the test rows.
        partial: only some of the official rows are there.
        official_rows: of the whole Matbench task; None for a table of one's own.
        trained_also_on: rows of other tasks that took part in training, by task: the most of any fold.
        marks: what must be said beside every number.
    """

    model_config = ConfigDict(frozen=True)

    task: str
    target: str = ""
    unit: str = ""
    tier: Tier
    partial: bool
    synthetic: bool
    n_rows: int = 0
    official_rows: int | None = None
    trained_also_on: dict[str, int] = {}
    marks: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, config: RunConfig) -> "TaskSummary":
        """Return the summary of a dataset that a configuration is trained on."""
        task = dataset.task
        return cls(
            task=task.name,
            target=task.target,
            unit=task.unit,
            tier=task.tier(config.uses_pretrained),
            partial=dataset.partial,
            synthetic=task.synthetic,
            n_rows=len(dataset),
            official_rows=task.official_rows,
        )


class BaselineScores(TaskSummary):
    """Scores of the baselines of a task, and of published algorithms, by name."""

    baselines: dict[str, PredictorScores] = {}
    published: dict[str, PredictorScores] = {}


class Scores(BaselineScores):
    """The content of scores.json.

    Attributes:
        fingerprint: of the configuration, the data and the code.
        folds, mean, std: as PredictorScores; no fold and None where none is finished.
        failed: why a fold failed, by fold.
        held_out: mean absolute errors on rows that were held out of training (of the run's single models the inner
            validation rows), by which recipes can be compared without a look at test rows.
        record: path of the Matbench record within the run's folder, or None.
        record_validated_by: the matbench that has validated it; None where it is not installed.
        no_record_because: where there is no record, why, in a plain sentence.
    """

    fingerprint: str
    folds: dict[int, FoldScores] = {}
    mean: CountedErrors | None = None
    std: Errors | None = None
    failed: dict[int, str] = {}
    held_out: dict[str, float] = {}
    record: str | None = None
    record_validated_by: str | None = None
    no_record_because: str | None = None

    @property
    def own(self) -> PredictorScores | None:
        """The run's scores as those of any predictor, or None where no fold is finished."""
        if self.mean is None or self.std is None:
            return None
        return PredictorScores(folds=self.folds, mean=self.mean, std=self.std)

    def content(self) -> dict[str, Any]:
        """Return the content of scores.json."""
        return self.model_dump(mode="json", exclude_unset=True)


def errors(target: NDArray[np.float64], prediction: NDArray[np.float64]) -> Errors:
    """Return MAE, RMSE and largest absolute error, in the target's unit.

    Raises:
        ValueError: a prediction that is not finite; every row ends in a prediction or a fallback before this.
    """
    if not np.isfinite(prediction).all():
        raise ValueError(f"{int((~np.isfinite(prediction)).sum())} predictions are not finite")
    difference = np.abs(prediction - target)
    return Errors(
        mae=float(difference.mean()),
        rmse=float(np.sqrt((difference**2).mean())),
        max_error=float(difference.max()),
    )


def score_folds(predictions: pd.DataFrame) -> PredictorScores:
    """Score each fold, with the mean and the standard deviation over folds.

    Args:
        predictions: columns fold, target, prediction, and fallback (bool) where there may be some.
    """
    folds = {}
    for fold, rows in predictions.groupby("fold"):
        found = errors(rows["target"].to_numpy(float), rows["prediction"].to_numpy(float))
        fallback = int(rows["fallback"].sum()) if "fallback" in rows else 0
        folds[int(str(fold))] = FoldScores(**found.model_dump(), n=len(rows), n_fallback=fallback)
    every = list(folds.values())
    metrics = Errors.model_fields
    mean = {metric: float(np.mean([getattr(fold, metric) for fold in every])) for metric in metrics}
    std = {metric: float(np.std([getattr(fold, metric) for fold in every])) for metric in metrics}
    counts = {"n": sum(fold.n for fold in every), "n_fallback": sum(fold.n_fallback for fold in every)}
    return PredictorScores(folds=folds, mean=CountedErrors(**mean, **counts), std=Errors(**std))
