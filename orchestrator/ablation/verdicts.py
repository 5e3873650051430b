"""What the comparisons of an ablation decide, in sentences: one rule a lever, and what may be said of noise."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.ablation.rows import Comparison, Cost, Decision, ExperimentRow
from orchestrator.report.format import four_digits

NEAR = 1.1  # an ensemble is near the best published MAE at up to this many times it
QUESTIONS = (("E1", "E0"), ("E2", "E0"), ("E2", "E1"), ("E3", "E0"), ("E3", "L3"), ("E4", "E0"), ("E5", "E0"))


def sentences_of(
    rows: Mapping[str, ExperimentRow],
    pairs: Mapping[tuple[str, str], Comparison],
    unit: str,
    published: Mapping[str, float],
    comparable: bool,
) -> list[str]:
    """Return what follows from the rows of `orchestrator.ablation.analysis.analyse`, ladder by ladder, then the marks.

    Args:
        rows: by name.
        pairs: the comparison of each (child, other); QUESTIONS of every ladder are among them.
        published: MAE of published algorithms on the same test rows.
        comparable: the rows are the whole official task.
    """
    found = []
    for suffix in suffixes(rows):
        ladder = _Ladder(suffix, rows, pairs, unit, published, comparable)
        found += [f"{suffix[1:]} ladder: {said}" if suffix else said for said in ladder.sentences()]
    marked = [f"{name} ({'; '.join(row.caveats)})" for name, row in rows.items() if row.caveats]
    return found + ([f"Caveats for every number of these experiments: {', '.join(marked)}."] if marked else [])


def suffixes(names: Iterable[str]) -> list[str]:
    """Of the ladder itself (nothing) and of its twins ("-scratch"), in the order in which they come."""
    return list(dict.fromkeys(name[len(name.partition("-")[0]) :] for name in names))


def decimals_of(maes: Iterable[float | None]) -> int:
    """Return the decimals that give the smallest MAE four digits."""
    return four_digits(min((mae for mae in maes if mae), default=None))


def p_text(p: float | None) -> str:
    """Return a p-value with three digits, or an empty string."""
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True, eq=False)
class _Ladder:
    """What the rules say of the experiments that share a suffix."""

    suffix: str
    rows: Mapping[str, ExperimentRow]
    pairs: Mapping[tuple[str, str], Comparison]
    unit: str
    published: Mapping[str, float]
    comparable: bool

    def sentences(self) -> list[str]:
        rules = (
            (("E1", "E2"), self._consistency),
            (("E3",), self._ensemble),
            (("E4",), self._distillation),
            (("E5",), self._multi_task),
            (("E3",), self._equal_training),
            (("E4",), self._equal_use),
            (self._mine(), self._noise),
        )
        return [rule() for wanted, rule in rules if set(wanted) & set(self._mine())]

    def _consistency(self) -> str:
        asked = [base for base in ("E1", "E2") if base in self._mine()]
        numbers = [self._said(base, "E0") for base in ("E1", "E2")]
        numbers += [self._said("E2", "E1")] if len(asked) == 2 else []
        return f"Consistency regularisation: {self._consistent(asked)}. {'; '.join(numbers)}."

    def _consistent(self, asked: Sequence[str]) -> str:
        """Return the verdict: confirmed is what is better than the baseline, and better in each of several folds."""
        compared = [pair for base in asked if not (pair := self._pair(base, "E0")).reason]
        if not compared:
            return "cannot be judged"
        if all(len(pair.by_fold) == 1 for pair in compared):
            return "cannot be judged on one fold"
        better = [pair for pair in compared if pair.decision == Decision.BETTER]
        if any(all(value < 0 for value in pair.by_fold.values()) for pair in better):
            return "confirmed"
        return "not confirmed (better, but not in every fold)" if better else "not confirmed"

    def _ensemble(self) -> str:
        mae = self.rows[self._name("E3")].mae
        if mae is None:
            return f"Ensemble: {self._name('E3')} failed, so nothing can be said about it."
        if not self.published:
            unjudged = "whether it is near the best published result, and so whether to distil it, cannot be judged"
            return f"Ensemble: {unjudged}: give `published` predictions for these test rows."
        best = min(self.published, key=lambda name: self.published[name])
        ratio = mae / self.published[best]
        verdict = "near the best, so distil it" if ratio <= NEAR else "not near the best, so do not distil it"
        numbers = f"{self._name('E3')} has {self._number(mae)}, {ratio:.2f} times the lowest MAE published for the "
        numbers += f"same test rows ({best}, {self._number(self.published[best])})"
        limit = "" if self.comparable else " These rows are not the whole official task: this is no leaderboard score."
        return f"Ensemble: {verdict} (the limit is {NEAR} times). {numbers}.{limit}"

    def _distillation(self) -> str:
        teacher, student = self._pair("E3", "E0"), self._pair("E4", "E0")
        if reason := teacher.reason or student.reason:
            return f"Distillation: {self._name('E4')} cannot be judged: {reason}."
        if teacher.decision != "better":
            gainless = f"{self._name('E3')} shows no gain over {self._name('E0')} that a student could keep"
            return f"Distillation: {gainless}. {self._said('E4', 'E0')}."
        kept, gain = -(student.difference or 0.0), -(teacher.difference or math.nan)
        share = kept / gain
        gains = f"{self._number(kept)} of {self._number(gain)}"
        if share <= 0:
            return f"Distillation: {self._name('E4')} keeps nothing of the ensemble's gain. {self._said('E4', 'E0')}."
        return f"Distillation: {self._name('E4')} keeps {share:z.0%} of the ensemble's gain ({gains})."

    def _multi_task(self) -> str:
        pair = self._pair("E5", "E0")
        verdict = "cannot be judged" if pair.reason else "kept" if pair.decision == Decision.BETTER else "dropped"
        return f"Multi-task training: {verdict}. {self._said('E5', 'E0')}."

    def _equal_training(self) -> str:
        said = f"Equal cost of training, the ensemble against one long run: {self._said('E3', 'L3')}."
        mine, other = self._costs("E3", "L3", lambda cost: cost.predictions)
        if not other or mine == other:
            return said
        return f"{said} Prediction cost differs: {mine:,} predictions per crystal against {other:,}."

    def _equal_use(self) -> str:
        said = f"Equal cost of use, the student against labels alone: {self._said('E4', 'E0')}."
        mine, other = self._costs("E4", "E0", lambda cost: cost.structures)
        if not other or mine == other:
            return said
        return f"{said} Training cost differs: with its teachers {mine / other:.1f} times the structures."

    def _costs(self, child: str, other: str, kind: Callable[[Cost], int]) -> tuple[int, int]:
        """Return a cost of both; nothing (0, 0) where they are not compared."""
        if self._pair(child, other).reason:
            return 0, 0
        return kind(self.rows[self._name(child)].cost), kind(self.rows[self._name(other)].cost)

    def _noise(self) -> str:
        base = self._name("E0")
        parents = {self._name(mine): self.rows[self._name(mine)].parent for mine in self._mine()}
        counted = {
            (child, other): pair
            for (child, other), pair in self.pairs.items()
            if child in parents and other in (parents[child], base) and pair.difference is not None
        }
        if not counted:
            return f"No experiment could be compared with its parent or with {base}."
        better = [pair for pair, found in counted.items() if found.decision == Decision.BETTER]
        if better:
            than_parent = [child for child, parent in parents.items() if (child, parent) in better]
            than_base = [child for child, parent in parents.items() if parent != base and (child, base) in better]
            said = [f"Better than their parent: {', '.join(than_parent)}."] if than_parent else []
            said += [f"Better than {base}, which is not their parent: {', '.join(than_base)}."] if than_base else []
            return " ".join(said)
        nothing = f"No lever had an effect distinguishable from noise: none is better than its parent or than {base}."
        seen = [pair for pair, found in counted.items() if found.detectable]  # 0 where two predict the same
        if not seen:
            return f"{nothing} The spread over folds, and so what could have been seen, is unknown."
        finest = min(seen, key=lambda pair: counted[pair].detectable or math.inf)
        alone, corrected = map(self._number, (counted[finest].detectable, counted[finest].detectable_corrected))
        seen_from = (
            f"{alone} in a single comparison ({' against '.join(finest)}), {corrected} corrected for their number"
        )
        return f"{nothing} The smallest detectable difference is {seen_from}."

    def _said(self, child: str, other: str) -> str:
        """Return a comparison in words, as "E1 against E0: -0.0012 eV/atom, interval ..., corrected p ...: better"."""
        pair, names = self._pair(child, other), f"{self._name(child)} against {self._name(other)}"
        if pair.reason:
            return f"{names}: not compared ({pair.reason})"
        decimals = decimals_of(row.mae for row in self.rows.values())
        ends = [f"{value:+z.{decimals}f}" for value in pair.interval or ()]
        interval = f"interval {' to '.join(ends)}" if ends else "no interval"
        one_fold = " (one fold)" if len(pair.by_fold) == 1 else ""
        numbers = f"{self._number(pair.difference, '+')}, {interval}, corrected p {p_text(pair.p_corrected)}"
        return f"{names}: {numbers}{one_fold}: {pair.decision}"

    def _pair(self, child: str, other: str) -> Comparison:
        return self.pairs[self._name(child), self._name(other)]

    def _number(self, value: float | None, sign: str = "") -> str:
        if value is None:
            return "unknown"
        return f"{value:{sign}z.{decimals_of(row.mae for row in self.rows.values())}f} {self.unit}".rstrip()

    def _name(self, base: str) -> str:
        return base + self.suffix

    def _mine(self) -> list[str]:
        """Return the experiments of this ladder, by their names without suffix."""
        return [name.removesuffix(self.suffix) for name in self.rows if suffixes([name]) == [self.suffix]]
