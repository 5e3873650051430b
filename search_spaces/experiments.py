"""The ladder of experiments: each is a named change against its parent.

A new one is one entry: a name, its parent, what it says, and the keys of RunConfig that it changes. `longer` multiplies
the parent's epochs; `control` names what it has to beat at equal cost. Keys whose good values depend on the task
(epochs, the learning rate) come from the task's preset and from the user's settings, which hold for every experiment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.presets import preset
from trainables.config import RunConfig, merged, parse_config
from trainables.data.tasks import Task
from trainables.errors import UserError


@dataclass(frozen=True)
class Experiment:
    """One row of the ablation table.

    Attributes:
        parent: what it changes, and is compared with; None for the baseline.
        changes: dotted keys of RunConfig.
        longer: factor on the epochs.
        control: another experiment without the lever that costs about as much to train (L3) or to use (E0).
    """

    name: str
    parent: str | None
    description: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    longer: float = 1.0
    control: str | None = None


_PERTURBED = {
    "augment.strain": "symmetry",
    "augment.strain_size": 1e-3,
    "augment.displacement": "symmetry",
    "augment.displacement_size": 0.005,
}
_AUGMENTED = {**_PERTURBED, "consistency.weight": 0.5, "consistency.supervised": True}
_FOUR_VIEWS = {"tta.views": 4, "tta.strain_size": 1e-3, "tta.displacement_size": 0.005}

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("E0", None, "baseline: the task's preset with the settings given"),
        Experiment("E1", "E0", "augmentation: small symmetric strains and displacements, consistent views", _AUGMENTED),
        Experiment("E2", "E1", "augmentation and 4 views at test time", _FOUR_VIEWS),
        Experiment("E3", "E0", "mean of 3 seeds", {"ensemble.members": 3}, control="L3"),
        Experiment(
            "E4",
            "E3",
            "one student of 3 out-of-fold teachers",
            {"ensemble.members": 1, "distil.weight": 0.5},
            control="E0",
        ),
        Experiment("E5", "E0", "joint pre-training on other tasks", {"multitask.tasks": "auxiliary"}, control="L3"),
        Experiment("E6", "E4", "student and 4 views at test time", _FOUR_VIEWS),
        # What the ladder is held against, and cheap alternatives.
        Experiment("L3", "E0", "one run three times as long", longer=3.0),
        Experiment("B1", "E4", "born again: one teacher a row", {"distil.seeds": 1}, control="E0"),
        Experiment("A1", "E0", "augmentation alone, without consistency", _PERTURBED),
        Experiment("T4", "E0", "baseline and 4 views at test time", _FOUR_VIEWS),
        Experiment("W0", "E0", "equal averaging of the last quarter's weights", {"optim.averaging": "swa"}),
        Experiment("W3", "E3", "soup: averaged weights of 3 seeds", {"ensemble.combine": "soup"}),
        Experiment("S3", "E3", "3 seeds, stacked", {"ensemble.combine": "stacked"}),
        Experiment("H0", "E0", "hurdle head: zero or not, then how much", {"model.head": "hurdle"}),
    )
}
LADDER = ("E0", "E1", "E2", "E3", "E4", "E5", "E6", "L3")


def lineage(name: str, known: Mapping[str, Experiment] = EXPERIMENTS) -> list[Experiment]:
    """Return the experiment with all its ancestors, the baseline first.

    Raises:
        UserError: there is no such experiment, or parents in a circle.
    """
    found: list[Experiment] = []
    here: str | None = name
    while here is not None:
        if here not in known:
            raise UserError(f"unknown experiment '{here}': available: {', '.join(known)}")
        if any(experiment.name == here for experiment in found):
            raise UserError(f"experiment {name} is its own ancestor: fix its parents")
        found.insert(0, known[here])
        here = known[here].parent
    return found


def configuration(
    name: str,
    task: Task,
    settings: Mapping[str, Any],
    *,
    auxiliary: tuple[str, ...] = (),
    equal_steps: bool = False,
    known: Mapping[str, Experiment] = EXPERIMENTS,
) -> RunConfig:
    """Return the configuration of an experiment: preset, the user's settings, then every change down its lineage.

    Args:
        auxiliary: what `multitask.tasks: auxiliary` stands for.
        equal_steps: joint training is taken from the target's own epochs, so that no experiment makes more steps on
            the target's rows.

    Raises:
        UserError: an unknown experiment, a lever that wants auxiliary tasks where none were given, or settings that do
            not fit together.
    """
    content = merged(preset(task), settings)
    config = parse_config(content, "configuration")
    for experiment in lineage(name, known):
        changes = dict(experiment.changes)
        if changes.get("multitask.tasks") == "auxiliary":
            if not auxiliary:
                raise UserError(
                    f"{name} trains on other tasks too: name them with `auxiliary`, for example `auxiliary=mp_gap`"
                )
            changes["multitask.tasks"] = list(auxiliary)
        if experiment.longer != 1:
            changes["optim.epochs"] = max(1, round(config.optim.epochs * experiment.longer))
        config = config.changed(changes)
    if equal_steps and config.multitask.tasks:
        left = config.optim.epochs - config.multitask.epochs
        if left < 1:
            raise UserError(
                f"{name}: {config.multitask.epochs} epochs of joint training leave none of {config.optim.epochs} with "
                "`budget=equal-steps`: set multitask.epochs lower"
            )
        config = config.changed({"optim.epochs": left})
    return config


def with_parents(names: Iterable[str], known: Mapping[str, Experiment] = EXPERIMENTS) -> list[str]:
    """Return the experiments asked for, their parents and their controls, in the registry's order."""
    wanted: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        wanted.add(name)
        here = lineage(name, known)[-1]
        queue += [other for other in (here.parent, here.control) if other is not None]
    return [name for name in known if name in wanted]
