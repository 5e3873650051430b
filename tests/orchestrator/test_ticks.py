"""Ticks: no two of an axis read the same, and none says something else than where it stands."""

import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.report.document import figure_with_axes
from orchestrator.report.ticks import set_ticks, tick_texts, tick_values
from orchestrator.study.report.axes import Dimension, dimension, parameter_axis, set_log, set_scale


def ranges() -> list[tuple[float, float]]:
    """Seeded ends of axes: tiny around a value, wide, across zero, negative, whole numbers, equal."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        middle = float(rng.choice([-1, 1]) * 10 ** rng.uniform(-7, 8))
        found += [(middle, middle + abs(middle) * width) for width in 10 ** rng.uniform(-12, 3, 4)]
        found.append((-abs(middle), float(10 ** rng.uniform(-7, 8))))
        found.append((float(round(middle)), float(round(middle) + rng.integers(1, 50))))
    ends = [0.23, 0.0, -1e-5, 3e7]
    return (
        [(float(low), float(high)) for low, high in found]
        + [(end, end) for end in ends]
        + [(end, math.nextafter(end, math.inf)) for end in ends]
    )


def read(text: str) -> float:
    return float(text.replace(",", ""))


def assert_apart(values: list[float], texts: list[str]) -> None:
    assert len(values) == len(texts)
    assert len(set(texts)) == len(set(values)), texts
    ordered = sorted(set(values))
    gaps = [math.inf, *(high - low for low, high in pairwise(ordered)), math.inf]
    nearest = {value: min(around) for value, around in zip(ordered, pairwise(gaps), strict=True)}
    for value, text in zip(values, texts, strict=True):
        assert abs(read(text) - value) <= nearest[value] / 4, texts


def test_texts_of_any_range_tell_its_ends_and_middle_apart() -> None:
    for low, high in ranges():
        for middle in {(low + high) / 2, math.sqrt(low * high) if low > 0 else low}:
            values = list(dict.fromkeys((low, middle, high)))
            assert_apart(values, tick_texts(values))
            texts = tick_texts(values, own_digits=True)
            assert_apart(values, texts)
            assert [read(text) for text in texts] == pytest.approx(values, rel=0.01)


@pytest.mark.parametrize("log", [False, True])
def test_round_values_lie_within_their_range_and_read_differently(log: bool) -> None:
    for low, high in ranges():
        if high - low > 1e-9 * max(abs(low), abs(high)) and (low > 0 or not log):
            values = tick_values(low, high, 6, log=log)
            assert 1 <= len(values) <= 12
            assert values == sorted(values)
            assert low <= values[0] <= values[-1] <= high
            assert_apart(values, tick_texts(values, own_digits=log))


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ((0.2301, 0.2337, 0.2373), False, ["0.230", "0.234", "0.237"]),
        ((0.0, 0.5, 1.0), False, ["0.0", "0.5", "1.0"]),
        ((0.0, 2e-5, 4e-5), False, ["0", "2e-5", "4e-5"]),
        ((1e-4, 7.0711e-4, 5e-3), True, ["1e-4", "7.07e-4", "5e-3"]),
        ((0.001, 0.01, 0.1), True, ["0.001", "0.01", "0.1"]),
        ((1e5, 1e6, 1e7), True, ["1e5", "1e6", "1e7"]),
        ((500_000, 1_000_000), True, ["500,000", "1,000,000"]),
        ((-0.006, -0.003, 0.0), False, ["-0.006", "-0.003", "0.000"]),
        ((3.0,), False, ["3"]),
        ((0.23456,), False, ["0.2346"]),
        ((), False, []),
    ],
)
def test_texts_are_as_short_as_can_be_read(values: tuple[float, ...], log: bool, texts: list[str]) -> None:
    shown = tick_texts(values, own_digits=log)
    assert shown == texts if len(values) != 1 else read(shown[0]) == pytest.approx(values[0], rel=1e-3)


def test_parallel_axes_have_different_texts_at_the_right_places() -> None:
    narrow = Dimension("MAE", 0.2301, 0.2373).ticks()
    assert [text for _, text in narrow] == ["0.23", "0.234", "0.237"]
    assert [place for place, _ in narrow] == pytest.approx([0, 0.5, 1])
    whole = Dimension("views", 1, 32, log=True, integer=True).ticks()
    assert [text for _, text in whole] == ["1", "6", "32"]
    assert whole[1][0] == pytest.approx(math.log(6) / math.log(32))
    assert [text for _, text in Dimension("batch", 1, 4096, log=True, integer=True).ticks()] == ["1", "64", "4,096"]
    assert [text for _, text in Dimension("n", 1, 2, integer=True).ticks()] == ["1", "2"]
    assert Dimension("same", 0.3, 0.3).ticks() == [(0.5, "0.3")]


def test_choices_that_are_close_keep_their_own_names_and_places() -> None:
    choices = (0.12341, 0.123412, 1e-5, None, True, "mse", 3)
    axis = dimension("loss", CategoricalDistribution(choices))
    assert axis.choices == ("0.12341", "0.123412", "1e-5", "none", "on", "mse", "3")
    assert [axis.value(choice) for choice in choices] == list(range(7))


@pytest.mark.parametrize(
    "drawn_from",
    [
        FloatDistribution(0.2301, 0.2302),
        FloatDistribution(1e-3, 1.1e-3, log=True),
        FloatDistribution(1e-9, 1, log=True),
        FloatDistribution(3e-5, 3e-5),
        FloatDistribution(3e-5, 3e-5, log=True),
        FloatDistribution(-0.25, -0.2499),
        IntDistribution(1, 2),
        IntDistribution(1, 4096, log=True),
        IntDistribution(7, 7),
    ],
)
def test_the_axis_of_a_slice_has_texts_that_differ_and_do_not_touch(
    drawn_from: FloatDistribution | IntDistribution,
) -> None:
    figure, axes = figure_with_axes(2.0)
    figure.subplots_adjust(left=0.1, right=0.38)  # a third of the picture
    parameter_axis(axes, dimension("name", drawn_from))
    figure.canvas.draw()
    ends = axes.get_xlim()
    places = [place for place in axes.get_xticks() if ends[0] <= place <= ends[1]]
    shown = [label for label in axes.get_xticklabels() if label.get_text()]
    assert_apart(places, [label.get_text() for label in shown])
    assert all(text == round(text) for text in places) or not isinstance(drawn_from, IntDistribution)
    boxes = [Text.get_window_extent(label) for label in shown]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert not axes.get_xticks(minor=True).size


@pytest.mark.parametrize("values", [(0.2301, 0.2302), (0.23, 0.23), (0.23, 0.23 + 1e-16), (1e-5, 3.0), (0.0, 0.0)])
def test_the_axis_of_values_has_texts_that_differ(values: tuple[float, float]) -> None:
    _, axes = figure_with_axes(3.0)
    set_scale(axes.yaxis, values)
    set_ticks(axes.yaxis, 7)
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert_apart(list(axes.get_yticks()), texts)
    assert max(map(len, texts)) <= 8
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high


def test_a_logarithmic_axis_of_less_than_a_step_has_ticks() -> None:
    _, axes = figure_with_axes(3.0)
    axes.set_xlim(1.21, 1.24)
    set_log(axes.xaxis)
    set_ticks(axes.xaxis, 5)
    assert_apart(list(axes.get_xticks()), [label.get_text() for label in axes.get_xticklabels()])
    assert len(axes.get_xticks()) >= 2
