"""From a run's folder to the Matbench submission folder in it."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.evaluation.scores import Scores
from orchestrator.provenance import RunManifest
from orchestrator.record.matbench import (
    AlgorithmDescription,
    MatbenchRecord,
    matbench_version,
    submission_folder,
    why_no_record,
    write_record,
)
from trainables.data.tasks import TASKS, Task
from trainables.errors import UserError
from trainables.files import read_json
from trainables.mappings import flattened

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
    scores, manifest, predictions = _read_run(run)
    refusal = refusal_of(scores)
    if refusal:
        raise UserError(f"no Matbench record of {run}: {refusal}")
    task = TASKS[scores.task]
    matbench = matbench_version()
    _check_targets(task, predictions)
    others = [f"{rows} rows of {name}" for name, rows in scores.trained_also_on.items()]
    jointly = f"Trained jointly on {', '.join(others)} first; rows that are test crystals were left out."
    settings = {key: value for key, value in flattened(manifest.config).items() if key not in ("task", "fold")}
    description = AlgorithmDescription(
        name=NAME,
        authors="crystaltune",
        tier=scores.tier,
        settings=settings,
        versions=manifest.versions | _of_trees(settings) | ({} if matbench is None else {"matbench": matbench}),
        n_fallback=0 if scores.mean is None else scores.mean.n_fallback,
        notes=jointly if others else "",
    )
    params = {fold: flattened(manifest.config | {"fold": fold}) for fold in scores.folds}
    return write_record(predictions, task, submission_folder(run, NAME), description=description, params=params)


def _of_trees(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the version of what grows trees, where there are some."""
    families = settings.get("ensemble.vary.model.family", [settings.get("model.family")])
    return {"scikit-learn": version("scikit-learn")} if "tabular" in families else {}


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


def refusal_of(scores: Scores) -> str | None:
    """Return why these scores cannot become a Matbench record, or None."""
    task = TASKS.get(scores.task) or Task(
        scores.task, scores.target, scores.unit, "property", scores.tier, synthetic=scores.synthetic
    )
    if scores.marks:
        return f"{'; '.join(scores.marks)}: set multitask.keep_overlap=false for an honest record"
    n_fallback = 0 if scores.mean is None else scores.mean.n_fallback
    return why_no_record(
        task, partial=scores.partial, n_rows=scores.n_rows, folds=list(scores.folds), n_fallback=n_fallback
    )


def _read_run(run: Path) -> tuple[Scores, RunManifest, pd.DataFrame]:
    try:
        scores = Scores.model_validate(read_json(run / "scores.json"))
        manifest = RunManifest.model_validate(read_json(run / "run.json"))
        return scores, manifest, pd.read_parquet(run / "predictions.parquet")
    except OSError as error:
        raise UserError(f"{run} does not contain a finished run ({error.strerror or error}): train one first") from None
    except ValueError:
        raise UserError(
            f"{run} does not contain a finished run (one of its files is damaged); train again to repair it"
        ) from None
