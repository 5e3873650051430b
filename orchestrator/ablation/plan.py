"""What an ablation will do, and how that is shown."""

from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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
    """What will be done, by experiment and as a whole."""

    experiments: list[PlannedExperiment]
    n_runs: int
    n_finished: int
    processes: int
    seconds: float

    def __str__(self) -> str:
        done = f", {self.n_finished} of them finished already" if self.n_finished else ""
        left = f"about {readable(self.seconds)} on {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{self.n_runs} models{done}; {left if self.seconds else 'nothing is left to train'}"


def plan_shown(planned: Planned) -> RenderableType:
    """Return the plan of an ablation, and how long it takes."""
    return Group(plan_table(planned.experiments), Text(str(planned)))


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
