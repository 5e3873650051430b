"""The ablation's files (ablation.json, .parquet, .md and .html), and its table for the terminal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from orchestrator.ablation.analysis import Analysis
from orchestrator.ablation.figures import pictures
from orchestrator.ablation.rows import Comparison, Cost, Decision, ExperimentRow
from orchestrator.ablation.verdicts import p_text
from orchestrator.evaluation.scores import TaskSummary
from orchestrator.report.document import Document, Section, Table
from orchestrator.report.terminal import title_of
from trainables.files import write_json, write_parquet, write_text

DEFINITIONS = (
    "Difference: MAE of the experiment minus that of what it is compared with, on the same test rows, mean over folds; "
    "negative favours the experiment. +-: population standard deviation over folds.",
    "Replicates: how often an experiment was trained, each time with different seeds; its errors are means over them, "
    "and +- seeds is their standard deviation. An ensemble uses its seeds in groups, so it has fewer, and replicates "
    "of two experiments are not paired by seed.",
    "95 % interval: bootstrap over chemical systems, with the trained models taken as given. p: Nadeau and Bengio's "
    "corrected t-test over folds (of a single fold: the bootstrap's). Corrected p: Holm's, over all comparisons with a "
    "parent; those with a control of equal cost, or with E0 where it is not the parent, are a second family.",
    "Detectable: the smallest difference that this many folds with this spread could have called significant in a "
    "single comparison. Better or worse: corrected p below 0.05 and an interval on one side of zero.",
    "Cost of training: structures processed by all of an experiment's models, teachers included. Cost of use: "
    "predictions of a crystal at test time, models x views. A control has one of them in common with its experiment: "
    "training for E3 and L3; use for E4 and E0, or B1 and E0 (one model predicts; training costs more).",
)
_TEXT_COLUMNS = frozenset(
    ("experiment", "what it is", "against", "control", "equal in", "tier", "device", "decision", "algorithm")
)
_STUDENTS = (
    "Students of a fold share their teachers, so their spread over seeds does not include the teachers'.",
    "E4's teachers are out-of-fold models of their own (each training row is labelled only by models that did not see "
    "it), so E3's seeds serve E0 and E3 but not E4.",
)


def write_reports(folder: Path, analysis: Analysis, about: Mapping[str, Any]) -> None:
    """Write the four files, each of them whole or not at all.

    Args:
        about: title_parts, or what `report.terminal.title_of` makes a title of; and, to be printed as they are,
            command, versions, data, auxiliary, seeds, folds and device; and
            base, the configuration that all experiments start from.
    """
    content = {
        "about": dict(about),
        "experiments": [row.content() for row in analysis.rows],
        "sentences": analysis.sentences,
    }
    write_json(folder / "ablation.json", content | {"published": analysis.published})
    write_parquet(folder / "ablation.parquet", flat_table(analysis))
    page = document(analysis, about)
    write_text(folder / "ablation.md", page.markdown())
    write_text(folder / "ablation.html", page.html())


def flat_table(analysis: Analysis) -> pd.DataFrame:
    """One line an experiment; nested values have joined names: cost_seconds, interval_low, mae_fold_0, control_p."""
    table = pd.DataFrame([_flat(row.content()) for row in analysis.rows])
    for column in table.columns[table.isna().any()]:
        if not table[column].map(lambda value: isinstance(value, str)).any():
            table[column] = table[column].astype(float)  # None alone would have no type in the file
    return table


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    nested = ("per_fold", "per_fold_difference", "interval", "control", "cost", "curve", "marks")
    flat = {name: value for name, value in row.items() if name not in nested}
    flat |= dict(zip(("interval_low", "interval_high"), row["interval"] or (None, None), strict=True))
    flat |= {f"difference_fold_{fold}": value for fold, value in row["per_fold_difference"].items()}
    if "cost" in row:  # a control has none of its own
        flat |= {"marks": "; ".join(row["marks"])} | {f"cost_{name}": value for name, value in row["cost"].items()}
        flat |= {f"mae_fold_{fold}": value for fold, value in row["per_fold"].items()}
        flat |= {f"control_{name}": value for name, value in _flat(row["control"]).items()} if row["control"] else {}
    return flat


def summary_table(analysis: Analysis) -> RichTable:
    """Return the experiments for the terminal, in 80 columns; p is the corrected one."""
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("", no_wrap=True, max_width=12)
    for column in ("MAE", "+-", "difference", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("decision")
    for row in analysis.rows:
        cells = _cells(row, row.against_parent, analysis.decimals)
        values = [cells[name] for name in ("MAE", "+-", "difference", "95 % interval", "corrected p")]
        decision = row.decision.replace("no difference seen", "none seen")  # else a line has more than 80 columns
        style = "bold" if row.decision == Decision.BETTER else None
        table.add_row(cells["experiment"], *values, decision, style=style)
    table.caption = Text("\n".join(["p: corrected for the number of comparisons", *_notes(analysis.rows)]))
    return table


def _sheets(analysis: Analysis) -> list[Table]:
    unit = f" ({analysis.unit})" if analysis.unit else ""
    makers = (_against_parent, _equal_cost, _by_fold, _published, _experiments)
    return [sheet for make in makers if (sheet := make(analysis, unit)).rows]


def _against_parent(analysis: Analysis, unit: str) -> Table:
    first = ("experiment", "MAE", "+-", "against", "difference", "95 % interval", "corrected p", "decision")
    columns = (*first, "p", "detectable", "+- seeds", "replicates")
    found = [_cells(row, row.against_parent, analysis.decimals) for row in analysis.rows]
    rows = [[cells[column] for column in columns] for cells in found]
    return _sheet(f"Against the parent{unit}", columns, rows, _notes(analysis.rows))


def _equal_cost(analysis: Analysis, unit: str) -> Table:
    costs = ("structures", "its structures", "predictions", "its predictions")
    numbers = ("difference", "95 % interval", "corrected p", "decision")
    named = {row.name: row.cost for row in analysis.rows}
    rows, notes = [], []
    for row in analysis.rows:
        if (control := row.control) is None:
            continue
        cells = _cells(row, control.comparison, analysis.decimals)
        both = [named.get(name) for name in (row.name, control.name)]
        shown = ["" if cost is None else _number(cost.structures, 0) for cost in both]
        shown += ["" if cost is None else _number(cost.predictions, 0) for cost in both]
        rows.append([row.shown_name, control.name, control.equal_in, *shown, *(cells[column] for column in numbers)])
        notes += [f"{row.name}: {control.comparison.reason}"] if control.comparison.reason else []
    notes.append("structures: processed in training; predictions: per crystal at test time; its: the control's")
    title = f"Against a control of equal cost, in training or in use{unit}"
    return _sheet(title, ("experiment", "control", "equal in", *costs, *numbers), rows, notes)


def _by_fold(analysis: Analysis, unit: str) -> Table:
    folds = sorted({fold for row in analysis.rows for fold in row.errors.per_fold or {}}, key=int)
    rows, d = [], analysis.decimals
    for row in analysis.rows:
        cells = [_number((row.errors.per_fold or {}).get(fold), d) for fold in folds]
        differences = [row.against_parent.by_fold.get(fold) for fold in folds]
        cells = [
            cell + (f" ({x:+z.{d}f})" if x is not None else "") for cell, x in zip(cells, differences, strict=True)
        ]
        rows.append([row.shown_name, *cells, _number(row.errors.p95_error, d), _number(row.errors.max_error, d)])
    columns = ("experiment", *(f"fold {fold}" for fold in folds), "95th percentile", "largest error")
    notes = ["95th percentile and largest error: of each replicate's own errors, then their mean"]
    return _sheet(f"MAE by fold, with the difference to the parent{unit}", columns, rows if folds else [], notes)


def _published(analysis: Analysis, unit: str) -> Table:
    ordered = sorted(analysis.published.items(), key=lambda item: item[1])
    limit = [] if analysis.comparable else ["These rows are not the whole official task: no leaderboard scores."]
    rows = [[name, _number(mae, analysis.decimals)] for name, mae in ordered]
    return _sheet(f"Published algorithms on the same test rows{unit}", ("algorithm", "MAE"), rows, limit)


def _experiments(analysis: Analysis, _unit: str) -> Table:
    about = ("experiment", "what it is", "tier", "rows", "folds", "replicates")
    columns = (*about, "models", "structures", "seconds", "predictions", "device")
    rows = []
    for row in analysis.rows:
        errors, cost = row.errors, row.cost
        counts = [_number(number, 0) for number in (errors.n_rows, errors.folds, errors.replicates)]
        spent = [_number(number, 0) for number in (cost.models, cost.structures, cost.seconds)]
        rows.append([row.shown_name, row.description, row.tier, *counts, *spent, _predictions(cost), cost.device])
    notes = [f"{row.name} changes {row.change}" for row in analysis.rows if row.change]
    notes.append(
        "models: trained per fold and replicate; structures and seconds: in training, over all folds, per replicate"
    )
    notes.append("predictions: per crystal at test time, models x views")
    return _sheet("The experiments", columns, rows, notes)


def _predictions(cost: Cost) -> str:
    """Return a product such as "3 x 4 = 12"; a single one is just that."""
    product = f"{cost.members} x {cost.views} = " if cost.predictions > 1 else ""
    return f"{product}{cost.predictions:,}"


def _cells(row: ExperimentRow, pair: Comparison, decimals: int) -> dict[str, str]:
    """Return an experiment and one of its comparisons, by column."""
    interval = " ".join(f"{value:+z.{decimals}f}" for value in pair.interval or ())
    return {
        "experiment": row.shown_name,
        "MAE": _number(row.mae, decimals),
        "+-": _number(row.errors.mae_std, decimals),
        "+- seeds": _number(row.errors.mae_seed_std, decimals),
        "replicates": _number(row.errors.replicates, 0),
        "against": row.parent or "",
        "difference": "" if pair.difference is None else f"{pair.difference:+z.{decimals}f}",
        "95 % interval": interval,
        "p": p_text(pair.p),
        "corrected p": p_text(pair.p_corrected),
        "detectable": _number(pair.detectable, decimals),
        "decision": str(pair.decision),
    }


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"


def _notes(rows: Iterable[ExperimentRow]) -> list[str]:
    """Return what must be read beside the numbers; a note that several experiments share is said once."""
    names: dict[str, list[str]] = {}
    for row in rows:
        reason = row.against_parent.reason
        why = f"failed ({row.failed})" if row.failed else reason and f"not compared ({reason})"
        for note in filter(None, (why, row.against_parent.note, *row.caveats)):
            names.setdefault(note, []).append(row.shown_name)
    return [f"{', '.join(who)}: {note}" for note, who in names.items()]


def _title(about: Mapping[str, Any]) -> str:
    return ", ".join(about["title_parts"]) if about.get("title_parts") else title_of(TaskSummary.model_validate(about))


def _definitions(analysis: Analysis, about: Mapping[str, Any]) -> tuple[str, ...]:
    """How to read it; of students only where there are any, of out-of-fold teachers only where they are such."""
    if not {"E4", "E6", "B1"} & {row.name.partition("-")[0] for row in analysis.rows}:
        return DEFINITIONS
    in_sample = about.get("base", {}).get("distil", {}).get("teachers") == "in_sample"
    return DEFINITIONS + (_STUDENTS[:1] if in_sample else _STUDENTS)


def _origin(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from, as names and words."""
    names = ("folds", "seeds", "device", "data", "auxiliary", "versions")
    return [(name, _words(about[name])) for name in names if about.get(name)]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def document(analysis: Analysis, about: Mapping[str, Any]) -> Document:
    """Return the report; a table a section, the pictures with the first."""
    tables = _sheets(analysis)
    drawn = pictures(analysis)
    sections = [Section("Conclusions", analysis.sentences)]
    for place, table in enumerate(tables):
        sections.append(Section(table.title, tables=[table], pictures=[] if place else drawn))
    sections.append(Section("How to read it", notes=list(_definitions(analysis, about))))
    command = _words(about.get("command", ""))
    sections.append(Section("How to repeat it", commands=[command] if command else [], facts=_origin(about)))
    return Document(f"Ablation: {_title(about)}", sections)


def _sheet(title: str, columns: tuple[str, ...], rows: list[list[str]], notes: list[str]) -> Table:
    return Table(title, columns, rows, notes, _TEXT_COLUMNS & set(columns), {"better": "better", "worse": "worse"})
