"""The ablation table from outcomes: what each experiment scored, against its parent, and against what costs the same.

Two families of comparisons are corrected for their number, each by Holm's method: those with the parent (which decide
whether a lever is better), and those with the control of equal cost (in training, as L3 for E3, or in use, as E0 for
E4 and B1), with E2, E3, E4 and E5 against the baseline where that is not their parent. The second family asks another
question (is the lever worth its cost?) of rows that the first has already judged. As one family, every control added
would make the levers themselves harder to see.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from orchestrator.ablation.rows import Comparison, Control, Cost, Decision, Errors, ExperimentRow
from orchestrator.ablation.verdicts import QUESTIONS, decimals_of, sentences_of, suffixes
from orchestrator.evaluation.statistics import CONFIDENCE, N_RESAMPLES, Contrast, compare, with_holm
from orchestrator.report.format import few_rows
from trainables.progress import Progress, silent

LEVEL = 1 - CONFIDENCE
ABOUT_EQUAL = 1.1  # two trainings cost the same at up to this many times the structures
FEW_SYSTEMS = 30  # below, the bootstrap's interval is too narrow

Pair = tuple[str, str]  # a child, and what it is compared with


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of one experiment.

    Attributes:
        name: "E3"; twins carry a suffix, as "E3-scratch" with the parent "E0-scratch".
        description: one line.
        control: the experiment without the lever that costs the same in training (L3 for E3) or in use (E0 for E4 and
            B1, one model at prediction each, though their training costs more).
        change: what it changes against the parent, as "ensemble.members=3".
        predictions: id, fold, replicate, target, prediction, in the target's unit: one row a test row and replicate
            (seed); empty where it failed.
        structures: processed in training by all its models on all folds, a replicate.
        seconds: of training, for the same.
        n_models: a fold and replicate, teachers included.
        tier: honesty tier, as "scratch".
        caveats: what must be said beside every number.
        failed: why; the experiment then has a row without numbers.
        curve: of an ensemble: n_members, mae, min and max, as `evaluation.ensemble.error_curve` gives them for the
            plain mean of its members.
        views: of a crystal that each model predicts at test time.
        n_members: models that predict a crystal together; 1 for a student or a soup.
    """

    name: str
    description: str
    parent: str | None
    control: str | None
    change: str
    predictions: pd.DataFrame
    structures: int
    seconds: float
    device: str
    n_models: int
    tier: str
    caveats: tuple[str, ...] = ()
    failed: str = ""
    curve: tuple[dict[str, float], ...] = ()
    views: int = 1
    n_members: int = 1

    @property
    def n_predictions(self) -> int:
        """Of a crystal at test time."""
        return self.n_members * self.views


@dataclass(frozen=True, eq=False)
class Analysis:
    """The table and what follows from it.

    Attributes:
        rows: one an experiment.
        published: mean MAE over folds of published algorithms on the same test rows, in `unit`.
        comparable: whether the rows are the whole official task, so that an MAE may stand beside the leaderboard's.
    """

    rows: list[ExperimentRow]
    sentences: list[str]
    published: dict[str, float]
    unit: str
    comparable: bool

    @property
    def decimals(self) -> int:
        """Decimals that give the smallest MAE four digits; the whole table shares them."""
        return decimals_of(row.mae for row in self.rows)


def analyse(
    outcomes: Sequence[Outcome],
    systems: Mapping[str, str],
    *,
    published: Mapping[str, float] | None = None,
    comparable: bool = False,
    unit: str,
    n_resamples: int = N_RESAMPLES,
    progress: Progress = silent,
) -> Analysis:
    """Score the experiments, compare each with its parent and its control, and say what the comparisons decide.

    Args:
        systems: chemical system of every id.
        published: mean MAE over folds of published algorithms on these test rows.
        comparable: the rows are the whole official task, neither synthetic nor partial.
        unit: the target's, for the sentences.

    Raises:
        ValueError: two outcomes of one name, or an id without system.
    """
    by_name = {outcome.name: outcome for outcome in outcomes}
    if len(by_name) < len(outcomes):
        raise ValueError(f"outcomes share a name: {[outcome.name for outcome in outcomes]}")
    failures = {name: _failure(outcome) for name, outcome in by_name.items()}
    errors = {name: _errors(by_name[name].predictions) for name, failure in failures.items() if not failure}
    first = {(o.name, o.parent): None for o in outcomes if o.parent is not None}
    second = {(o.name, o.control): None for o in outcomes if o.control is not None}
    for suffix in suffixes(by_name):
        second |= {(child + suffix, other + suffix): None for child, other in QUESTIONS}
    reasons = {pair: _obstacle(*pair, errors, failures) for pair in first | second}
    contrasts: dict[Pair, Contrast] = {}
    possible = [pair for pair, reason in reasons.items() if not reason]
    with progress.stage("compare experiments", len(possible), "contrasts") as bar:
        for child, other in possible:
            contrasts[child, other] = compare(errors[child], errors[other], systems, n_resamples=n_resamples)
            bar.advance(1, f"{child} against {other}")
    pairs = {pair: Comparison(reason=reason) for pair, reason in reasons.items()}
    for is_first in (True, False):
        pairs |= _family({pair: made for pair, made in contrasts.items() if (pair in first) is is_first})
    rows = {}
    for name, outcome in by_name.items():
        control = None if outcome.control is None else _control(outcome, outcome.control, by_name, failures, pairs)
        rows[name] = replace(_row(outcome, failures[name], errors.get(name), pairs), control=control)
    given = dict(published or {})
    said = sentences_of(rows, pairs, unit, given, comparable)
    counts = [row.errors.n_rows for row in rows.values() if row.errors.n_rows]
    said += few_rows(min(counts), "test") if counts else []
    return Analysis(list(rows.values()), said, given, unit, comparable)


def _failure(outcome: Outcome) -> str:
    """Why an outcome has no numbers; nothing where it has."""
    rows = outcome.predictions
    if outcome.failed or rows.empty:
        return outcome.failed or "it has no predictions"
    if unusable := int((~np.isfinite(rows[["target", "prediction"]].to_numpy(float))).any(axis=1).sum()):
        return f"{unusable} predictions or targets are not finite"
    if rows.duplicated(["id", "replicate"]).any() or len(rows) != rows["id"].nunique() * rows["replicate"].nunique():
        return "its replicates do not all predict the same rows once"
    if rows[["id", "fold", "target"]].drop_duplicates()["id"].duplicated().any():
        return "its replicates have other folds or targets of the same rows"
    return ""


def _errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """id, fold, target and error of each test row: the absolute error averaged over replicates."""
    rows = predictions.assign(error=(predictions["prediction"] - predictions["target"]).abs())
    return rows.groupby("id", as_index=False).agg({"fold": "first", "target": "first", "error": "mean"})


def _row(
    outcome: Outcome, failure: str, errors: pd.DataFrame | None, pairs: Mapping[Pair, Comparison]
) -> ExperimentRow:
    compared = Comparison() if outcome.parent is None else pairs[outcome.name, outcome.parent]
    if failure:
        compared = replace(compared, decision=Decision.FAILED)
    elif outcome.parent is None:
        compared = replace(compared, decision=Decision.BASELINE)
    cost = Cost(
        structures=int(outcome.structures),
        seconds=_finite(outcome.seconds),
        device=outcome.device,
        models=int(outcome.n_models),
        members=int(outcome.n_members),
        views=int(outcome.views),
    )
    return ExperimentRow(
        name=outcome.name,
        description=outcome.description,
        change=outcome.change,
        parent=outcome.parent,
        tier=outcome.tier,
        caveats=outcome.caveats,
        failed=failure,
        errors=_scores(outcome.predictions, errors),
        cost=cost,
        curve=[_plain(point) for point in outcome.curve],
        against_parent=compared,
    )


def _control(
    outcome: Outcome,
    name: str,
    by_name: Mapping[str, Outcome],
    failures: Mapping[str, str],
    pairs: Mapping[Pair, Comparison],
) -> Control:
    """Return the comparison with the control, and which of the two costs is equal."""
    equal = ""
    if not failures.get(name, "it was not run") and not failures[outcome.name]:
        equal = _equal_in(outcome, by_name[name])
    return Control(name, equal, pairs[outcome.name, name])


def _equal_in(one: Outcome, other: Outcome) -> str:
    """Return the costs in which two experiments are about equal."""
    least, most = sorted([one.structures, other.structures])
    found = ["training"] if most <= ABOUT_EQUAL * least else []
    found += ["use"] if one.n_predictions == other.n_predictions else []
    return " and ".join(found) or "neither"


def _scores(predictions: pd.DataFrame, errors: pd.DataFrame | None) -> Errors:
    if errors is None:
        return Errors()
    per_fold = errors.groupby("fold")["error"].mean()
    each = (predictions["prediction"] - predictions["target"]).abs()
    of_replicates = each.groupby([predictions["replicate"], predictions["fold"]]).mean().groupby(level=0).mean()
    by_replicate = each.groupby(predictions["replicate"])  # errors averaged over replicates are no model's
    return Errors(
        n_rows=len(errors),
        folds=len(per_fold),
        replicates=len(of_replicates),
        mae_mean=float(per_fold.mean()),
        mae_std=float(per_fold.std(ddof=0)) if len(per_fold) > 1 else None,
        mae_seed_std=float(of_replicates.std(ddof=1)) if len(of_replicates) > 1 else None,
        max_error=float(by_replicate.max().mean()),
        p95_error=float(by_replicate.quantile(0.95).mean()),
        per_fold={str(fold): float(value) for fold, value in per_fold.items()},
    )


def _family(contrasts: Mapping[Pair, Contrast]) -> dict[Pair, Comparison]:
    """Return the comparisons, corrected for their number."""
    corrected = with_holm({" ".join(pair): contrast for pair, contrast in contrasts.items()})
    return {
        pair: _compared(contrast, corrected[" ".join(pair)], len(contrasts)) for pair, contrast in contrasts.items()
    }


def _obstacle(child: str, other: str, errors: Mapping[str, pd.DataFrame], failures: Mapping[str, str]) -> str:
    """Why two experiments cannot be compared; nothing where they can."""
    for name in (child, other):
        if name not in errors:
            return f"{name} failed" if name in failures else f"{name} was not run"
    left, right = (errors[name].set_index("id")[["fold", "target"]].sort_index() for name in (child, other))
    if not left.index.equals(right.index):
        return f"{child} and {other} were tested on different rows ({len(left)} and {len(right)})"
    return "" if left.equals(right) else f"{child} and {other} have other folds or targets of the same rows"


def _compared(contrast: Contrast, p_corrected: float | None, family: int) -> Comparison:
    """Return a comparison, one of `family`."""
    bootstrap, over_folds = contrast.bootstrap, contrast.corrected_t
    # Holm's first step is Bonferroni's: a lone difference has to pass it
    critical = 0.0 if over_folds is None else float(stats.t.isf(LEVEL / 2 / family, over_folds.df))
    return Comparison(
        decision=_decision(contrast, p_corrected),
        note=_note(contrast),
        difference=_finite(contrast.difference),
        interval=(bootstrap.low, bootstrap.high) if math.isfinite(bootstrap.high - bootstrap.low) else None,
        p=_finite(contrast.p),
        p_bootstrap=_finite(bootstrap.p),
        p_corrected=_finite(p_corrected),
        detectable=None if over_folds is None else _finite(over_folds.detectable),
        detectable_corrected=None if over_folds is None else _finite(critical * over_folds.se),
        n_systems=bootstrap.n_clusters,
        per_fold_difference=_plain(contrast.per_fold),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _decision(contrast: Contrast, p_corrected: float | None) -> Decision:
    if p_corrected is not None and p_corrected < LEVEL:
        if contrast.bootstrap.high < 0:
            return Decision.BETTER
        if contrast.bootstrap.low > 0:
            return Decision.WORSE
    return Decision.NO_DIFFERENCE


def _note(contrast: Contrast) -> str:
    one_fold = "one fold: p is the bootstrap's, which ignores the spread between trainings"
    notes = [one_fold] if contrast.corrected_t is None else []
    if (n := contrast.bootstrap.n_clusters) < FEW_SYSTEMS:
        notes.append(f"few chemical systems ({n}): the interval is too narrow or missing")
    return "; ".join(notes)


def _plain(value: Any) -> Any:
    """Numbers, lists and dicts as JSON has them: None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return (float(value) if math.isfinite(value) else None) if isinstance(value, float | np.floating) else value
