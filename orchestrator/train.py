"""The main job: from a task's name to scores of its folds and, where it may be, a Matbench record."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.baselines import baseline_predictions, baseline_scores
from orchestrator.datasets import Source, graph_store, load_dataset
from orchestrator.fold import FoldJob, finished, run_fold
from orchestrator.published import published_scores, read_published
from orchestrator.scores import fold_scores
from orchestrator.workers import plan, run_jobs
from search_spaces.presets import preset
from trainables.config import RunConfig, dotted_names, merged, parse_config
from trainables.data.dataset import Dataset
from trainables.data.folds import N_FOLDS, make_split
from trainables.errors import UserError
from trainables.files import read_json, write_json, write_parquet
from trainables.graphs.store import GraphStore
from trainables.model.compiled import Compile
from trainables.progress import Progress, silent
from trainables.training.compute import Compute


@dataclass(frozen=True)
class TrainOptions:
    """Which folds, and how they are computed.

    On a CPU, folds, processes and threads change nothing but whether a long fold is compiled, in its last digits.
    """

    folds: tuple[int, ...] = tuple(range(N_FOLDS))
    device: str = "auto"
    processes: int | None = None
    published: Path | None = None
    per_gpu: int = 1
    compiled: Compile = "auto"
    tf32: bool = False


def train(
    source: Source,
    out: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    options: TrainOptions | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train and test every fold asked for, resuming what `out` already holds.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset.

    Returns:
        The content of out/scores.json.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is done is kept).
    """
    options = options or TrainOptions()
    parse_config(merged({"task": source.task}, settings or {}), "configuration")  # before minutes of reading
    if options.published is not None:
        read_published(options.published)
    devices = plan(1, options.device).devices
    Compute(devices[0], options.compiled, options.tf32).check()
    dataset = load_dataset(source, progress)
    config = task_config(dataset, settings or {})
    with only_process(out):
        _same_run_or_refuse(out, config, dataset)
        store = graph_store(dataset, config.model.start, progress)
        failed = _train_folds(_jobs(dataset, config, store, options, out), options, progress)
        scores = _score(dataset, config, store, options, out, progress, failed)
        scores |= _record(scores, out)
        write_json(out / "scores.json", scores)
    if failed:
        reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(options.folds)} folds failed ({reasons}); the rest is kept in {out}")
    return scores


def parse_folds(text: str) -> tuple[int, ...]:
    """Read "0-4", "0" or "0,2".

    Raises:
        UserError: anything else, or folds that do not exist.
    """
    folds: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--folds {text}: a range or list such as 0-4, 0 or 0,2 was wanted")
        folds |= set(range(int(first), int(last or first) + 1))
    if not folds or max(folds) >= N_FOLDS:
        raise UserError(f"--folds {text}: folds are 0 to {N_FOLDS - 1}")
    return tuple(sorted(folds))


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
    content = _description(dataset, "0.3.0") | {"baselines": baseline_scores(predictions)}
    if published is not None:
        content["published"] = published_scores(published, predictions["dummy"])
    return content


def _description(dataset: Dataset, start: str) -> dict[str, Any]:
    task = dataset.task
    return {
        "task": task.name,
        "target": task.target,
        "unit": task.unit,
        "tier": task.tier(start),
        "partial": dataset.partial,
        "synthetic": task.synthetic,
        "n_rows": len(dataset),
        "official_rows": task.official_rows,
    }


def task_config(dataset: Dataset, settings: Mapping[str, Any]) -> RunConfig:
    """The task's preset with the user's settings over it, checked as a whole."""
    content = merged(preset(dataset.task), settings)
    if content.get("task") != dataset.task.name:
        raise UserError(f"the configuration is for task '{content.get('task')}', the command for '{dataset.task.name}'")
    return parse_config(content, "configuration")


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Hold `out` for this process.

    Raises:
        UserError: another process works there, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is at work in {out}; wait for it or choose another --out") from None
        yield


def _same_run_or_refuse(out: Path, config: RunConfig, dataset: Dataset) -> None:
    """Write what this run is into out/run.json, or compare with what is there."""
    path = out / "run.json"
    wanted = {
        "fingerprint": config.changed({"fold": 0}).fingerprint(dataset.digest),
        "data": dataset.digest,
        "config": config.changed({"fold": 0}).model_dump(mode="json"),
        "versions": {name: version(name) for name in ("crystaltune", "chgnet", "torch", "pymatgen", "numpy")},
    }
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        held = read_json(path)
    except (OSError, ValueError):
        raise UserError(f"{path} is damaged; choose another --out or remove that folder") from None
    if held.get("fingerprint") != wanted["fingerprint"]:
        differences = _differences(held, wanted)
        raise UserError(
            f"{out} holds another run ({'; '.join(differences) or 'made by another version of the code'}): choose "
            "another --out, or ask for the run that is there"
        )


def _differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    found = []
    for name in dotted_names():
        before, now = _look_up(held.get("config", {}), name), _look_up(wanted["config"], name)
        if before != now:
            found.append(f"{name} was {before}, is {now}")
    if held.get("data") != wanted["data"]:
        found.append("the data are others")
    before, now = held.get("versions", {}).get("chgnet"), wanted["versions"]["chgnet"]
    if before != now:
        found.append(f"chgnet was {before}, is {now}")
    return found


def _look_up(content: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _jobs(
    dataset: Dataset, config: RunConfig, store: GraphStore, options: TrainOptions, out: Path
) -> list[tuple[str, FoldJob]]:
    jobs = []
    for fold in options.folds:
        fold_config = config.changed({"fold": fold})
        split = make_split(dataset, fold, val_share=config.data.val_share, seed=config.seed)
        if split.test is None:
            raise AssertionError("make_split gives test rows")
        folder = out / f"fold_{fold}"
        job = FoldJob(
            fold_config,
            dataset.task,
            split.without_test(),
            split.test.ids,
            split.test.rows,
            store.folder,
            folder,
            options.compiled,
            options.tf32,
        )
        jobs.append((f"fold {fold}", job))
    return jobs


def _train_folds(jobs: list[tuple[str, FoldJob]], options: TrainOptions, progress: Progress) -> dict[int, str]:
    """Run the folds that are not finished; returns the reasons of those that failed."""
    left = [(name, job) for name, job in jobs if finished(job.folder) is None]
    where = plan(len(left), options.device, options.processes, options.per_gpu)
    if len(left) < len(jobs):
        progress.message(f"{len(jobs) - len(left)} of {len(jobs)} folds are finished already")
    fold_of = {name: job.config.fold for name, job in left}
    failed = {}
    for name, summary in run_jobs(run_fold, left, where, progress):
        if summary["status"] == "failed":
            failed[fold_of[name]] = str(summary["reason"])
            progress.message(f"{name} failed: {summary['reason']}")
        else:
            progress.message(
                f"{name}: validation MAE {summary['best_val_mae']:.4g} in epoch {summary['best_epoch'] + 1}, "
                f"{summary['structures_per_s']:.0f} structures/s"
            )
    return failed


def collect_predictions(dataset: Dataset, folds: Sequence[int], out: Path) -> pd.DataFrame:
    """Predictions of all finished folds beside their targets: id, fold, target, prediction, fallback."""
    target = pd.Series(dataset.targets, index=list(dataset.ids))
    tables = [
        pd.read_parquet(out / f"fold_{fold}" / "predictions.parquet")
        for fold in folds
        if finished(out / f"fold_{fold}") is not None
    ]
    if not tables:
        return pd.DataFrame(columns=["id", "fold", "target", "prediction", "fallback"])
    table = pd.concat(tables, ignore_index=True)
    table.insert(2, "target", target.loc[table["id"]].to_numpy())
    return table


def _score(
    dataset: Dataset,
    config: RunConfig,
    store: GraphStore,
    options: TrainOptions,
    out: Path,
    progress: Progress,
    failed: Mapping[int, str],
) -> dict[str, Any]:
    """Write predictions.parquet and score every fold that is finished, asked for now or before."""
    predictions = collect_predictions(dataset, range(N_FOLDS), out)
    write_parquet(out / "predictions.parquet", predictions)
    scores = _description(dataset, config.model.start) | {"fingerprint": config.fingerprint(dataset.digest)}
    if len(predictions):
        folds = sorted(int(fold) for fold in np.unique(predictions["fold"]))
        scores |= fold_scores(predictions)
        baselines = baseline_predictions(dataset, folds, store, progress, config)
        scores["baselines"] = baseline_scores(baselines)
        for fold in folds:
            scores["folds"][str(fold)]["structures_per_s"] = (finished(out / f"fold_{fold}") or {})["structures_per_s"]
        if options.published is not None:
            scores["published"] = published_scores(options.published, predictions)
    scores["failed"] = {str(fold): reason for fold, reason in failed.items()}
    return scores


def _record(scores: dict[str, Any], out: Path) -> dict[str, str | None]:
    """Write the Matbench record where there can be one; its path within `out`, or a plain sentence why not."""
    write_json(out / "scores.json", scores)
    from orchestrator.submission import record_run, refusal_of  # matbench takes seconds to import

    refusal = refusal_of(scores)
    record = None if refusal else str(record_run(out).relative_to(out))
    return {"record": record, "no_record_because": refusal}
