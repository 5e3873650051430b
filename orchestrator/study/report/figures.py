"""The pictures of a study's page, each with its caption."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.colours import AMBER, BLUE, GREEN, GREY, GRID, INK, LINE, PAGE, RED, scale_colour
from orchestrator.report.document import blank, figure_with_axes, framed
from orchestrator.report.point_labels import label_points
from orchestrator.report.ticks import set_ticks
from orchestrator.study.journal import TrialRecord
from orchestrator.study.report.analysis import Analysis, cost_of
from orchestrator.study.report.axes import Dimension, dimension, has_long_choices, parameter_axis, set_scale, wrapped
from orchestrator.study.report.verdict import BASELINE, Checked, name_of

Picture = tuple[str, Figure]

COLOURS = {"COMPLETE": BLUE, "PRUNED": AMBER, "FAIL": RED, "RUNNING": GREY}
WORDS = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}
_MARKS = {"COMPLETE": "o", "PRUNED": "v", "FAIL": "x", "RUNNING": "."}
_BEST, _BASE = GREEN, INK
_MOST_AXES = 9  # of the parallel coordinates, beside the MAE's
_MOST_BARS = 8  # of the importances
_UNUSED = -0.14  # height of a parameter that is not used
_COLUMNS = 3  # of the slices


def seeds_picture(analysis: Analysis) -> Picture | None:
    """A dot for each check of each candidate."""
    checked = sorted((one for one in analysis.checks.values() if one.maes), key=lambda one: one.mean)
    if not checked:
        return None
    height = 0.36 * len(checked) + 0.8
    figure, axes = figure_with_axes(height)
    figure.subplots_adjust(left=0.16, right=0.97, top=1 - 0.1 / height, bottom=0.6 / height)
    for place, one in enumerate(checked):
        _seed_dots(axes, place, one, _colour(analysis, one.number))
    axes.set_yticks(range(len(checked)), [name_of(one.number) + ("" if one.full else " (not all)") for one in checked])
    axes.set_ylim(len(checked) - 0.5, -0.5)
    set_ticks(axes.xaxis, 7)
    axes.set_xlabel(_mae(analysis))
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    caption = "Validation MAE at full length with fresh seeds: a dot a seed, mean and standard deviation as a line."
    return f"{caption} Green: recommended.", figure


def _seed_dots(axes: Axes, place: int, one: Checked, colour: str) -> None:
    spread = one.sd or 0.0
    axes.plot([one.mean - spread, one.mean + spread], [place, place], color=colour, linewidth=2, alpha=0.5)
    axes.plot([one.mean, one.mean], [place - 0.2, place + 0.2], color=colour, linewidth=2)
    axes.plot(one.maes, [place] * len(one.maes), "o", color=colour, markersize=6, alpha=0.75)


def _colour(analysis: Analysis, number: int) -> str:
    if analysis.verdict and number == analysis.verdict.winner:
        return _BEST
    return _BASE if number == BASELINE else GREY


def _mae(analysis: Analysis) -> str:
    return f"validation MAE ({analysis.unit})" if analysis.unit else "validation MAE"


def history_picture(analysis: Analysis) -> Picture | None:
    """The value of each trial, in the order in which they began."""
    valued = [trial for trial in analysis.searched.values() if trial.values]
    if not valued:
        return None
    figure, axes = figure_with_axes(3.4)
    figure.subplots_adjust(left=0.1, right=0.8, top=0.95, bottom=0.16)
    for state, colour in COLOURS.items():
        trials = [trial for trial in analysis.searched.values() if trial.state == state]
        if not trials:
            continue
        label, style = WORDS[state], _style(colour, 7 if state != "RUNNING" else 4)
        if state in ("COMPLETE", "PRUNED"):
            values = [trial.values[0] for trial in trials]
            axes.plot([trial.number for trial in trials], values, _MARKS[state], label=label, **style)
        else:  # without a value: at the upper edge
            edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            numbers = [trial.number for trial in trials]
            axes.plot(numbers, [0.985] * len(trials), _MARKS[state], label=label, **style, **edge)
    _best_so_far(axes, analysis)
    set_scale(axes.yaxis, _bounded([trial.values[0] for trial in valued]))
    set_ticks(axes.yaxis, 7)
    axes.set_xlim(-0.7, max(analysis.searched) + 0.7)
    set_ticks(axes.xaxis, 9, integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel(_mae(analysis))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9)
    note = " Stopped trials: at the step at which they were stopped." if "PRUNED" in analysis.states else ""
    return f"Each trial's validation MAE (one seed); trial 0 is E0.{note}{_cut_note(valued)}", figure


def _style(colour: str, size: float) -> dict[str, Any]:
    return {"color": colour, "markersize": size}


def _best_so_far(axes: Axes, analysis: Analysis) -> None:
    numbers: list[int] = []
    best: list[float] = []
    for trial in analysis.searched.values():
        if trial.state == "COMPLETE":
            numbers.append(trial.number)
            best.append(min([*best[-1:], trial.values[0]]))
    if numbers:
        numbers.append(max(analysis.searched))
        best.append(best[-1])
        axes.step(numbers, best, where="post", color=_BEST, linewidth=1.5, label="best complete", zorder=1)


def _limit(values: Sequence[float]) -> float:
    """Above it values would press all others together: 10 times the median."""
    ordered = sorted(values)
    return 10 * abs(ordered[len(ordered) // 2])


def _bounded(values: Sequence[float]) -> list[float]:
    return [value for value in values if value <= _limit(values)] or list(values)


def _cut_note(trials: Sequence[TrialRecord]) -> str:
    values = [trial.values[0] for trial in trials]
    above = [trial.number for trial in trials if trial.values[0] > _limit(values)]
    return f" Above the picture: {', '.join(map(name_of, above))}." if above else ""


def curves_picture(analysis: Analysis) -> Picture | None:
    """Best MAE so far against training steps."""
    drawn = [trial for trial in analysis.searched.values() if any(math.isfinite(one.mae) for one in trial.results)]
    if analysis.predicts_only or not drawn:
        return None
    figure, axes = figure_with_axes(3.8)
    figure.subplots_adjust(left=0.1, right=0.8, top=0.92, bottom=0.14)
    for rung in analysis.rungs[:-1]:
        axes.axvline(rung.step, color=LINE, linewidth=1, linestyle="--", zorder=0)
        words: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 9, "color": GREY}
        axes.annotate(f"{rung.step:,}", (rung.step, 1.02), annotation_clip=False, **words)
    labelled: set[str] = set()
    for trial in drawn:
        _curve(axes, analysis, trial, labelled)
    set_scale(axes.yaxis, _bounded([one.mae for trial in drawn for one in trial.results if math.isfinite(one.mae)]))
    set_ticks(axes.yaxis, 7)
    axes.set_xlim(left=0)
    set_ticks(axes.xaxis, 9, integer=True)
    axes.set_xlabel(f"training steps ({analysis.about['steps_per_epoch']:g} an epoch)")
    axes.set_ylabel(f"best {_mae(analysis)}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9)
    rungs = " Dashed: the rungs, at which trials are compared and stopped." if len(analysis.rungs) > 1 else ""
    return f"Lowest validation MAE so far of each search trial.{rungs}", figure


def _curve(axes: Axes, analysis: Analysis, trial: TrialRecord, labelled: set[str]) -> None:
    points = [(one.step, one.mae) for one in trial.results if math.isfinite(one.mae)]
    label, colour, width, alpha = WORDS[trial.state], COLOURS[trial.state], 1.0, 0.55
    if trial.state == "PRUNED":
        width, alpha = 0.8, 0.4
    if trial.number == BASELINE:
        label, colour, width, alpha = "E0", _BASE, 1.8, 1.0
    if analysis.verdict and trial.number == analysis.verdict.winner:
        label, colour, width, alpha = f"{name_of(trial.number)} (best)", _BEST, 2.2, 1.0
    style: dict[str, Any] = {"color": colour, "linewidth": width, "alpha": alpha, "zorder": 1 + width}
    shown = label if label not in labelled else None
    labelled.add(label)
    axes.plot(*zip(*points, strict=True), label=shown, **style)
    axes.plot(*points[-1], _MARKS[trial.state], markersize=3.5, **style)


def importance_pictures(analysis: Analysis) -> list[Picture]:
    """Bars of both importances, one picture for each quantity that has any."""
    pictures = []
    for one in analysis.importances:
        ranks = {
            name: max(one.fanova.get(name, 0.0), one.ped_anova.get(name, 0.0)) for name in one.fanova | one.ped_anova
        }
        names = sorted(ranks, key=lambda name: -ranks[name])[:_MOST_BARS]
        if not names:
            continue
        height = 0.42 * len(names) + 0.9
        figure, axes = figure_with_axes(height)
        left = min(0.4, 0.04 + 0.0115 * max(map(len, names)))
        figure.subplots_adjust(left=left, right=0.82, top=1 - 0.1 / height, bottom=0.6 / height)
        for shift, label, shares, colour in (
            (-0.18, "fANOVA", one.fanova, COLOURS["COMPLETE"]),
            (0.18, "PED-ANOVA", one.ped_anova, COLOURS["PRUNED"]),
        ):
            if shares:
                places = [place + shift for place in range(len(names))]
                axes.barh(places, [shares.get(name, 0.0) for name in names], 0.34, color=colour, label=label)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        set_ticks(axes.xaxis, 6)
        axes.set_xlabel("share of importance")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9)
        less = f" Left out: {len(ranks) - len(names)} parameters of less importance." if len(ranks) > len(names) else ""
        pictures.append((f"Importance for the {one.what} ({one.n_trials} trials).{less}", figure))
    return pictures


def parallel_picture(analysis: Analysis) -> Picture | None:
    """A line a trial through the values of its parameters, to its MAE."""
    complete = [trial for trial in analysis.searched.values() if trial.state == "COMPLETE" and trial.params]
    stopped = [trial for trial in analysis.searched.values() if trial.state == "PRUNED" and trial.params]
    if len(complete) < 2:
        return None
    shown = _shown_dimensions(analysis)
    values = _bounded([trial.values[0] for trial in complete])
    low, high = min(values), max(values)
    mae = Dimension(f"MAE {analysis.unit}", low, high, low > 0 and high > 4 * low)
    figure, axes = figure_with_axes(4.2)
    figure.subplots_adjust(left=0.07, right=0.93, top=0.97, bottom=0.2)
    axes.spines[["left", "bottom"]].set_visible(False)
    for trial in stopped:
        places = _places(shown, trial)
        axes.plot(range(len(places)), places, color=LINE, linewidth=0.6, alpha=0.7, zorder=1)
    for trial in sorted(complete, key=lambda trial: -trial.values[0]):
        places = [*_places(shown, trial), min(1.04, mae.place(trial.values[0]))]
        best = analysis.verdict is not None and trial.number == analysis.verdict.winner
        style: dict[str, Any] = {"color": scale_colour(mae.place(trial.values[0])), "linewidth": 2.6 if best else 1.3}
        axes.plot(range(len(places)), places, zorder=4 if best else 2, alpha=1 if best else 0.8, **style)
    _parallel_axes(axes, [*shown, mae])
    left_out = len(analysis.axes) - len(shown)
    caption = (
        "Parameters of the complete trials, coloured by MAE (the lowest stand out most); thick: the recommended one"
    )
    caption += f"; grey: the {len(stopped)} stopped early" if stopped else ""
    return f"{caption}.{f' Left out: {left_out} parameters of least importance.' if left_out else ''}", figure


def _shown_dimensions(analysis: Analysis) -> list[Dimension]:
    """The most important parameters, where there are more than fit; in the order of their names."""
    ranks: dict[str, float] = {}
    for one in analysis.importances:
        for shares in (one.fanova, one.ped_anova):
            ranks |= {name: max(share, ranks.get(name, 0.0)) for name, share in shares.items()}
    most = sorted(analysis.axes, key=lambda name: -ranks.get(name, 0.0))[:_MOST_AXES]
    return [dimension(name, one) for name, one in analysis.axes.items() if name in most]


def _places(shown: Iterable[Dimension], trial: TrialRecord) -> list[float]:
    return [one.place(trial.params[one.name]) if one.name in trial.params else _UNUSED for one in shown]


def _parallel_axes(axes: Axes, shown: Sequence[Dimension]) -> None:
    for place, one in enumerate(shown):
        axes.plot([place, place], [0, 1], color=GREY, linewidth=1, zorder=3)
        for height, text in one.ticks():
            words: dict[str, Any] = {"fontsize": 9, "va": "center", "zorder": 5, "color": INK}
            box = {"boxstyle": "square,pad=0.1", "facecolor": PAGE, "edgecolor": "none", "alpha": 0.75}
            axes.annotate(wrapped(text, 9), (place, height), (4, 0), textcoords="offset points", bbox=box, **words)
    axes.set_xticks(range(len(shown)), [wrapped(one.name, 10) for one in shown], fontsize=9)
    axes.set_yticks([_UNUSED], ["not\nused"], fontsize=9)
    axes.axhline(_UNUSED, color=LINE, linewidth=0.8, linestyle=":", zorder=0)
    axes.tick_params(length=0)
    axes.set_xlim(-0.15, len(shown) - 0.6)
    axes.set_ylim(_UNUSED - 0.1, 1.05)


def slices_picture(analysis: Analysis) -> Picture | None:
    """The MAE against each parameter."""
    valued = [trial for trial in analysis.searched.values() if trial.values]
    shown = [dimension(name, one) for name, one in analysis.axes.items()]
    if not valued or not shown:
        return None
    rows, heights = math.ceil(len(shown) / _COLUMNS), _heights(valued)
    turned = any(map(has_long_choices, shown))
    height = (2.7 if turned else 2.35) * rows + 0.2
    figure = blank(height)
    figure.subplots_adjust(
        left=0.09,
        right=0.98,
        top=1 - 0.1 / height,
        bottom=(1.0 if turned else 0.6) / height,
        hspace=0.85 if turned else 0.55,
        wspace=0.12,
    )
    for place, one in enumerate(shown):
        axes = framed(figure.add_subplot(rows, _COLUMNS, place + 1), label_size=9)
        _slice(axes, one, analysis, valued, heights)
        if place % _COLUMNS:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(f"MAE ({analysis.unit})" if analysis.unit else "MAE", fontsize=9)
    stopped = " Open triangles: stopped early, at their last step." if "PRUNED" in analysis.states else ""
    above = sum(trial.values[0] > max(heights) for trial in valued)
    edge = f" {above} of higher MAE stand at the upper edge." if above else ""
    unused = " A trial that does not use a parameter is not in its picture."
    caption = "Validation MAE against each parameter. Dots: complete; star: recommended; diamond: E0."
    return f"{caption}{stopped}{edge}{unused}", figure


def _heights(valued: Sequence[TrialRecord]) -> list[float]:
    """The values that a picture must show: of the complete trials, where there are some to compare."""
    complete = [trial.values[0] for trial in valued if trial.state == "COMPLETE"]
    return _bounded(complete if len(complete) > 2 else [trial.values[0] for trial in valued])


def _slice(
    axes: Axes, one: Dimension, analysis: Analysis, valued: Sequence[TrialRecord], heights: Sequence[float]
) -> None:
    most = max(heights)
    for trial in valued:
        if one.name not in trial.params:
            continue
        style: dict[str, Any] = {"color": COLOURS[trial.state], "markersize": 5, "zorder": 2}
        mark = _MARKS[trial.state]
        if trial.state == "PRUNED":
            style |= {"markerfacecolor": "none", "alpha": 0.7, "markersize": 4}
        if trial.state == "COMPLETE":
            style["zorder"] = 3
            mark, marked = _slice_mark(analysis, trial.number)
            style |= marked
        axes.plot(one.value(trial.params[one.name]), min(most, trial.values[0]), mark, **style)
    set_scale(axes.yaxis, heights)
    set_ticks(axes.yaxis, 6)
    parameter_axis(axes, one)
    axes.set_xlabel(wrapped(one.name, 26), fontsize=9)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)


def _slice_mark(analysis: Analysis, number: int) -> tuple[str, dict[str, Any]]:
    """Mark and style of a complete trial, which do not differ by colour alone."""
    colour = _colour(analysis, number)
    if colour == _BEST:
        return "*", {"color": colour, "markersize": 11, "zorder": 5}
    return ("D", {"color": colour, "markersize": 6, "zorder": 4}) if number == BASELINE else (_MARKS["COMPLETE"], {})


def pareto_picture(analysis: Analysis) -> Picture | None:
    """MAE against cost, with the front of the complete trials."""
    valued = [trial for trial in analysis.searched.values() if trial.values]
    points = {trial.number: (cost_of(trial, analysis.about), trial.values[0]) for trial in valued}
    if not any(trial.state == "COMPLETE" for trial in valued):
        return None
    figure, axes = figure_with_axes(3.8)
    figure.subplots_adjust(left=0.1, right=0.8, top=0.95, bottom=0.14)
    for state in ("PRUNED", "COMPLETE"):
        here = [points[trial.number] for trial in valued if trial.state == state]
        if here:
            style: dict[str, Any] = {"markerfacecolor": "none", "alpha": 0.6} if state == "PRUNED" else {}
            axes.plot(*zip(*here, strict=True), _MARKS[state], color=COLOURS[state], label=WORDS[state], **style)
    front = [points[number] for number in analysis.front]
    axes.step(*zip(*front, strict=True), "o-", where="post", color=_BEST, label="front")
    set_scale(axes.xaxis, [cost for cost, _ in points.values()])
    set_scale(axes.yaxis, _bounded([mae for _, mae in points.values()]))
    set_ticks(axes.xaxis, 7)
    set_ticks(axes.yaxis, 7)
    axes.set_xlabel(analysis.cost_name)
    axes.set_ylabel(_mae(analysis))
    names = [(cost, mae, str(number)) for number, (cost, mae) in zip(analysis.front, front, strict=True)]
    label_points(axes, names, fontsize=9, color=_BEST)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=9)
    caption = f"MAE against cost ({analysis.cost_name}, logarithmic where the range is wide). Front: complete trials"
    caption += " that no other beats in both; its numbers are the trials'."
    return caption + _cut_note(valued), figure
