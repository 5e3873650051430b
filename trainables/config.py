"""RunConfig: every choice that changes the result of one training run, and nothing else.

Where a run executes (device, threads, folders) is no part of it. Every lever is a section (trainables.levers); its
defaults switch it off.
"""

import copy
import difflib
import hashlib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.files import write_text
from trainables.graphs.convert import CONVERTER_VERSION
from trainables.levers import (
    AugmentConfig,
    ConsistencyConfig,
    DataConfig,
    DistilConfig,
    EnsembleConfig,
    LossConfig,
    ModelConfig,
    MultitaskConfig,
    OptimConfig,
    Section,
    TtaConfig,
    lever_problems,
)

TRAINING_VERSION = 2  # raise it when the same RunConfig starts to give other numbers


class RunConfig(Section):
    """One model of one fold: how it is trained, and how it predicts."""

    task: str
    fold: int = Field(0, ge=0, le=4)
    seed: int = Field(0, ge=0, lt=2**63, description="of batches, draws and fresh weights; the first of an ensemble's")
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    tta: TtaConfig = TtaConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    distil: DistilConfig = DistilConfig()
    multitask: MultitaskConfig = MultitaskConfig()

    @model_validator(mode="after")
    def _levers_fit_together(self) -> "RunConfig":
        problems = lever_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def uses_pretrained(self) -> bool:
        """True where any weights but random ones have a part in the result: the tier follows from it."""
        teachers = self.distil.weight > 0 and self.distil.teacher_start not in (None, "scratch")
        corrected = (self.augment.active and self.augment.labels == "corrected") or (
            self.tta.views > 1 and self.tta.corrected
        )
        return self.model.start != "scratch" or teachers or corrected

    def member(self, index: int) -> "RunConfig":
        """What one member of the ensemble is trained by: no ensemble, and no views, which only predict."""
        changes: dict[str, Any] = {"seed": self.seed + index, "ensemble": {}, "tta": {}}
        if self.ensemble.combine == "soup":  # weights can be averaged where they began as the same ones
            changes["model.init_seed"] = self.seed if self.model.init_seed is None else self.model.init_seed
        return self.changed(changes)

    def fingerprint(self, data_digest: str) -> str:
        """A hash of all that decides the run's result: every field, the data, CHGNet and the code's versions."""
        content = {
            "config": self.model_dump(mode="json"),
            "data": data_digest,
            "chgnet": version("chgnet"),
            "converter": CONVERTER_VERSION,
            "training": TRAINING_VERSION,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def save(self, path: Path) -> None:
        write_text(path, self.to_yaml())

    def changed(self, changes: Mapping[str, Any]) -> "RunConfig":
        """A copy with dotted keys changed, for example {"optim.lr": 1e-4}, checked as a whole."""
        content = self.model_dump(mode="json")
        for key, value in changes.items():
            _place(content, key, value)
        return parse_config(content, "the changed configuration")


def refuse_correction(task: Task) -> None:
    """Raise a UserError where CHGNet's energies say nothing of a task's target."""
    if not task.is_energy:
        raise UserError(
            f"labels of {task.name} ({task.unit or 'no unit'}) cannot be corrected by CHGNet, which predicts energies "
            "only: set augment.labels=kept and tta.corrected=false"
        )


def refuse_for_task(config: RunConfig, task: Task) -> None:
    """Refuse levers that make no sense for a task.

    Raises:
        UserError: with the reason.
    """
    corrected = config.augment.active and config.augment.labels == "corrected"
    if corrected or (config.tta.views > 1 and config.tta.corrected):
        refuse_correction(task)
    if task.is_energy and config.model.head == "hurdle":
        raise UserError(f"model.head=hurdle is for targets that are often exactly zero; {task.name} is an energy")


def load_config(path: Path) -> dict[str, Any]:
    """Read a YAML configuration as it stands (parse_config checks it).

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a YAML configuration was wanted") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no mapping of keys to values; see `crystaltune train --help`")
    return content


def parse_config(content: Mapping[str, Any], source: str) -> RunConfig:
    """Check a whole configuration.

    Raises:
        UserError: all problems at once, unknown keys with the nearest right name.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as problems:
        raise UserError(f"{source}: " + "; ".join(_explain(dict(problem)) for problem in problems.errors())) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `a.b=value` texts; values are YAML.

    Raises:
        UserError: a text without `=`.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: key=value was wanted, for example --set optim.lr=3e-4")
        try:
            changes[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: '{value}' is not a YAML value") from None
    return changes


def merged(base: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other; dotted keys reach into sections."""
    content: dict[str, Any] = copy.deepcopy(dict(base))
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(content.get(key), dict):
                content[key] = merged(content[key], value)
            else:
                _place(content, key, value)
    return content


def _place(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{key}: '{section}' is a value, not a section{_nearest(key)}")
        content = inner
    content[name] = value


def dotted_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, dotted."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from dotted_names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "value_error":  # of several fields together: the message names them
        return str(problem["ctx"]["error"])
    wanted = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        near = difflib.get_close_matches(problem["input"], _choices(key), n=1)
        wanted += f" (did you mean '{near[0]}'?)" if near else ""
    return f"{key}={problem['input']!r}: {wanted}"


def _nearest(key: str) -> str:
    names = list(dotted_names())
    tails = {name.rsplit(".", 1)[-1]: name for name in names}
    last = key.rsplit(".", 1)[-1]
    near = [tails[last]] if last in tails else difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    near = near or [tails[tail] for tail in difflib.get_close_matches(last, tails, n=1, cutoff=0.6)]
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(names)})"


def _choices(key: str) -> list[str]:
    """The words a Literal field allows."""
    kind: Any = RunConfig
    for name in key.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields):
            return []
        kind = kind.model_fields[name].annotation
    while get_origin(kind) in (tuple, Union, types.UnionType):
        kind = get_args(kind)[0]
    return [str(choice) for choice in get_args(kind)]
