"""The pictures of a study's page: Optuna's own, and those of seeds, importances and costs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.report.document import Picture
from orchestrator.study.journal import Trial, TrialState
from orchestrator.study.report.analysis import Analysis, cost_of
from orchestrator.study.report.verdict import BASELINE, Checked, name_of
from orchestrator.study.sampler import quiet_optuna, study_of

if TYPE_CHECKING:
    import optuna
    from plotly.graph_objects import Figure

_COLOURS = {TrialState.COMPLETE: "var(--blue)", TrialState.PRUNED: "var(--amber)"}
_BEST, _BASE, _OTHER = "var(--green)", "var(--ink)", "var(--grey)"
_MOST_AXES = 9  # of the parallel coordinates and the slices
_STRONG_TO_PALE = [[0.0, "var(--blue)"], [1.0, "var(--heat)"]]  # of the lowest value to the highest
_MOST_BARS = 8  # of the importances


def seeds_picture(analysis: Analysis) -> Picture | None:
    """Draw a dot for each confirmation run of each candidate, with their mean and standard deviation."""
    import plotly.graph_objects as go

    checked = sorted((check for check in analysis.checks.values() if check.maes), key=lambda check: check.mean)
    if not checked:
        return None
    figure = go.Figure()
    for check in checked:
        _add_seeds(figure, check, _colour(analysis, check.number))
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title=_mae(analysis))
    figure.update_layout(showlegend=False, height=110 + 42 * len(checked))
    caption = "Validation MAE at full length with new seeds: a dot for each seed, mean and standard deviation as a bar."
    return Picture(f"{caption} Green: recommended.", figure)


def _add_seeds(figure: "Figure", check: Checked, colour: str) -> None:
    name = name_of(check.number) + ("" if check.full else " (not all)")
    hover = [f"seed {seed}" for seed in check.seeds]
    figure.add_scatter(
        x=list(check.maes), y=[name] * len(check.maes), mode="markers", text=hover, marker={"color": colour, "size": 9}
    )
    spread = {"type": "data", "array": [check.sd or 0.0], "color": colour, "thickness": 2}
    bar = {"color": colour, "symbol": "line-ns-open", "size": 16, "line": {"width": 2}}
    figure.add_scatter(x=[check.mean], y=[name], mode="markers", marker=bar, error_x=spread, text=["mean"])


def _colour(analysis: Analysis, number: int) -> str:
    if analysis.verdict and number == analysis.verdict.winner:
        return _BEST
    return _BASE if number == BASELINE else _OTHER


def _mae(analysis: Analysis) -> str:
    return f"validation MAE ({analysis.unit})" if analysis.unit else "validation MAE"


def history_picture(analysis: Analysis) -> Picture | None:
    """Draw the value of each trial, in the order in which they began."""
    if not _complete(analysis):
        return None
    from optuna.visualization import plot_optimization_history

    figure = _by_optuna(analysis, plot_optimization_history, **_target(analysis, "objective value"))
    stopped = [trial for trial in analysis.searched.values() if trial.state == TrialState.PRUNED and trial.values]
    if stopped:
        numbers, values = [trial.number for trial in stopped], [trial.values[0] for trial in stopped]
        marker = {"color": _COLOURS[TrialState.PRUNED], "symbol": "triangle-down-open", "size": 8}
        figure.add_scatter(x=numbers, y=values, mode="markers", marker=marker, name="stopped early")
    figure.update_yaxes(title=_mae(analysis), range=_range(_ended(analysis)))
    figure.update_layout(title=None)
    note = " Stopped trials: at the step at which they were stopped." if stopped else ""
    return Picture(f"Validation MAE of each trial (one seed); trial 0 is E0.{note}{_cut_note(analysis)}", figure)


def curves_picture(analysis: Analysis) -> Picture | None:
    """Draw the lowest MAE so far against training steps."""
    drawn = [trial for trial in analysis.searched.values() if any(math.isfinite(step.mae) for step in trial.results)]
    if analysis.predicts_only or not drawn:
        return None
    import plotly.graph_objects as go

    figure = go.Figure()
    for trial in drawn:
        _add_curve(figure, analysis, trial)
    for rung in analysis.rungs[:-1]:
        figure.add_vline(x=rung.step, line={"color": "var(--line)", "width": 1, "dash": "dash"})
    figure.update_xaxes(title=f"training steps ({analysis.manifest.steps_per_epoch:g} an epoch)", rangemode="tozero")
    figure.update_yaxes(title=f"lowest {_mae(analysis)}", range=_range([t.mae for t in drawn if math.isfinite(t.mae)]))
    rungs = " Dashed: the rungs, at which trials are compared and stopped." if len(analysis.rungs) > 1 else ""
    return Picture(f"Lowest validation MAE so far of each search trial.{rungs}", figure)


def _add_curve(figure: "Figure", analysis: Analysis, trial: Trial) -> None:
    steps = [step for step in trial.results if math.isfinite(step.mae)]
    colour, width = _COLOURS.get(trial.state, _OTHER), 1.2
    name = name_of(trial.number)
    if trial.number == BASELINE:
        colour, width = _BASE, 2.0
    if analysis.verdict and trial.number == analysis.verdict.winner:
        colour, width, name = _BEST, 2.4, f"{name} (best)"
    figure.add_scatter(
        x=[step.step for step in steps],
        y=[step.mae for step in steps],
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": width},
        marker={"size": 4},
        showlegend=width > 1.5,
        hovertemplate=f"{name} ({trial.state.label})<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
    )


def importance_pictures(analysis: Analysis) -> list[Picture]:
    """Draw bars of both importances, one picture for each quantity that has any."""
    import plotly.graph_objects as go

    pictures = []
    for measured in analysis.importances:
        both = (("fANOVA", measured.fanova, "var(--blue)"), ("PED-ANOVA", measured.ped_anova, "var(--amber)"))
        ranks: dict[str, float] = {}
        for _, shares, _ in both:
            ranks |= {name: max(share, ranks.get(name, 0.0)) for name, share in shares.items()}
        names = sorted(ranks, key=lambda name: -ranks[name])[:_MOST_BARS]
        if not names:
            continue
        figure = go.Figure()
        for label, shares, colour in both:
            if shares:
                values = [shares.get(name, 0.0) for name in names]
                figure.add_bar(x=values, y=names, orientation="h", name=label, marker={"color": colour})
        figure.update_yaxes(autorange="reversed")
        figure.update_xaxes(title="share of importance")
        figure.update_layout(barmode="group", height=120 + 44 * len(names))
        less = f" Left out: {len(ranks) - len(names)} less important parameters." if len(ranks) > len(names) else ""
        pictures.append(Picture(f"Importance for the {measured.what} ({measured.n_trials} trials).{less}", figure))
    return pictures


def parallel_picture(analysis: Analysis) -> Picture | None:
    """Draw a line for each complete trial through the values of its parameters, to its MAE."""
    if len([trial for trial in _complete(analysis) if trial.params]) < 2:
        return None
    from optuna.visualization import plot_parallel_coordinate

    names = _most_important(analysis)
    figure = _by_optuna(analysis, plot_parallel_coordinate, params=names, **_target(analysis, _mae(analysis)))
    figure.update_layout(
        title=None, margin={"l": 70, "r": 40, "t": 40, "b": 90}, meta={"min_width": 200 + 90 * len(names)}
    )
    figure.update_annotations(font={"color": "var(--ink)", "size": 11})
    for line in figure.select_traces({"mode": "lines"}):  # Optuna's own colours are faint on a dark page
        line.update(line={"color": "var(--blue)", "width": 1.5}, opacity=1 - 0.8 * float(line.y[0] or 0.0))
    figure.update_traces({"marker": {"showscale": False}}, {"mode": "markers"})  # the first axis has the scale
    left_out = len(analysis.axes) - len(names)
    less = f" Left out: {left_out} less important parameters." if left_out else ""
    caption = "Parameters of the complete trials and their validation MAE: the lower it is, the stronger the colour."
    return Picture(f"{caption}{less}", figure)


def slices_picture(analysis: Analysis) -> Picture | None:
    """Draw the MAE against each parameter."""
    if not [trial for trial in _complete(analysis) if trial.params]:
        return None
    from optuna.visualization import plot_slice

    names = _most_important(analysis)
    figure = _by_optuna(analysis, plot_slice, params=names, **_target(analysis, _mae(analysis)))
    figure.update_layout(title=None, width=None, margin={"l": 60, "r": 12, "t": 20, "b": 60})
    figure.update_layout(meta={"min_width": 80 + 130 * len(names)})
    figure.update_yaxes(range=_range([trial.values[0] for trial in _complete(analysis)]))
    figure.update_traces(marker={"showscale": False, "colorscale": _STRONG_TO_PALE, "reversescale": True})
    figure.update_layout(yaxis={"title": _mae(analysis)})
    unused = "A trial that does not use a parameter is omitted from its panel."
    return Picture(
        f"Validation MAE against each parameter; the later the trial, the stronger the colour. {unused}", figure
    )


def pareto_picture(analysis: Analysis) -> Picture | None:
    """Draw MAE against cost, with the front of the complete trials."""
    complete = _complete(analysis)
    if not complete:
        return None
    import plotly.graph_objects as go

    figure = go.Figure()
    points = {
        trial.number: (cost_of(trial, analysis.manifest), trial.values[0])
        for trial in analysis.searched.values()
        if trial.values
    }
    for state, symbol in ((TrialState.PRUNED, "triangle-down-open"), (TrialState.COMPLETE, "circle")):
        here = [trial.number for trial in analysis.searched.values() if trial.state == state and trial.values]
        figure.add_scatter(
            x=[points[number][0] for number in here],
            y=[points[number][1] for number in here],
            mode="markers",
            name=TrialState(state).label,
            text=[name_of(number) for number in here],
            marker={"color": _COLOURS[state], "symbol": symbol, "size": 8},
        )
    front = [points[number] for number in analysis.front]
    figure.add_scatter(
        x=[cost for cost, _ in front],
        y=[mae for _, mae in front],
        mode="lines+markers+text",
        line={"shape": "hv", "color": _BEST},
        text=[str(number) for number in analysis.front],
        textposition="bottom left",
        name="front",
    )
    costs = [cost for cost, _ in points.values()]
    figure.update_xaxes(
        title=analysis.cost_name, type="log" if min(costs) > 0 and max(costs) > 4 * min(costs) else "linear"
    )
    figure.update_yaxes(title=_mae(analysis), range=_range([mae for _, mae in points.values()]))
    caption = (
        f"MAE against cost ({analysis.cost_name}). Front: complete trials that no other beats in both; its numbers"
    )
    return Picture(f"{caption} are the trials'.{_cut_note(analysis)}", figure)


def _by_optuna(analysis: Analysis, plot: Callable[..., "Figure"], **options: Any) -> "Figure":
    """Let Optuna draw the search trials."""
    from optuna.distributions import distribution_to_json

    known = {name: distribution_to_json(kind) for name, kind in analysis.axes.items()}
    trials = [
        replace(trial, distributions={name: known[name] for name in trial.params})
        for trial in analysis.searched.values()
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    with quiet_optuna():
        study: optuna.Study = study_of(trials, _n_objectives(analysis))
        return plot(study, **options)


def _n_objectives(analysis: Analysis) -> int:
    return len(analysis.manifest.objectives)


def _target(analysis: Analysis, name: str) -> dict[str, Any]:
    """Return which value is drawn: Optuna asks where a study has several."""
    several = {"target": lambda trial: trial.values[0]} if _n_objectives(analysis) > 1 else {}
    return {**several, "target_name": name}


def _most_important(analysis: Analysis) -> list[str]:
    """Return the most important parameters, where there are more than fit, in the order of their names."""
    ranks: dict[str, float] = {}
    for measured in analysis.importances:
        for shares in (measured.fanova, measured.ped_anova):
            ranks |= {name: max(share, ranks.get(name, 0.0)) for name, share in shares.items()}
    used = {name for trial in _complete(analysis) for name in trial.params}
    most = sorted((name for name in analysis.axes if name in used), key=lambda name: -ranks.get(name, 0.0))[:_MOST_AXES]
    return [name for name in analysis.axes if name in most]


def _complete(analysis: Analysis) -> list[Trial]:
    return [trial for trial in analysis.searched.values() if trial.state == TrialState.COMPLETE]


def _ended(analysis: Analysis) -> list[float]:
    return [trial.values[0] for trial in analysis.searched.values() if trial.values]


def _limit(values: Sequence[float]) -> float:
    """Return the height above which values would press all others together: 10 times the median."""
    ordered = sorted(values)
    return 10 * abs(ordered[len(ordered) // 2])


def _range(values: Sequence[float]) -> list[float] | None:
    """Return the heights that a picture shows, or None where all of them fit."""
    shown = [value for value in values if value <= _limit(values)] if values else []
    if not shown or len(shown) == len(values):
        return None
    margin = 0.08 * (max(shown) - min(shown)) or 0.1 * abs(max(shown))
    return [min(shown) - margin, max(shown) + margin]


def _cut_note(analysis: Analysis) -> str:
    values = _ended(analysis)
    above = [t.number for t in analysis.searched.values() if t.values and t.values[0] > _limit(values)]
    return f" Above the picture: {', '.join(map(name_of, above))}." if above else ""
