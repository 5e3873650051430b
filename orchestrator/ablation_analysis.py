"""The ablation table from outcomes: what each experiment scored, against its parent, at equal cost, and what follows.

Two families of comparisons are corrected for their number, each by Holm's method: those with the parent (which decide
whether a lever is better), and those with the experiment of equal cost, with E2, E3, E4 and E5 against the baseline
where that is not their parent. The second family asks another question (is the lever worth its cost?) of rows that
the first has already judged. As one family, every control added would make the levers themselves harder to see.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from orchestrator.statistics import CONFIDENCE, N_RESAMPLES, Contrast, compare, with_holm

LEVEL = 1 - CONFIDENCE
NEAR = 1.1  # an ensemble is near the best published MAE at up to this many times it
FEW_SYSTEMS = 30  # below, the bootstrap's interval is too narrow
QUESTIONS = (("E1", "E0"), ("E2", "E0"), ("E2", "E1"), ("E3", "E0"), ("E3", "L3"), ("E4", "E0"), ("E5", "E0"))

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of one experiment.

    Attributes:
        name: "E3"; twins carry a suffix, as "E3-scratch" with the parent "E0-scratch".
        says: one line.
        control: the experiment of equal cost without the lever.
        change: what it changes against the parent, as "ensemble.members=3".
        predictions: id, fold, replicate, target, prediction, in the target's unit: one row a test row and replicate
            (seed); empty where it failed.
        structures: processed in training by all its models on all folds, a replicate.
        seconds: of training, for the same.
        n_models: a fold and replicate, teachers included.
        tier: honesty tier, as "scratch".
        marks: what must be said beside every number.
        failed: why; the experiment then has a row without numbers.
        curve: of an ensemble: n_members, mae, min and max, as `orchestrator.ensemble.error_curve` gives them.
    """

    name: str
    says: str
    parent: str | None
    control: str | None
    change: str
    predictions: pd.DataFrame
    structures: int
    seconds: float
    device: str
    n_models: int
    tier: str
    marks: tuple[str, ...] = ()
    failed: str = ""
    curve: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Analysis:
    """The table and what follows from it; all of it is plain JSON without NaN.

    Attributes:
        rows: one an experiment, see `analyse`.
        published: mean MAE over folds of published algorithms on the same test rows, in `unit`.
        comparable: whether the rows are the whole official task, so that an MAE may stand beside the leaderboard's.
    """

    rows: list[Row]
    sentences: list[str]
    published: dict[str, float]
    unit: str
    comparable: bool

    @property
    def decimals(self) -> int:
        """Decimals that give the smallest MAE four digits; the whole table shares them."""
        return _decimals(self.rows)


def analyse(
    outcomes: Sequence[Outcome],
    systems: Mapping[str, str],
    *,
    published: Mapping[str, float] | None = None,
    comparable: bool = False,
    unit: str,
    n_resamples: int = N_RESAMPLES,
) -> Analysis:
    """Score the experiments, compare each with its parent and its control, and say what the comparisons decide.

    A row holds name, says, change, parent, control (below), tier, marks, failed, n_rows, folds and replicates
    (numbers of), mae_mean, mae_std (population, over folds; None for one), mae_seed_std (over replicates, ddof 1; None
    for one), per_fold, max_error, p95_error (of absolute errors averaged over replicates), cost, curve, and of the
    comparison with its parent difference, interval, p, p_bootstrap, p_corrected, detectable (alone),
    detectable_corrected (as the only difference of its family), per_fold_difference, n_systems, decision, reason (why
    there is no comparison) and note. `control` is None, or the same of the comparison with it and its name.

    Decisions: baseline; better or worse (corrected p < 0.05 and the bootstrap's interval on one side of zero); no
    difference seen; failed; not compared (there are numbers, but none of the parent on the same rows).

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
    for suffix in _suffixes(by_name):
        second |= {(child + suffix, other + suffix): None for child, other in QUESTIONS}
    pairs: dict[tuple[str, str], Row] = {}
    for family in (first, [pair for pair in second if pair not in first]):
        pairs |= _family(family, errors, failures, systems, n_resamples)
    rows = {name: _row(outcome, failures[name], errors.get(name), pairs) for name, outcome in by_name.items()}
    sentences = []
    for suffix in _suffixes(by_name):
        ladder = _Ladder(suffix, rows, pairs, unit, dict(published or {}), comparable)
        sentences += [f"{suffix[1:]} ladder: {said}" if suffix else said for said in ladder.sentences()]
    return Analysis(list(rows.values()), sentences + _marked(rows), dict(published or {}), unit, comparable)


def _suffixes(names: Iterable[str]) -> list[str]:
    """Of the ladder itself (nothing) and of its twins ("-scratch"), in the order in which they come."""
    return list(dict.fromkeys(name[len(name.partition("-")[0]) :] for name in names))


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


def _row(outcome: Outcome, failure: str, errors: pd.DataFrame | None, pairs: Mapping[tuple[str, str], Row]) -> Row:
    against_parent = _nothing("") if outcome.parent is None else pairs[outcome.name, outcome.parent]
    control = outcome.control and {"name": outcome.control} | pairs[outcome.name, outcome.control]
    decision = "failed" if failure else "baseline" if outcome.parent is None else against_parent["decision"]
    about = {"name": outcome.name, "says": outcome.says, "change": outcome.change, "parent": outcome.parent}
    cost = {"structures": _plain(outcome.structures), "seconds": _plain(outcome.seconds), "device": outcome.device}
    return (
        about
        | {"tier": outcome.tier, "marks": list(outcome.marks), "failed": failure}
        | _scores(outcome.predictions, errors)
        | {"cost": cost | {"models": int(outcome.n_models)}, "curve": [_plain(point) for point in outcome.curve]}
        | against_parent
        | {"decision": decision, "control": control}
    )


def _scores(predictions: pd.DataFrame, errors: pd.DataFrame | None) -> Row:
    if errors is None:
        names = ("n_rows", "folds", "replicates", "mae_mean", "mae_std", "mae_seed_std", "max_error", "p95_error")
        return dict.fromkeys(names) | {"per_fold": {}}
    per_fold = errors.groupby("fold")["error"].mean()
    each = (predictions["prediction"] - predictions["target"]).abs()
    of_replicates = each.groupby([predictions["replicate"], predictions["fold"]]).mean().groupby(level=0).mean()
    return {
        "n_rows": len(errors),
        "folds": len(per_fold),
        "replicates": len(of_replicates),
        "mae_mean": float(per_fold.mean()),
        "mae_std": float(per_fold.std(ddof=0)) if len(per_fold) > 1 else None,
        "mae_seed_std": float(of_replicates.std(ddof=1)) if len(of_replicates) > 1 else None,
        "max_error": float(errors["error"].max()),
        "p95_error": float(errors["error"].quantile(0.95)),
        "per_fold": {str(fold): float(value) for fold, value in per_fold.items()},
    }


def _family(
    pairs: Iterable[tuple[str, str]],
    errors: Mapping[str, pd.DataFrame],
    failures: Mapping[str, str],
    systems: Mapping[str, str],
    n_resamples: int,
) -> dict[tuple[str, str], Row]:
    """The comparison of each (child, other), corrected for the number of those that could be made."""
    made: dict[str, Contrast] = {}
    reasons: dict[tuple[str, str], str] = {}
    for child, other in pairs:
        reasons[child, other] = _obstacle(child, other, errors, failures)
        if not reasons[child, other]:
            made[f"{child} {other}"] = compare(errors[child], errors[other], systems, n_resamples=n_resamples)
    corrected = with_holm(made)
    found = {key: _compared(contrast, corrected[key], len(made)) for key, contrast in made.items()}
    return {pair: found.get(" ".join(pair)) or _nothing(reason) for pair, reason in reasons.items()}


def _obstacle(child: str, other: str, errors: Mapping[str, pd.DataFrame], failures: Mapping[str, str]) -> str:
    """Why two experiments cannot be compared; nothing where they can."""
    for name in (child, other):
        if name not in errors:
            return f"{name} failed" if name in failures else f"{name} was not run"
    left, right = (errors[name].set_index("id")[["fold", "target"]].sort_index() for name in (child, other))
    if not left.index.equals(right.index):
        return f"{child} and {other} were tested on different rows ({len(left)} and {len(right)})"
    return "" if left.equals(right) else f"{child} and {other} have other folds or targets of the same rows"


def _nothing(reason: str) -> Row:
    """What stands where there is no comparison."""
    names = ("difference", "interval", "p", "p_bootstrap", "p_corrected", "detectable", "detectable_corrected")
    nothing = dict.fromkeys((*names, "n_systems")) | {"per_fold_difference": {}, "note": ""}
    return nothing | {"decision": "not compared", "reason": reason}


def _compared(contrast: Contrast, p_corrected: float | None, family: int) -> Row:
    """A comparison, one of `family`, as plain JSON."""
    bootstrap, over_folds = contrast.bootstrap, contrast.corrected_t
    # Holm's first step is Bonferroni's: a lone difference has to pass it
    critical = 0.0 if over_folds is None else float(stats.t.isf(LEVEL / 2 / family, over_folds.df))
    found = {
        "difference": contrast.difference,
        "interval": [bootstrap.low, bootstrap.high] if math.isfinite(bootstrap.high - bootstrap.low) else None,
        "p": contrast.p,
        "p_bootstrap": bootstrap.p,
        "p_corrected": p_corrected,
        "detectable": None if over_folds is None else over_folds.detectable,
        "detectable_corrected": None if over_folds is None else critical * over_folds.se,
        "per_fold_difference": contrast.per_fold,
        "n_systems": bootstrap.n_clusters,
    }
    decided = {"decision": _decision(contrast, p_corrected), "reason": "", "note": _note(contrast)}
    return {name: _plain(value) for name, value in found.items()} | decided


def _decision(contrast: Contrast, p_corrected: float | None) -> str:
    if p_corrected is not None and p_corrected < LEVEL:
        if contrast.bootstrap.high < 0:
            return "better"
        if contrast.bootstrap.low > 0:
            return "worse"
    return "no difference seen"


def _note(contrast: Contrast) -> str:
    one_fold = "one fold: p is the bootstrap's, which knows nothing of the spread between trainings"
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


def _decimals(rows: Iterable[Row]) -> int:
    found = [row["mae_mean"] for row in rows if row["mae_mean"]]
    return min(9, max(0, 3 - math.floor(math.log10(min(found))))) if found else 4


def p_text(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _marked(rows: Mapping[str, Row]) -> list[str]:
    marked = [f"{name} ({'; '.join(row['marks'])})" for name, row in rows.items() if row["marks"]]
    return [f"Marked, to be read with every number of theirs: {', '.join(marked)}."] if marked else []


@dataclass(frozen=True, eq=False)
class _Ladder:
    """What the rules say of the experiments that share a suffix."""

    suffix: str
    rows: Mapping[str, Row]
    pairs: Mapping[tuple[str, str], Row]
    unit: str
    published: Mapping[str, float]
    comparable: bool

    def sentences(self) -> list[str]:
        rules = (
            (("E1", "E2"), self._consistency),
            (("E3",), self._ensemble),
            (("E4",), self._distillation),
            (("E5",), self._multi_task),
            (("E3",), lambda: f"Equal cost of training, the ensemble against one long run: {self._said('E3', 'L3')}."),
            (("E4",), lambda: f"Equal cost of use, the student against labels alone: {self._said('E4', 'E0')}."),
            (self._mine(), self._noise),
        )
        return [rule() for wanted, rule in rules if set(wanted) & set(self._mine())]

    def _consistency(self) -> str:
        asked = [base for base in ("E1", "E2") if base in self._mine()]
        better = [base for base in asked if self._pair(base, "E0")["decision"] == "better"]
        steady = [base for base in better if all(v < 0 for v in self._pair(base, "E0")["per_fold_difference"].values())]
        numbers = [self._said(base, "E0") for base in ("E1", "E2")]
        numbers += [self._said("E2", "E1")] if len(asked) == 2 else []
        unsteady = " (better, but not in every fold)" if better and not steady else ""
        verdict = "confirmed" if steady else f"not confirmed{unsteady}"
        return f"Consistency regularisation: {verdict}. {'; '.join(numbers)}."

    def _ensemble(self) -> str:
        mae = self.rows[self._name("E3")]["mae_mean"]
        if mae is None:
            return f"Ensemble: {self._name('E3')} failed, so that nothing can be said of it."
        if not self.published:
            unjudged = "whether it is near the best published result, and so whether to distil it, cannot be judged"
            return f"Ensemble: {unjudged}: give published predictions for these test rows with --published."
        best = min(self.published, key=lambda name: self.published[name])
        ratio = mae / self.published[best]
        verdict = "near the best, so distil it" if ratio <= NEAR else "not near the best, so do not distil it"
        numbers = f"{self._name('E3')} has {self._number(mae)}, {ratio:.2f} times the lowest MAE published for the "
        numbers += f"same test rows ({best}, {self._number(self.published[best])})"
        limit = "" if self.comparable else " These rows are not the whole official task: this is no leaderboard score."
        return f"Ensemble: {verdict} (the limit is {NEAR} times). {numbers}.{limit}"

    def _distillation(self) -> str:
        teacher, student = self._pair("E3", "E0"), self._pair("E4", "E0")
        if reason := teacher["reason"] or student["reason"]:
            return f"Distillation: {self._name('E4')} cannot be judged: {reason}."
        if teacher["decision"] != "better":
            gainless = f"{self._name('E3')} shows no gain over {self._name('E0')} that a student could keep"
            return f"Distillation: {gainless}. {self._said('E4', 'E0')}."
        share = student["difference"] / teacher["difference"]
        gains = f"{self._number(-student['difference'])} of {self._number(-teacher['difference'])}"
        return f"Distillation: {self._name('E4')} keeps {share:.0%} of the ensemble's gain ({gains})."

    def _multi_task(self) -> str:
        pair = self._pair("E5", "E0")
        verdict = "cannot be judged" if pair["reason"] else "kept" if pair["decision"] == "better" else "dropped"
        return f"Multi-task training: {verdict}. {self._said('E5', 'E0')}."

    def _noise(self) -> str:
        mine = [self.rows[self._name(base)] for base in self._mine()]
        compared = [row for row in mine if row["difference"] is not None]
        better = [row["name"] for row in compared if row["decision"] == "better"]
        if not compared:
            return "No experiment could be compared with its parent."
        if better:
            return f"Better than their parent: {', '.join(better)}."
        seen = [row for row in compared if row["detectable"]]  # 0 where two experiments predict the same
        if not seen:
            return "No lever beat noise. The spread over folds, and so what could have been seen, is unknown."
        finest = min(seen, key=lambda row: row["detectable"])
        alone, corrected = (self._number(finest[name]) for name in ("detectable", "detectable_corrected"))
        seen_from = f"{alone} in a single comparison ({finest['name']}), {corrected} corrected for their number"
        return f"No lever beat noise. The smallest difference that could have been seen is {seen_from}."

    def _said(self, child: str, other: str) -> str:
        """A comparison in words, as "E1 against E0: -0.0012 eV/atom, interval ..., corrected p 0.012: better"."""
        pair, names = self._pair(child, other), f"{self._name(child)} against {self._name(other)}"
        if pair["reason"]:
            return f"{names}: not compared ({pair['reason']})"
        decimals = _decimals(self.rows.values())
        ends = [f"{value:+z.{decimals}f}" for value in pair["interval"] or ()]
        interval = f"interval {' to '.join(ends)}" if ends else "no interval"
        one_fold = " (one fold)" if len(pair["per_fold_difference"]) == 1 else ""
        numbers = f"{self._number(pair['difference'], '+')}, {interval}, corrected p {p_text(pair['p_corrected'])}"
        return f"{names}: {numbers}{one_fold}: {pair['decision']}"

    def _pair(self, child: str, other: str) -> Row:
        return self.pairs[self._name(child), self._name(other)]

    def _number(self, value: float, sign: str = "") -> str:
        return f"{value:{sign}z.{_decimals(self.rows.values())}f} {self.unit}".rstrip()

    def _name(self, base: str) -> str:
        return base + self.suffix

    def _mine(self) -> list[str]:
        """The experiments of this ladder, by their names without suffix."""
        return [name.removesuffix(self.suffix) for name in self.rows if _suffixes([name]) == [self.suffix]]
