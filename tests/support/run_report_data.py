"""The results of a made-up run, for tests of its report."""

from pathlib import Path

import numpy as np
import pandas as pd

from orchestrator.evaluation.scores import Scores, score_folds
from orchestrator.execution.summary import RunSummary
from orchestrator.provenance import RunManifest
from orchestrator.train.report import Results
from orchestrator.train.rows import PredictedRows
from trainables.config import RunConfig

FORMULAS = ("NaCl", "SrTiO3", "MgO", "Fe2O3", "LiCoO2", "GaAs", "UO2", "CsPbI3", "MoS2", "La2CuO4")


def run_results(
    n_rows: int = 300, *, folds: tuple[int, ...] = (0, 1, 2), noise: float = 0.1, **changed: object
) -> Results:
    """Rows of ten formulas whose errors grow with their size and with their spread."""
    rng = np.random.default_rng(0)
    size = rng.integers(2, 40, n_rows)
    spread = rng.uniform(0.02, 0.3, n_rows)
    target = rng.normal(-1, 1, n_rows)
    error = rng.normal(0, noise, n_rows) * spread * np.sqrt(size)
    table = pd.DataFrame(
        {
            "id": [f"row-{number:04d}" for number in range(n_rows)],
            "fold": rng.permutation(np.arange(n_rows) % len(folds)).astype(int),
            "target": target,
            "prediction": target + error,
            "std": spread,
            "fallback": np.arange(n_rows) % 97 == 5,
            "formula": [FORMULAS[number % len(FORMULAS)] for number in range(n_rows)],
            "n_sites": size,
        }
    )
    table["fold"] = np.array(folds)[table["fold"]]
    own = score_folds(table)
    dummy = score_folds(table.assign(prediction=target.mean()))
    config = RunConfig(task="mine").changed({"optim.lr": 5e-4, "optim.epochs": 12})
    content = {
        "task": "mine",
        "target": "energy",
        "unit": "eV/atom",
        "tier": "pretrained-overlap-unknown",
        "partial": False,
        "synthetic": False,
        "n_rows": 5 * n_rows,
        "official_rows": None,
        "fingerprint": "0123456789abcdef",
        "baselines": {"dummy": dummy},
        **own.model_dump(),
        **changed,
    }
    history = [{"epoch": epoch, "val_mae": 0.3 / (1 + epoch), "train_loss": 0.2} for epoch in range(12)]
    summary = RunSummary(
        status="finished", reason="", structures=12_000, seconds=93.0, structures_per_s=129.0, best_epoch=11,
        best_val_mae=0.025, compiled=False, before=[], history=history, device="cpu (x86_64)",
    )  # fmt: skip
    manifest = RunManifest(
        fingerprint="0123456789abcdef",
        data="ab" * 32,
        config=config.model_dump(mode="json"),
        versions={"torch": "2.15.0"},
    )
    return Results(
        Path("runs/mine"),
        Scores(**content),
        own,
        manifest,
        PredictedRows.of(table),
        {fold: [summary] for fold in own.folds},
    )
