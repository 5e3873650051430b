"""Which trial a study recommends, and whether its margin over the baseline is more than the noise between seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from orchestrator.evaluation.statistics import CONFIDENCE
from orchestrator.report.format import four_digits, number_text
from orchestrator.study.journal import Trial, TrialState

BASELINE = 0  # the number of the trial that is E0
_ROUNDING = 1e-6  # of a difference: a smaller noise is none


@dataclass(frozen=True)
class Checked:
    """A trial's trainings at full length with fresh seeds.

    Attributes:
        number: of the search trial.
        maes: validation MAE of each finished check, in the task's unit, by seed ascending.
        failed: checks that ended without a value.
        open: checks that have not ended.
        wanted: how many seeds were to be tried.
        seeds: of `maes`.
    """

    number: int
    maes: tuple[float, ...]
    failed: int = 0
    open: int = 0
    wanted: int = 0
    seeds: tuple[int, ...] = ()

    @property
    def full(self) -> bool:
        """Return whether all confirmation runs are there."""
        return len(self.maes) >= max(1, self.wanted)

    @property
    def mean(self) -> float:
        """Return the mean MAE of the confirmation runs."""
        return statistics.fmean(self.maes)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None of a single one."""
        return statistics.stdev(self.maes) if len(self.maes) > 1 else None


@dataclass(frozen=True)
class Margin:
    """By how much the mean of one trial's checks is below another's, in the task's unit; positive speaks for the one.

    Attributes:
        noise: sample standard deviation over seeds of the difference.
        se: standard error of the mean difference.
        low, high: 95 % t-interval of the difference. It is None, as noise and se are, of a single seed. Where all seeds
            give the same difference, they change nothing, and no noise was measured: there is no interval either.
    """

    difference: float
    noise: float | None = None
    se: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def beyond_noise(self) -> bool:
        """The whole interval speaks for the one."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class Verdict:
    """The winner of a study.

    Attributes:
        winner: number of the trial.
        changes: its changes to the base configuration.
        search_value: its validation MAE in the search, one seed, in the task's unit.
        check: its checks; None where nothing was checked, and then the search value alone chose it.
        e0: the baseline's checks; None where they are not all there.
        margin: of the winner over E0; None where the winner is E0, or where E0 has not been checked.
        second: the next best checked trial, and the winner's margin over it.
        sentence: the verdict in words.
    """

    winner: int
    changes: Mapping[str, Any]
    search_value: float
    check: Checked | None
    e0: Checked | None
    margin: Margin | None
    second: Checked | None
    second_margin: Margin | None
    sentence: str

    @property
    def beyond_noise(self) -> bool:
        """Return whether the winner's margin is beyond the seed noise."""
        return self.margin is not None and self.margin.beyond_noise


def paired_margin(one: Checked, other: Checked) -> Margin | None:
    """Mean over the seeds that both have of the other's MAE minus the one's, with Student's interval.

    Paired by seed: a seed fixes fresh weights and batches, whose luck both configurations share, so that differences
    vary far less than the MAEs themselves do. SE = s / sqrt(n) with s of the n differences, n - 1 degrees of freedom.

    Returns:
        None where they have no seed in common.
    """
    first, second = (dict(zip(each.seeds, each.maes, strict=True)) for each in (one, other))
    differences = [second[seed] - first[seed] for seed in sorted(set(first) & set(second))]
    if len(differences) < 2:
        return Margin(differences[0]) if differences else None
    mean, noise = statistics.fmean(differences), statistics.stdev(differences)
    if noise <= _ROUNDING * abs(mean):
        return Margin(mean, noise)
    se = noise / math.sqrt(len(differences))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * se
    return Margin(mean, noise, se, mean - half, mean + half)


def checks_of(trials: Iterable[Trial], wanted: int) -> dict[int, Checked]:
    """Return the checks of each trial that has any, by its number."""
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.of is not None:
            found.setdefault(trial.of, []).append(trial)
    return {number: _checked(number, found[number], wanted) for number in sorted(found)}


def _checked(number: int, checks: Sequence[Trial], wanted: int) -> Checked:
    done = sorted((check for check in checks if check.state == TrialState.COMPLETE), key=lambda check: check.seed)
    failed = sum(check.state in (TrialState.FAIL, TrialState.PRUNED) for check in checks)
    still = sum(check.state == TrialState.RUNNING for check in checks)
    seeds = tuple(check.seed for check in done)
    return Checked(number, tuple(check.values[0] for check in done), failed, still, wanted, seeds)


def verdict_of(searched: Mapping[int, Trial], checks: Mapping[int, Checked], unit: str) -> Verdict | None:
    """Return the trial with the lowest mean over all check seeds or, without checks, the complete one with the lowest.

    Args:
        searched: the search trials, by number.
        unit: of the MAE.

    Returns:
        None where no trial completed.
    """
    complete = [trial for trial in searched.values() if trial.state == TrialState.COMPLETE]
    ranked = sorted((check for check in checks.values() if check.full), key=lambda check: check.mean)
    others = any(number != BASELINE for number in (*checks, *(trial.number for trial in complete)))
    if any(check.number != BASELINE for check in ranked) or (ranked and not others):
        return _checked_verdict(searched, ranked, unit)
    if not complete:
        return None
    best = min(complete, key=lambda trial: trial.values[0])
    sentence = _unchecked_sentence(best, searched, len(complete), bool(checks), unit)
    e0 = next((check for check in ranked if check.number == BASELINE), None)
    return Verdict(best.number, best.changes, best.values[0], None, e0, None, None, None, sentence)


def _checked_verdict(searched: Mapping[int, Trial], ranked: Sequence[Checked], unit: str) -> Verdict:
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    trial = searched[first.number]
    e0 = next((check for check in ranked if check.number == BASELINE), None)
    margin = paired_margin(first, e0) if e0 and first.number != BASELINE else None
    over_second = paired_margin(first, second) if second else None
    sentence = _checked_sentence(first, e0, margin, second, over_second, unit)
    value = trial.values[0] if trial.values else math.nan
    return Verdict(first.number, trial.changes, value, first, e0, margin, second, over_second, sentence)


def name_of(number: int) -> str:
    """Return what a trial is called: E0 for the baseline."""
    return "E0" if number == BASELINE else f"trial {number}"


def checked_text(checked: Checked, decimals: int) -> str:
    """As "43.10 +- 0.40"."""
    spread = "" if checked.sd is None else f" +- {number_text(checked.sd, decimals)}"
    return f"{number_text(checked.mean, decimals)}{spread}"


def _checked_sentence(
    first: Checked, e0: Checked | None, margin: Margin | None, second: Checked | None, over: Margin | None, unit: str
) -> str:
    decimals, measure = four_digits(first.mean), f" {unit}" if unit else ""
    seeds = f"over {len(first.maes)} fresh seed{'s' * (len(first.maes) != 1)}"
    value = checked_text(first, decimals)
    if first.number == BASELINE:
        if second is None or over is None:
            return f"Verdict: no trial but the baseline completed. E0 has a validation MAE of {value}{measure} {seeds}."
        nearest = f"The nearest, trial {second.number}, has {checked_text(second, decimals)}{measure}"
        return (
            f"Verdict: nothing beats the baseline. E0 has a validation MAE of {value}{measure} {seeds}. "
            f"{nearest}: {_margin_text(over, decimals, measure)}."
        )
    start = f"Verdict: trial {first.number} has a validation MAE of {value}"
    if e0 is None or margin is None:
        return f"{start}{measure} {seeds}. E0 has not been checked, so no margin can be given."
    against = f"{start} against E0's {checked_text(e0, decimals)}{measure} {seeds}"
    tie = "" if margin.beyond_noise else " Treat it as a tie with E0."
    return f"{against}: margin {_margin_text(margin, decimals, measure)}.{tie}"


def _margin_text(margin: Margin, decimals: int, measure: str) -> str:
    if margin.low is None or margin.high is None or margin.noise is None:
        seeds = "with one seed each" if margin.noise is None else "the same with every seed"
        difference = f"{number_text(margin.difference, decimals)}{measure}"
        return f"{difference}, {seeds}, which says nothing about the seed noise"
    words = "is" if margin.beyond_noise else "is not"
    interval = f"{number_text(margin.low, decimals)} to {number_text(margin.high, decimals)}"
    noise = number_text(margin.noise, decimals)
    return (
        f"{number_text(margin.difference, decimals)}{measure} (95 % interval {interval}), which {words} beyond the "
        f"seed noise (SD of the differences {noise})"
    )


def _unchecked_sentence(best: Trial, searched: Mapping[int, Trial], complete: int, begun: bool, unit: str) -> str:
    measure, value = f" {unit}" if unit else "", number_text(best.values[0])
    why = "the checks are not finished" if begun else "nothing was checked"
    if best.number == BASELINE:
        return (
            f"Verdict: nothing beats the baseline in the search. E0 has the lowest validation MAE of {complete} "
            f"complete trial{'s' * (complete != 1)}, {value}{measure}; this is based on one seed, and {why}."
        )
    e0 = searched.get(BASELINE)
    against = f" (E0: {number_text(e0.values[0])})" if e0 and e0.state == TrialState.COMPLETE else ""
    return (
        f"Verdict: trial {best.number} has the lowest validation MAE of {complete} complete "
        f"trial{'s' * (complete != 1)}, {value}{measure}{against}; this is based on one seed, and {why}, "
        "so its margin may be seed noise."
    )
