"""Pictures of a run's report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from orchestrator.evaluation.statistics import chemical_system
from orchestrator.report.document import Picture
from trainables.crystals import SYMBOLS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MOST_POINTS = 1_500  # above, points are counted in cells
_CELLS = 60
_BINS = 8  # of sites and of spreads
_FEWEST = 4  # rows that a bin needs on average

_NOBLE = (2, 10, 18, 36, 54, 86, 118)  # atomic numbers with which periods end


def parity_and_errors(table: pd.DataFrame, unit: str) -> list[Picture]:
    """Draw predictions against targets, and how errors are distributed."""
    return [_parity(table, unit), _distribution(table, unit)]


def _parity(table: pd.DataFrame, unit: str) -> Picture:
    import plotly.graph_objects as go

    target, prediction = table["target"].to_numpy(float), table["prediction"].to_numpy(float)
    low, high = float(min(target.min(), prediction.min())), float(max(target.max(), prediction.max()))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    figure = go.Figure()
    if len(table) > _MOST_POINTS:
        figure.add_trace(_density(target, prediction, (low, high)))
        shown = "Colour: how many test rows lie there, on a logarithmic scale."
    else:
        marker = {"color": "var(--blue)", "size": 6, "opacity": 0.6}
        hover = "%{text}<br>target %{x:.4g}<br>prediction %{y:.4g}<extra></extra>"
        figure.add_scatter(
            x=target, y=prediction, mode="markers", text=_names(table), marker=marker, hovertemplate=hover
        )
        shown = "A dot for each test row."
    ends = [low - margin, high + margin]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": "var(--grey)", "dash": "dash"}, hoverinfo="skip")
    figure.update_xaxes(title=f"target{unit}", range=ends)
    figure.update_yaxes(title=f"prediction{unit}", range=ends)
    figure.update_layout(showlegend=False, height=460)
    return Picture(f"Predictions against targets. {shown} Dashed: equal.", figure)


def _names(table: pd.DataFrame) -> list[str]:
    if "formula" not in table:
        return [str(row_id) for row_id in table["id"]]
    return [f"{row_id} {formula}" for row_id, formula in zip(table["id"], table["formula"], strict=True)]


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


def _distribution(table: pd.DataFrame, unit: str) -> Picture:
    import plotly.graph_objects as go

    errors = table["error"].to_numpy(float)
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
        shown = [epoch for epoch in epochs if epoch.get("val_mae") is not None]
        figure.add_scatter(
            x=[epoch["epoch"] + 1 for epoch in shown],
            y=[epoch["val_mae"] for epoch in shown],
            mode="lines+markers",
            name=name,
            line={"color": colour},
            marker={"size": 4},
        )
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=f"validation MAE{unit}")
    caption = "Validation MAE of each fold's first model; the epoch with the lowest is kept."
    return [Picture(caption, figure)]


def errors_by_element(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean absolute error and number of rows of each element: mae and rows, by symbol."""
    known = table.dropna(subset=["formula"])
    elements = known["formula"].map(lambda formula: chemical_system(formula).split("-"))
    each = pd.DataFrame({"element": elements, "error": known["error"].abs()}).explode("element")
    grouped = each.groupby("element")["error"]
    return pd.DataFrame({"mae": grouped.mean(), "rows": grouped.size()})


def periodic_table(errors: pd.DataFrame, unit: str) -> Picture:
    """Draw the mean absolute error of the rows that hold an element, in a periodic table."""
    most = float(errors["mae"].max()) or 1.0
    maes, counts = errors["mae"].to_dict(), errors["rows"].to_dict()
    cells = []
    for number, symbol in enumerate(SYMBOLS[1:], start=1):
        row, column = _place(number)
        at = f"grid-row: {row}; grid-column: {column}"
        if symbol in maes:
            mae, rows = maes[symbol], counts[symbol]
            words = f"{symbol}: {mae:.4g}, {rows:,} row{'s' * (rows != 1)}"
            cells.append(
                f'<div style="{at}; --share: {100 * mae / most:.0f}%" title="{words}"><b>{symbol}</b>'
                f"{_short(mae)}</div>"
            )
        else:
            cells.append(f'<div class="none" style="{at}">{symbol}</div>')
    caption = (
        f"Mean absolute error{unit} of the test rows that hold an element: the fuller a cell, the larger. Grey: in no "
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


def error_trends(table: pd.DataFrame, unit: str) -> list[Picture]:
    """Draw the error against the number of sites, and against the predicted spread."""
    pictures = []
    if "n_sites" in table and table["n_sites"].nunique() > 1:
        binned = _binned(table["n_sites"], table["error"].abs())
        figure = _bars(binned, "sites in the cell", f"MAE{unit}")
        pictures.append(
            Picture("Mean absolute error against the number of sites, in bins of about equal size.", figure)
        )
    spread = table["std"].where(np.isfinite(table["std"]))
    if spread.notna().any() and spread.nunique() > 1:
        binned = _binned(spread, table["error"].abs())
        figure = _bars(binned, f"std of the prediction{unit}", f"MAE{unit}")
        caption = "Mean absolute error against the spread of the prediction (over members, or over views): a spread "
        pictures.append(Picture(f"{caption}that says something rises with the error.", figure))
    return pictures


def _binned(values: pd.Series, errors: pd.Series) -> pd.DataFrame:
    """Return mean error, rows, and smallest and largest value of bins of about equal size."""
    known = pd.DataFrame({"value": values, "error": errors}).dropna()
    n_bins = max(1, min(_BINS, len(known) // _FEWEST))
    bins = pd.qcut(known["value"], n_bins, duplicates="drop")
    grouped = known.groupby(bins, observed=True)
    return pd.DataFrame(
        {
            "mae": grouped["error"].mean(),
            "rows": grouped.size(),
            "low": grouped["value"].min(),
            "high": grouped["value"].max(),
        }
    ).reset_index(drop=True)


def _bars(binned: pd.DataFrame, x: str, y: str) -> "Figure":
    import plotly.graph_objects as go

    names = [
        f"{low:.4g}" if low == high else f"{low:.3g} to {high:.3g}"
        for low, high in zip(binned["low"], binned["high"], strict=True)
    ]
    figure = go.Figure()
    hover = "%{x}: %{y:.4g} (%{text} rows)<extra></extra>"
    figure.add_bar(
        x=names,
        y=binned["mae"],
        text=binned["rows"],
        textposition="none",
        hovertemplate=hover,
        marker={"color": "var(--blue)"},
    )
    figure.update_xaxes(title=x, type="category")
    figure.update_yaxes(title=y)
    figure.update_layout(showlegend=False)
    return figure
