"""Probes: cheap trials on a frozen trunk before a search, whose best it begins with.

A probe trains the head alone, on atom features that are computed once (trainables.training.cached). It ranks learning
rates, losses and batches for a head, which is not the same as for a whole model: what it finds is tried, not believed.
"""

import time
from pathlib import Path

from orchestrator.study.journal import Journal, Trial, TrialState, trials_of
from orchestrator.study.options import SearchOptions
from search_spaces.space import Space
from trainables.errors import UserError

PROBES = "probes"  # folder of a study's probes, with a journal of their own
_JOURNAL = "journal.jsonl"
_SEEN = ("optim.", "loss.", "distil.", "model.freeze", "model.floor")  # keys that a head on a frozen trunk can tell


def validate_probes(space: Space) -> None:
    """Raise a UserError where probes would say nothing of what a space varies."""
    unseen = [key for dimension in space.dimensions for key in dimension.sets if not key.startswith(_SEEN)]
    if unseen or space.runs == "prediction":
        raise UserError(
            f"`probes` train the head on a frozen trunk's features of clean crystals, but space {space.name} varies "
            f"{unseen[0] if unseen else 'how a model predicts'}, which they cannot judge; leave out `probes`"
        )


def begin_journal(folder: Path) -> None:
    """Begin the probes' own journal, where there is none."""
    if not (folder / _JOURNAL).exists():
        folder.mkdir(parents=True, exist_ok=True)
        Journal(folder / _JOURNAL).append("begin", time=round(time.time(), 3))


def best_probes(folder: Path, options: SearchOptions) -> list[Trial]:
    """Return the best quarter of a study's probes, best first, and three at least."""
    if not options.probes:
        return []
    trials = trials_of(Journal(folder / PROBES / _JOURNAL).read()).values()
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (t.values[0], t.number))
    return complete[: max(3, options.probes // 4)]
