"""What the report pages share: their look, their tables (HTML and Markdown), and figures as inline SVG."""

import io
import re
from dataclasses import dataclass, field

import jinja2
import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from orchestrator.report.colours import css_variables, following_page

WIDTH_INCHES = 8.4
_SMALLEST = 1.06  # pixels that a point of a picture has at least: text of 9 points stays readable on a telephone


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
    """Templates can include "head" (of a page with that title), "sheet" (a table with its notes) and "picture"."""
    shared = jinja2.DictLoader({"head": _HEAD, "sheet": _SHEET, "picture": _PICTURE})
    made = jinja2.Environment(
        loader=shared, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters["breakable"] = breakable
    made.filters["code"] = code
    made.globals["style"] = Markup(css_variables() + _STYLE)
    return made


def breakable(text: str) -> Markup:
    """The text with places behind dots, slashes and underscores at which a narrow page may break it."""
    return Markup(re.sub(r"(?<=[./_])(?=\w)", "<wbr>", str(escape(text))))


def code(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def blank(height_inches: float) -> Figure:
    """A figure without axes, as wide as the page's pictures."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=72)  # SVG's own resolution, so that extents are the same
    FigureCanvasAgg(figure)
    return figure


def framed(axes: Axes, label_size: int = 10) -> Axes:
    """The axes in the pages' look; the size of tick labels is in points."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=label_size)
    return axes


def figure_with_axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = blank(height_inches)
    return figure, framed(figure.add_subplot())


def svg(figure: Figure, prefix: str, caption: str) -> str:
    """The figure as an SVG element whose colours follow the page, enlarged where labels reach beyond its edges.

    Args:
        prefix: of the ids, for two pictures of a page must not share them.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    box = _with_labels(figure)
    with mpl.rc_context({"svg.hashsalt": "crystaltune", "svg.fonttype": "path"}):  # the same picture every time
        figure.savefig(stream, format="svg", metadata=nothing, bbox_inches=box, transparent=True)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", drawn)
    drawn = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", drawn, count=5)
    width = round(72 * box.width * _SMALLEST)
    start = f'<svg role="img" aria-label="{escape(caption)}" style="min-width: {width}px"'
    return following_page(drawn).replace("<svg", start, 1)


def _with_labels(figure: Figure) -> Bbox:
    """The figure and all that is drawn outside of it, in inches."""
    tight = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()).padded(0.03)
    whole = Bbox.from_bounds(0, 0, *figure.get_size_inches())
    return Bbox.union([whole, tight])


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


_HEAD = """\
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
{{ style }}
</style>
"""

_STYLE = """\
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; line-height: 1.3; margin: 1.5rem 0 .25rem; }
ul { margin: .5rem 0; padding-left: 1.25rem; max-width: 60rem; }
li { margin: .25rem 0; }
.notes { color: var(--grey); font-size: .875rem; }
.better { color: var(--green); font-weight: 600; }
.worse { color: var(--red); font-weight: 600; }
.scroll { overflow-x: auto; scrollbar-width: thin; margin: .5rem 0; background:
  linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / .75rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / .75rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; width: max-content; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: break-word; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { max-width: 8rem; white-space: normal; color: var(--grey); font-weight: 600; border-bottom-color: var(--line);
  vertical-align: bottom; }
td { vertical-align: top; }
.text { text-align: left; }
td.text { white-space: normal; max-width: 22rem; }
td:first-child { font-weight: 600; }
figure { margin: 1.25rem 0; max-width: 50rem; }
figure svg { display: block; width: 100%; height: auto; fill: currentColor; }
figcaption { color: var(--grey); font-size: .875rem; margin-top: .25rem; }
pre { background: var(--code); padding: .6rem 1rem .6rem 3ch; text-indent: -2ch; font-size: .875rem;
  white-space: pre-wrap; margin: .5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .875rem; }
dt { color: var(--grey); }
dd { margin: 0; }
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin: 0 0 .5rem; }
  th { max-width: 6.5rem; }
  td.text { max-width: 16rem; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); white-space: normal;
    min-width: min-content; max-width: 9rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; background: none; }
  figure svg { min-width: 0 !important; }
  figure, tr { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
  table { width: auto; font-size: 7.5pt; }
  th, td { white-space: normal; padding-right: .5rem; }
}
"""

_SHEET = """\
<div class="scroll" tabindex="0" role="region" aria-label="{{ sheet.title }}"><table>
<thead><tr>
{%- for column in sheet.columns %}<th scope="col" class="{{ sheet.kind(column) }}">{{ column }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in sheet.rows %}
<tr>{% for cell in row %}
{%- set words = cell | breakable if loop.first else cell -%}
<td class="{{ sheet.kind(sheet.columns[loop.index0], cell) }}">{{ words }}</td>
{%- endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% if sheet.notes %}
<ul class="notes">
{% for note in sheet.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
"""

_PICTURE = """\
<figure>
<div class="scroll" tabindex="0" role="region" aria-label="Picture: {{ caption.split(". ")[0] }}">{{ picture }}</div>
<figcaption>{{ caption }}</figcaption>
</figure>
"""
