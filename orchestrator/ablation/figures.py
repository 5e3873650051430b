"""The ablation's HTML page: its tables, and pictures of the differences, the costs and the ensembles."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.ablation.analysis import Analysis
from orchestrator.ablation.verdicts import Row
from orchestrator.report import document as shared
from orchestrator.report.colours import GREEN, GREY, GRID, INK, LINE, PAGE, RED, SERIES
from orchestrator.report.document import environment, figure_with_axes, svg
from orchestrator.report.point_labels import label_points
from orchestrator.report.ticks import set_ticks

COLOURS = {"better": GREEN, "worse": RED}
_TEXT_COLUMNS = frozenset(
    ("experiment", "what it is", "against", "control", "equal in", "tier", "device", "decision", "algorithm")
)
_LEAD = {"arrowstyle": "-", "color": LINE, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
_LABEL_GAP = 13  # points between the names of lines


class Sheet(shared.Sheet):
    """A table of the ablation: the columns of words are known by their names, decisions have a colour."""

    def is_text(self, column: str) -> bool:
        return column in _TEXT_COLUMNS

    def kind(self, column: str, cell: str = "") -> str:
        """Classes of a cell of the page."""
        decided = f" {cell}" if column == "decision" and cell in COLOURS else ""
        return f"{super().kind(column)}{decided}"


def shown_name(row: Mapping[str, Any]) -> str:
    return f"{row['name']} *" if row["marks"] else str(row["name"])


def page(
    analysis: Analysis,
    sheets: Sequence[Sheet],
    title: str,
    command: str,
    origin: Sequence[tuple[str, str]],
    definitions: Sequence[str],
) -> str:
    """The whole page; nothing in it is fetched from elsewhere."""
    drawn = [(text, Markup(svg(figure, f"p{place}-", text))) for place, (text, figure) in enumerate(figures(analysis))]
    template = environment().from_string(_PAGE)
    about = {"title": f"Ablation: {title}", "command": command, "origin": origin, "definitions": definitions}
    return template.render(analysis=analysis, sheets=sheets, pictures=drawn, **about)


def figures(analysis: Analysis) -> list[tuple[str, Figure]]:
    """The pictures that there are numbers for, each with its caption."""
    found = []
    if compared := [row for row in analysis.rows if row["difference"] is not None]:
        caption = "Difference in MAE to the parent with its 95 % interval; left of zero the experiment is better."
        found.append((caption, _forest(compared, analysis.unit)))
    if placed := [row for row in analysis.rows if row["mae_mean"] and row["cost"]["structures"] > 0]:
        most = 1.3 * max(row["mae_mean"] for row in placed)
        lines = {name: mae for name, mae in analysis.published.items() if mae <= most}
        hidden = [name for name in analysis.published if name not in lines]
        caption = "MAE against the cost of training alone: the structures processed by all of an experiment's models."
        caption += " Lines: published algorithms on the same test rows" if lines else ""
        caption += f" (above the picture: {', '.join(hidden)})." if hidden and lines else "." if lines else ""
        found.append((caption, _against_cost(placed, lines, analysis.unit)))
    if curved := [row for row in analysis.rows if row["curve"]]:
        caption = "MAE of the plain mean of some of an ensemble's members, however the experiment combines them: mean "
        caption += "over subsets, and from the best to the worst."
        found.append((caption, _curves(curved, analysis.unit)))
    return found


def _forest(rows: Sequence[Row], unit: str) -> Figure:
    height = 0.34 * len(rows) + 0.9
    figure, axes = figure_with_axes(height)
    names = [f"{shown_name(row)} vs {row['parent']}" for row in rows]
    left = min(0.4, 0.03 + 0.0105 * max(map(len, names)))
    figure.subplots_adjust(left=left, right=0.76, top=1 - 0.1 / height, bottom=0.6 / height)
    axes.axvline(0, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        colour, difference = COLOURS.get(row["decision"], GREY), row["difference"]
        low, high = row["interval"] or (difference, difference)
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        filled = colour if row["decision"] in COLOURS else PAGE  # not by colour alone
        axes.plot(difference, place, "o", color=colour, markerfacecolor=filled, markersize=7)
        words: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 10, "color": colour}
        axes.annotate(row["decision"], (1.03, place), annotation_clip=False, **words)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    set_ticks(axes.xaxis, 6)
    axes.set_xlabel(f"difference in MAE{f' ({unit})' if unit else ''}")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    return figure


def _against_cost(rows: Sequence[Row], lines: Mapping[str, float], unit: str) -> Figure:
    figure, axes = figure_with_axes(5.2)
    figure.subplots_adjust(left=0.1, right=0.74 if lines else 0.97, top=0.97, bottom=0.12)
    maes = [row["mae_mean"] for row in rows] + list(lines.values())
    costs = [row["cost"]["structures"] for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.7, max(costs) * 2.2)
    if max(maes) > 4 * min(maes):
        axes.set_yscale("log")
        axes.set_ylim(min(maes) / 1.15, max(maes) * 1.3)
    else:
        margin = 0.12 * (max(maes) - min(maes)) or 0.1 * max(maes)
        axes.set_ylim(min(maes) - margin, max(maes) + margin)
    set_ticks(axes.xaxis, 7)
    set_ticks(axes.yaxis, 8)
    axes.set_xlabel("structures processed in training")
    axes.set_ylabel(f"MAE{f' ({unit})' if unit else ''}")
    for row, cost in zip(rows, costs, strict=True):
        axes.plot(cost, row["mae_mean"], "o", color=COLOURS.get(row["decision"], GREY), markersize=7)
    _label_lines(axes, lines)
    label_points(axes, [(cost, row["mae_mean"], shown_name(row)) for cost, row in zip(costs, rows, strict=True)])
    return figure


def _label_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    """Horizontal lines with their names to the right, pushed apart where they lie close."""
    ordered = sorted(lines.items(), key=lambda item: item[1])
    heights = [float(axes.transData.transform((axes.get_xlim()[0], mae))[1]) for _, mae in ordered]
    for (name, mae), here, apart in zip(ordered, heights, _spread(heights, _LABEL_GAP), strict=True):
        axes.axhline(mae, color=LINE, linewidth=1, zorder=0)
        axes.annotate(
            name,
            (1.0, mae),
            (16, apart - here),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=GREY,
            arrowprops=_LEAD,
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, at least a gap apart: halfway between pushing upwards only and downwards only."""
    up, down = list(places), list(places)
    for i in range(1, len(places)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    return [(high + low) / 2 for high, low in zip(up, down, strict=True)]


def _curves(rows: Sequence[Row], unit: str) -> Figure:
    figure, axes = figure_with_axes(3.4)
    figure.subplots_adjust(left=0.1, right=0.74, top=0.95, bottom=0.16)
    for place, row in enumerate(rows):
        members, mae, low, high = (
            [point[name] for point in row["curve"]] for name in ("n_members", "mae", "min", "max")
        )
        colour = SERIES[place % len(SERIES)]
        axes.fill_between(members, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(members, mae, "o-", color=colour, label=shown_name(row))
    set_ticks(axes.xaxis, 10, integer=True)
    set_ticks(axes.yaxis, 6)
    axes.set_xlabel("members")
    axes.set_ylabel(f"MAE{f' ({unit})' if unit else ''}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return figure


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
{% include "head" %}
</head>
<body>
<h1>{{ title }}</h1>
<h2>What follows</h2>
<ul>
{% for sentence in analysis.sentences %}
{% set head, colon, rest = sentence.partition(": ") %}
<li>{% if colon %}<b>{{ head }}:</b> {{ rest | code }}{% else %}{{ sentence | code }}{% endif %}</li>
{% endfor %}
</ul>
{% for sheet in sheets %}
<h2>{{ sheet.title }}</h2>
{% include "sheet" %}
{% if loop.first %}
{% for caption, picture in pictures %}
{% include "picture" %}
{% endfor %}
{% endif %}
{% endfor %}
<h2>How to read it</h2>
<ul class="notes">
{% for definition in definitions %}
<li>{{ definition }}</li>
{% endfor %}
</ul>
<h2>How to repeat it</h2>
<pre>{{ command }}</pre>
<dl>{% for name, words in origin %}<dt>{{ name }}</dt><dd>{{ words }}</dd>{% endfor %}</dl>
</body>
</html>
"""
