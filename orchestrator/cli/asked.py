"""What a command was asked for, checked as far as it can be with nothing heavy imported."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.ablation.ladder import build_ladder
from orchestrator.inputs.source import Source, auxiliary_sources, check_source, known_task
from orchestrator.ray_environment import check_address
from orchestrator.study.options import SearchOptions, require_folder
from orchestrator.train.options import EnsembleOptions
from search_spaces.presets import preset
from trainables.config import RunConfig, merged, parse_config, validate_for_task
from trainables.data.tasks import Quantity, Task, custom_task
from trainables.errors import UserError


def check_asked(
    source: Source,
    settings: Mapping[str, Any],
    auxiliary: Sequence[str] = (),
    published: Path | None = None,
) -> RunConfig:
    """Tell every mistake in what was asked that names, keys and the heads of files show.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset.
        auxiliary: NAME or NAME=FILE.

    Returns:
        The task's preset with the settings over it, as far as it is known before the rows are read.

    Raises:
        UserError: with what came, what was expected, and what to do.
    """
    check_source(source)
    task = expected_task(source)
    config = parse_config(merged(preset(task), {"task": task.name}, settings), "configuration")
    validate_for_task(config, task)
    auxiliary_sources(auxiliary)
    if published is not None and not published.is_file():
        raise UserError(f"--published {published}: there is no such file")
    return config


def check_ensemble(
    source: Source,
    options: EnsembleOptions,
    settings: Mapping[str, Any],
    auxiliary: Sequence[str] = (),
    published: Path | None = None,
) -> str:
    """Tell every mistake in what was asked of an ensemble, as check_asked.

    Returns:
        What will be made, in words.

    Raises:
        UserError: with what came, what was expected, and what to do.
    """
    base = check_asked(source, settings, auxiliary, published)
    configs = options.configurations(base)
    for config in configs:
        validate_for_task(config, expected_task(source))
    members = configs[0].ensemble
    made = f"{members.size} member{'s' * (members.size != 1)}, combined by {members.combine}"
    return f"{made}{', and a student' * (len(configs) > 1)}"


def check_ladder(
    source: Source,
    experiments: Sequence[str],
    starts: Sequence[str],
    settings: Mapping[str, Any],
    auxiliary: Sequence[str] = (),
    *,
    equal_steps: bool = False,
) -> None:
    """Tell whether the experiments of an ablation can be run on a task with these settings.

    Raises:
        UserError: as build_ladder.
    """
    names = tuple(auxiliary_sources(auxiliary))
    build_ladder(
        experiments,
        expected_task(source),
        settings,
        folds=(0,),
        seeds=1,
        starts=starts,
        auxiliary=names,
        equal_steps=equal_steps,
    )


def check_study(folder: Path, options: SearchOptions) -> None:
    """Tell whether a search can be begun or continued in `folder`, on the cluster that was asked for.

    Raises:
        UserError: as require_folder and check_address.
    """
    require_folder(folder, resume=options.resume)
    check_address(options.place.address)


def expected_task(source: Source) -> Task:
    """Return the task that a command is about; of a table of one's own what is known before it is read."""
    kind: Quantity = "energy_per_atom" if source.energy or source.total_energy else "property"
    return known_task(source.task) or custom_task(source.task, source.target or "", source.unit, kind)


def task_words(source: Source) -> list[str]:
    """Return the words of a command line that name the same rows."""
    named = {"--data": source.file, "--target": source.target, "--unit": source.unit, "--limit": source.limit}
    named |= {"--id": source.id, "--structure": source.structure, "--folds-by": source.folds_by}
    named |= {"--fold-column": source.fold_column, "--test": source.test}
    words = [source.task, *(str(word) for name, value in named.items() if value for word in (name, value))]
    marks = {"--energy": source.energy, "--total-energy": source.total_energy, "--drop-missing": source.drop_missing}
    marks["--per-cell"] = source.per_cell
    return words + [mark for mark, given in marks.items() if given]


def train_words(source: Source, auxiliary: Sequence[str]) -> tuple[str, ...]:
    """Return the command that trains on the same rows with a best configuration, word by word.

    The report puts in the path of the configuration and the fold for {config} and {folds}.
    """
    rows = (word.replace("{", "{{").replace("}", "}}") for word in task_words(source))
    joint = (word for name in auxiliary for word in ("--aux", name.replace("{", "{{").replace("}", "}}")))
    return ("crystaltune", "train", *rows, *joint, "--config", "{config}", "--folds", "{folds}")


def _for_search(setting: str) -> bool:
    """Return whether a setting of a run can be the base of a search: of one model, and not what is searched."""
    from search_spaces.optim import SPACE

    key = setting.partition("=")[0].strip()
    searched = {name for dimension in SPACE.dimensions for name in dimension.sets}
    return key not in searched and not key.startswith(("ensemble.", "tta.", "distil.features"))


def after_training(
    source: Source | None,
    folder: Path,
    config: Path | None = None,
    settings: Sequence[str] = (),
    held_out: Mapping[str, float] = MappingProxyType({}),
) -> list[tuple[str, str]]:
    """Return what to do with a finished run, as (what it is for, command).

    Args:
        held_out: as Scores.held_out.
    """
    if source is None:
        return [
            ("a real benchmark", "crystaltune train jdft2d"),
            ("a table", "crystaltune train my_gaps --data table.csv --target gap --unit eV"),
        ]
    words = ["crystaltune", "search", *task_words(source), "--space", "optim"]
    words += ["--config", str(config)] if config else []
    words += [word for setting in settings if _for_search(setting) for word in ("--set", setting)]
    better = ("search better settings", shlex.join(words))
    if "model.family=tabular" in settings:  # which has nothing to search
        beside = ["crystaltune", "ensemble", *task_words(source), "--vary", "model.family=chgnet,tabular"]
        better = ("put fine-tuned models beside it", shlex.join(beside))
    own, features = held_out.get("crystaltune", 0.0), held_out.get("features", math.inf)
    if features < own:
        told = f"features: {features:.4g} on rows held out of training, this run {own:.4g}"
        words = ["crystaltune", "train", *task_words(source), "--set", "model.family=tabular"]
        line = shlex.join([*words, "--out", f"{folder}-tabular"])
        return [(told, line), better, ("predict your structures", _predict_line(folder))]
    return [better, ("predict your structures", _predict_line(folder))]


def _predict_line(folder: Path) -> str:
    return shlex.join(["crystaltune", "predict", str(folder), "structures.csv"])
