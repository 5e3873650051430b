"""What must hold of every picture of a report."""

from collections import defaultdict

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Annotation


def assert_ticks_differ(figure: Figure) -> None:
    """No axis has the same text twice, or writes a part of its numbers elsewhere; nor has one of parallel axes."""
    figure.canvas.draw()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            texts = shown_ticks(axis)
            assert len(set(texts)) == len(texts), texts
            assert not axis.get_offset_text().get_text()
        beside = defaultdict(list)
        for text in axes.texts:
            if isinstance(text, Annotation) and text.anncoords == "offset points" and text.xyann == (4, 0):
                beside[text.xy[0]].append(text.get_text())
        for texts in beside.values():
            assert len(set(texts)) == len(texts), texts


def shown_ticks(axis: Axis) -> list[str]:
    low, high = sorted(axis.get_view_interval())
    labels = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    return [label.get_text() for place, label in labels if low <= place <= high and label.get_text()]
