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
# What a task's targets are by definition: band gaps are not negative.
BY_TASK: dict[str, dict[str, Any]] = {"matbench_mp_gap": {"model": {"floor": 0.0}}}


def preset(task: Task) -> dict[str, Any]:
    """Return the configuration of a task before anything was chosen by the user, as nested keys."""
    defaults = RunConfig(task=task.name).model_dump(mode="json")
    for known in (PRESETS["energy" if task.is_energy else "property"], BY_TASK.get(task.name, {})):
        for section, values in known.items():
            defaults[section] |= values
    return defaults
