"""What a study is, in study.json, and whether it may be gone on with."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.cli.asked import task_words
from orchestrator.inputs.context import Material
from orchestrator.inputs.recipe import ModelRun
from orchestrator.inputs.source import Source
from orchestrator.provenance import device_name, versions
from orchestrator.study.journal import Journal
from orchestrator.study.options import ABOUT, JOURNAL, SearchOptions
from orchestrator.study.pruner import stopping_of
from orchestrator.train.run import description
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


def train_words(source: Source, auxiliary: Sequence[str]) -> list[str]:
    """The command that trains on the same rows, word by word."""
    words = ["crystaltune", "train", *task_words(source)]
    return words + [word for name in auxiliary for word in ("--aux", name)]


def study_about(
    material: Material, space: Space, config: RunConfig, options: SearchOptions, train: Sequence[str]
) -> dict[str, Any]:
    """The content of study.json.

    Args:
        train: the command that trains on the same rows, word by word.
    """
    dataset, base = material.dataset, space.base(config)
    split, _ = material.split(ModelRun(base.member(0)))
    n_steps = options.shares * (base.optim.epochs + (base.multitask.epochs if base.multitask.tasks else 0))
    return {
        "command": options.command,
        "train": list(train),
        "task": dataset.task.name,
        "unit": dataset.task.unit,
        "title": description(dataset, config),
        "data": dataset.digest,
        "auxiliary": {name: material.auxiliary[name].digest for name in config.multitask.tasks},
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
        "steps_per_epoch": options.shares,
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
        raise UserError(f"{out / ABOUT} is missing or damaged: put back a whole copy, or search anew") from None
    found = differences({key: held.get(key) for key in _IDENTITY}, {key: about[key] for key in _IDENTITY})
    if found:
        raise UserError(f"{out} holds another study ({'; '.join(found)}): give another --out, or ask for the one there")


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
