"""RunConfig: every choice that changes the result of one training run, and nothing else.

Where a run executes (device, threads, folders) is no part of it. Every lever is a section (trainables.levers); its
defaults switch it off.
"""

import copy
import hashlib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from trainables.data.tasks import Task, full_name
from trainables.errors import UserError
from trainables.files import write_text
from trainables.hints import closest, hint, section_hint
from trainables.lever_problems import lever_problems
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
)
from trainables.versions import CONVERTER_VERSION, TRAINING_VERSION
from trainables.yaml_files import read_mapping, read_value

_LONGEST_SHOWN = 80  # characters of a wrong value


class RunConfig(Section):
    """One model of one fold: how it is trained, and how it predicts."""

    task: str = Field(description="Name of the task.")
    fold: int = Field(0, ge=0, le=4, description="Outer fold.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Random seed for batches, perturbations and new weights (of an ensemble: its first member's).",
    )
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
        return any(variant._starts_pretrained for variant in self.variants())

    @property
    def _starts_pretrained(self) -> bool:
        teachers = self.distil.weight > 0 and self.distil.teacher_start not in (None, "scratch")
        corrected = (self.augment.active and self.augment.labels == "corrected") or (
            self.tta.views > 1 and self.tta.corrected
        )
        return self.model.start != "scratch" or teachers or corrected

    def variants(self) -> list["RunConfig"]:
        """Return the configurations whose seeds are the members of the ensemble: itself, where nothing is varied."""
        if not self.ensemble.vary:
            return [self]
        return [self.changed(values | {"ensemble": {}}) for values in self.ensemble.variants]

    def member(self, index: int) -> "RunConfig":
        """Return what one member of the ensemble is trained by: no ensemble, and no views, which only predict.

        Args:
            index: up to ensemble.size; all seeds of a variant follow each other.
        """
        variant, seed = divmod(index, self.ensemble.members)
        changes: dict[str, Any] = self.ensemble.variants[variant] | {"seed": self.seed + seed}
        changes |= {"ensemble": {}, "tta": {}}
        if self.ensemble.combine == "soup":  # weights can be averaged where they began as the same ones
            changes["model.init_seed"] = self.seed if self.model.init_seed is None else self.model.init_seed
        return self.changed(changes)

    def fingerprint(self, data_digest: str) -> str:
        """Return a hash of all that decides the run's result: every field, the data, CHGNet and the code's versions."""
        content = {
            "config": self.model_dump(mode="json"),
            "data": data_digest,
            "chgnet": version("chgnet"),
            "converter": CONVERTER_VERSION,
            "training": TRAINING_VERSION,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def save(self, path: Path) -> None:
        """Write the configuration to a YAML file."""
        write_text(path, self.to_yaml())

    def changed(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with dotted keys changed, for example {"optim.lr": 1e-4}, checked as a whole."""
        content = self.model_dump(mode="json")
        for key, value in changes.items():
            _place(content, key, value)
        return parse_config(content, "settings")


def require_energies(task: Task) -> None:
    """Raise a UserError where CHGNet's energies say nothing of a task's target."""
    if not task.is_energy:
        raise UserError(
            f"labels of {task.name} ({task.unit or 'no unit'}) cannot be corrected by CHGNet, which predicts energies "
            "only: set augment.labels=kept and tta.corrected=false"
        )


def validate_for_task(config: RunConfig, task: Task) -> None:
    """Refuse levers that make no sense for a task.

    Raises:
        UserError: with the reason.
    """
    for variant in config.variants():
        _validate_for_task(variant, task)


def _validate_for_task(config: RunConfig, task: Task) -> None:
    corrected = config.augment.active and config.augment.labels == "corrected"
    if corrected or (config.tta.views > 1 and config.tta.corrected):
        require_energies(task)
    if task.is_energy and config.model.head == "hurdle":
        raise UserError(f"model.head=hurdle is for targets that are often exactly zero; {task.name} is an energy")
    if config.model.physics and task.is_energy:
        raise UserError(f"model.physics=true is for heads of properties; {task.name} is an energy: leave it out")
    if config.model.transform != "none" and (task.is_energy or task.is_sum):
        kind = "an energy" if task.is_energy else "a property of the whole cell"
        raise UserError(
            f"model.transform={config.model.transform} is for averages over atoms; {task.name} is {kind}, which is a "
            "sum over them: set model.transform=none"
        )
    if config.model.scale == "robust" and task.is_energy:
        raise UserError(
            f"model.scale=robust is for properties; {task.name} is an energy, which is standardised by a fitted "
            "reference of each element: set model.scale=std"
        )


def load_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings as it stands (parse_config checks it); an empty file has none.

    Top-level keys that only hold anchors, and those that begin with `x-` or `.`, are left out (yaml_files).

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
    """
    content = read_mapping(path, tuple(RunConfig.model_fields))
    for key, value in content.items():
        wrong = _wrong_key(value)
        if wrong is not None:
            raise UserError(f"{path}: key {wrong!r} in {key} is not text; settings have names")
    return content


def _wrong_key(value: Any) -> Any:
    """Return the first key at any depth that is no text, or None."""
    if not isinstance(value, dict):
        return None
    return next((key for key in value if not isinstance(key, str)), None) or next(
        (wrong for inner in value.values() if (wrong := _wrong_key(inner)) is not None), None
    )


def for_task(content: Mapping[str, Any], task: str, source: str = "the file") -> tuple[dict[str, Any], str | None]:
    """Return settings of a file for a command on `task`: the file's own task and fold are left out.

    The configuration of a run (fold_*/config.yaml) and a search's best.yaml hold both; whatever they were made for,
    the command says which task and folds are trained.

    Args:
        source: the file's name, for the note.

    Returns:
        The settings, and a note where they were made for another task, or None.
    """
    settings = dict(content)
    made_for = settings.get("task")
    if not isinstance(made_for, str):
        return settings, None
    del settings["task"]
    settings.pop("fold", None)
    if full_name(made_for) == full_name(task):
        return settings, None
    note = f"the settings of {source} were made for {made_for} and are used for {full_name(task)}"
    model = settings.get("model")
    floor = model.get("floor") if isinstance(model, Mapping) else None
    return settings, note if floor is None else f"{note}, its model.floor={floor} too"


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
        UserError: a text without `=`, or a value that is no YAML.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"`settings={text}`: KEY=VALUE was expected, for example `settings=optim.lr=3e-4`")
        try:
            changes[key.strip()] = read_value(value)
        except UserError as error:
            raise UserError(f"`settings={text}`: {error}") from None
    return changes


def parse_variations(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Read `a.b=value1,value2` texts for ensemble.vary; values are YAML.

    Raises:
        UserError: a text without `=`, a key given twice, or values that are no YAML.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not key or not values:
            raise UserError(f"`vary={text}`: KEY=VALUE,VALUE was expected, for example `vary=model.start=0.3.0,r2scan`")
        if key in varied:
            raise UserError(f"`vary={key}` is given twice: name all its values at once, separated by commas")
        try:
            found = read_value(f"[{values}]")
        except UserError as error:
            raise UserError(f"`vary={text}`: {error}") from None
        varied[key] = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    return varied


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
            raise UserError(f"{key}: '{section}' was given as a value; it is a section, such as {section}: {{...}}")
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
        return _unknown(key, problem["input"])
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    if problem["type"] == "value_error":  # of several fields together: the message names them
        return str(problem["ctx"]["error"])
    if key in _sections() and not isinstance(problem["input"], Mapping):
        names = [name for name in dotted_names() if name.startswith(f"{key}.")]
        return f"{key}={_shown(problem['input'])}: {key} is a section; set one of {', '.join(names)}"
    wanted = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        near = closest(problem["input"], _choices(key))
        wanted += f" (did you mean '{near}'?)" if near else ""
    return f"{key}={_shown(problem['input'])}: {wanted}"


def _shown(value: Any) -> str:
    """Return a value as it is told: long ones are cut."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text):,} characters)"


def _unknown(key: str, value: Any) -> str:
    """Return an unknown key, or the keys in an unknown section, each with the key that is meant."""
    if not isinstance(value, Mapping) or "." in key:
        return f"unknown key '{key}'{hint(key, list(dotted_names()))}"
    if not value or any(isinstance(inner, Mapping) for inner in value.values()):
        return f"unknown section '{key}'{section_hint(key, _sections())}"
    return "; ".join(f"unknown key '{key}.{name}'{hint(f'{key}.{name}', list(dotted_names()))}" for name in value)


def _sections() -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in dotted_names() if "." in name))


def _choices(key: str) -> list[str]:
    """Return the words a Literal field allows."""
    kind: Any = RunConfig
    for name in key.split("."):
        if not (isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields):
            return []
        kind = kind.model_fields[name].annotation
    while get_origin(kind) in (tuple, Union, types.UnionType):
        kind = get_args(kind)[0]
    return [str(choice) for choice in get_args(kind)]
