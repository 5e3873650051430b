"""Names beside the points of a picture, each where nothing else is drawn."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import NDArray

_FIRM = "\u00a0"  # a space at which no line is broken
_NEAREST = 9  # points between a point and its name
_DIRECTIONS = ((1, 0.0), (-1, 0.0), (0.5, 1.4), (0.5, -1.4), (-0.5, 1.4), (-0.5, -1.4))
_OFFSETS = [(_NEAREST * k * dx, _NEAREST * k * dy) for k in (1, 2, 3.5, 5, 7) for dx, dy in _DIRECTIONS]


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]], **style: Any) -> None:
    """Write names beside their points, each at the first free place; points that touch share a label.

    Args:
        points: x and y in data coordinates of axes whose limits no longer change, and the name.
        style: of the texts, as matplotlib's.
    """
    root = axes.figure.get_figure(root=True)
    assert root is not None
    renderer = FigureCanvasAgg(root).get_renderer()
    places = axes.transData.transform([(x, y) for x, y, _ in points])  # (n, 2)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]
    for group in _touching(places):
        here = places[group].mean(axis=0)
        text = textwrap.fill(", ".join(points[i][2].replace(" ", _FIRM) for i in group), 16, break_on_hyphens=False)
        x, y = axes.transData.inverted().transform(here)
        label = axes.annotate(text, (x, y), (0, 0), "data", "offset points", va="center", **({"fontsize": 10} | style))
        size = label.get_window_extent(renderer)
        place, box = _free_place(here, size.width, size.height, taken, axes.bbox)
        label.set_position(place)
        taken.append(box)


def _touching(places: NDArray[np.float64]) -> list[list[int]]:
    """Points (n, 2) in groups of such as touch each other, the highest first in each group."""
    groups: list[list[int]] = []
    for i in np.argsort(-places[:, 1], kind="stable").tolist():
        near = [group for group in groups if np.hypot(*(places[group] - places[i]).T).min() < _NEAREST]
        groups = [group for group in groups if group not in near]
        groups.append([*(member for group in near for member in group), i])
    return groups


def _free_place(
    point: NDArray[np.float64], width: float, height: float, taken: Sequence[Bbox], frame: BboxBase
) -> tuple[tuple[float, float], Bbox]:
    """Where the left middle of a label goes, from its point, and the box that it then fills; all in points."""
    tried = []
    for dx, dy in _OFFSETS:
        left = dx if dx > 0 else dx - width
        box = Bbox.from_bounds(point[0] + left, point[1] + dy - height / 2, width, height)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        tried.append(((left, dy), box))
        if inside and not any(box.overlaps(other) for other in taken):
            return tried[-1]
    return tried[0]
