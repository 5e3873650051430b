"""A phase of a study with trials that take no time; as a script, too, for a driver that is killed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import ray_session as runtime  # before ray

# isort: split
from fake_trainable import N_STEPS, FakeTrial

from orchestrator.study.driver import StudyDriver
from orchestrator.study.journal import Journal, Trial
from orchestrator.study.pruner import Pruner
from orchestrator.study.ray_tune import run_phase


def planned(values: Sequence[int]) -> Any:
    """Trials with these `x`, in order."""

    def ask(number: int, before: Sequence[Trial]) -> Trial:
        return Trial(number, {"x": values[number]}, {})

    return ask


def run_fakes(folder: Path, values: Sequence[int], *, rule: str = "asha", at_once: int = 1) -> StudyDriver:
    """A phase of fake trials on Ray, going on where the folder's journal ends."""
    journal = Journal(folder / "journal.jsonl")
    if not (folder / "journal.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        journal.append("begin", time=0)
    journal.read(mend=True)
    driver = StudyDriver(journal, planned(values), Pruner(rule, N_STEPS), len(values))  # type: ignore[arg-type]
    run_phase(driver, FakeTrial, runtime.Share(), folder, max_concurrent=at_once)
    return driver


if __name__ == "__main__":
    with runtime.ray_session(cores=1):
        run_fakes(Path(sys.argv[1]), [int(x) for x in sys.argv[2].split(",")])
