"""What early stopping saves: the training after which a search first had the score of the best of random search.

    crystaltune search jdft2d --space ssa --trials 24 --out ASHA
    crystaltune search jdft2d --space ssa --trials 24 --sampler random --scheduler none --check-top 0 --out RANDOM
    python benchmarks/search.py ASHA RANDOM

Training is counted in steps and in structures (crystals whose prediction and gradient were computed), in the order of
each study's journal. Validation MAEs of one seed: a search that is ahead by less than the noise between seeds is not
ahead; the checks of a study say what that noise is.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.study.journal import Journal, trials_of


@dataclass(frozen=True)
class Moment:
    """How far a search was: all training so far, and the best validation MAE that it had seen."""

    steps: int
    structures: int
    mae: float
    trial: int


def moments(folder: Path) -> Iterator[Moment]:
    """After every step of a study's search, in the order in which they were reported."""
    events = Journal(folder / "journal.jsonl").read()
    searched = {number for number, trial in trials_of(events).items() if trial.of is None}
    structures: dict[int, int] = {}
    best, best_trial, steps = float("inf"), -1, 0
    for event in events:
        if event["event"] == "result" and event["number"] in searched:
            steps += 1
            structures[event["number"]] = event["structures"]
            if event["mae"] is not None and event["mae"] < best:
                best, best_trial = event["mae"], event["number"]
            yield Moment(steps, sum(structures.values()), best, best_trial)


def best_at_full_length(folder: Path) -> tuple[float, int]:
    """Lowest MAE of the complete search trials, and whose it is."""
    trials = trials_of(Journal(folder / "journal.jsonl").read()).values()
    best = min((t for t in trials if t.of is None and t.state == "COMPLETE"), key=lambda t: t.values[0])
    return best.values[0], best.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("early", type=Path, help="folder of the study with early stopping")
    parser.add_argument("whole", type=Path, help="folder of the random search at full length")
    parser.add_argument("--tolerance", type=float, default=0.0, help="as good as: within this, in the task's unit")
    options = parser.parse_args()
    score, number = best_at_full_length(options.whole)
    print(f"best of random search: {score:.4g} (trial {number})")
    for name, folder in (("random", options.whole), ("early stopping", options.early)):
        every = list(moments(folder))
        first = next((moment for moment in every if moment.mae <= score + options.tolerance), None)
        last = every[-1]
        print(f"{name}: {last.steps} steps, {last.structures:,} structures in all, best {last.mae:.4g}")
        if first is None:
            print(f"  never within {options.tolerance:g} of that score")
        else:
            print(f"  had it after {first.steps} steps, {first.structures:,} structures (trial {first.trial})")


if __name__ == "__main__":
    main()
