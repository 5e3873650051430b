"""What a study is, in study.json, and whether it may be gone on with."""

import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.evaluation.scores import TaskSummary
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import ModelSpec
from orchestrator.provenance import device_name, versions
from orchestrator.study.journal import Journal
from orchestrator.study.options import JOURNAL, MANIFEST, SearchOptions
from orchestrator.study.pruner import pruner_of
from search_spaces.space import Space
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.files import read_json, write_json
from trainables.mappings import differences
from trainables.progress import Progress


class SchedulerSummary(BaseModel):
    """The rule that stops trials early.

    Attributes:
        milestones: steps of its rungs.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    grace: int | None = None
    factor: int | None = None
    milestones: tuple[int, ...] = ()


class ConfirmationPlan(BaseModel):
    """What is retrained after the search: the best `top` trials and the baseline, each with these seeds."""

    model_config = ConfigDict(frozen=True)

    top: int
    seeds: tuple[int, ...]


class StudyManifest(BaseModel):
    """The content of study.json: what a study is.

    Attributes:
        command: what repeats the search.
        train: the command that trains on the same rows, word by word.
        title: the task, with everything that limits what its scores may be compared with.
        data, auxiliary: digests of the rows.
        space: the search space as it was written; space_table shows it.
        runs: "training", or "prediction" where trials only predict.
        n_steps: of a trial at full length.
        base: the configuration that trials change.
        fingerprint: of the base configuration, the data and the code.
        place: where trials ran.
    """

    model_config = ConfigDict(frozen=True)

    command: str = ""
    train: tuple[str, ...] = ()
    task: str
    unit: str
    title: TaskSummary
    data: str
    auxiliary: dict[str, str] = {}
    fold: int
    seed: int
    space: dict[str, Any]
    space_table: list[list[Any]]
    runs: str
    objectives: tuple[str, ...]
    sampler: str
    scheduler: SchedulerSummary
    n_train: int
    n_val: int
    n_steps: int
    steps_per_epoch: int
    probes: int = 0
    n_trials: int
    checks: ConfirmationPlan
    base: dict[str, Any]
    tf32: bool = False
    versions: dict[str, str]
    fingerprint: str = ""
    device: str = ""
    place: dict[str, Any] = {}

    @property
    def predicts_only(self) -> bool:
        """Return whether trials only predict, each in its own way, with one trained model."""
        return self.runs == "prediction"

    @property
    def space_name(self) -> str:
        """Return the space's name."""
        return str(self.space["name"])

    def content(self) -> dict[str, Any]:
        """Return the content of study.json."""
        return self.model_dump(mode="json", exclude_unset=True)


# What must be the same for a study to continue; the rest of study.json is told, not compared.
_IDENTITY = (
    *("task", "data", "auxiliary", "fold", "seed", "space", "base", "objectives", "sampler", "scheduler"),
    *("steps_per_epoch", "probes", "checks", "versions", "tf32", "fingerprint"),
)


def manifest_of(context: TaskContext, space: Space, config: RunConfig, options: SearchOptions) -> StudyManifest:
    """Return what a study is."""
    dataset, base = context.dataset, space.base(config)
    split, _ = context.split(ModelSpec(base.member(0)))
    joint_epochs = base.multitask.epochs if base.multitask.tasks else 0
    n_steps = options.validations_per_epoch * (base.optim.epochs + joint_epochs)
    summary = TaskSummary.of(dataset, config).model_dump(exclude_unset=True)
    return StudyManifest(
        command=options.command,
        train=options.train_command,
        task=dataset.task.name,
        unit=dataset.task.unit,
        title=TaskSummary(**summary),
        data=dataset.digest,
        auxiliary={name: context.auxiliary[name].digest for name in config.multitask.tasks},
        fold=options.fold,
        seed=options.seed,
        space=space.describe() | {"says": space.description},
        space_table=[list(row) for row in space.table()],
        runs=space.runs,
        objectives=options.objectives,
        sampler=options.sampler,
        scheduler=SchedulerSummary(**pruner_of(options, space, n_steps).describe()),
        n_train=len(split.train),
        n_val=len(split.val),
        n_steps=n_steps,
        steps_per_epoch=options.validations_per_epoch,
        probes=options.probes,
        n_trials=options.trials,
        checks=ConfirmationPlan(
            top=options.top, seeds=tuple(options.seed + 1 + index for index in range(options.check_seeds))
        ),
        base=base.model_dump(mode="json"),
        tf32=options.resources.tf32,
        versions=versions() | {name: version(name) for name in ("optuna", "ray")},
        fingerprint=base.fingerprint(dataset.digest),  # of code that trains and converts, too
        device=device_name(options.resources.plan(1).devices[0]),
        place=asdict(options.place),
    )


def read_manifest(folder: Path) -> StudyManifest:
    """Read study.json.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return StudyManifest.model_validate(read_json(folder / MANIFEST))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} contains no study ({MANIFEST} is missing or damaged): name the folder of a search"
        ) from None


def began_base(folder: Path) -> dict[str, Any] | None:
    """Return the base configuration, as it was written, of the study in a folder; None where it cannot be read."""
    try:
        return read_manifest(folder).base
    except UserError:  # require_same_study says so
        return None


def require_same_study(out: Path, manifest: StudyManifest, progress: Progress) -> None:
    """Compare the study that is there with the one that was asked for.

    Raises:
        UserError: they differ, with what differs.
    """
    Journal(out / JOURNAL).read(progress, mend=True)
    try:
        held = read_json(out / MANIFEST)
    except (OSError, ValueError):
        raise UserError(
            f"{out / MANIFEST} is missing or damaged: restore a copy of it, or start a new search"
        ) from None
    wanted = manifest.content()
    changed = differences({key: held.get(key) for key in _IDENTITY}, {key: wanted[key] for key in _IDENTITY})
    found = [_difference(key, was, now) for key, (was, now) in changed.items()]
    if held.get("space", {}).get("name") != manifest.space_name:  # everything else of it differs, too
        found = [phrase for phrase in found if not phrase.startswith(("space.", "base.")) or "space.name" in phrase]
    told = [phrase for phrase in found if not phrase.startswith("fingerprint ")] or found
    if told:
        raise UserError(
            f"{out} already contains a different study ({'; '.join(told)}): use another `out`, or repeat the original "
            "settings"
        )


def _difference(key: str, was: Any, now: Any) -> str:
    if key == "data" or key.startswith("auxiliary."):  # hashes, which nobody can read
        return f"{key.replace('.', ' ')}: the rows differ"
    return f"{key} was {was}, is {now}"


def begin(out: Path, manifest: StudyManifest, options: SearchOptions) -> None:
    """Write down what the study is, and that a session of it begins."""
    write_json(out / MANIFEST, manifest.content())  # again for one that continues: more trials may be wanted now
    event = "session" if options.resume else "begin"
    Journal(out / JOURNAL).append(event, time=round(time.time(), 3), versions=manifest.versions)
