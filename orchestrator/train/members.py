"""What the members of a finished run are worth, from its folder alone; the content of ensemble.json.

It only describes: weights were chosen on inner validation rows when the folds were made, and nothing is chosen here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from orchestrator.evaluation.ensemble import error_curve
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.scores import Scores
from orchestrator.execution.combine import members_of
from orchestrator.execution.fold import FoldManifest, read_fold
from orchestrator.execution.job import DONE, predictions_file
from orchestrator.execution.summary import RunSummary
from orchestrator.inputs.recipe import fold_recipe
from orchestrator.provenance import RunManifest
from orchestrator.train.folder import model_folder
from orchestrator.train.options import STUDENT
from orchestrator.train.rows import ErrorBin, PredictedRows, error_bins
from trainables.config import RunConfig
from trainables.files import read_json
from trainables.levers import Combine, TtaConfig

ENSEMBLE = "ensemble.json"
_ROUNDING = 1e-6  # of a prediction in float32


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class MemberScores(_Value):
    """A member on one fold.

    Attributes:
        validation_mae: of the kept epoch, on the inner validation rows; of a member in parts the mean of its models.
        weight: in the combination; None for a median.
    """

    validation_mae: float | None
    test_mae: float
    weight: float | None


class Member(_Value):
    """One member: its seed, what it has of the varied settings, and how it does on each fold."""

    seed: int
    varied: dict[str, Any]
    folds: dict[int, MemberScores]


class CurvePoint(_Value):
    """The test MAE of the plain mean of `n_members` members: mean, least and largest over subsets of that size."""

    n_members: int
    n_subsets: int
    mae: float
    min: float
    max: float


class Contender(_Value):
    """One way to predict, with what it costs.

    Attributes:
        mae: on the test rows, by fold.
        mean: over folds.
        structures, seconds: of all trainings over the folds, those of its teachers included.
        predictions_per_crystal: by one fold's models.
    """

    name: str
    mae: dict[int, float]
    mean: float
    structures: float
    seconds: float
    predictions_per_crystal: int


class EnsembleSummary(_Value):
    """The members of a run, and what they are worth together.

    Attributes:
        per_member: models of each member, one a part of the training fold.
        varied: the values of each varied setting, by dotted key.
        spread: test rows by the std of their prediction over members, in bins of about equal size.
        spearman: rank correlation of that std with the absolute error; None where one of them is constant.
        compared: a single member, the ensemble and, where there is one, the student.
    """

    combine: Combine | Literal["soup"]
    seeds: int
    per_member: int = 1
    varied: dict[str, list[Any]]
    members: tuple[Member, ...]
    curve: tuple[CurvePoint, ...]
    spread: tuple[ErrorBin, ...]
    spearman: float | None
    compared: tuple[Contender, ...]


@dataclass(frozen=True, eq=False)
class _Fold:
    """A finished fold with several members; arrays in the order of its members, and of the run's test rows.

    Attributes:
        summaries: of its models, those of a member one after the other.
        prediction: (m, n) test predictions.
        target: (n,)
    """

    number: int
    summaries: list[RunSummary]
    prediction: NDArray[np.float64]
    target: NDArray[np.float64]
    weights: Sequence[float] | None

    @property
    def validation_mae(self) -> list[float | None]:
        """Return the validation MAE of each member."""
        per_member = len(self.summaries) // len(self.prediction)
        errors = [summary.best_val_mae for summary in self.summaries]
        parts = [errors[start : start + per_member] for start in range(0, len(errors), per_member)]
        return [None if None in part else float(np.mean([error or 0.0 for error in part])) for part in parts]

    @property
    def mae(self) -> NDArray[np.float64]:
        """Return the test MAE of each member, (m,)."""
        return np.asarray(np.abs(self.prediction - self.target).mean(axis=1))


def read_members(run: Path) -> EnsembleSummary | None:
    """Return what the members of a run are worth; None where each fold has one.

    Raises:
        OSError, ValueError, KeyError: a file is missing or damaged.
    """
    manifest = RunManifest.model_validate(read_json(run / "run.json"))
    config = RunConfig.model_validate(manifest.config)
    if config.ensemble.size < 2:
        return None
    scores = Scores.model_validate(read_json(run / "scores.json"))
    rows = PredictedRows.read(run)
    folds = [_fold(run, config.changed({"fold": fold}), manifest.data, rows) for fold in sorted(scores.folds)]
    if not folds:
        return None
    shown = rows if config.ensemble.combine != "soup" else None  # the std of one model is not its members'
    return EnsembleSummary(
        combine=config.ensemble.combine,
        seeds=config.ensemble.members,
        per_member=config.ensemble.per_member,
        varied={key: list(values) for key, values in config.ensemble.vary.items()},
        members=tuple(_member(config, index, folds) for index in range(config.ensemble.size)),
        curve=_curve(folds),
        spread=() if shown is None else _spread(shown),
        spearman=None if shown is None else _spearman(shown),
        compared=tuple(_compared(run, config, scores, folds)),
    )


def _fold(run: Path, config: RunConfig, data: str, rows: PredictedRows) -> _Fold:
    recipe = fold_recipe(config)
    soup = bool(recipe.models[0].soup_of)
    specs = recipe.models[0].soup_of or recipe.models
    folders = [model_folder(run, recipe, spec, spec.key(data)) for spec in specs]
    here = np.flatnonzero(rows.fold == config.fold)
    ids = tuple(str(row_id) for row_id in rows.ids[here])
    files = [predictions_file(folder, TtaConfig() if soup else recipe.views) for folder in folders]
    predictions = [Predictions.read(file).of("test").for_ids(ids).prediction for file in files]
    members = members_of(np.stack(predictions), recipe.per_member)
    equal = [1 / len(members)] * len(members)
    return _Fold(
        config.fold,
        [RunSummary.model_validate(read_json(folder / DONE)) for folder in folders],
        members,
        rows.target[here],
        equal if soup else _manifest(run, config.fold).weights,
    )


def _manifest(run: Path, fold: int) -> FoldManifest:
    manifest = read_fold(run / f"fold_{fold}")
    if manifest is None:
        raise ValueError(f"fold {fold} is damaged")
    return manifest


def _member(config: RunConfig, index: int, folds: Iterable[_Fold]) -> Member:
    variant, seed = divmod(index, config.ensemble.members)
    scores = {
        fold.number: MemberScores(
            validation_mae=fold.validation_mae[index],
            test_mae=float(fold.mae[index]),
            weight=None if fold.weights is None else fold.weights[index],
        )
        for fold in folds
    }
    return Member(seed=config.seed + seed, varied=config.ensemble.variants[variant], folds=scores)


def _curve(folds: Sequence[_Fold]) -> tuple[CurvePoint, ...]:
    prediction = np.concatenate([fold.prediction for fold in folds], axis=1)
    number = np.concatenate([np.full(len(fold.target), fold.number) for fold in folds])
    found = error_curve(prediction, np.concatenate([fold.target for fold in folds]), number)
    return tuple(CurvePoint.model_validate(point) for point in found)


def _with_spread(rows: PredictedRows) -> NDArray[np.bool_]:
    """Return where the members' own std is known, (n,): a composition's has no part in it."""
    return np.isfinite(rows.std) & ~rows.fallback


def _spread(rows: PredictedRows) -> tuple[ErrorBin, ...]:
    known = _with_spread(rows)
    return tuple(error_bins(rows.std[known], rows.absolute_error[known]))


def _spearman(rows: PredictedRows) -> float | None:
    known = _with_spread(rows)
    if not (rows.std[known] > _ROUNDING * np.abs(rows.prediction[known])).any():  # members that say the same
        return None
    std, error = (pd.Series(values[known]).rank() for values in (rows.std, rows.absolute_error))
    if known.sum() < 2 or std.nunique() < 2 or error.nunique() < 2:
        return None
    return float(std.corr(error))


def _compared(run: Path, config: RunConfig, scores: Scores, folds: Sequence[_Fold]) -> Iterable[Contender]:
    own = [summary for fold in folds for summary in fold.summaries]
    every = [summary for fold in folds for summary in _summaries((run / f"fold_{fold.number}").glob(f"*/{DONE}"))]
    views, size = config.tta.views, config.ensemble.size
    structures, seconds = _cost(every)
    # What is shared (teachers) would be needed for a single member as well.
    of_members = _cost(own)
    single = structures - of_members[0] * (1 - 1 / size), seconds - of_members[1] * (1 - 1 / size)
    per_member = config.ensemble.per_member
    single_mae = {fold.number: float(fold.mae.mean()) for fold in folds}
    yield _contender("single member", single_mae, single, views * per_member)
    together = {fold: values.mae for fold, values in scores.folds.items()}
    n_models = 1 if config.ensemble.combine == "soup" else size * per_member
    yield _contender("ensemble", together, (structures, seconds), n_models * views)
    if (run / STUDENT / "scores.json").is_file():
        yield from _student(run)


def _student(run: Path) -> Iterable[Contender]:
    """Yield the student, where it has finished folds; teachers that are also members lie in the ensemble's folder."""
    folder = run / STUDENT
    scores = Scores.model_validate(read_json(folder / "scores.json"))
    manifest = RunManifest.model_validate(read_json(folder / "run.json"))
    config = RunConfig.model_validate(manifest.config)
    if not config.distil.weight:  # a run of somebody's that happens to lie there
        return
    found: list[RunSummary] = []
    for fold in scores.folds:
        own, members = folder / f"fold_{fold}", run / f"fold_{fold}"
        recipe = fold_recipe(config.changed({"fold": fold}))
        names = [spec.name(manifest.data) for member in recipe.models for spec in member.teachers]
        found += _summaries([own / DONE, *own.glob(f"*/{DONE}"), *(members / name / DONE for name in names)])
    if scores.folds:
        mae = {fold: values.mae for fold, values in scores.folds.items()}
        yield _contender(STUDENT, mae, _cost(found), config.tta.views)


def _summaries(files: Iterable[Path]) -> list[RunSummary]:
    """Return what models reported; a file that is not there is none."""
    return [RunSummary.model_validate(read_json(file)) for file in files if file.is_file()]


def _cost(summaries: Sequence[RunSummary]) -> tuple[float, float]:
    return float(sum(each.structures for each in summaries)), sum(each.seconds for each in summaries)


def _contender(name: str, mae: Mapping[int, float], cost: tuple[float, float], per_crystal: int) -> Contender:
    return Contender(
        name=name,
        mae=dict(mae),
        mean=float(np.mean(list(mae.values()))),
        structures=cost[0],
        seconds=cost[1],
        predictions_per_crystal=per_crystal,
    )
