"""A made-up result of all folds of jdft2d, as a record is made of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.evaluation.scores import score_folds
from orchestrator.record.matbench import AlgorithmDescription
from orchestrator.record.results_file import official_test_ids
from orchestrator.record.submission import OFFICIAL_MAD
from trainables.data.folds import N_FOLDS, official_test_folds
from trainables.data.tasks import TASKS

TASK = TASKS["matbench_jdft2d"]
DESCRIPTION = AlgorithmDescription(
    name="crystaltune test",
    authors="A. Tester",
    tier="pretrained-disjoint",
    settings={"optim.lr": 1e-3, "model.freeze": ["embedding"], "multitask.tasks": []},
    versions={"crystaltune": "0.1.0", "torch": "2.15.0"},
    n_fallback=3,
)
PARAMS = {fold: {"lr": 3e-4, "layers": [64, 64], "nested": {"ema": 0.99, "name": "x"}} for fold in range(N_FOLDS)}


def table(seed: int = 0) -> pd.DataFrame:
    """jdft2d's ids and folds, with made-up targets and predictions."""
    rng = np.random.default_rng(seed)
    assert TASK.official_rows is not None
    targets = rng.uniform(1, 300, TASK.official_rows)
    return pd.DataFrame(
        {
            "id": [TASK.mbid(row) for row in range(TASK.official_rows)],
            "fold": official_test_folds(TASK.official_rows),
            "target": targets,
            "prediction": targets + rng.normal(0, 30, TASK.official_rows),
        }
    )


def in_official_order(predictions: pd.DataFrame, task: Any = TASK) -> list[pd.DataFrame]:
    return [predictions.set_index("id").loc[ids] for ids in official_test_ids(task)]


def write_finished_run(folder: Path) -> None:
    """Write the files that `crystaltune record` reads of a finished run of jdft2d."""
    predictions = table()
    center = predictions["target"].mean()
    deviation = (predictions["target"] - center).abs().mean()
    predictions["target"] = (predictions["target"] - center) * OFFICIAL_MAD[TASK.name] / deviation + center
    folder.mkdir(exist_ok=True)
    predictions.to_parquet(folder / "predictions.parquet")
    scores = {
        "task": TASK.name,
        "target": TASK.target,
        "unit": TASK.unit,
        "tier": TASK.overlap,
        "synthetic": False,
        "partial": False,
        "n_rows": TASK.official_rows,
        "official_rows": TASK.official_rows,
        "fingerprint": "0123456789abcdef",
        **score_folds(predictions).model_dump(),
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    settings = {
        "fingerprint": "0123456789abcdef",
        "config": {"task": TASK.name, "fold": 0, "optim": {"lr": 0.001}},
        "versions": {"crystaltune": "0.1.0"},
    }
    (folder / "run.json").write_text(json.dumps(settings))
