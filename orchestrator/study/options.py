"""What a search is asked for."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.execution.resources import Cluster, Resources
from orchestrator.ray_environment import asked_address
from trainables.data.tasks import N_FOLDS
from trainables.errors import UserError

MANIFEST, JOURNAL = "study.json", "journal.jsonl"  # of a study's folder
SamplerName = Literal["tpe", "gp", "random"]
SchedulerName = Literal["asha", "hyperband", "median", "none"]
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class TrialResources:
    """Where trials run.

    Attributes:
        address: of a Ray cluster ("auto": the one this machine belongs to); None: a Ray of one's own.
        cpus, gpus: a trial's; gpus by default one where there are any.
        max_concurrent: trials at once; by default as many as fit.

    Raises:
        UserError: numbers that make no sense on any machine.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cpus) and self.cpus > 0):
            raise UserError(f"`cpus={self.cpus:g}`: must be a number above 0")
        gpus = 0.0 if self.gpus is None else self.gpus
        if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
            raise UserError(f"`gpus={gpus:g}`: must be a fraction up to 1, or a whole number")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise UserError(f"`max_concurrent={self.max_concurrent}`: must be at least 1")


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, how, and how long.

    Attributes:
        trials: of the search, without the checks.
        budget: seconds after which no trial goes on in this session.
        top: so many of the best are trained again at full length, with check_seeds fresh seeds; 0: none.
        probes: trials on a frozen trunk before the search; 0: none.
        validations_per_epoch: steps an epoch.
        loggers: Ray Tune callbacks beside TensorBoard's, made when they are wanted.
        command: what repeats this search, for the report.
        train_command: the command that trains on the same rows, word by word.
    """

    space: str
    trials: int = 32
    fold: int = 0
    seed: int = 0
    sampler: SamplerName = "tpe"
    scheduler: SchedulerName = "asha"
    grace: int = 1
    factor: int = 3
    objectives: tuple[str, ...] = ("mae",)
    probes: int = 0
    validations_per_epoch: int = 1
    top: int = 3
    check_seeds: int = 3
    budget: float = math.inf
    resume: bool = False
    place: TrialResources = field(default_factory=TrialResources)
    resources: Resources = field(default_factory=Resources)
    loggers: Callable[[], Sequence[Any]] = tuple
    command: str = ""
    train_command: tuple[str, ...] = ()

    @property
    def model_resources(self) -> Resources:
        """Return where teachers and models that trials share are made: on the trials' cluster, where one is named."""
        if asked_address(self.place.address)[1] is None:
            return self.resources
        cluster = Cluster(self.place.address, self.place.cpus, self.place.gpus)
        return replace(self.resources, processes=self.place.max_concurrent, cluster=cluster)


_LEAST = {
    "trials": 1, "fold": 0, "seed": 0, "grace": 1, "factor": 2, "validations_per_epoch": 1, "probes": 0, "top": 0,
    "check_seeds": 2,
}  # fmt: skip


def _validate_numbers(options: SearchOptions) -> None:
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"`{name}={value}`: must be a whole number")
        if value < least:
            raise UserError(f"`{name}={value}`: must be at least {least}")
    if options.fold >= N_FOLDS:
        raise UserError(f"`fold={options.fold}`: folds are 0 to {N_FOLDS - 1}")
    if not options.budget > 0:
        raise UserError(f"`time_budget={options.budget:g}`: must be a time above 0")


def budget_seconds(text: str) -> float:
    """Read a time such as 90, 30min or 2h, in seconds.

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w*)", text.strip())
    if found is None or found[2] not in _SECONDS or float(found[1]) <= 0:
        raise UserError(f"`time_budget={text}`: a time such as 90s, 30min or 2h was expected")
    return float(found[1]) * _SECONDS[found[2]]


def require_folder(out: Path, *, resume: bool) -> None:
    """Require `resume` for an existing study, and an existing study for `resume`.

    Raises:
        UserError: only one of them is there.
    """
    there = (out / JOURNAL).exists()
    if there and not resume:
        raise UserError(f"{out} already contains a study: continue it with `resume=True`, or use another `out`")
    if resume and not there:
        raise UserError(
            f"`resume=True`: {out} contains no study; leave it out to start one, or name the `out` of the study"
        )


def validate_options(options: SearchOptions) -> None:
    """Raise a UserError for what cannot be asked for, before anything is read."""
    _validate_numbers(options)
    for name, choices in (("sampler", SamplerName), ("scheduler", SchedulerName)):
        if (chosen := getattr(options, name)) not in get_args(choices):
            raise UserError(f"`{name}={chosen}`: must be one of {', '.join(get_args(choices))}")
    if options.place.gpus and options.resources.device == "cpu":
        raise UserError(f"`gpus={options.place.gpus:g}` asks for GPUs and `device=cpu` for none: leave one of them out")
    if not set(options.objectives) <= {"mae", "cost"} or "mae" not in options.objectives:
        raise UserError(f"`objectives={','.join(options.objectives)}`: must be mae, or mae,cost")
    if len(options.objectives) > 1 and options.scheduler != "none":
        raise UserError(
            f"`scheduler={options.scheduler}` stops trials by their MAE alone: with several objectives use "
            "`scheduler=none`"
        )
    if options.sampler == "gp" and len(options.objectives) > 1:
        raise UserError("`sampler=gp` supports one objective only: use `sampler=tpe`")
