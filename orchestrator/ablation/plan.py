"""What an ablation will do, and how that is shown."""

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.execution.estimate import readable


@dataclass(frozen=True, eq=False)
class Planned:
    """What will be done: a line an experiment, and the whole."""

    lines: list[dict[str, Any]]
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
    return Group(plan_table(planned.lines), Text(str(planned)))


def plan_table(lines: list[dict[str, Any]]) -> Table:
    """Return the experiments of an ablation: what each changes, the models it needs, and how many no other has made."""
    table = Table(title="Experiments", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "what", "models", "new", "shared with"):
        fixed = column not in ("what", "shared with")
        table.add_column(column, justify="right" if column in ("models", "new") else "left", no_wrap=fixed)
    for line in lines:
        numbers = f"{line['models']:,}", f"{line['new']:,}"
        table.add_row(line["name"], line["says"], *numbers, ", ".join(line["shared"]))
    return table
