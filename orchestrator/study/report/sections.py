"""A study's report as sections of sentences, tables and pictures, and these as HTML and Markdown."""

import math
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.report.document import Document, Picture, Section, Table
from orchestrator.report.format import four_digits, number_text
from orchestrator.report.terminal import title_of
from orchestrator.study.journal import TrialState
from orchestrator.study.manifest import StudyManifest
from orchestrator.study.report.analysis import Analysis, best_config, milestones_of
from orchestrator.study.report.figures import (
    curves_picture,
    history_picture,
    importance_pictures,
    parallel_picture,
    pareto_picture,
    seeds_picture,
    slices_picture,
)
from orchestrator.study.report.importances import NOTES
from orchestrator.study.report.verdict import BASELINE, Checked, name_of, paired_margin
from trainables.config import RunConfig
from trainables.data.tasks import SAMPLE_TASK, TASKS
from trainables.errors import listed
from trainables.mappings import differences


def title_line(manifest: StudyManifest) -> str:
    """Return space, task and what limits the scores, in one line."""
    return f"{manifest.space_name} on {title_of(manifest.title)}"


def sections(analysis: Analysis, folder: Path) -> list[Section]:
    """Return the report in its order: first what is to be known, then what it rests on.

    Args:
        folder: of the study, as the commands shall name it.
    """
    return [
        Section("Conclusions", analysis.sentences),
        _best(analysis),
        _searched(analysis),
        _pictured("Optimisation history", [history_picture(analysis)], "No trial has a value."),
        _curves(analysis),
        _importances(analysis),
        _pictured(
            "Parallel coordinates",
            [parallel_picture(analysis)],
            "This needs at least two complete trials with parameters.",
        ),
        _pictured("Slices", [slices_picture(analysis)], "No trial with parameters has a value."),
        _pictured("MAE against cost", [pareto_picture(analysis)], "No trial completed."),
        _failures(analysis),
        _repeat(analysis, folder),
    ]


def _pictured(title: str, pictures: list[Picture | None], otherwise: str) -> Section:
    there = [picture for picture in pictures if picture]
    return Section(title, [] if there else [otherwise], pictures=there)


def _best(analysis: Analysis) -> Section:
    title = "Best configuration against E0"
    if analysis.verdict is None or analysis.best is None:
        return Section(title, ["No trial completed."])
    best = name_of(analysis.verdict.winner)
    changed = _differing_keys(
        best_config(analysis.manifest, analysis.searched[BASELINE], analysis.best.seed), analysis.best
    )
    keys = Table("Keys that differ", ("key", "E0", best), changed, text=frozenset(("key", "E0", best)))
    said = [] if changed else ["The best configuration is E0's."]
    tables = [table for table in (keys, _checks_table(analysis)) if table.rows]
    picture = seeds_picture(analysis)
    return Section(title, said, tables=tables, pictures=[picture] if picture else [])


def _differing_keys(one: RunConfig, other: RunConfig) -> list[list[str]]:
    """Dotted keys with the values of both, where these differ."""
    found = differences(one.model_dump(mode="json"), other.model_dump(mode="json"))
    return [[key, *map(_value, values)] for key, values in found.items()]


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _checks_table(analysis: Analysis) -> Table:
    unit = f" ({analysis.unit})" if analysis.unit else ""
    columns = ("trial", f"search MAE{unit}", f"check MAE{unit}", "+- seeds", "seeds", "below E0", "95 % interval")
    ordered = sorted((one for one in analysis.checks.values() if one.maes), key=lambda one: (not one.full, one.mean))
    rows = [check_cells(analysis, one) for one in ordered]
    notes = [
        "Search MAE: of one seed. Check: mean over fresh seeds at full length, +- their sample standard deviation.",
        "Interval: Student's, of differences paired by seed. It does not correct for choosing the lowest of "
        "several means.",
    ]
    return Table("Checks", columns, rows, notes, frozenset(("trial",)))


def check_cells(analysis: Analysis, one: Checked) -> list[str]:
    """Trial, search MAE, mean of its checks, their spread and number, the margin over E0 and its interval."""
    decimals, trial = four_digits(one.mean), analysis.searched[one.number]
    e0 = analysis.checks.get(BASELINE)
    margin = paired_margin(one, e0) if e0 and e0.full and one.number != BASELINE else None
    low, high = (margin.low, margin.high) if margin else (None, None)
    return [
        name_of(one.number),
        number_text(trial.values[0], decimals) if trial.values else "",
        number_text(one.mean, decimals),
        "" if one.sd is None else number_text(one.sd, decimals),
        str(len(one.maes)) if one.full else f"{len(one.maes)} of {one.wanted}",
        f"{margin.difference:+.{decimals}f}" if margin else "",
        "" if low is None or high is None else f"{low:+.{decimals}f} to {high:+.{decimals}f}",
    ]


def _searched(analysis: Analysis) -> Section:
    manifest = analysis.manifest
    rows = [[_value(cell) for cell in row] for row in manifest.space_table]
    columns = ("key", "range", "what it is")
    space = Table(f"Space {manifest.space_name}", columns, rows, text=frozenset(columns))
    states = ", ".join(f"{count} {TrialState(state).label}" for state, count in analysis.states.items())
    facts = [
        ("space", f"{manifest.space_name}: {manifest.space.get('says', '')}".rstrip(": ")),
        ("data", f"{manifest.n_train:,} training and {manifest.n_val:,} validation rows of fold {manifest.fold}"),
        ("objectives", " and ".join(manifest.objectives)),
        ("sampler", f"{manifest.sampler}, seed {manifest.seed}"),
        ("scheduler", _scheduler(analysis)),
        ("probes", f"{manifest.probes} on a frozen trunk, whose best were tried early" if manifest.probes else "none"),
        ("trials", f"{states or 'none'} (asked: {manifest.n_trials})"),
        ("checks", _checks_asked(manifest)),
    ]
    return Section("What was searched, and on which data", facts=facts, tables=[space] if rows else [])


def _scheduler(analysis: Analysis) -> str:
    manifest = analysis.manifest
    if analysis.predicts_only:
        return "none: a trial only predicts in another way with one trained model"
    steps = listed((f"{step:,}" for step in milestones_of(manifest)), 12)
    length = f"full length {manifest.n_steps:,} steps, {manifest.steps_per_epoch:g} an epoch"
    factor = manifest.scheduler.factor
    words = f", rungs at step {steps}{f', factor {factor}' if factor else ''}" if steps else ""
    return f"{manifest.scheduler.name}{words}; {length}"


def _checks_asked(manifest: StudyManifest) -> str:
    top, seeds = manifest.checks.top, manifest.checks.seeds
    if not top:
        return "none"
    return f"the best {top} and E0 at full length, seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def _curves(analysis: Analysis) -> Section:
    title = "Learning curves and rungs"
    if analysis.predicts_only:
        return Section(title, ["The trials only predict, so there are none."])
    section = _pictured(title, [curves_picture(analysis)], "No trial has finished a step.")
    unit = f" ({analysis.unit})" if analysis.unit else ""
    columns = ("rung at step", "epochs", "reached", "stopped there", f"best MAE{unit}", f"median MAE{unit}")
    per_epoch = analysis.manifest.steps_per_epoch
    rows = [
        [
            f"{rung.step:,}" if place < len(analysis.rungs) - 1 else f"{rung.step:,} (end)",
            f"{rung.step / per_epoch:.3g}",
            str(rung.reached),
            str(rung.stopped) if place < len(analysis.rungs) - 1 else "",
            number_text(rung.best) if math.isfinite(rung.best) else "",
            number_text(rung.median) if math.isfinite(rung.median) else "",
        ]
        for place, rung in enumerate(analysis.rungs)
    ]
    section.tables.append(Table("Rungs", columns, rows))
    return section


def _importances(analysis: Analysis) -> Section:
    pictures = importance_pictures(analysis)
    said = [f"{one.what[0].upper()}{one.what[1:]}: {reason}." for one in analysis.importances for reason in one.reasons]
    rows = [
        [name, one.what, _share(one.fanova.get(name)), _share(one.ped_anova.get(name))]
        for one in analysis.importances
        for name in dict.fromkeys([*one.fanova, *one.ped_anova])
    ]
    columns = ("parameter", "for the", "fANOVA", "PED-ANOVA")
    stopped = analysis.states.get(TrialState.PRUNED, 0)
    notes = list(NOTES) if rows else []
    if rows and stopped:
        notes.append(
            f"The {stopped} stopped trials have values of earlier steps: they count only where all are compared at one."
        )
    drawn = [Table("Importances", columns, rows, text=frozenset(columns[:2]))] if rows else []
    return Section("Parameter importances", said, pictures=pictures, drawn=drawn, notes=notes)


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _failures(analysis: Analysis) -> Section:
    tables = [table for table in (_failed_trials(analysis), _crashes(analysis)) if table.rows]
    return Section("Failures", [] if tables else ["None."], tables=tables)


def _failed_trials(analysis: Analysis) -> Table:
    columns = ("how many", "trials", "reason", "the first")
    rows = [
        [
            str(len(failure.numbers)),
            listed(failure.numbers, 12),
            failure.reason,
            failure.example if failure.example != failure.reason else "",
        ]
        for failure in analysis.failures
    ]
    notes = ["N: a number that differs; checks are counted too."]
    return Table("Failed trials", columns, rows, notes, frozenset(columns[1:]))


def _crashes(analysis: Analysis) -> Table:
    """Return what ended a session of the search, though no trial failed."""
    columns = ("when (UTC)", "phase", "reason")
    rows = [
        [f"{datetime.fromtimestamp(crash.time, UTC):%Y-%m-%d %H:%M:%S}", crash.phase, crash.reason]
        for crash in getattr(analysis, "crashes", ())
    ]
    return Table("Crashes of the engine", columns, rows, text=frozenset(columns))


def _repeat(analysis: Analysis, folder: Path) -> Section:
    manifest = analysis.manifest
    commands, facts = list(filter(None, [manifest.command])), [("seed", str(manifest.seed))]
    if analysis.best is not None and analysis.repeated is not None:
        best = {"config": str(folder / "best.yaml"), "folds": manifest.fold}
        if any("{config}" in word for word in manifest.train):
            commands.append(shlex.join(word.format(**best) for word in manifest.train))
        else:  # searched from Python, or by an older version
            commands.append(
                f"import crystaltune as ct; ct.train({_data(manifest.task)}, config={best['config']!r}, "
                f"folds={manifest.fold})"
            )
        value = number_text(analysis.repeated.values[0])
        facts.append(("best.yaml", f"seed {analysis.best.seed}: validation MAE {value} {manifest.unit}".rstrip()))
    facts += [
        (name, _words(value))
        for name in ("device", "data", "auxiliary", "versions")
        if (value := getattr(manifest, name))
    ]
    return Section("How to repeat it", facts=facts, commands=commands)


def _data(task: str) -> str:
    """Return what names the rows in Python: a known task by its name, else the caller's own table."""
    return repr(task) if task in TASKS or task == SAMPLE_TASK.name else f"<the rows of {task}>"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def document(analysis: Analysis, folder: Path) -> Document:
    """Return the report of a study.

    Args:
        folder: of the study, as the commands shall name it.
    """
    return Document(f"Study: {title_line(analysis.manifest)}", sections(analysis, folder))
