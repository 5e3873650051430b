"""The look that report pages share."""

import re

import pytest

from orchestrator.report.colours import INK, PALETTE, css_variables, following_page, scale_colour
from orchestrator.report.document import breakable, code, figure_with_axes, svg

PAPER = ("line", "grid", "page", "code", "shade")  # never the colour of words
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
            assert contrast(pair[dark], page) >= (3 if name.startswith("scale") else 4.5), name
    assert contrast(PALETTE["ink"][dark], PALETTE["code"][dark]) >= 4.5


@BOTH
def test_the_scale_begins_with_what_stands_out_most(dark: bool) -> None:
    steps = [contrast(PALETTE[f"scale{step}"][dark], PALETTE["page"][dark]) for step in range(9)]
    assert steps == sorted(steps, reverse=True)
    assert (scale_colour(-1), scale_colour(0), scale_colour(1), scale_colour(2)) == (
        *2 * (PALETTE["scale0"][0],),
        *2 * (PALETTE["scale8"][0],),
    )


def test_dark_colours_are_for_screens_alone() -> None:
    light, dark = css_variables().split("@media screen and (prefers-color-scheme: dark)")
    assert f"--ink: {INK};" in light
    assert "color-scheme: light;" in light
    assert f"--ink: {PALETTE['ink'][1]};" in dark
    assert "color-scheme: dark;" in dark


def test_colours_of_a_picture_become_the_pages() -> None:
    assert following_page(f"fill: {INK}; stroke: #000000") == "fill: var(--ink); stroke: var(--ink)"
    assert following_page("fill: #123456") == "fill: #123456"


def view_box(drawn: str) -> list[float]:
    found = re.search(r'viewBox="([^"]*)"', drawn)
    assert found
    return [float(number) for number in found[1].split()]


def test_a_picture_grows_with_labels_that_reach_beyond_it_and_keeps_its_size_otherwise() -> None:
    figure, axes = figure_with_axes(2.0)
    figure.subplots_adjust(bottom=0.2)
    plain = svg(figure, "a-", "A plain picture")
    assert view_box(plain) == pytest.approx([0, 0, 604.8, 144], abs=0.01)
    assert 'style="min-width: 641px"' in plain
    assert 'aria-label="A plain picture"' in plain
    axes.set_yticks([0.5], ["a name that is far too long to stand before the axis of this little picture"])
    wide = svg(figure, "b-", "A wide one")
    assert view_box(wide)[2] > 700
    assert f"min-width: {round(1.06 * view_box(wide)[2])}px" in wide


def test_long_names_can_be_broken_behind_dots_and_are_escaped() -> None:
    assert breakable("augment.strain_size <b>") == "augment.<wbr>strain_<wbr>size &lt;b&gt;"
    assert breakable("E5 *") == "E5 *"


def test_what_stands_between_backticks_is_code_and_nothing_else_is_markup() -> None:
    assert code("run `a <b>` & `c`") == "run <code>a &lt;b&gt;</code> &amp; <code>c</code>"
