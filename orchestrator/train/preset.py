"""What a run is made of, by its number of rows: one fine-tuned model a fold, or a blend of unlike ones."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from orchestrator.inputs.context import TaskContext
from orchestrator.train.folder import read_manifest
from search_spaces.dimension import flat
from search_spaces.presets import GROUPS_A_PART, PARTS, blend, blends, chooses_members
from trainables.choices import PresetName
from trainables.config import RunConfig, validate_for_task
from trainables.data.folds import fold_of_rows
from trainables.errors import UserError
from trainables.mappings import flattened


def require_preset(name: str) -> None:
    """Raise a UserError where there is no such preset."""
    if name not in get_args(PresetName):
        raise UserError(f"`preset={name}`: must be one of {', '.join(get_args(PresetName))}")


def chosen_preset(
    context: TaskContext, settings: Mapping[str, Any], preset: PresetName, out: Path, folds: Sequence[int]
) -> RunConfig:
    """Return the configuration of a run, with the members of a blend where it is one.

    `auto` blends tables of properties of a size where unlike models are ahead, unless the settings say otherwise; a run
    that has begun goes on as what it is.

    Args:
        settings: what the user chose.

    Raises:
        UserError: a blend was asked for, and the settings exclude it.
    """
    config, n_rows = context.config, len(context.dataset)
    if preset == "single":
        return config
    given = flattened(settings)
    named = {key: value for key, value in given.items() if chooses_members(key)}
    in_parts = _fewest_groups(context, folds) >= GROUPS_A_PART * PARTS
    if preset == "blend":
        default = flat(RunConfig(task=config.task))
        chosen = [key for key, value in named.items() if default.get(key, {}) != value]  # a best.yaml names them all
        if chosen:
            raise UserError(f"`preset=blend` chooses the members itself: leave out {', '.join(chosen)}")
        return _blend(context, given, in_parts=in_parts)
    if named or not blends(context.task, n_rows) or _began_as(out, config):
        return config
    try:
        found = _blend(context, given, in_parts=in_parts)
    except UserError as error:
        context.progress.message(f"preset: one fine-tuned model a fold ({str(error).removeprefix('settings: ')})")
        return config
    parts = f", each in {PARTS} parts of the training fold" if found.ensemble.inner_folds else ""
    context.progress.message(
        f"preset: a fine-tuned CHGNet and a tabular model{parts}, weighted on held-out rows ({n_rows:,} rows of a "
        "property); `preset=single` trains one fine-tuned model a fold"
    )
    return found


def _blend(context: TaskContext, given: Container[str], *, in_parts: bool) -> RunConfig:
    found = blend(context.config, context.task, len(context.dataset), in_parts=in_parts, named=given)
    validate_for_task(found, context.task)
    return found


def _fewest_groups(context: TaskContext, folds: Sequence[int]) -> int:
    """Return how many groups (by default formulas) the training rows of a fold have, at least."""
    folds_of, names = fold_of_rows(context.dataset), np.array(context.dataset.group_names, dtype=object)
    return min((len(set(names[folds_of != fold])) for fold in folds), default=0)


def _began_as(out: Path, config: RunConfig) -> bool:
    """Return whether a folder holds a run of this very configuration, made before there were blends or asked for."""
    held = read_manifest(out)
    if held is None:
        return False
    try:
        before = RunConfig.model_validate(held.config)
    except ValueError:  # of another version; claim_folder says so
        return False
    first, second = flat(before), flat(config)
    chosen = (key for key in first | second if key not in ("fold", "optim.epochs"))  # epochs may be a time budget's
    return all(first.get(key) == second.get(key) for key in chosen)
