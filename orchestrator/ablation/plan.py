"""What an ablation will do, and how that is shown."""

from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.execution.estimate import FleetEstimate
from orchestrator.report.format import readable


@dataclass(frozen=True)
class PlannedExperiment:
    """What an experiment needs.

    Attributes:
        description: what it changes.
        n_models: that it needs, teachers included.
        n_new: of these, those that no experiment before it has made.
        shared_with: the experiments before it that need some of the same models.
    """

    name: str
    description: str
    n_models: int
    n_new: int
    shared_with: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Planned:
    """What will be done, by experiment and as a whole.

    Attributes:
        processes, seconds: on this machine.
        fleet: what it would take on `gpus` GPUs, where that was asked.
        speed_source: where the speed of a GPU was measured; empty where it was given.
    """

    experiments: list[PlannedExperiment]
    n_runs: int
    n_finished: int
    processes: int
    seconds: float
    fleet: FleetEstimate | None = None
    gpus: int = 0
    speed_source: str = ""

    @property
    def fleet_sentences(self) -> list[str]:
        """Return what the plan would take on GPUs, in sentences."""
        fleet = self.fleet
        if fleet is None:
            return []
        gpus = f"{self.gpus:,} GPU{'s' * (self.gpus > 1)}"
        source = "as given"
        if self.speed_source:
            source = f"{self.speed_source}; give a GPU's own with `structures_per_second`"
        hours = self.gpus * fleet.seconds / 3600
        return [
            f"On {gpus}: about {readable(fleet.seconds)} of training, {hours:,.3g} GPU hours; the GPUs train "
            f"{fleet.busy:.0%} of that time.",
            f"The longest chain of models takes {readable(fleet.longest)}: no number of GPUs is faster.",
            f"Reckoned with {fleet.speed:,.0f} structures/s for each of {fleet.workers:,} models at once ({source}).",
        ]

    def __str__(self) -> str:
        done = f", {self.n_finished} of them finished already" if self.n_finished else ""
        left = f"about {readable(self.seconds)} on {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{self.n_runs} models{done}; {left if self.seconds else 'nothing is left to train'}"


def plan_shown(planned: Planned) -> RenderableType:
    """Return the plan of an ablation, and how long it takes."""
    return Group(plan_table(planned.experiments), *map(Text, (str(planned), *planned.fleet_sentences)))


def plan_table(experiments: list[PlannedExperiment]) -> Table:
    """Return the experiments of an ablation: what each changes, the models it needs, and how many no other has made."""
    table = Table(title="Experiments", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "what", "models", "new", "shared with"):
        fixed = column not in ("what", "shared with")
        table.add_column(column, justify="right" if column in ("models", "new") else "left", no_wrap=fixed)
    for experiment in experiments:
        numbers = f"{experiment.n_models:,}", f"{experiment.n_new:,}"
        table.add_row(experiment.name, experiment.description, *numbers, ", ".join(experiment.shared_with))
    return table
