"""What a run is made of, by its number of rows: one fine-tuned model a fold, or a blend of unlike ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from orchestrator.inputs.context import TaskContext
from orchestrator.train.folder import read_manifest
from search_spaces.dimension import flat
from search_spaces.presets import PARTS, blend, blends, chooses_members
from trainables.choices import PresetName
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.mappings import flattened


def require_preset(name: str) -> None:
    """Raise a UserError where there is no such preset."""
    if name not in get_args(PresetName):
        raise UserError(f"`preset={name}`: must be one of {', '.join(get_args(PresetName))}")


def chosen_preset(context: TaskContext, settings: Mapping[str, Any], preset: PresetName, out: Path) -> RunConfig:
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
    named = {key: value for key, value in flattened(settings).items() if chooses_members(key)}
    if preset == "blend":
        default = flat(RunConfig(task=config.task))
        chosen = [key for key, value in named.items() if default.get(key, {}) != value]  # a best.yaml names them all
        if chosen:
            raise UserError(f"`preset=blend` chooses the members itself: leave out {', '.join(chosen)}")
        return blend(config, n_rows)
    if named or not blends(context.task, n_rows) or _began_as(out, config):
        return config
    try:
        found = blend(config, n_rows)
    except UserError as error:
        context.progress.message(f"preset: one fine-tuned model a fold ({str(error).removeprefix('settings: ')})")
        return config
    parts = f", each in {PARTS} parts of the training fold" if found.ensemble.inner_folds else ""
    context.progress.message(
        f"preset: a fine-tuned CHGNet and a tabular model{parts}, weighted on held-out rows ({n_rows:,} rows of a "
        "property); `preset=single` trains one fine-tuned model a fold"
    )
    return found


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
    return all(first[key] == second[key] for key in first if key not in ("fold", "optim.epochs"))  # of a time budget
