"""Known good configurations: where every run, and later every search, starts from.

Chosen on inner validation parts only (benchmarks/README.md has the runs), for each kind of target and number of rows.
"""

from collections.abc import Container
from typing import Any

from trainables.config import RunConfig
from trainables.data.tasks import Task

PRESETS: dict[str, dict[str, Any]] = {
    "energy": {"optim": {"lr": 1e-3, "epochs": 15, "batch_size": 32}},
    "property": {"optim": {"lr": 1e-3, "epochs": 40, "batch_size": 16}},
}
# What a task's targets are by definition: band gaps are not negative.
BY_TASK: dict[str, dict[str, Any]] = {"matbench_mp_gap": {"model": {"floor": 0.0}}}


SMALL_FROM, SMALL_UP_TO = 100, 1_500  # rows of a property
_SMALL = {"lr": 2e-3, "layer_decay": 0.7, "weight_decay": 0.05, "batch_size": 8}
_SMALL_STEPS = 4_000  # of a run, which then takes as long whatever the rows
_SMALL_EPOCHS = (40, 80)
_TRAINED_ON = 0.64  # of the rows: four of five folds, and of these four of five parts


def preset(task: Task, n_rows: int | None = None) -> dict[str, Any]:
    """Return the configuration of a task before anything was chosen by the user, as nested keys.

    Args:
        n_rows: of the table; None for what does not depend on it.
    """
    defaults = RunConfig(task=task.name).model_dump(mode="json")
    small = not task.is_energy and n_rows is not None and SMALL_FROM <= n_rows <= SMALL_UP_TO
    layers = [PRESETS["energy" if task.is_energy else "property"], BY_TASK.get(task.name, {})]
    for known in [*layers, *([_small(n_rows or 0)] if small else [])]:
        for section, values in known.items():
            defaults[section] |= values
    return defaults


def _small(n_rows: int) -> dict[str, Any]:
    """Return the preset of a small table of a property: as many steps for any number of rows."""
    least, most = _SMALL_EPOCHS
    epochs = round(_SMALL_STEPS * _SMALL["batch_size"] / (_TRAINED_ON * n_rows))
    return {"optim": _SMALL | {"epochs": min(max(epochs, least), most)}}


# Fine-tuned and tabular models together, by the number of rows of a table of properties.
BLEND_FROM, BLEND_UP_TO = SMALL_FROM, 10_000
PARTS, PARTS_UP_TO = 5, SMALL_UP_TO  # of more rows a tenth says enough, and five models a fold take days
PHONONS_UP_TO = 5_000
GROUPS_A_PART = 4  # formulas, of which fewer make parts that are luck, or empty
GOVERNED = tuple(f"optim.{name}" for name in (*_SMALL, "epochs"))  # settings that presets choose


def blends(task: Task, n_rows: int) -> bool:
    """Return whether a table of so many rows is learnt by fine-tuned and tabular models together unless told."""
    return not task.is_energy and BLEND_FROM <= n_rows <= BLEND_UP_TO


def chooses_members(key: str) -> bool:
    """Return whether a setting, by its dotted key, says which models a run is made of: then no preset does."""
    return key == "model.family" or key.partition(".")[0] == "ensemble"


def blend(
    config: RunConfig, task: Task, n_rows: int, *, in_parts: bool = True, named: Container[str] = frozenset()
) -> RunConfig:
    """Return the configuration whose members are a fine-tuned CHGNet and a tabular model, weighted on held-out rows.

    Args:
        in_parts: train each in parts of the training fold, where the rows are few.
        named: settings by dotted key that the user chose, which stay.

    Raises:
        UserError: the configuration has levers that a tabular model or parts cannot have.
    """
    ensemble = {"vary": {"model.family": ["chgnet", "tabular"]}, "combine": "greedy"}
    parts = {"inner_folds": PARTS} if in_parts and n_rows <= PARTS_UP_TO else {}
    changes: dict[str, Any] = {}
    if n_rows <= PHONONS_UP_TO and config.model.start != "scratch":
        changes = {"model.phonons": True} | ({} if task.is_energy else {"model.physics": True})
    kept = {key: value for key, value in changes.items() if key not in named}
    return config.changed(kept | {"ensemble": ensemble | parts})
