"""The look that report pages share."""

from typing import Any

import plotly.graph_objects as go
import pytest

from orchestrator.report.colours import INK, PALETTE, css_variables
from orchestrator.report.document import Document, Picture, Section, Table, breakable, code, pipes

PAPER = ("line", "grid", "page", "code", "shade", "heat")  # never the colour of words
BOTH = pytest.mark.parametrize("dark", [False, True])


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@BOTH
def test_colours_of_words_and_lines_stand_out_from_the_page(dark: bool) -> None:
    page = PALETTE["page"][dark]
    for name, pair in PALETTE.items():
        if name not in PAPER:
            assert contrast(pair[dark], page) >= 4.5, name
    assert contrast(PALETTE["ink"][dark], PALETTE["code"][dark]) >= 4.5


@BOTH
def test_words_stand_out_from_a_full_cell_of_the_periodic_table(dark: bool) -> None:
    assert contrast(PALETTE["ink"][dark], PALETTE["heat"][dark]) >= 4.5


def test_dark_colours_are_for_screens_alone() -> None:
    light, dark = css_variables().split("@media screen and (prefers-color-scheme: dark)")
    assert f"--ink: {INK};" in light
    assert "color-scheme: light;" in light
    assert f"--ink: {PALETTE['ink'][1]};" in dark
    assert "color-scheme: dark;" in dark


def plotted(**layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[3, 4], text=["a", "</script><b>"], marker={"color": "var(--blue)"})
    return figure.update_layout(**layout)


def test_a_document_is_one_page_and_one_text() -> None:
    table = Table("A table", ("name", "value"), [["one", "1.0"], ["a|b", "-2"]], ["a note"], frozenset(("name",)))
    parts = [
        Section("First", ["Verdict: it `works`.", "and more"], [("seed", "3")], tables=[table]),
        Section(
            "Second", pictures=[Picture("Dots & lines.", plotted()), Picture("More.", plotted(meta={"min_width": 700}))]
        ),
        Section("Third", commands=["run --this <now>"], notes=["noted"]),
    ]
    page, text = Document("A <report>", parts).html(), Document("A <report>", parts).markdown()
    assert "<title>A &lt;report&gt;</title>" in page
    assert "<b>Verdict:</b> it <code>works</code>." in page
    assert page.count('class="plot"') == 2
    assert page.count("plotly.js v") == 1
    assert 'aria-label="Dots &amp; lines."' in page
    assert 'style="min-width: 700px"' in page
    assert "</script><b>" not in page  # what data hold does not end their element
    assert "run --this &lt;now&gt;" in page
    assert "## Second" not in text  # it has nothing but pictures
    assert pipes(table) in text
    assert text.startswith("# A <report>\n\n## First\n")
    assert "```\nrun --this <now>\n```" in text


def test_a_document_without_pictures_needs_no_script() -> None:
    page = Document("Words", [Section("Only", ["words"])]).html()
    assert "<script" not in page
    assert len(page) < 10_000


def test_tables_in_markdown_are_aligned_and_escape_bars() -> None:
    table = Table("T", ("name", "value"), [["one", "1.0"], ["a|b", "-2"]], text=frozenset(("name",)))
    assert pipes(table).splitlines() == [
        "| name | value |",
        "| :--- | ----: |",
        "| one  |   1.0 |",
        "| a\\|b |    -2 |",
    ]


def test_long_names_can_be_broken_behind_dots_and_are_escaped() -> None:
    assert breakable("augment.strain_size <b>") == "augment.<wbr>strain_<wbr>size &lt;b&gt;"
    assert breakable("E5 *") == "E5 *"


def test_what_stands_between_backticks_is_code_and_nothing_else_is_markup() -> None:
    assert code("run `a <b>` & `c`") == "run <code>a &lt;b&gt;</code> &amp; <code>c</code>"
