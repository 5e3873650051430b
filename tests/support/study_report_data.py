"""A made study for the tests of its analysis and reports: 18 trials with two rungs, then checks of the best."""

import math
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.study.journal import Journal, StepResult, Trial, result_event, trials_of
from orchestrator.study.manifest import StudyManifest
from orchestrator.study.report.analysis import Analysis
from trainables.config import RunConfig

BASE = RunConfig(task="jdft2d")
RANGES: dict[str, BaseDistribution] = {
    "strain.on": CategoricalDistribution([True, False]),
    "strain": FloatDistribution(1e-4, 5e-3, log=True),
    "displacement_angstrom": FloatDistribution(0.0, 0.01),
    "loss": CategoricalDistribution(["mae", "mse", "huber"]),
    "views": IntDistribution(1, 32, log=True),
}
ABOUT: dict[str, Any] = {
    "command": "crystaltune search jdft2d --space ssa --trials 18",
    "train": ["crystaltune", "train", "jdft2d", "--config", "{config}", "--folds", "{folds}"],
    "task": "jdft2d",
    "unit": "meV/atom",
    "title": {
        "task": "matbench_jdft2d",
        "unit": "meV/atom",
        "synthetic": False,
        "partial": True,
        "n_rows": 600,
        "official_rows": 636,
        "tier": "pretrained-structure-overlap",
    },
    "data": "0123456789abcdef",
    "auxiliary": {"mp_e_form": "fedcba98"},
    "n_train": 407,
    "n_val": 102,
    "fold": 0,
    "seed": 5,
    "space": {"name": "ssa", "says": "strain and displacement of training crystals", "dimensions": []},
    "space_table": [
        ["augment.strain", "0 or log 1e-4 to 5e-3", "strain of training crystals"],
        ["augment.displacement", "0 to 0.01 A", "displacement of atoms"],
        ["loss.kind", "mae, mse, huber", "training loss"],
    ],
    "objectives": ["mae"],
    "sampler": "tpe",
    "scheduler": {"name": "asha", "milestones": [4, 12], "factor": 3},
    "steps_per_epoch": 4,
    "n_steps": 36,
    "probes": 0,
    "n_trials": 18,
    "checks": {"top": 2, "seeds": [1, 2, 3]},
    "base": BASE.model_dump(mode="json"),
    "versions": {"crystaltune": "0.1.0", "optuna": "5.0.0", "torch": "2.15.0"},
    "device": "2 CPU cores",
    "runs": "training",
}


def manifest(**changed: Any) -> StudyManifest:
    """ABOUT with changes, as analyses take it."""
    return StudyManifest.model_validate(ABOUT | changed)


FULL = {"E0": (44.0, 44.5, 43.5), "7": (43.0, 43.2, 42.8), "3": (43.4, 43.9, 43.2)}  # MAEs of the checks


def distributions(trial: Trial) -> dict[str, BaseDistribution]:
    return {name: RANGES[name] for name in trial.params}


def params_of(number: int) -> dict[str, Any]:
    """Every third trial has no strain, and then no such parameter either."""
    on = number % 3 != 0
    strain = {"strain": 1e-4 * 50 ** ((number * 0.37) % 1)} if on else {}
    rest = {"displacement_angstrom": 0.01 * ((number * 0.61) % 1), "loss": ("mae", "mse", "huber")[number % 3]}
    return {"strain.on": on, **strain, **rest, "views": 1 + number}


def changes_of(number: int) -> dict[str, Any]:
    if number == 0:
        return {}
    chosen = params_of(number)
    strain = {"augment.strain": "free", "augment.strain_size": chosen["strain"]} if chosen["strain.on"] else {}
    return {**strain, "optim.lr": 1e-4 * (number + 1), "multitask.tasks": []}


class Maker:
    """Writes a study's journal, trial by trial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal(path)
        self.journal.append("begin", time=1_700_000_000.0)

    def trial(self, number: int, maes: list[float], state: str, reason: str = "", **given: Any) -> None:
        """A trial with an MAE at each of its steps; those that end with values give the last one."""
        about: dict[str, Any] = {"changes": changes_of(number), "params": params_of(number), "seed": 5}
        about |= given
        values, cost = about.pop("values", None), about.pop("structures", 100)
        self.journal.append("trial", number=number, time=1_700_000_001.0, **about)
        for step, mae in enumerate(maes, start=1):
            lowest = min(maes[:step]) if all(map(math.isfinite, maes[:step])) else math.nan
            result = StepResult(step, step / 4, lowest, mae, 0.5, cost * step, 2.0 * step)
            self.journal.append("result", **result_event(number, result, done=state != "RUNNING" and step == len(maes)))
        if state != "RUNNING":
            ended = values if values is not None else [] if state == "FAIL" else [min(maes)]
            self.journal.append("end", number=number, state=state, values=ended, reason=reason, time=1_700_000_002.0)

    def check(self, number: int, of: int, seed: int, mae: float | None, reason: str = "") -> None:
        given = {"of": of, "seed": seed, "params": {}, "changes": changes_of(of), "origin": "check"}
        if mae is None:
            self.trial(number, [], "FAIL", reason, **given)
        else:
            self.trial(number, curve(mae, 36), "COMPLETE", **given)

    def trials(self) -> dict[int, Trial]:
        return trials_of(self.journal.read())


def with_crashes(analysis: Analysis, *crashes: tuple[float, str, str]) -> Analysis:
    """The analysis of a study whose engine crashed: each time (Unix seconds), phase and reason."""
    found = copy(analysis)
    names = ("time", "phase", "reason")
    object.__setattr__(found, "crashes", [SimpleNamespace(**dict(zip(names, crash, strict=True))) for crash in crashes])
    return found


def curve(end: float, steps: int, length: int = 36) -> list[float]:
    """An MAE that falls to its end at full length."""
    return [end * (1 + 0.6 * (math.exp(-4 * step / length) - math.exp(-4))) for step in range(1, steps + 1)]


def searched(folder: Path) -> Maker:
    """0 to 17: nine complete, five stopped, three failed and one running; 7 has the lowest MAE, then 3."""
    made = Maker(folder / "journal.jsonl")
    for number in range(18):
        end = {3: 42.9, 7: 42.7}.get(number, 44.2 + 0.35 * ((number * 7) % 10))
        if number in (5, 11):
            made.trial(
                number,
                [*curve(end, 2), math.nan],
                "FAIL",
                f"the loss was nan at step {3 * number} (lr=1e-0{number % 9})",
            )
        elif number == 13:
            made.trial(number, [], "FAIL", "worker killed (out of memory)")
        elif number in (2, 6, 9):
            made.trial(number, curve(end + 6, 4), "PRUNED")
        elif number in (12, 16):
            made.trial(number, curve(end + 2, 12), "PRUNED")
        elif number == 17:
            made.trial(number, curve(end, 6), "RUNNING")
        else:
            origin = "E0" if number == 0 else "sampler"
            made.trial(number, curve(end, 36), "COMPLETE", origin=origin)
    return made


def checked(folder: Path, maes: dict[str, tuple[float, ...]] = FULL) -> Maker:
    """The search, then three fresh seeds of E0 and of the trials named."""
    made = searched(folder)
    number = 18
    for name, values in maes.items():
        for seed, mae in enumerate(values, start=1):
            made.check(number, 0 if name == "E0" else int(name), seed, mae)
            number += 1
    return made
