"""What a run's folder says the run is, and whether another one may go on in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.execution.fold import PREDICTIONS, read_fold
from orchestrator.inputs.context import TaskContext
from orchestrator.inputs.recipe import FoldRecipe, ModelSpec
from orchestrator.provenance import RunManifest, versions
from search_spaces.dimension import flat
from trainables.config import RunConfig
from trainables.data.tasks import N_FOLDS
from trainables.errors import UserError
from trainables.files import read_json, write_json
from trainables.mappings import differences, flattened

MANIFEST = "run.json"


def manifest_of(context: TaskContext, config: RunConfig, rows: Mapping[str, Any]) -> RunManifest:
    """Return the manifest of a run of this configuration.

    Args:
        rows: as RunManifest.rows.
    """
    config, digest = config.changed({"fold": 0}), context.digest(config)
    return RunManifest(
        fingerprint=config.fingerprint(digest),
        data=digest,
        config=config.model_dump(mode="json"),
        versions=versions(),
        rows=dict(rows),
    )


def read_manifest(out: Path) -> RunManifest | None:
    """Read run.json; None where it is missing or damaged."""
    try:
        return RunManifest.model_validate(read_json(out / MANIFEST))
    except (OSError, ValueError):
        return None


def began_config(out: Path) -> Mapping[str, Any] | None:
    """Return the configuration, as it was written, of the run in a folder; None where there is none."""
    held = read_manifest(out)
    return None if held is None else held.config


def claim_folder(out: Path, context: TaskContext, config: RunConfig, rows: Mapping[str, Any]) -> None:
    """Write what this run is into run.json, or compare it with what is there.

    Args:
        rows: as RunManifest.rows.

    Raises:
        UserError: the folder holds a different run.
    """
    wanted, held = manifest_of(context, config, rows), read_manifest(out)
    if held is None:
        _require_same_folds(out, context, config)
        if (out / MANIFEST).exists():
            context.progress.message(f"{out / MANIFEST} was damaged and has been rewritten")
    elif held.fingerprint == wanted.fingerprint:
        return
    elif any(out.glob("fold_*")):
        raise _different_run(f"{out} already contains a different run", _differences(held, wanted))
    write_json(out / MANIFEST, wanted.model_dump(mode="json"))  # where nothing was made of another one, too


def _require_same_folds(out: Path, context: TaskContext, config: RunConfig) -> None:
    """Compare finished folds themselves with what is wanted, where no run.json says what they are.

    Raises:
        UserError: one was made with other settings, or on other rows.
    """
    for fold in range(N_FOLDS):
        folder = out / f"fold_{fold}"
        manifest = read_fold(folder)
        if manifest is None:
            continue
        wanted = config.changed({"fold": fold}).model_dump(mode="json")
        rows = set(pd.read_parquet(folder / PREDICTIONS, columns=["id"])["id"])
        changed = _changed_settings(manifest.config, wanted)
        if not changed and rows != set(context.test(fold).ids):
            changed = ["its test rows differ"]
        if changed:
            start = f"{out / MANIFEST} is missing or damaged, and {folder.name} belongs to a different run"
            raise _different_run(start, changed)


def _different_run(start: str, phrases: list[str]) -> UserError:
    reason = "; ".join(phrases) or "made by another version of the code"
    return UserError(f"{start} ({reason}): use another `out`, or repeat the original settings")


def _differences(held: RunManifest, wanted: RunManifest) -> list[str]:
    """Return what differs between two runs, one phrase each."""
    phrases = _changed_settings(held.config, wanted.config)
    if held.data != wanted.data:
        phrases.append("the data differ")
    before, now = (manifest.versions.get("chgnet") for manifest in (held, wanted))
    if before != now:
        phrases.append(f"chgnet was {before}, is {now}")
    return phrases


def _changed_settings(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    defaults = flat(RunConfig(task=""))  # of levers that are left out where they are off, or that came later
    changed = differences(defaults | flattened(held), defaults | flattened(wanted))
    return [f"{key} was {was}, is {now}" for key, (was, now) in changed.items()]


def model_folder(out: Path, recipe: FoldRecipe, spec: ModelSpec, key: str) -> Path:
    """Return where a model lies: a fold's only member in the fold's folder, all others in one of their own there."""
    fold = out / f"fold_{recipe.config.fold}"
    return fold if recipe.models == (spec,) else fold / spec.name_with(key)
