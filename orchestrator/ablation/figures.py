"""Pictures of an ablation: differences with their intervals, errors against costs, and ensembles by size."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.ablation.analysis import Analysis
from orchestrator.ablation.rows import ExperimentRow
from orchestrator.report.document import Picture

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS: Mapping[str, str] = {"better": "var(--green)", "worse": "var(--red)"}
_SERIES = ("blue", "purple", "amber", "teal", "pink")  # of lines that mean neither better nor worse


def pictures(analysis: Analysis) -> list[Picture]:
    """Draw what there are numbers for."""
    found = []
    if compared := [row for row in analysis.rows if row.against_parent.difference is not None]:
        caption = "Difference in MAE to the parent with its 95 % interval; left of zero the experiment is better."
        found.append(Picture(caption, _forest(compared, analysis.unit)))
    if placed := [row for row in analysis.rows if row.mae and row.cost.structures > 0]:
        most = 1.3 * max(_mae_of(row) for row in placed)
        lines = {name: mae for name, mae in analysis.published.items() if mae <= most}
        hidden = [name for name in analysis.published if name not in lines]
        caption = "MAE against the cost of training alone: the structures processed by all of an experiment's models."
        caption += " Lines: published algorithms on the same test rows" if lines else ""
        caption += f" (above the picture: {', '.join(hidden)})." if hidden and lines else "." if lines else ""
        found.append(Picture(caption, _against_cost(placed, lines, analysis.unit)))
    if curved := [row for row in analysis.rows if row.curve]:
        caption = "MAE of the plain mean of some of an ensemble's members, however the experiment combines them: mean "
        caption += "over subsets, and from the best to the worst."
        found.append(Picture(caption, _by_members(curved, analysis.unit)))
    return found


def _mae_of(row: ExperimentRow) -> float:
    return math.nan if row.mae is None else row.mae


def _mae(unit: str) -> str:
    return f"MAE ({unit})" if unit else "MAE"


def _forest(rows: Sequence[ExperimentRow], unit: str) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for row in rows:
        difference, decided = row.against_parent.difference or 0.0, row.decision in _COLOURS
        low, high = row.against_parent.interval or (difference, difference)
        colour = _COLOURS.get(row.decision, "var(--grey)")
        bars = {"type": "data", "array": [high - difference], "arrayminus": [difference - low], "color": colour}
        figure.add_scatter(
            x=[difference],
            y=[f"{row.shown_name} vs {row.parent}"],
            mode="markers",
            error_x=bars | {"thickness": 2},
            marker={"color": colour, "size": 10, "symbol": "circle" if decided else "circle-open"},
            name=row.decision,
            showlegend=False,
            hovertemplate=f"%{{x:+.4g}} ({low:+.4g} to {high:+.4g}): {row.decision}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": "var(--ink)", "width": 1})
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title=f"difference in {_mae(unit)}")
    figure.update_layout(height=110 + 34 * len(rows))
    return figure


def _against_cost(rows: Sequence[ExperimentRow], lines: Mapping[str, float], unit: str) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[row.cost.structures for row in rows],
        y=[_mae_of(row) for row in rows],
        mode="markers+text",
        text=[row.shown_name for row in rows],
        textposition=_positions(rows),
        marker={"color": [_COLOURS.get(row.decision, "var(--grey)") for row in rows], "size": 10},
        showlegend=False,
    )
    costs = [row.cost.structures for row in rows]
    ends = [min(costs) / 1.7, max(costs) * 4]
    for name, mae in sorted(lines.items(), key=lambda item: item[1]):
        figure.add_scatter(
            x=ends,
            y=[mae, mae],
            mode="lines+text",
            text=["", name],
            textposition="top left",
            textfont={"color": "var(--grey)", "size": 11},
            line={"color": "var(--line)", "width": 1},
            hovertemplate=f"{name}: {mae:.4g}<extra></extra>",
            showlegend=False,
        )
    maes = [_mae_of(row) for row in rows] + list(lines.values())
    figure.update_xaxes(title="structures processed in training", type="log", range=[math.log10(end) for end in ends])
    figure.update_yaxes(title=_mae(unit), type="log" if max(maes) > 4 * min(maes) else "linear")
    figure.update_layout(height=440)
    return figure


def _positions(rows: Sequence[ExperimentRow]) -> list[str]:
    """Return where each name stands beside its point: names of points that lie close to each other go elsewhere."""
    sides = ("top right", "bottom right", "top left", "bottom left")
    taken: dict[tuple[int, int], int] = {}
    positions = []
    for row in rows:
        place = round(4 * math.log10(row.cost.structures)), round(20 * math.log10(_mae_of(row)))
        taken[place] = taken.get(place, -1) + 1
        positions.append(sides[taken[place] % len(sides)])
    return positions


def _by_members(rows: Sequence[ExperimentRow], unit: str) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, row in enumerate(rows):
        colour = f"var(--{_SERIES[place % len(_SERIES)]})"
        members, mae, low, high = ([point[name] for point in row.curve] for name in ("n_members", "mae", "min", "max"))
        spread = {
            "type": "data",
            "array": [most - mean for most, mean in zip(high, mae, strict=True)],
            "arrayminus": [mean - least for least, mean in zip(low, mae, strict=True)],
            "color": colour,
        }
        line = {"color": colour}
        figure.add_scatter(x=members, y=mae, mode="lines+markers", error_y=spread, line=line, name=row.shown_name)
    figure.update_xaxes(title="members", dtick=1)
    figure.update_yaxes(title=_mae(unit))
    return figure
