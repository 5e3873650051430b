"""A report as a value: sections of sentences, facts, tables, figures and commands, written as HTML or Markdown.

    page = Document("Study: ...", [Section("Conclusions", ["..."]), Section("Trials", tables=[table])])
    write_text(path, page.html())

Figures are plotly's; pages follow the reader's colours, fit a telephone, can be printed and fetch nothing. Without
JavaScript their text and tables are all there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup, escape

from orchestrator.report.colours import css_variables
from orchestrator.report.interactive import figure_json, script

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Table:
    """A table with its notes; columns named in `text` hold words, others numbers.

    Attributes:
        classes: of cells by their text, for example {"better": "better"} for a coloured word.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    text: frozenset[str] = frozenset()
    classes: dict[str, str] = field(default_factory=dict)

    def is_text(self, column: str) -> bool:
        """Return whether a column holds words."""
        return column in self.text

    def kind(self, column: str, cell: str = "") -> str:
        """Return the classes of a cell of the page."""
        return f"{'text' if self.is_text(column) else 'number'} {self.classes.get(cell, '')}".rstrip()


@dataclass(frozen=True)
class Picture:
    """A figure of plotly, or ready HTML, with the caption that says what it shows."""

    caption: str
    figure: "Figure | Markup"


@dataclass(frozen=True)
class Section:
    """One part of a report; empty parts are not shown, and a section without any says why in its sentences.

    Attributes:
        drawn: tables of what the pictures show, for Markdown, which has no pictures.
        code: not one command a line, but lines that belong together.
    """

    title: str
    sentences: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    drawn: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]

    def html(self) -> str:
        """Return one page; nothing in it is fetched from elsewhere."""
        drawn = [
            (section, [_drawn(picture, f"s{i}p{k}-") for k, picture in enumerate(section.pictures)])
            for i, section in enumerate(self.sections)
        ]
        interactive = any(not isinstance(p.figure, Markup) for part in self.sections for p in part.pictures)
        return (
            _environment()
            .from_string(_PAGE)
            .render(title=self.title, sections=drawn, script=Markup(script()) if interactive else "")
        )

    def markdown(self) -> str:
        """Return the same without the pictures; sections that would hold nothing else are left out."""
        lines = [f"# {self.title}"]
        for part in self.sections:
            written = ["\n".join(f"- {sentence}" for sentence in part.sentences)]
            for table in (*part.tables, *part.drawn):
                title = f"### {table.title}" if table.title != part.title else ""
                written += [title, pipes(table), "\n".join(f"- {note}" for note in table.notes)]
            written.append("\n".join(f"- {note}" for note in part.notes))
            if part.commands:
                written.append("```\n" + "\n".join(part.commands) + "\n```")
            written.append("\n".join(f"- {name}: {words}" for name, words in part.facts))
            if any(written):
                lines += [f"## {part.title}", *filter(None, written)]
        return "\n\n".join(lines) + "\n"


def _drawn(picture: Picture, prefix: str) -> tuple[str, Markup]:
    if isinstance(picture.figure, Markup):
        return picture.caption, picture.figure
    return picture.caption, Markup(figure_json(picture.figure, f"{prefix}plot", picture.caption))


def _environment() -> jinja2.Environment:
    shared = jinja2.DictLoader({"table": _TABLE, "picture": _PICTURE})
    made = jinja2.Environment(
        loader=shared, autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters["breakable"] = breakable
    made.filters["code"] = code
    made.globals["style"] = Markup(css_variables() + _STYLE)
    return made


def breakable(text: str) -> Markup:
    """Return the text with places behind dots, slashes and underscores at which a narrow page may break it."""
    return Markup(re.sub(r"(?<=[./_])(?=\w)", "<wbr>", str(escape(text))))


def code(text: str) -> Markup:
    """Return the text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def pipes(table: Table) -> str:
    """Return the table in Markdown, with cells padded to one width, so that it can be read as it stands."""
    lines = [list(table.columns), *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    texts = [table.is_text(column) for column in table.columns]
    rule = [f":{'-' * (w - 1)}" if text else f"{'-' * (w - 1)}:" for text, w in zip(texts, widths, strict=True)]
    padded = [
        [cell.ljust(w) if text else cell.rjust(w) for cell, text, w in zip(line, texts, widths, strict=True)]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


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
.elements { display: grid; grid-template-columns: repeat(18, minmax(2.6rem, 1fr)); gap: 2px; min-width: 49rem; }
.elements div { border: 1px solid var(--grid); padding: .1rem 0; font-size: .8125rem; line-height: 1.25;
  text-align: center; white-space: nowrap;
  background: linear-gradient(to top, var(--heat) var(--share), transparent var(--share)); }
.elements b { display: block; }
.elements .none { color: var(--grey); border-style: dashed; }
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
  .plot { min-width: 0 !important; }
  .elements { min-width: 0; grid-template-columns: repeat(18, minmax(0, 1fr)); }
  .elements div { font-size: 7pt; }
  figure, tr { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
  table { width: auto; font-size: 7.5pt; }
  th, td { white-space: normal; padding-right: .5rem; }
}
"""

_TABLE = """\
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}"><table>
<thead><tr>
{%- for column in table.columns %}<th scope="col" class="{{ table.kind(column) }}">{{ column }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}
{%- set words = cell | breakable if loop.first else cell -%}
<td class="{{ table.kind(table.columns[loop.index0], cell) }}">{{ words }}</td>
{%- endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% if table.notes %}
<ul class="notes">
{% for note in table.notes %}
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

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
{{ style }}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section, pictures in sections %}
<h2>{{ section.title }}</h2>
{% if section.sentences %}
<ul>
{% for sentence in section.sentences %}
{% set head, colon, rest = sentence.partition(": ") %}
{% set bold = colon and head | length < 40 %}
<li>{% if bold %}<b>{{ head }}:</b> {{ rest | code }}{% else %}{{ sentence | code }}{% endif %}</li>
{% endfor %}
</ul>
{% endif %}
{% for table in section.tables %}
{% if table.title != section.title %}
<h3>{{ table.title }}</h3>
{% endif %}
{% include "table" %}
{% endfor %}
{% for caption, picture in pictures %}
{% include "picture" %}
{% endfor %}
{% if section.notes %}
<ul class="notes">
{% for note in section.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
{% for command in section.commands %}
<pre>{{ command }}</pre>
{% endfor %}
{% if section.facts %}
<dl>{% for name, words in section.facts %}<dt>{{ name }}</dt><dd>{{ words }}</dd>{% endfor %}</dl>
{% endif %}
{% endfor %}
{{ script }}
</body>
</html>
"""
