"""What follows from a study's trials: the verdict, what was saved by stopping early, what failed, and what mattered."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution

from orchestrator.report.format import few_rows, four_digits, number_text
from orchestrator.study.journal import Crash, StepResult, Trial, TrialState
from orchestrator.study.manifest import StudyManifest
from orchestrator.study.report.importances import Distributions, Importances, importances
from orchestrator.study.report.verdict import (
    BASELINE,
    Checked,
    Verdict,
    checked_text,
    checks_of,
    name_of,
    verdict_of,
)
from trainables.config import RunConfig, parse_config
from trainables.errors import listed

STATES = tuple(TrialState)
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|(?<![\w.])[-+]?\d[\d,_]*\.?\d*(?:[eE][-+]?\d+)?(?![\w])")


@dataclass(frozen=True)
class Failure:
    """Trials that failed for the same reason; where only numbers differ between reasons they are N."""

    reason: str
    example: str
    numbers: list[int]


@dataclass(frozen=True)
class Rung:
    """What happened at a step at which the scheduler decides.

    Attributes:
        step: its training step; that of the last one is where full-length trials end.
        reached: search trials with a finite MAE there.
        stopped: of these, how many went no further than this rung; 0 at the last one.
        best, median: MAE there, in the task's unit; nan where no trial came.
    """

    step: int
    reached: int
    stopped: int
    best: float
    median: float


@dataclass(frozen=True)
class Saving:
    """Training of the search: crystals processed, and those of the same trials if each had had its full length.

    Trials that failed or are running have no part in it. A stopped trial's full length is that of the study; joint
    training would have been longer, so what was saved is a lower bound.
    """

    structures: int
    full: int

    @property
    def share(self) -> float:
        """Return the saved share of the full training."""
        return 1 - self.structures / self.full if self.full else 0.0


@dataclass(frozen=True)
class Analysis:
    """All that the reports of a study show.

    Attributes:
        manifest: study.json.
        searched: the search trials, by number.
        trials: those and their checks, by number.
        checks: of each trial that was checked.
        verdict, best: None where no trial completed; best is the complete configuration.
        repeated: the run that training with best.yaml repeats, so that its validation MAE can be looked up.
        sentences: what follows, the verdict first.
        states: search trials in each state that there is.
        front: numbers of the complete trials for which no other has both a lower MAE and a lower cost, cheapest first.
        axes: of each parameter, what it was drawn from.
        crashes: of the engine that runs the trials.
    """

    manifest: StudyManifest
    searched: Mapping[int, Trial]
    trials: Mapping[int, Trial]
    checks: Mapping[int, Checked]
    verdict: Verdict | None
    best: RunConfig | None
    repeated: Trial | None
    sentences: list[str]
    states: dict[TrialState, int]
    failures: list[Failure]
    front: list[int]
    rungs: list[Rung]
    importances: list[Importances]
    saving: Saving | None
    axes: dict[str, BaseDistribution]
    crashes: tuple[Crash, ...] = ()

    @property
    def unit(self) -> str:
        """Return the target's unit."""
        return self.manifest.unit

    @property
    def predicts_only(self) -> bool:
        """Return whether trials only predict."""
        return self.manifest.predicts_only

    @property
    def cost_name(self) -> str:
        """Return what a trial's cost counts."""
        return "predictions a crystal" if self.predicts_only else "structures processed in training"


def analyse(
    manifest: StudyManifest,
    trials: Mapping[int, Trial],
    distributions: Distributions,
    crashes: Sequence[Crash] = (),
) -> Analysis:
    """Everything from study.json and the journal's trials.

    Args:
        distributions: what the parameters of a trial were drawn from, by name.
        crashes: of the engine, as the journal tells them.

    Raises:
        UserError: the best trial's configuration is none (of another version of crystaltune).
    """
    searched = {number: trial for number, trial in sorted(trials.items()) if trial.of is None}
    wanted = len(manifest.checks.seeds) if manifest.checks.top else 0
    checks = checks_of(trials.values(), wanted)
    verdict = verdict_of(searched, checks, manifest.unit)
    repeated = _repeated(verdict, trials)
    front = pareto_front({number: (trial.values[0], cost_of(trial, manifest)) for number, trial in _ended(searched)})
    states = Counter(trial.state for trial in searched.values())
    saving = None if manifest.predicts_only else saving_of(searched.values(), manifest.n_steps)
    axes = {name: one for trial in searched.values() for name, one in distributions(trial).items()}
    analysis = Analysis(
        manifest=manifest,
        searched=searched,
        trials=trials,
        checks=checks,
        verdict=verdict,
        best=best_config(manifest, searched[verdict.winner], repeated.seed) if verdict and repeated else None,
        repeated=repeated,
        sentences=[],
        states={state: states[state] for state in STATES if states[state]},
        failures=failures_of(trials.values()),
        front=front,
        rungs=[] if manifest.predicts_only else rungs_of(searched.values(), manifest),
        importances=_importances(searched, manifest, distributions),
        saving=saving,
        axes=dict(sorted(axes.items())),
        crashes=tuple(crashes),
    )
    analysis.sentences.extend(_sentences(analysis))
    return analysis


def _repeated(verdict: Verdict | None, trials: Mapping[int, Trial]) -> Trial | None:
    """Return the run that training with best.yaml repeats: the winner's first check or, without checks, the winner."""
    if verdict is None:
        return None
    checks = [trial for trial in trials.values() if trial.of == verdict.winner and trial.state == TrialState.COMPLETE]
    return min(checks, key=lambda trial: trial.seed) if verdict.check else trials[verdict.winner]


def best_config(manifest: StudyManifest, trial: Trial, seed: int) -> RunConfig:
    """Return the trial's complete configuration.

    Raises:
        UserError: base and changes give no valid configuration.
    """
    return parse_config(manifest.base, "the study's base configuration").changed(trial.changes | {"seed": seed})


def _ended(searched: Mapping[int, Trial]) -> list[tuple[int, Trial]]:
    return [(number, trial) for number, trial in searched.items() if trial.state == TrialState.COMPLETE]


def cost_of(trial: Trial, manifest: StudyManifest) -> float:
    """Return the second objective where there is one; else structures in training, or predictions a crystal."""
    if len(trial.values) > 1:
        return trial.values[1]
    if manifest.predicts_only:
        config = best_config(manifest, trial, manifest.seed)
        return float(config.tta.views * config.ensemble.size)
    return float(trial.structures)


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Keys of the points (MAE, cost) that no other is as good as in both and better in one; the lowest cost first."""
    front: list[int] = []
    lowest = math.inf
    for number, (mae, cost) in sorted(points.items(), key=lambda item: (item[1][1], item[1][0], item[0])):
        if mae < lowest or (front and (mae, cost) == points[front[-1]]):
            front.append(number)
            lowest = mae
    return front


def failures_of(trials: Iterable[Trial]) -> list[Failure]:
    """Failed trials and checks by reason, the most frequent first."""
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == TrialState.FAIL:
            reason = " ".join(trial.reason.split()) or "no reason given"
            groups.setdefault(_NUMBER.sub("N", reason), []).append(trial)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [_failure(reason, failed) for reason, failed in ordered]


def _failure(reason: str, failed: Sequence[Trial]) -> Failure:
    example = " ".join(failed[0].reason.split())
    same = len({trial.reason for trial in failed}) == 1
    return Failure(example or reason if same else reason, example, [trial.number for trial in failed])


def rungs_of(searched: Iterable[Trial], manifest: StudyManifest) -> list[Rung]:
    """Return the scheduler's milestones, then the end of full-length training."""
    trials = list(searched)
    steps = milestones_of(manifest)
    rungs = []
    for step, following in zip(steps, [*steps, math.inf][1:], strict=True):
        stopped = sum(trial.state == TrialState.PRUNED and step <= trial.last < following for trial in trials)
        rungs.append(_rung(step, stopped, [result.mae for trial in trials if (result := result_at(trial, step))]))
    ended = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
    return [*rungs, _rung(manifest.n_steps, 0, ended)]


def milestones_of(manifest: StudyManifest) -> list[int]:
    """Return steps before the end at which the scheduler compares trials; none where it has no such steps."""
    return sorted(step for step in set(manifest.scheduler.milestones) if step < manifest.n_steps)


def _rung(step: int, stopped: int, maes: Iterable[float]) -> Rung:
    there = [mae for mae in maes if math.isfinite(mae)]
    best, median = (min(there), statistics.median(there)) if there else (math.nan, math.nan)
    return Rung(step, len(there), stopped, best, median)


def result_at(trial: Trial, step: int) -> StepResult | None:
    """Return what the trial reported at that very step."""
    return next((result for result in trial.results if result.step == step), None)


def saving_of(searched: Iterable[Trial], n_steps: int) -> Saving:
    """Return what early stopping saved."""
    ended = [trial for trial in searched if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.last]
    full = sum(
        trial.structures * (max(1, n_steps / trial.last) if trial.state == TrialState.PRUNED else 1) for trial in ended
    )
    return Saving(sum(trial.structures for trial in ended), round(full))


def _importances(
    searched: Mapping[int, Trial], manifest: StudyManifest, distributions: Distributions
) -> list[Importances]:
    """At the end, of complete trials; and where trials were stopped, at the first rung, where they can be compared."""
    ended = [(trial, trial.values[0]) for _, trial in _ended(searched)]
    found = [importances("MAE of the complete trials", ended, distributions)]
    milestones = [] if manifest.predicts_only else milestones_of(manifest)
    if milestones and any(trial.state == TrialState.PRUNED for trial in searched.values()):
        first = milestones[0]
        there = [
            (trial, result.mae)
            for trial in searched.values()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and (result := result_at(trial, first))
        ]
        finite = [(trial, mae) for trial, mae in there if math.isfinite(mae)]
        found.append(importances(f"MAE at step {first}, stopped trials included", finite, distributions))
    return found


def _sentences(analysis: Analysis) -> list[str]:
    verdict = analysis.verdict
    if verdict is None:
        said = ["Verdict: no trial completed, so there is no best configuration and no best.yaml."]
    else:
        said = [verdict.sentence, *_second(analysis, verdict), *_not_checked(analysis, verdict)]
        said += few_rows(analysis.manifest.n_val, "validation")
        said.append(
            f"No test score: all these MAEs are of the {analysis.manifest.n_val:,} validation rows of fold "
            f"{analysis.manifest.fold} that chose the configuration, so they are optimistic. `crystaltune train` with "
            "best.yaml gives the score on test rows."
        )
    return [*said, _effort(analysis), *_front_sentence(analysis), *_failure_sentence(analysis)]


def _second(analysis: Analysis, verdict: Verdict) -> list[str]:
    """Return the runner-up, where it is not the baseline, which the verdict speaks of already."""
    second, margin = verdict.second, verdict.second_margin
    if verdict.winner == BASELINE or second is None or second.number == BASELINE or margin is None:
        return []
    decimals, measure = four_digits(second.mean), f" {analysis.unit}" if analysis.unit else ""
    text = f"Second: trial {second.number} with {checked_text(second, decimals)}{measure}, "
    words = "beyond" if margin.beyond_noise else "within" if margin.low is not None else "perhaps within"
    return [f"{text}{number_text(margin.difference, decimals)} behind, {words} the seed noise."]


def _not_checked(analysis: Analysis, verdict: Verdict) -> list[str]:
    if verdict.check is None and not analysis.checks:
        return []
    parts = [
        f"{name_of(check.number)} ({len(check.maes)} of {check.wanted} seeds finished"
        + (f", {check.failed} failed)" if check.failed else ")")
        for check in analysis.checks.values()
        if not check.full
    ]
    return [f"Not counted, because their checks are incomplete: {', '.join(parts)}."] if parts else []


def _effort(analysis: Analysis) -> str:
    counts = ", ".join(f"{count} {state.label}" for state, count in analysis.states.items())
    total, asked = sum(analysis.states.values()), analysis.manifest.n_trials
    text = f"Search: {total} of {asked} trials{f': {counts}' if counts else ''}"
    if analysis.saving and analysis.saving.full:
        text += f"; {analysis.saving.structures:,} structures processed in training"
        if analysis.saving.share > 0:
            text += f", {100 * analysis.saving.share:.0f} % fewer than at full length"
    extra = sum(trial.structures for trial in analysis.trials.values() if trial.of is not None)
    text += f"; the checks took {extra:,} more" if extra else ""
    final = " Trials are still running." if TrialState.RUNNING in analysis.states else ""
    return f"{text}.{final}"


def _front_sentence(analysis: Analysis) -> list[str]:
    if len(analysis.manifest.objectives) < 2 or not analysis.front:
        return []
    names = listed(map(name_of, analysis.front), 12)
    return [f"MAE against cost: on the front, from the lowest cost ({analysis.cost_name}) on: {names}."]


def _failure_sentence(analysis: Analysis) -> list[str]:
    crashed = [
        f"The engine that runs the trials crashed {_times(len(analysis.crashes))}, most recently with: {crash.reason}"
        for crash in analysis.crashes[-1:]
    ]
    if not analysis.failures:
        return crashed
    most = analysis.failures[0]
    total = sum(len(failure.numbers) for failure in analysis.failures)
    failed = f"Failed: {total} (checks included), most often ({len(most.numbers)}) for this reason: {most.reason}"
    return [failed, *crashed]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
