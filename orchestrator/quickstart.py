"""`crystaltune quickstart`: the main job on the embedded synthetic sample, in minutes on a laptop."""

from pathlib import Path
from typing import Any

from orchestrator.source import Source
from orchestrator.train import TrainOptions, train
from trainables.data.tasks import SAMPLE_TASK
from trainables.progress import Progress, silent

SETTINGS: dict[str, Any] = {"optim": {"epochs": 20, "batch_size": 16}}


def quickstart(out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Train and test all five folds of the synthetic sample; returns the content of out/scores.json."""
    return train(Source(SAMPLE_TASK.name), out, settings=SETTINGS, options=TrainOptions(), progress=progress)
