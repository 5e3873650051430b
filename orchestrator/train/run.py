"""The main job: from a task's name to scores of its folds and, where it may be, a Matbench record."""

import fcntl
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from orchestrator.evaluation.baselines import baseline_predictions, baseline_scores
from orchestrator.evaluation.published import check_published, published_scores, read_published
from orchestrator.evaluation.scores import fold_scores
from orchestrator.execution.fold import PREDICTIONS, collect_predictions, read_fold, write_fold
from orchestrator.execution.resources import Resources
from orchestrator.execution.scheduler import Runs, execute
from orchestrator.inputs.context import AuxiliaryRows, Material
from orchestrator.inputs.datasets import graph_store, load_auxiliary, load_dataset
from orchestrator.inputs.recipe import ModelRun, recipe
from orchestrator.inputs.source import Source
from orchestrator.provenance import versions
from search_spaces.presets import preset
from trainables.config import RunConfig, dotted_names, merged, parse_config, refuse_for_task
from trainables.data.dataset import Dataset
from trainables.data.tasks import N_FOLDS, full_name
from trainables.errors import CannotWrite, UserError
from trainables.files import read_json, write_json, write_parquet
from trainables.graphs.store import GraphStore
from trainables.progress import Progress, silent


@dataclass(frozen=True)
class TrainOptions:
    """Which folds, where they are trained, and published predictions to score beside them."""

    folds: tuple[int, ...] = tuple(range(N_FOLDS))
    resources: Resources = field(default_factory=Resources)
    published: Path | None = None


def train(
    source: Source,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    options: TrainOptions | None = None,
    auxiliary: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train and test every fold asked for, resuming what `out` already holds.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset.
        auxiliary: tasks to train on jointly, as NAME or NAME=FILE; they become multitask.tasks where that is empty.

    Returns:
        The content of out/scores.json.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is done is kept).
    """
    options = options or TrainOptions()
    parse_config(merged({"task": source.task}, settings or {}), "configuration")  # before minutes of reading
    options.resources.check(progress)
    dataset, others = read_rows(source, auxiliary, options.published, options.folds, progress)
    config = task_config(dataset, settings or {}, others)
    material = Material(dataset, with_named(others, config, progress), progress)
    with only_process(out):
        _same_run_or_refuse(out, config, material)
        recipes = [recipe(config.changed({"fold": fold})) for fold in options.folds]
        runs = Runs(material, recipes, lambda run: _folder(out, config, run, material.key(run)))
        failed = _train_folds(runs, options, progress)
        scores = _score(material, config, options, out, progress, failed)
        scores |= _record(scores, out)
        write_json(out / "scores.json", scores)
    if failed:
        reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(options.folds)} folds failed ({reasons}); the rest is kept in {out}")
    return scores


def read_rows(
    source: Source, auxiliary: Sequence[str], published: Path | None, folds: Sequence[int], progress: Progress
) -> tuple[Dataset, dict[str, Dataset]]:
    """The task's rows and the auxiliary tasks', with the published predictions checked against them.

    Raises:
        UserError: as load_dataset, or a table that is none or another task's.
    """
    if published is not None:
        read_published(published)  # before minutes of reading
    dataset, others = load_dataset(source, progress), load_auxiliary(auxiliary, progress)
    if published is not None:
        check_published(published, dataset, folds)
    return dataset, others


def baseline_run(
    source: Source, folds: Sequence[int], published: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Scores of all baselines of a task, by name, beside what is known of the task.

    Raises:
        UserError: as load_dataset.
    """
    dataset = load_dataset(source, progress)
    store = graph_store(dataset, "0.3.0", progress) if dataset.task.is_energy else None
    config = task_config(dataset, {})
    predictions = baseline_predictions(dataset, folds, store, progress, config)
    content = description(dataset, config) | {"baselines": baseline_scores(predictions)}
    if published is not None:
        content["published"] = published_scores(published, predictions["dummy"])
    return content


def description(dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    """What was scored, with everything that limits what it may be compared with."""
    task = dataset.task
    return {
        "task": task.name,
        "target": task.target,
        "unit": task.unit,
        "tier": task.tier(config.uses_pretrained),
        "partial": dataset.partial,
        "synthetic": task.synthetic,
        "n_rows": len(dataset),
        "official_rows": task.official_rows,
    }


def task_config(
    dataset: Dataset, settings: Mapping[str, Any], auxiliary: Mapping[str, Dataset] | None = None
) -> RunConfig:
    """The task's preset with the user's settings over it, checked as a whole.

    Auxiliary tasks that were read are those of the joint training, unless the settings name them.
    """
    config = parse_config(merged(preset(dataset.task), settings), "configuration")
    if config.task != dataset.task.name:
        raise UserError(f"the configuration is for task '{config.task}', the command for '{dataset.task.name}'")
    named = [full_name(name) for name in config.multitask.tasks] or list(auxiliary or {})
    unused = sorted(set(auxiliary or {}) - set(named))
    if unused:
        raise UserError(f"--aux {unused[0]}: multitask.tasks does not name it ({', '.join(named)})")
    refuse_for_task(config, dataset.task)
    return config.changed({"multitask.tasks": named})


def with_named(auxiliary: Mapping[str, Dataset], config: RunConfig, progress: Progress) -> dict[str, Dataset]:
    """The auxiliary tasks of a configuration: those that were given with a file, and Matbench's by their names."""
    lacking = [name for name in config.multitask.tasks if name not in auxiliary]
    return {**auxiliary, **load_auxiliary(lacking, progress)}


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Hold `out` for this process.

    Raises:
        UserError: another process works there, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is at work in {out} ({_first_line(handle)}); wait for it or choose another --out"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        handle.flush()
        yield


def _first_line(handle: TextIO) -> str:
    handle.seek(0)
    return handle.readline().strip() or "it has not said its name"


def _same_run_or_refuse(out: Path, config: RunConfig, material: Material) -> None:
    """Write what this run is into out/run.json, or compare with what is there."""
    path, digest = out / "run.json", material.digest(config)
    wanted = {
        "fingerprint": config.changed({"fold": 0}).fingerprint(digest),
        "data": digest,
        "config": config.changed({"fold": 0}).model_dump(mode="json"),
        "versions": versions(),
    }
    held = _read_manifest(path)
    if held is None:
        _refuse_other_folds(out, config, material)
        if path.exists():
            material.progress.message(f"{path} was damaged: it is written again")
        write_json(path, wanted)
        return
    if held.get("fingerprint") != wanted["fingerprint"] and not any(out.glob("fold_*")):
        write_json(path, wanted)  # nothing was made of the other one
        return
    if held.get("fingerprint") != wanted["fingerprint"]:
        differences = "; ".join(_differences(held, wanted)) or "made by another version of the code"
        raise UserError(
            f"{out} already contains a different run ({differences}): "
            "use another --out, or repeat the original settings"
        )


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The content of run.json, or None where it is missing or damaged."""
    try:
        held = read_json(path)
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and "fingerprint" in held and "config" in held else None


def _refuse_other_folds(out: Path, config: RunConfig, material: Material) -> None:
    """Compare finished folds themselves with what is wanted, where no run.json says what they are.

    Raises:
        UserError: one was made with other settings, or on other rows.
    """
    for fold in range(N_FOLDS):
        folder = out / f"fold_{fold}"
        about = read_fold(folder)
        if about is None:
            continue
        wanted = config.changed({"fold": fold}).model_dump(mode="json")
        rows = set(pd.read_parquet(folder / PREDICTIONS, columns=["id"])["id"])
        differences = _differences({"config": about["config"]}, {"config": wanted})
        if differences or rows != set(material.test(fold).ids):
            reason = "; ".join(differences) or "its test rows are others"
            raise UserError(
                f"{out / 'run.json'} is missing or damaged, and {folder.name} is of a different run ({reason}): use "
                "another --out, or repeat the original settings"
            )


def _differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    found = []
    defaults = RunConfig(task="").model_dump(mode="json")  # of levers that an older version did not have
    for name in dotted_names():
        before, now = (_look_up(merged(defaults, each.get("config", {})), name) for each in (held, wanted))
        if before != now:
            found.append(f"{name} was {before}, is {now}")
    if held.get("data") != wanted.get("data"):
        found.append("the data differ")
    before, now = (each.get("versions", {}).get("chgnet") for each in (held, wanted))
    if before != now:
        found.append(f"chgnet was {before}, is {now}")
    return found


def _look_up(content: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _folder(out: Path, config: RunConfig, run: ModelRun, key: str) -> Path:
    """Where a run lies: a fold's only member in the fold's folder, everything else in one of its own there."""
    fold = out / f"fold_{run.config.fold}"
    members = recipe(config.changed({"fold": run.config.fold})).members
    return fold if members == (run,) else fold / run.name_with(key)


def _train_folds(runs: Runs, options: TrainOptions, progress: Progress) -> dict[int, str]:
    """Make the models of all folds and write what each fold predicts; returns the reasons of those that failed."""
    execute(runs, options.resources, ended=lambda run, summary: _tell(run, summary, progress))
    failed = {}
    for one in runs.recipes:
        reasons = [reason for run in one.members if (reason := runs.failed(run))]
        if reasons:
            failed[one.config.fold] = reasons[0]
        else:
            write_fold(runs, one)
    return failed


def _tell(run: ModelRun, summary: Mapping[str, Any], progress: Progress) -> None:
    name = f"fold {run.config.fold} seed {run.config.seed}" + (f" without part {run.inner}" if run.n_inner else "")
    if summary["status"] == "failed":
        progress.message(f"{name} failed: {summary['reason']}")
    elif not run.soup_of:
        progress.message(
            f"{name}: validation MAE {summary['best_val_mae']:.4g} in epoch {summary['best_epoch'] + 1}, "
            f"{summary['structures_per_s']:.0f} structures/s"
        )


def _score(
    material: Material,
    config: RunConfig,
    options: TrainOptions,
    out: Path,
    progress: Progress,
    failed: Mapping[int, str],
) -> dict[str, Any]:
    """Write predictions.parquet and score every fold that is finished, asked for now or before."""
    dataset = material.dataset
    predictions = collect_predictions(dataset, range(N_FOLDS), out, progress)
    write_parquet(out / "predictions.parquet", predictions)
    scores = description(dataset, config) | {"fingerprint": config.fingerprint(material.digest(config))}
    if len(predictions):
        folds = sorted(int(fold) for fold in np.unique(predictions["fold"]))
        scores |= fold_scores(predictions)
        scores["marks"] = marks(material, config, folds)
        scores["trained_also_on"] = trained_also_on(material, config, folds)
        store = GraphStore(material.store(config.model.start))
        baselines = baseline_predictions(dataset, folds, store, progress, config)
        scores["baselines"] = baseline_scores(baselines)
        for fold in folds:
            about = read_fold(out / f"fold_{fold}")
            scores["folds"][str(fold)]["structures_per_s"] = 0.0 if about is None else about["structures_per_s"]
        if options.published is not None:
            scores["published"] = published_scores(options.published, predictions)
    scores["failed"] = {str(fold): reason for fold, reason in failed.items()}
    return scores


def marks(material: Material, config: RunConfig, folds: Sequence[int]) -> list[str]:
    """What must be said beside every number of a configuration."""
    n_kept = sum(each.n_kept_overlap for fold in folds for each in _auxiliary_of(material, config, fold))
    return [f"{n_kept} auxiliary rows are test crystals and were KEPT"] if n_kept else []


def trained_also_on(material: Material, config: RunConfig, folds: Sequence[int]) -> dict[str, int]:
    """Rows of other tasks that took part in training, by task: the most of any fold."""
    found: dict[str, int] = {}
    for each in (each for fold in folds for each in _auxiliary_of(material, config, fold)):
        found[each.task.name] = max(found.get(each.task.name, 0), len(each.part))
    return found


def _auxiliary_of(material: Material, config: RunConfig, fold: int) -> tuple[AuxiliaryRows, ...]:
    return material.auxiliary_rows(config.changed({"fold": fold}))


def _record(scores: dict[str, Any], out: Path) -> dict[str, str | None]:
    """Write the Matbench record where there can be one.

    Returns:
        record: the results file's path within `out`; record_validated_by: the matbench that has validated it, or None
        where it is not installed; no_record_because: where there is no record, why, in a plain sentence.
    """
    write_json(out / "scores.json", scores)
    from orchestrator.record.submission import record_run, refusal_of

    refusal, record = refusal_of(scores), None
    if refusal is None:
        try:
            record = record_run(out)
        except CannotWrite:
            raise
        except (UserError, RuntimeError) as error:  # days of training must not end without their scores
            refusal = str(error)
    return {
        "record": None if record is None else str(record.path.relative_to(out)),
        "record_validated_by": None if record is None else record.validated_by,
        "no_record_because": refusal,
    }
