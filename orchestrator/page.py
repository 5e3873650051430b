"""What the report pages share: their look, their tables (HTML and Markdown), and figures as inline SVG."""

import io
import re
from dataclasses import dataclass, field

import jinja2
import matplotlib as mpl
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GREY, LINE = "#57606a", "#c4c9d0"
WIDTH_INCHES = 8.4


@dataclass(frozen=True)
class Sheet:
    """A table with its notes, for Markdown and HTML alike; columns named in `text` hold words, others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    text: frozenset[str] = frozenset()

    def is_text(self, column: str) -> bool:
        return column in self.text

    def kind(self, column: str, cell: str = "") -> str:
        """Classes of a cell of the page."""
        return "text" if self.is_text(column) else "number"


def environment() -> jinja2.Environment:
    """Templates can include "style" (CSS) and "sheet" (table and notes of what is called sheet there)."""
    shared = jinja2.DictLoader({"style": _STYLE, "sheet": _SHEET})
    return jinja2.Environment(
        loader=shared, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def blank(height_inches: float) -> Figure:
    """A figure without axes, as wide as the page's pictures."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=72)  # SVG's own resolution, so that extents are the same
    FigureCanvasAgg(figure)
    return figure


def framed(axes: Axes) -> Axes:
    """The axes in the pages' look."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    return axes


def figure_with_axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = blank(height_inches)
    return figure, framed(figure.add_subplot())


def svg(figure: Figure, prefix: str, caption: str) -> str:
    """The figure as an SVG element; ids get a prefix, for two pictures of a page must not share them."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "crystaltune", "svg.fonttype": "path"}):  # the same picture every time
        figure.savefig(stream, format="svg", metadata=nothing)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", drawn)
    drawn = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", drawn, count=5)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)


def pipes(sheet: Sheet) -> str:
    """The table in Markdown, with cells padded to one width, so that it can be read as it stands."""
    lines = [list(sheet.columns), *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in sheet.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    texts = [sheet.is_text(column) for column in sheet.columns]
    rule = [f":{'-' * (w - 1)}" if text else f"{'-' * (w - 1)}:" for text, w in zip(texts, widths, strict=True)]
    padded = [
        [cell.ljust(w) if text else cell.rjust(w) for cell, text, w in zip(line, texts, widths, strict=True)]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


_STYLE = """\
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 72rem; background: #fff; color: #1f2328;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
ul { margin: .5rem 0; padding-left: 1.25rem; max-width: 60rem; }
li { margin: .25rem 0; }
.notes { color: #57606a; font-size: .875rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap; }
th { white-space: normal; color: #57606a; font-weight: 600; border-bottom-color: #9aa1ab; vertical-align: bottom; }
.text { text-align: left; }
td.text { white-space: normal; }
td:first-child { font-weight: 600; white-space: nowrap; }
figure { margin: 1.25rem 0; max-width: 50rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #57606a; font-size: .875rem; margin-top: .25rem; }
pre { background: #f6f8fa; padding: .75rem 1rem; overflow-x: auto; font-size: .875rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .875rem; }
dt { color: #57606a; }
dd { margin: 0; overflow-wrap: anywhere; }
"""

_SHEET = """\
<div class="scroll"><table>
<tr>{% for column in sheet.columns %}<th class="{{ sheet.kind(column) }}">{{ column }}</th>{% endfor %}</tr>
{% for row in sheet.rows %}
<tr>{% for cell in row %}<td class="{{ sheet.kind(sheet.columns[loop.index0], cell) }}">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% if sheet.notes %}
<ul class="notes">
{% for note in sheet.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
"""
