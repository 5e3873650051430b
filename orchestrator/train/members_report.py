"""What the members of a run are worth, as a section of its report and as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table as RichTable

from orchestrator.report.document import Section, Table
from orchestrator.report.format import four_digits, number_text, readable
from orchestrator.train.figures import members_curve
from orchestrator.train.members import Contender, EnsembleSummary, Member

TITLE = "The members and the ensemble"
_MOST_SHOWN = 16  # members in the terminal
_DESCRIBES = (
    "Test errors describe; nothing was chosen by them. Weights come from the inner validation rows, by which each "
    "member's epoch was chosen, too."
)
_IN_PARTS = (
    "Test errors describe; nothing was chosen by them. Weights come from all training rows, each predicted by the "
    "models that were not trained on it; it is by these rows that the epochs of those models were chosen, too."
)


def members_section(summary: EnsembleSummary, unit: str) -> Section:
    """Return the section of a run's report.

    Args:
        unit: of the target in brackets, with a space before it, or nothing.
    """
    tables = [_compared(summary, unit), _members(summary, unit)]
    tables += [_spread(summary, unit)] if summary.spread else []
    return Section(TITLE, sentences(summary), tables=tables, pictures=[members_curve(summary.curve, unit)])


def sentences(summary: EnsembleSummary) -> list[str]:
    """Return what the ensemble is made of and what it gains, one sentence each."""
    single, ensemble, *students = summary.compared
    everyone = summary.curve[-1]
    mean = number_text(everyone.mae, _decimals(summary))
    seeds = f"{summary.seeds} seed{'s' * (summary.seeds != 1)}"
    of = f"; each the mean of {summary.per_member} models, one a part of the training fold"
    parts = of if summary.per_member > 1 else ""
    said = [f"Members: {everyone.n_members}, {_varied(summary, seeds)}{parts}; combined by {summary.combine}."]
    said.append(
        f"Ensemble: its test MAE is {_against(ensemble, single)} a single member's (mean); the plain mean of all "
        f"members has {mean}."
    )
    said += [
        f"Student: its test MAE is {_against(student, single)} a single member's and {_against(student, ensemble)} "
        f"the ensemble's{_on_folds(student, ensemble)}, with {student.predictions_per_crystal} instead of "
        f"{ensemble.predictions_per_crystal} predictions per crystal. It is one model of one seed: differences as "
        "large as those between members may be that seed's luck."
        for student in students
    ]
    if summary.spearman is not None:
        said.append(
            f"Spread: the rank correlation (Spearman) of the std over members with the absolute error is "
            f"{summary.spearman:.2f} (1: the larger the std, the larger the error; 0: it says nothing of it)."
        )
    return said


def _varied(summary: EnsembleSummary, seeds: str) -> str:
    if not summary.varied:
        return f"{seeds} of one configuration"
    values = "; ".join(f"{key}: {', '.join(map(_text, values))}" for key, values in summary.varied.items())
    return f"{seeds} of each variant ({values})"


def _text(value: Any) -> str:
    """Return a value of a setting in words."""
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _on_folds(one: Contender, other: Contender) -> str:
    """Return on which folds two are compared, where not all are finished."""
    both = one.mae.keys() & other.mae.keys()
    if both == one.mae.keys() | other.mae.keys():
        return ""
    return f" (on fold{'s' * (len(both) != 1)} {', '.join(map(str, sorted(both))) or 'none'}, which both have)"


def _against(one: Contender, other: Contender) -> str:
    folds = one.mae.keys() & other.mae.keys()  # those that both have finished
    ours, theirs = (sum(each.mae[fold] for fold in folds) for each in (one, other))
    if not folds or theirs == 0:
        return "not comparable with"
    change = ours / theirs - 1
    return f"{abs(change):.1%} {'below' if change <= 0 else 'ABOVE'}"


def _decimals(summary: EnsembleSummary) -> int:
    return four_digits(summary.compared[0].mean)


def _folds(summary: EnsembleSummary) -> list[int]:
    return sorted(set().union(*(contender.mae for contender in summary.compared)))


def _cell(values: dict[int, float], fold: int, decimals: int) -> str:
    return number_text(values[fold], decimals) if fold in values else ""


def _compared(summary: EnsembleSummary, unit: str) -> Table:
    folds, d = _folds(summary), _decimals(summary)
    columns = ("", *(f"fold {fold}" for fold in folds), "MAE", "structures", "training", "predictions per crystal")
    rows = [
        [
            contender.name,
            *(_cell(contender.mae, fold, d) for fold in folds),
            number_text(contender.mean, d),
            f"{contender.structures:,.0f}",
            readable(contender.seconds),
            str(contender.predictions_per_crystal),
        ]
        for contender in summary.compared
    ]
    notes = [
        "single member: the mean over members. Structures and training: processed and spent in all trainings of all "
        "folds, those of teachers included.",
        _IN_PARTS if summary.per_member > 1 else _DESCRIBES,
    ]
    return Table(f"Test MAE{unit} and cost", columns, rows, notes, frozenset(("",)))


def _mean(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    return number_text(sum(known) / len(known), decimals) if known else ""


def _member_cells(member: Member, decimals: int) -> list[str]:
    """Return what is varied, the seed and the mean errors."""
    scores = member.folds.values()
    errors = [score.validation_mae for score in scores], [score.test_mae for score in scores]
    return [*map(_text, member.varied.values()), str(member.seed), *(_mean(each, decimals) for each in errors)]


def _weights(member: Member, folds: Sequence[int]) -> list[str]:
    found = [member.folds[fold].weight if fold in member.folds else None for fold in folds]
    return ["" if weight is None else f"{weight:.2f}" for weight in found]


def _members(summary: EnsembleSummary, unit: str) -> Table:
    folds, d = sorted(summary.members[0].folds), _decimals(summary)
    columns = ("member", *summary.varied, "seed", "validation MAE", "test MAE")
    columns += tuple(f"weight, fold {fold}" for fold in folds)
    rows = [
        [str(number), *_member_cells(member, d), *_weights(member, folds)]
        for number, member in enumerate(summary.members, start=1)
    ]
    notes = ["A median has no weights."] if summary.combine == "median" else []
    text = frozenset(("member", *summary.varied))
    return Table(f"Members: errors{unit}, means over folds, and weights", columns, rows, notes, text)


def _spread(summary: EnsembleSummary, unit: str) -> Table:
    d = _decimals(summary)
    rows = [[each.label, f"{each.rows:,}", number_text(each.mae, d)] for each in summary.spread]
    notes = ["Rows predicted from their composition alone are left out."]
    title = f"Test rows by the std over members{unit}"
    return Table(title, ("std", "rows", "MAE"), rows, notes, frozenset(("std",)))


def compared_table(summary: EnsembleSummary) -> RichTable:
    """Return one member, the ensemble and the student for the terminal, in 80 columns."""
    folds = _folds(summary)
    table = _rich_table("Test MAE by fold, and training")
    table.add_column("", no_wrap=True)
    for column in (*(str(fold) for fold in folds), "MAE", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for contender in summary.compared:
        found = [f"{contender.mae[fold]:.4g}" if fold in contender.mae else "" for fold in folds]
        table.add_row(contender.name, *found, f"{contender.mean:.4g}", readable(contender.seconds))
    table.caption = "single member: the mean over members"
    return table


def members_table(summary: EnsembleSummary) -> RichTable:
    """Return the members for the terminal, in 80 columns: errors and weights are means over folds."""
    d = _decimals(summary)
    table = _rich_table("Members: means over folds")
    for column in (*summary.varied, "seed", "validation MAE", "test MAE", "weight"):
        table.add_column(column, justify="left" if column in summary.varied else "right")
    for member in summary.members[:_MOST_SHOWN]:
        weight = _mean([scores.weight for scores in member.folds.values()], 2)
        table.add_row(*_member_cells(member, d), weight)
    if len(summary.members) > _MOST_SHOWN:
        table.caption = f"and {len(summary.members) - _MOST_SHOWN} more in report.html"
    return table


def _rich_table(title: str) -> RichTable:
    return RichTable(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
