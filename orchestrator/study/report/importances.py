"""Which parameters decided a study's MAE: fANOVA and PED-ANOVA over trials that were measured at the same step."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from orchestrator.study.journal import Trial
from orchestrator.study.sampler import quiet_optuna

Distributions = Callable[[Trial], Mapping[str, BaseDistribution]]

_Evaluator = FanovaImportanceEvaluator | PedAnovaImportanceEvaluator
FEWEST = 8  # trials below which a forest or a density says nothing
_CAP = 2  # times the median value
_SEED = 0  # of fANOVA's forest
_BEST = 5  # trials that PED-ANOVA's best group should have at least
NOTES = (
    "fANOVA: share of the variance of the MAE that a parameter explains alone; a parameter that a trial does not use "
    "counts as the middle of its range (first of its choices), log ranges on their log scale.",
    "PED-ANOVA: how much the best trials' values of a parameter (best tenth, at least five, at most half) differ from "
    "all trials'; a parameter that not all trials use counts where it is used.",
    "A failed run would outweigh all others: values above twice the median count as twice the median.",
    "Both are shares of their own sum, from few trials: read the order, not the digits.",
)


@dataclass(frozen=True)
class Importances:
    """Importances of one quantity.

    Attributes:
        what: the quantity, in words.
        n_trials: trials that they were computed from.
        fanova, ped_anova: share of each parameter, the largest first, sum 1; empty where there are none.
        reasons: why there are none, of both or of one of them.
    """

    what: str
    n_trials: int
    fanova: dict[str, float] = field(default_factory=dict)
    ped_anova: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def importances(what: str, measured: Sequence[tuple[Trial, float]], distributions: Distributions) -> Importances:
    """Return importances for the values that came with the trials; where they make no sense, the reason.

    Args:
        measured: trials with finite values that may be compared with each other; those without parameters (a baseline
            that lies outside of the space) are left out.
        distributions: what a trial's parameters were drawn from, by name.
    """
    measured = [(trial, value) for trial, value in measured if trial.params]
    n = len(measured)
    found = [
        (dict(trial.params), {name: one for name, one in distributions(trial).items() if name in trial.params}, value)
        for trial, value in measured
    ]
    varied = _varied(found)
    if n < FEWEST:
        return Importances(what, n, reasons=[f"{n} trials are too few for importances: {FEWEST} are needed"])
    if len({value for *_, value in found}) == 1:
        return Importances(what, n, reasons=[f"all {n} trials have the same value"])
    if not varied:
        return Importances(what, n, reasons=["no parameter differs between the trials"])
    most = _CAP * abs(statistics.median(value for *_, value in found))
    rows = [
        ({k: p[k] for k in varied if k in p}, {k: d[k] for k in varied if k in p}, min(most, v)) for p, d, v in found
    ]
    quantile = min(0.5, max(0.1, _BEST / n))
    reasons: list[str] = []
    fanova = _shares("fANOVA", FanovaImportanceEvaluator(seed=_SEED), _complete(rows, varied), reasons)
    ped = _shares("PED-ANOVA", PedAnovaImportanceEvaluator(target_quantile=quantile), rows, reasons)
    return Importances(what, n, fanova, ped, reasons)


_Point = tuple[dict[str, Any], dict[str, BaseDistribution], float]


def _varied(points: Sequence[_Point]) -> dict[str, BaseDistribution]:
    """Parameters that differ between the trials (not to be used is another value), with their distributions."""
    found: dict[str, BaseDistribution] = {}
    for _, drawn_from, _ in points:
        found |= drawn_from
    values = {name: {repr(params.get(name, "not used")) for params, *_ in points} for name in found}
    return {name: one for name, one in sorted(found.items()) if len(values[name]) > 1}


def _complete(points: Sequence[_Point], varied: Mapping[str, BaseDistribution]) -> list[_Point]:
    """Every parameter in every trial, on the scale on which it was drawn."""
    flat = {name: _flat(one) for name, one in varied.items()}
    return [
        ({k: _flat_value(one, p[k]) if k in p else _middle(one) for k, one in varied.items()}, flat, value)
        for p, _, value in points
    ]


def _is_log(one: BaseDistribution) -> bool:
    return isinstance(one, FloatDistribution | IntDistribution) and one.log


def _flat(one: BaseDistribution) -> BaseDistribution:
    """Return the distribution without a logarithm, for Optuna's fANOVA takes volumes on the linear scale."""
    if isinstance(one, FloatDistribution | IntDistribution) and one.log:
        return FloatDistribution(math.log(one.low), math.log(one.high))
    return one


def _flat_value(one: BaseDistribution, value: Any) -> Any:
    return math.log(value) if _is_log(one) else value


def _middle(one: BaseDistribution) -> Any:
    if isinstance(one, CategoricalDistribution):
        return one.choices[0]
    assert isinstance(one, FloatDistribution | IntDistribution)
    if one.log:
        return (math.log(one.low) + math.log(one.high)) / 2
    middle = (one.low + one.high) / 2
    if one.step:
        middle = one.low + round((middle - one.low) / one.step) * one.step
    return int(middle) if isinstance(one, IntDistribution) else middle


def _shares(name: str, evaluator: _Evaluator, points: Sequence[_Point], reasons: list[str]) -> dict[str, float]:
    """Return importances with sum 1, largest first; where there are none, a reason is added."""
    try:
        with quiet_optuna(optuna.logging.ERROR, Warning):  # NOTES replaces its warnings
            study = optuna.create_study()
            study.add_trials(
                [optuna.trial.create_trial(params=p, distributions=d, value=value) for p, d, value in points]
            )
            found = evaluator.evaluate(study)
    except ValueError as error:  # values outside of their distribution, or distributions that do not fit together
        reasons.append(f"{name}: {error}")
        return {}
    total = sum(found.values())
    if not np.isfinite(total) or total <= 0:
        reasons.append(f"{name} sees no parameter that makes a difference")
        return {}
    return {parameter: float(value / total) for parameter, value in found.items()}
