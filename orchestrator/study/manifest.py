"""What a study is, in study.json, and whether it may be gone on with."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.evaluation.scores import TaskSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import ModelSpec
from orchestrator.provenance import device_name, versions
from orchestrator.study.journal import Journal
from orchestrator.study.options import ABOUT, JOURNAL, SearchOptions
from orchestrator.study.pruner import stopping_of
from search_spaces.space import Space
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.files import read_json, write_json
from trainables.progress import Progress

# What must be the same for a study to go on; the rest of study.json is told, not compared.
_IDENTITY = (
    *("task", "data", "auxiliary", "fold", "seed", "space", "base", "objectives", "sampler", "scheduler"),
    *("steps_per_epoch", "probes", "checks", "versions", "tf32", "fingerprint"),
)


def study_about(context: TaskContext, space: Space, config: RunConfig, options: SearchOptions) -> dict[str, Any]:
    """Return the content of study.json."""
    dataset, base = context.dataset, space.base(config)
    split, _ = context.split(ModelSpec(base.member(0)))
    n_steps = options.validations_per_epoch * (
        base.optim.epochs + (base.multitask.epochs if base.multitask.tasks else 0)
    )
    return {
        "command": options.command,
        "train": list(options.train_command),
        "task": dataset.task.name,
        "unit": dataset.task.unit,
        "title": TaskSummary.of(dataset, config).model_dump(exclude_unset=True),
        "data": dataset.digest,
        "auxiliary": {name: context.auxiliary[name].digest for name in config.multitask.tasks},
        "fold": options.fold,
        "seed": options.seed,
        "space": space.describe() | {"says": space.says},
        "space_table": [list(row) for row in space.table()],
        "runs": space.runs,
        "objectives": list(options.objectives),
        "sampler": options.sampler,
        "scheduler": stopping_of(options, space, n_steps).describe(),
        "n_train": len(split.train),
        "n_val": len(split.val),
        "n_steps": n_steps,
        "steps_per_epoch": options.validations_per_epoch,
        "probes": options.probes,
        "n_trials": options.trials,
        "checks": {"top": options.top, "seeds": [options.seed + 1 + index for index in range(options.check_seeds)]},
        "base": base.model_dump(mode="json"),
        "tf32": options.resources.tf32,
        "versions": versions() | {name: version(name) for name in ("optuna", "ray")},
        "fingerprint": base.fingerprint(dataset.digest),  # of code that trains and converts, too
        "device": device_name(options.resources.plan(1).devices[0]),
        "place": asdict(options.place),
    }


def refuse_another(out: Path, about: Mapping[str, Any], progress: Progress) -> None:
    """Raise a UserError where the study that is there is not the one that was asked for, with what differs."""
    Journal(out / JOURNAL).read(progress, mend=True)
    try:
        held = read_json(out / ABOUT)
    except (OSError, ValueError):
        raise UserError(f"{out / ABOUT} is missing or damaged: restore a copy of it, or start a new search") from None
    found = differences({key: held.get(key) for key in _IDENTITY}, {key: about[key] for key in _IDENTITY})
    if found:
        raise UserError(
            f"{out} already contains a different study ({'; '.join(found)}): use another `out`, or repeat the original "
            "settings"
        )


def begin(out: Path, about: Mapping[str, Any], options: SearchOptions) -> None:
    """Write down what the study is, and that a session of it begins."""
    write_json(out / ABOUT, dict(about))  # again for one that is gone on with: more trials may be wanted now
    event = "session" if options.resume else "begin"
    Journal(out / JOURNAL).append(event, time=round(time.time(), 3), versions=about["versions"])


def differences(held: Any, wanted: Any, name: str = "") -> list[str]:
    """What two nested values differ in, one phrase each."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = list(dict.fromkeys([*held, *wanted]))
        return [
            phrase for key in keys for phrase in differences(held.get(key), wanted.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if held == wanted else [f"{name} was {held}, is {wanted}"]
