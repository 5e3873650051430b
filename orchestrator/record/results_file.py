"""The document in a Matbench results file: what matbench 0.6's own `to_file` writes, made without matbench.

`tests/orchestrator/test_record.py` compares it with the real package, byte by byte.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.evaluation.scores import errors
from trainables.data.folds import N_FOLDS, official_test_folds
from trainables.data.tasks import Task

MATBENCH = "0.6"  # whose layout this is; matbench warns of files with another version
BENCHMARK = "matbench_v0.1"
DATESTAMP = "%Y.%m.%d %H:%M.%S"  # in UTC
SMALLEST_TARGET = 1e-5  # matbench's MAPE leaves out targets whose magnitude is not above it
SCORE_TOLERANCE = 1e-9  # relative; the order of summation may differ


def official_test_ids(task: Task) -> list[list[str]]:
    """Return the official test ids of each fold, in matbench's order (which is the table's)."""
    assert task.official_rows is not None
    fold = official_test_folds(task.official_rows)
    return [[task.mbid(int(row)) for row in np.flatnonzero(fold == number)] for number in range(N_FOLDS)]


def score_fold(rows: pd.DataFrame) -> dict[str, float]:
    """Score the columns `target` and `prediction` of one fold as matbench scores a regression.

    Returns:
        mae, rmse and max_error in the task's unit; mape as a fraction, over targets that are not (nearly) zero; NaN
        where there are none.
    """
    target, prediction = (rows[column].to_numpy(dtype=np.float64) for column in ("target", "prediction"))
    large = np.abs(target) > SMALLEST_TARGET
    relative = np.abs(target - prediction)[large] / np.abs(target[large])
    return errors(target, prediction).model_dump() | {"mape": float(relative.mean()) if large.any() else math.nan}


def scores_agree(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Whether all four scores are equal but for rounding."""
    return ours.keys() == theirs.keys() and all(
        math.isclose(ours[name], theirs[name], rel_tol=SCORE_TOLERANCE)
        or (math.isnan(ours[name]) and math.isnan(theirs[name]))
        for name in ours
    )


def results_document(
    task: Task,
    folds: Sequence[pd.DataFrame],
    *,
    metadata: dict[str, Any],
    params: Mapping[int, dict[str, Any]],
    written: datetime | None = None,
) -> dict[str, Any]:
    """Lay out a whole benchmark file with one task.

    Args:
        folds: target and prediction of every fold, indexed by id in the official order.
        metadata: the submitter's own description, plain JSON types.
        params: a fold's settings, plain JSON types.
        written: defaults to now.
    """
    results = {
        f"fold_{number}": {
            "data": {str(mbid): float(value) for mbid, value in rows["prediction"].items()},
            "parameters": params[number],
            "scores": score_fold(rows),
            "uncertainty": None,
        }
        for number, rows in enumerate(folds)
    }
    recorded = {
        "@class": "MatbenchTask",
        "@module": "matbench.task",
        "benchmark_name": BENCHMARK,
        "dataset_name": task.name,
        "results": results,
    }
    document: dict[str, Any] = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": MATBENCH,
        "tasks": _sorted_keys({task.name: recorded}),
        "user_metadata": _sorted_keys(metadata),
        "benchmark_name": BENCHMARK,
        "datestamp": (written or datetime.now(UTC)).strftime(DATESTAMP),
    }
    return document | {"hash": digest(document)}


def digest(document: Mapping[str, Any]) -> str:
    """matbench's hash of a document (without its key `hash`): SHA-256 of the JSON text with sorted keys."""
    content = {key: value for key, value in document.items() if key != "hash"}
    return hashlib.sha256(json.dumps(_sorted_keys(content)).encode("utf-8")).hexdigest()


def _sorted_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with sorted keys; those inside lists keep their order, as matbench leaves them."""
    return {key: _sorted_keys(value) if isinstance(value, dict) else value for key, value in sorted(content.items())}


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write plain JSON whatever the name says: matbench 0.6 reads and writes .json.gz uncompressed (its issue 249)."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file)


def verify_file(path: Path, task: Task, folds: Sequence[pd.DataFrame]) -> None:
    """Read a results file back and compare it with the official splits and the given targets.

    Args:
        folds: target of every fold, indexed by id.

    Raises:
        RuntimeError: the file was changed, has other ids than the official ones, values that are no finite numbers,
            or scores that are not those of its predictions.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["hash"] != digest(document):
        raise RuntimeError(f"the hash in {path} is not that of its content")
    results = document["tasks"][task.name]["results"]
    for number, official in enumerate(official_test_ids(task)):
        recorded = results[f"fold_{number}"]
        if recorded["data"].keys() != set(official):
            raise RuntimeError(f"fold {number} in {path} does not have the official test ids of {task.name}")
        if not all(isinstance(value, float) and math.isfinite(value) for value in recorded["data"].values()):
            raise RuntimeError(f"fold {number} in {path} has predictions that are not finite numbers")
        predictions = pd.Series(recorded["data"]).loc[official].to_numpy()
        again = score_fold(folds[number].loc[official, ["target"]].assign(prediction=predictions))
        if not scores_agree(recorded["scores"], again):
            raise RuntimeError(
                f"fold {number} in {path} has the scores {recorded['scores']}; its predictions score {again}"
            )
