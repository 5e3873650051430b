"""What `crystaltune quickstart` trains: the main job on the embedded synthetic sample, in minutes on a laptop."""

from typing import Any

from orchestrator.inputs.source import Source
from trainables.data.tasks import SAMPLE_TASK

SOURCE = Source(SAMPLE_TASK.name)
SETTINGS: dict[str, Any] = {"optim.epochs": 20, "optim.batch_size": 16}
