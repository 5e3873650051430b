"""Known good configurations: where every run, and later every search, starts from.

Chosen on inner validation parts only (benchmarks/README.md has the runs), one for each kind of target.
"""

from typing import Any

from trainables.config import RunConfig
from trainables.data.tasks import Task

PRESETS: dict[str, dict[str, Any]] = {
    "energy": {"optim": {"lr": 1e-3, "epochs": 15, "batch_size": 32}},
    "property": {"optim": {"lr": 1e-3, "epochs": 40, "batch_size": 16}},
}


def preset(task: Task) -> dict[str, Any]:
    """The configuration of a task before anything was chosen by the user, as nested keys."""
    defaults = RunConfig(task=task.name).model_dump(mode="json")
    for section, values in PRESETS["energy" if task.is_energy else "property"].items():
        defaults[section] |= values
    return defaults
