"""`crystaltune record`: from a run's folder to the Matbench submission folder in it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.record.matbench import (
    MatbenchRecord,
    matbench_version,
    submission_folder,
    why_no_record,
    write_record,
)
from trainables.data.tasks import TASKS, Task
from trainables.errors import UserError
from trainables.files import read_json

NAME = "crystaltune_chgnet"
# Mean absolute deviation of each task's targets, in the task's unit: matbench 0.6's own metadata (tests compare them).
OFFICIAL_MAD = {
    "matbench_mp_e_form": 1.0059220443295362,
    "matbench_mp_gap": 1.3271449960162496,
    "matbench_perovskites": 0.5659924184827462,
    "matbench_log_gvrh": 0.29313828328604646,
    "matbench_log_kvrh": 0.2896736342937069,
    "matbench_dielectric": 0.808534704217072,
    "matbench_phonons": 323.78696979348734,
    "matbench_jdft2d": 67.20200406491116,
}


def record_run(run: Path) -> MatbenchRecord:
    """Write the Matbench record of a finished run.

    Raises:
        UserError: the folder holds no run, or why there can be no record, in a plain sentence.
    """
    scores, settings, predictions = _read_run(run)
    refusal = refusal_of(scores)
    if refusal:
        raise UserError(f"no Matbench record of {run}: {refusal}")
    task = TASKS[scores["task"]]
    matbench = matbench_version()
    _check_targets(task, predictions)
    about = {
        "name": NAME,
        "authors": "crystaltune",
        "tier": scores["tier"],
        "command": _command(settings),
        "versions": settings["versions"] | ({} if matbench is None else {"matbench": matbench}),
        "n_fallback": scores["mean"]["n_fallback"],
    }
    others = [f"{rows} rows of {name}" for name, rows in scores.get("trained_also_on", {}).items()]
    if others:
        about["notes"] = f"Trained jointly on {', '.join(others)} first; rows that are test crystals were left out."
    params = {int(fold): _flat(settings["config"] | {"fold": int(fold)}) for fold in scores["folds"]}
    return write_record(predictions, task, submission_folder(run, NAME), about=about, params=params)


def _check_targets(task: Task, predictions: pd.DataFrame) -> None:
    """Compare the mean absolute deviation of the run's targets with the one that Matbench has published.

    Raises:
        UserError: they differ, so the targets are not the official ones.
    """
    official = OFFICIAL_MAD[task.name]
    found = float((predictions["target"] - predictions["target"].mean()).abs().mean())
    if abs(found - official) > 1e-3 * official:
        raise UserError(
            f"the targets of this run have a mean absolute deviation of {found:.6g}, {task.name}'s official ones "
            f"{official:.6g}: its data file is not Matbench's; download the official one and train again"
        )


def refusal_of(scores: dict[str, Any]) -> str | None:
    """Why these scores can be no Matbench record, or None."""
    task = TASKS.get(scores["task"]) or Task(
        scores["task"], scores["target"], scores["unit"], "property", scores["tier"], synthetic=scores["synthetic"]
    )
    if scores.get("marks"):
        return f"{'; '.join(scores['marks'])}: set multitask.keep_overlap=false for an honest record"
    folds = [int(fold) for fold in scores.get("folds", {})]
    n_fallback = scores["mean"]["n_fallback"] if folds else 0
    return why_no_record(task, partial=scores["partial"], n_rows=scores["n_rows"], folds=folds, n_fallback=n_fallback)


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
    try:
        scores, settings = read_json(run / "scores.json"), read_json(run / "run.json")
        if not (isinstance(scores, dict) and isinstance(settings, dict)):
            raise ValueError("scores.json or run.json is damaged")
        return scores, settings, pd.read_parquet(run / "predictions.parquet")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"{run} holds no finished run ({reason}); `crystaltune train TASK --out {run}` makes one"
        ) from None


def _command(settings: dict[str, Any]) -> str:
    """The command that repeats the run."""
    told = {key: value for key, value in _flat(settings["config"]).items() if key not in ("task", "fold")}
    chosen = " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in told.items())
    return f"crystaltune train {settings['config']['task']} {chosen}"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
