"""Scores as tables for the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from orchestrator.evaluation.scores import BaselineScores, CountedErrors, PredictorScores, Scores, TaskSummary
from trainables.data.tasks import TASKS

if TYPE_CHECKING:
    from search_spaces.space import Space


def score_table(scores: Scores) -> Table:
    """One line a fold, then the mean; baselines and published algorithms below on the same rows."""
    table = _empty_table(scores)
    for fold, values in scores.folds.items():
        table.add_row(f"fold {fold}", *_cells(values))
    table.add_section()
    if scores.own is not None:
        _add_mean(table, "crystaltune", scores.own, bold=True)
    _add_others(table, scores)
    return table


def baseline_table(scores: BaselineScores) -> Table:
    """Baselines and published algorithms alone."""
    table = _empty_table(scores)
    _add_others(table, scores)
    return table


def _empty_table(scores: BaselineScores) -> Table:
    table = Table(
        title=title_of(scores),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True, max_width=24)
    for column in ("MAE", "+-", "RMSE", "max error", "rows", "fallback"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _add_others(table: Table, scores: BaselineScores) -> None:
    for name, other in scores.baselines.items():
        _add_mean(table, name, other)
    published = sorted(scores.published.items(), key=lambda item: item[1].mean.mae)
    if published:
        table.add_section()
        table.caption = "* published predictions, on the same test rows"
    for name, other in published:
        _add_mean(table, f"{name} *", other)


def title_of(scores: TaskSummary) -> str:
    """Return what was scored, with everything that limits what it may be compared with."""
    parts = [f"{scores.task} ({scores.unit})" if scores.unit else scores.task]
    if scores.synthetic:
        parts.append("SYNTHETIC sample: never to be compared with Matbench")
    if scores.partial:
        parts.append(f"PARTIAL: {scores.n_rows:,} of {scores.official_rows or 0:,} rows, no leaderboard score")
    parts.append(f"tier {scores.tier}")
    parts += [f"also trained on {rows:,} rows of {name}" for name, rows in scores.trained_also_on.items()]
    parts += scores.marks
    return ", ".join(parts)


def _add_mean(table: Table, name: str, scores: PredictorScores, bold: bool = False) -> None:
    deviation = f"{scores.std.mae:.2g}" if len(scores.folds) > 1 else ""
    table.add_row(name, *_cells(scores.mean, deviation), style="bold" if bold else None)


def _cells(values: CountedErrors, deviation: str = "") -> list[str]:
    mae, rmse, largest = (f"{value:.4g}" for value in (values.mae, values.rmse, values.max_error))
    return [mae, deviation, rmse, largest, f"{values.n:,}", str(values.n_fallback)]


def task_table() -> Table:
    """Return the tasks that can be named."""
    table = Table(
        title="Matbench v0.1 structure regression tasks",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,  # in 80 columns
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    for column in ("task", "target", "unit", "rows", "tier"):
        table.add_column(column, justify="right" if column == "rows" else "left", no_wrap=True)
    for task in TASKS.values():
        table.add_row(
            task.name, task.target, task.unit, f"{task.official_rows:,}", task.overlap.removeprefix("pretrained-")
        )
    table.caption = "tier: how CHGNet's pretraining data (MPtrj) overlap with the task; start=scratch has its own tier"
    return table


def spaces_table(spaces: "Iterable[Space]") -> Table:
    """Return the search spaces that can be named."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("space", no_wrap=True)
    table.add_column("dimensions", justify="right", no_wrap=True)
    table.add_column("what")
    for space in spaces:
        table.add_row(space.name, str(len(space.dimensions)), space.description)
    return table


def space_table(space: "Space") -> Table:
    """Return the dimensions of a space."""
    table = Table(title=f"{space.name}: {space.description}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "range", "what"):
        table.add_column(column, no_wrap=column == "key")
    for row in space.table():
        table.add_row(*row)
    return table
