"""Pictures of a run's report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from orchestrator.report.document import Picture
from orchestrator.train.rows import ElementError, ErrorBin, PredictedRows, error_bins
from trainables.crystals import SYMBOLS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from orchestrator.train.members import CurvePoint

_MOST_POINTS = 1_500  # above, points are counted in cells
_CELLS = 60
_NOBLE = (2, 10, 18, 36, 54, 86, 118)  # atomic numbers with which periods end


def parity_and_errors(rows: PredictedRows, unit: str) -> list[Picture]:
    """Draw predictions against targets, and how errors are distributed."""
    return [_parity(rows, unit), _distribution(rows.error, unit)]


def _parity(rows: PredictedRows, unit: str) -> Picture:
    import plotly.graph_objects as go

    target, prediction = rows.target, rows.prediction
    low, high = float(min(target.min(), prediction.min())), float(max(target.max(), prediction.max()))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    figure = go.Figure()
    if len(rows) > _MOST_POINTS:
        figure.add_trace(_density(target, prediction, (low, high)))
        shown = "Colour: how many test rows lie there, on a logarithmic scale."
    else:
        marker = {"color": "var(--blue)", "size": 6, "opacity": 0.6}
        hover = "%{text}<br>target %{x:.4g}<br>prediction %{y:.4g}<extra></extra>"
        figure.add_scatter(x=target, y=prediction, mode="markers", text=rows.names, marker=marker, hovertemplate=hover)
        shown = "One dot per test row."
    ends = [low - margin, high + margin]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "var(--grey)", "dash": "dash"}, hoverinfo="skip")
    figure.update_xaxes(title=f"target{unit}", range=ends)
    figure.update_yaxes(title=f"prediction{unit}", range=ends)
    figure.update_layout(showlegend=False, height=460)
    return Picture(f"Predictions against targets. {shown} Dashed line: prediction = target.", figure)


def _density(target: np.ndarray, prediction: np.ndarray, ends: tuple[float, float]) -> Any:
    import plotly.graph_objects as go

    edges = np.linspace(*ends, _CELLS + 1)
    counts, _, _ = np.histogram2d(prediction, target, bins=(edges, edges))
    middle = (edges[1:] + edges[:-1]) / 2
    shown = [[math.log10(count) if count else None for count in row] for row in counts]
    words = [[f"{int(count):,} rows" for count in row] for row in counts]
    scale = [[0.0, "var(--heat)"], [1.0, "var(--blue)"]]
    return go.Heatmap(
        x=middle,
        y=middle,
        z=shown,
        text=words,
        hovertemplate="%{text}<extra></extra>",
        colorscale=scale,
        showscale=False,
    )


def _distribution(errors: NDArray[np.float64], unit: str) -> Picture:
    import plotly.graph_objects as go

    low, high = np.quantile(errors, [0.005, 0.995]) if len(errors) > 200 else (errors.min(), errors.max())
    if high <= low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, 41 if len(errors) > 200 else 16)
    counts, _ = np.histogram(np.clip(errors, low, high), edges)
    figure = go.Figure()
    figure.add_bar(x=(edges[1:] + edges[:-1]) / 2, y=counts, width=edges[1] - edges[0], marker={"color": "var(--blue)"})
    figure.add_vline(x=0, line={"color": "var(--ink)", "width": 1})
    figure.update_xaxes(title=f"prediction - target{unit}")
    figure.update_yaxes(title="test rows")
    figure.update_layout(showlegend=False, bargap=0.02)
    absolute = np.abs(errors)
    words = (
        f"half of the absolute errors are below {np.median(absolute):.3g}, 90 % below "
        f"{np.quantile(absolute, 0.9):.3g}, all below {absolute.max():.3g}; mean error {errors.mean():+.3g}"
    )
    edge = " Rows beyond the edges are counted in the outermost bars." if len(errors) > 200 else ""
    return Picture(f"Distribution of errors: {words}.{edge}", figure)


def learning_curves(histories: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], unit: str) -> list[Picture]:
    """Draw the validation error of the first model of each fold against its epochs."""
    import plotly.graph_objects as go

    if not histories:
        return []
    figure = go.Figure()
    for place, (name, epochs) in enumerate(histories):
        colour = f"var(--{('blue', 'purple', 'amber', 'teal', 'pink')[place % 5]})"
        points = [(epoch["epoch"] + 1, epoch["val_mae"]) for epoch in epochs if epoch.get("val_mae") is not None]
        figure.add_scatter(
            x=[number for number, _ in points],
            y=[mae for _, mae in points],
            mode="lines+markers",
            name=name,
            line={"color": colour},
            marker={"size": 4},
        )
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=f"validation MAE{unit}")
    caption = "Validation MAE of each fold's first model; the epoch with the lowest is kept."
    return [Picture(caption, figure)]


def members_curve(curve: "Sequence[CurvePoint]", unit: str) -> Picture:
    """Draw the test error of the plain mean of some members against their number."""
    import plotly.graph_objects as go

    n_members, mae = [point.n_members for point in curve], [point.mae for point in curve]
    spread = {
        "type": "data",
        "array": [point.max - point.mae for point in curve],
        "arrayminus": [point.mae - point.min for point in curve],
        "color": "var(--blue)",
    }
    line = {"color": "var(--blue)"}
    figure = go.Figure()
    figure.add_scatter(x=n_members, y=mae, mode="lines+markers", error_y=spread, line=line)
    figure.update_xaxes(title="members", dtick=max(1, len(curve) // 8))
    figure.update_yaxes(title=f"test MAE{unit}")
    figure.update_layout(showlegend=False)
    caption = (
        "Test MAE of the plain mean of some of the members, however the ensemble combines them: mean, least and "
        "largest over subsets of each size. It shows what one more member brings; nothing was chosen by it."
    )
    return Picture(caption, figure)


def periodic_table(errors: Sequence[ElementError], unit: str) -> Picture:
    """Draw the mean absolute error of the rows that hold an element, in a periodic table."""
    most = max(element.mae for element in errors) or 1.0
    known = {element.symbol: element for element in errors}
    cells = []
    for number, symbol in enumerate(SYMBOLS[1:], start=1):
        row, column = _place(number)
        at = f"grid-row: {row}; grid-column: {column}"
        if symbol in known:
            mae, rows = known[symbol].mae, known[symbol].rows
            words = f"{symbol}: {mae:.4g}, {rows:,} row{'s' * (rows != 1)}"
            cells.append(
                f'<div style="{at}; --share: {100 * mae / most:.0f}%" title="{words}"><b>{symbol}</b>'
                f"{_short(mae)}</div>"
            )
        else:
            cells.append(f'<div class="none" style="{at}">{symbol}</div>')
    caption = (
        f"Mean absolute error{unit} of the test rows with each element; fuller means a larger error. Grey: in no "
        "test row."
    )
    return Picture(caption, Markup(f'<div class="elements">{"".join(cells)}</div>'))


def _short(value: float) -> str:
    """Return a number of at most five characters."""
    return next((text for digits in (3, 2, 1) if len(text := f"{value:.{digits}g}") <= 5), f"{value:.0e}")


def _place(number: int) -> tuple[int, int]:
    """Return row and column of an element, from 1; lanthanides and actinides are rows 9 and 10."""
    if 57 <= number <= 71:
        return 9, number - 57 + 3
    if 89 <= number <= 103:
        return 10, number - 89 + 3
    period = next(row for row, last in enumerate(_NOBLE, start=1) if number <= last)
    first = 1 if period == 1 else _NOBLE[period - 2] + 1
    column = number - first + 1
    if period == 1:
        column = 1 if number == 1 else 18
    elif period in (2, 3):
        column += 10 if column > 2 else 0
    elif period in (6, 7) and column > 2:
        column -= 14
    return period, column


def error_trends(rows: PredictedRows, unit: str) -> list[Picture]:
    """Draw the error against the number of sites, and against the predicted spread."""
    pictures = []
    if _varies(rows.n_sites):
        figure = _bars(error_bins(rows.n_sites, rows.absolute_error), "sites in the cell", f"MAE{unit}")
        caption = "Mean absolute error against the number of sites, in bins of about equal size."
        pictures.append(Picture(caption, figure))
    if _varies(rows.std):
        figure = _bars(error_bins(rows.std, rows.absolute_error), f"std of the prediction{unit}", f"MAE{unit}")
        caption = "Mean absolute error against the std of the prediction (over ensemble members or views). An "
        pictures.append(Picture(f"{caption}informative std rises with the error.", figure))
    return pictures


def _varies(values: NDArray[np.float64]) -> bool:
    """Return whether there is more than one finite value."""
    return len(np.unique(values[np.isfinite(values)])) > 1


def _bars(bins: Sequence[ErrorBin], x: str, y: str) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_bar(
        x=[each.label for each in bins],
        y=[each.mae for each in bins],
        text=[each.rows for each in bins],
        textposition="none",
        hovertemplate="%{x}: %{y:.4g} (%{text} rows)<extra></extra>",
        marker={"color": "var(--blue)"},
    )
    figure.update_xaxes(title=x, type="category")
    figure.update_yaxes(title=y)
    figure.update_layout(showlegend=False)
    return figure
