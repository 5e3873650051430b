"""A study's files (best.yaml, report.html, report.md, trials.parquet), and its table for the terminal."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator.report.format import number_text
from orchestrator.study.journal import Trial, TrialState
from orchestrator.study.report.analysis import Analysis, cost_of
from orchestrator.study.report.sections import check_cells, document
from orchestrator.study.report.verdict import BASELINE, name_of
from trainables.files import write_parquet, write_text

_MOST_LINES = 8  # of the table for the terminal


def write_study_reports(folder: Path, analysis: Analysis) -> None:
    """Write the files, each of them whole or not at all; best.yaml only where a trial completed.

    Args:
        folder: of the study; the commands in the report name it as it is given here.
    """
    page = document(analysis, folder)
    write_parquet(folder / "trials.parquet", trials_table(analysis))
    if analysis.best is not None:
        analysis.best.save(folder / "best.yaml")
    write_text(folder / "report.md", page.markdown())
    write_text(folder / "report.html", page.html())


def trials_table(analysis: Analysis) -> pd.DataFrame:
    """One row a trial, checks included; parameters as param.<name>, changed keys as config.<key>.

    A column of parameters or keys has one type; where its values have several, or are no scalars, it holds JSON.
    """
    rows = [_row(analysis, trial) for _, trial in sorted(analysis.trials.items())]
    fixed = pd.DataFrame([row for row, _ in rows], columns=list(_TYPES)).astype(_TYPES)
    names = sorted({name for _, chosen in rows for name in chosen})
    columns = {name: _column([chosen.get(name) for _, chosen in rows]) for name in names}
    return pd.concat([fixed, pd.DataFrame(columns, index=fixed.index)], axis=1)


_TYPES = {
    "number": "int64",
    "of": "Int64",
    "origin": "string",
    "state": "string",
    "seed": "int64",
    "value": "float64",
    "cost": "float64",
    "last_step": "int64",
    "structures": "int64",
    "seconds": "float64",
    "tries": "int64",
    "reason": "string",
}


def _row(analysis: Analysis, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    row = {
        "number": trial.number,
        "of": trial.of,
        "origin": trial.origin,
        "state": str(trial.state),
        "seed": trial.seed,
        "value": trial.values[0] if trial.values else None,
        "cost": cost_of(trial, analysis.manifest) if trial.values else None,
        "last_step": trial.last,
        "structures": trial.structures,
        "seconds": trial.seconds,
        "tries": trial.tries,
        "reason": trial.reason,
    }
    params = {f"param.{name}": value for name, value in trial.params.items()}
    return row, params | {f"config.{key}": value for key, value in trial.changes.items()}


def _column(values: list[Any]) -> "pd.Series[Any]":
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return pd.Series(values, dtype="boolean")
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return pd.Series(values, dtype="float64")
    if all(isinstance(value, str) for value in there):
        return pd.Series(values, dtype="string")
    return pd.Series([None if value is None else json.dumps(value) for value in values], dtype="string")


def study_table(analysis: Analysis) -> Table:
    """Return the best against E0 for the terminal, in 80 columns: checked trials, or the best of the search.

    What follows from it is not said here: that is `Analysis.sentences`.
    """
    unit = f" ({analysis.unit})" if analysis.unit else ""
    table = Table(
        title=f"Validation MAE{unit}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.caption_justify = "left"
    table.add_column("", no_wrap=True, max_width=14)
    for column in ("search", "checked", "+- seeds", "seeds", "below E0", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    winner = analysis.verdict.winner if analysis.verdict else None
    for number in _numbers_shown(analysis):
        table.add_row(*_cells(analysis, number), style="bold" if number == winner else None)
    counts = ", ".join(f"{count} {TrialState(state).label}" for state, count in analysis.states.items())
    table.caption = Text(counts or "no trials")
    return table


def _numbers_shown(analysis: Analysis) -> list[int]:
    """Return the winner, the other checked trials or the next of the search, and E0; the lowest MAE first."""
    checked = [number for number, one in analysis.checks.items() if one.maes and number != BASELINE]
    checked.sort(key=lambda number: (not analysis.checks[number].full, analysis.checks[number].mean))
    complete = [trial for trial in analysis.searched.values() if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: trial.values[0])
    others = [trial.number for trial in complete if trial.number not in (*checked, BASELINE)]
    shown = [*checked, *others][: max(len(checked), 3)][:_MOST_LINES]
    return [*shown, *([BASELINE] if BASELINE in analysis.searched else [])]


def _cells(analysis: Analysis, number: int) -> list[str]:
    trial, one = analysis.searched[number], analysis.checks.get(number)
    if one is not None and one.maes:
        return check_cells(analysis, one)
    return [name_of(number), number_text(trial.values[0]) if trial.values else str(trial.state).lower(), *[""] * 5]
