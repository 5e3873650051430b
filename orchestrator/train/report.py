"""A run's report.html, made from the run's folder alone: scores, predictions, learning curves, errors, cost."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from orchestrator.evaluation.scores import PredictorScores, Scores
from orchestrator.execution.fold import read_fold
from orchestrator.execution.job import DONE
from orchestrator.execution.summary import RunSummary
from orchestrator.provenance import RunManifest
from orchestrator.report.document import Document, Section, Table
from orchestrator.report.format import few_rows, four_digits, readable
from orchestrator.report.terminal import title_of
from orchestrator.train import figures
from orchestrator.train.members import ENSEMBLE, EnsembleSummary, read_members
from orchestrator.train.members_report import members_section
from orchestrator.train.rows import PredictedRows
from search_spaces.dimension import flat
from search_spaces.presets import GOVERNED, chooses_members
from trainables.config import RunConfig
from trainables.data.tasks import N_FOLDS
from trainables.errors import UserError
from trainables.files import read_json, write_json, write_text
from trainables.mappings import differences

Content = TypeVar("Content")
REPORT = "report.html"
_WORST = 20  # rows that are listed
_ELEMENTS = 12  # that a list names
_FEWEST_ROWS = 4  # that hold an element, for it to be named


def write_report(run: Path) -> Path:
    """Write report.html of a run from what its folder holds, and ensemble.json where it has several members.

    Raises:
        UserError: no fold is finished, or a file is missing or damaged.
    """
    results = read_results(run)
    write_text(run / REPORT, document(results).html())
    if results.members is not None:
        write_json(run / ENSEMBLE, results.members.model_dump(mode="json"))
    return run / REPORT


@dataclass(frozen=True, eq=False)
class Results:
    """What a run's folder holds.

    Attributes:
        models: what each model's run reported, by fold.
        members: what the members are worth; None where each fold has one.
    """

    folder: Path
    scores: Scores
    own: PredictorScores
    manifest: RunManifest
    rows: PredictedRows
    models: dict[int, list[RunSummary]]
    members: EnsembleSummary | None = None

    @property
    def unit(self) -> str:
        """Return the target's unit in brackets, with a space before it, or nothing."""
        return f" ({self.scores.unit})" if self.scores.unit else ""

    @cached_property
    def decimals(self) -> int:
        """Return the decimals that give the MAE four digits."""
        return four_digits(self.own.mean.mae)


def read_results(run: Path) -> Results:
    """Read what a run's folder holds.

    Raises:
        UserError: no fold is finished, or a file is missing or damaged.
    """
    scores = _read(run, "scores.json", lambda path: Scores.model_validate(read_json(path)))
    manifest = _read(run, "run.json", lambda path: RunManifest.model_validate(read_json(path)))
    rows = _read(run, "predictions.parquet", lambda path: PredictedRows.read(path.parent))
    if scores.own is None:
        raise UserError(f"{run} has no scores to report: train at least one fold")
    models = {fold: _models(run / f"fold_{fold}") for fold in scores.folds}
    return Results(run, scores, scores.own, manifest, rows, models, _known_members(run))


def _known_members(run: Path) -> EnsembleSummary | None:
    """Return what the members are worth; None where a file of theirs is missing, without which the run is whole."""
    try:
        return read_members(run)
    except (OSError, ValueError, KeyError):
        return None


def _read(run: Path, name: str, read: Callable[[Path], Content]) -> Content:
    """Return the content of a run's file.

    Raises:
        UserError: it is missing or damaged, with what to do.
    """
    try:
        return read(run / name)
    except FileNotFoundError:
        raise UserError(f"{run} has no scores to report ({name} is missing): train at least one fold") from None
    except (OSError, ValueError):
        raise UserError(
            f"{run / name} is damaged: repeat the command that trained the run; it rebuilds the file without training"
        ) from None


def _models(folder: Path) -> list[RunSummary]:
    """Return what the models of a fold and their teachers reported."""
    manifest = read_fold(folder)
    if manifest is None:
        return []
    places = {folder / member for member in manifest.members} | {path.parent for path in folder.glob(f"*/{DONE}")}
    summaries = []
    for place in sorted(places):
        try:
            summaries.append(RunSummary.model_validate(read_json(place / DONE)))
        except (OSError, ValueError):
            continue
    return summaries


def document(results: Results) -> Document:
    """Return the report of a run."""
    sections = [
        _summary(results),
        *([] if results.members is None else [members_section(results.members, results.unit)]),
        Section("Predictions against targets", pictures=figures.parity_and_errors(results.rows, results.unit)),
        _curves(results),
        _by_element(results),
        Section("Where errors are large", pictures=figures.error_trends(results.rows, results.unit)),
        _worst(results),
        _cost(results),
        _repeat(results),
    ]
    kept = [part for part in sections if part.sentences or part.tables or part.pictures or part.facts]
    return Document(f"Run: {title_of(results.scores)}", kept)


def _summary(results: Results) -> Section:
    own, unit, d = results.own, f" {results.scores.unit}".rstrip(), results.decimals
    n_folds = len(own.folds)
    spread = f" ± {own.std.mae:.{d}f}" if n_folds > 1 else ""
    folds = f"the mean of {n_folds} folds, ± their standard deviation" if n_folds > 1 else "of one fold"
    said = [
        f"MAE: {own.mean.mae:.{d}f}{spread}{unit}, {folds}, on {own.mean.n:,} test rows that no model was trained on."
    ]
    others = {**results.scores.baselines, **results.scores.published}
    better = {name: 1 - own.mean.mae / other.mean.mae for name, other in others.items() if other.mean.mae > 0}
    if better:
        words = (f"{abs(gain):.0%} {'below' if gain >= 0 else 'ABOVE'} {name}" for name, gain in better.items())
        said.append(f"Compared with others on the same rows: {', '.join(words)}.")
    return Section("Scores", [*said, *_limits(results)], tables=[_score_table(results)])


def _limits(results: Results) -> list[str]:
    """Return what limits the number, one sentence each."""
    scores, said = results.scores, few_rows(len(results.rows.target), "test")
    if scores.synthetic:
        said.append("Synthetic: these targets were made up; they must never be compared with Matbench.")
    if scores.partial:
        said.append(
            f"Partial: {scores.n_rows:,} of {scores.official_rows or 0:,} official rows were used, so this is no "
            "leaderboard score."
        )
    if missing := sorted(set(range(N_FOLDS)) - set(results.own.folds)):
        said.append(f"Folds: {', '.join(map(str, missing))} of the five are not trained.")
    if results.own.mean.n_fallback:
        said.append(f"Fallback: {results.own.mean.n_fallback:,} rows were predicted from their composition alone.")
    said += [f"Caveat: {mark}." for mark in scores.marks]
    said += [f"Failed: fold {fold} ({reason})." for fold, reason in scores.failed.items()]
    said.append(f"Tier: {scores.tier}.")
    if scores.record:
        said.append(f"Matbench record: `{scores.record}`.")
    elif scores.official_rows is not None and scores.no_record_because:
        said.append(f"No Matbench record: {scores.no_record_because}.")
    return said


def _score_table(results: Results) -> Table:
    d = results.decimals
    rows = [
        [f"fold {fold}", f"{s.mae:.{d}f}", "", f"{s.rmse:.{d}f}", f"{s.max_error:.{d}f}", f"{s.n:,}", str(s.n_fallback)]
        for fold, s in sorted(results.own.folds.items())
    ]
    named = {"crystaltune": results.own, **results.scores.baselines}
    named |= {f"{name} *": score for name, score in results.scores.published.items()}
    for name, score in named.items():
        mean, spread = score.mean, f"{score.std.mae:.{d}f}" if len(score.folds) > 1 else ""
        cells = [f"{mean.mae:.{d}f}", spread, f"{mean.rmse:.{d}f}", f"{mean.max_error:.{d}f}"]
        rows.append([name, *cells, f"{mean.n:,}", str(mean.n_fallback)])
    notes = ["± is the population standard deviation over folds (Matbench's convention)."]
    notes += ["* published predictions, on the same test rows"] if results.scores.published else []
    columns = ("", "MAE", "±", "RMSE", "largest error", "rows", "fallback")
    return Table(f"Errors{results.unit}", columns, rows, notes, frozenset(("",)))


def _curves(results: Results) -> Section:
    histories = [
        (f"fold {fold}", model.history[: _epochs(model)])
        for fold, models in sorted(results.models.items())
        for model in sorted(models, key=lambda each: -_epochs(each))[:1]  # one that was trained in epochs
        if model.history
    ]
    return Section("Learning curves", pictures=figures.learning_curves(histories, results.unit))


def _epochs(model: RunSummary) -> int:
    """Return the epochs of the training that chose the model: the history goes on with those of a refit."""
    extra = getattr(model, "refit_epochs", 0) or 0
    return len(model.history) - int(extra)


def _by_element(results: Results) -> Section:
    errors = results.rows.by_element()
    if not errors:
        return Section("Error by element")
    fewest = min(_FEWEST_ROWS, max(element.rows for element in errors))
    ranked = [element for element in errors if element.rows >= fewest]
    named = ", ".join(f"{element.symbol} {element.mae:.{results.decimals}f}" for element in ranked[:_ELEMENTS])
    of_whom = f" of elements in at least {fewest} rows" if fewest > 1 else ""
    said = [
        f"Largest mean absolute errors{of_whom}: {named}{' ' + results.scores.unit if results.scores.unit else ''}."
    ]
    return Section("Error by element", said, pictures=[figures.periodic_table(errors, results.unit)])


def _worst(results: Results) -> Section:
    worst, d = results.rows.worst(_WORST), results.decimals
    known, spread = results.rows.knows_formulas, bool((results.rows.std > 0).any())
    columns = ("id", *(("formula", "sites") if known else ()), "fold", "target", "prediction", "error")
    columns += ("std",) if spread else ()
    rows = []
    for row, row_id in enumerate(worst.ids):
        crystal = [worst.formula[row] or "", _or_blank(worst.n_sites[row], 0)] if known else []
        numbers = [f"{worst.target[row]:.{d}f}", f"{worst.prediction[row]:.{d}f}", f"{worst.error[row]:+.{d}f}"]
        numbers += [_or_blank(worst.std[row], d)] if spread else []
        rows.append([f"{row_id}{' *' if worst.fallback[row] else ''}", *crystal, str(worst.fold[row]), *numbers])
    notes = ["* predicted from the composition alone"] if worst.fallback.any() else []
    title = f"The {len(rows)} worst rows{results.unit}" if len(rows) > 1 else f"The only row{results.unit}"
    return Section(title, tables=[Table(title, columns, rows, notes, frozenset(("id", "formula")))])


def _or_blank(value: Any, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else ""


def _cost(results: Results) -> Section:
    models = [model for models in results.models.values() for model in models]
    if not models:
        return Section("What it cost")
    seconds, structures = sum(model.seconds for model in models), sum(model.structures for model in models)
    devices = sorted({str(model.device) for model in models if model.device})
    facts = [
        ("models", f"{len(models):,}"),
        ("training", f"{readable(seconds)}, all models together"),
        ("structures", f"{structures:,} processed, {structures / max(seconds, 1e-9):,.0f} per second per model"),
        ("device", ", ".join(devices)),
        ("compiled", ", ".join(sorted({"yes" if model.compiled else "no" for model in models}))),
    ]
    return Section("What it cost", facts=facts)


def _repeat(results: Results) -> Section:
    manifest = results.manifest
    changed = _changed(RunConfig.model_validate(manifest.config))
    text = yaml.safe_dump(changed, sort_keys=False).strip() if changed else "{}"
    facts = [
        ("settings", text.replace("\n", ", ") if changed else "the task's preset"),
        ("data", manifest.data),
        ("fingerprint", results.scores.fingerprint),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    said = ["The same rows and settings give the same digits on a CPU, whatever the number of processes."]
    rows = manifest.rows or {"data": results.scores.task}
    if rows["data"] is None:
        said.append("`frame` is the DataFrame with the rows.")
    if not manifest.rows and results.scores.official_rows is None and not results.scores.synthetic:
        said.append("This is your own table: pass its file, target and unit as before.")
    return Section("How to repeat it", said, facts=facts, commands=[_code(rows, results, changed)])


def _code(rows: Mapping[str, Any], results: Results, changed: Mapping[str, Any]) -> str:
    """Return the line of Python that repeats a run."""
    data = "frame" if rows["data"] is None else repr(rows["data"])
    keywords = {name: value for name, value in rows.items() if name != "data"}
    folds = sorted(results.own.folds)
    keywords |= {"folds": folds} if folds != list(range(N_FOLDS)) else {}
    keywords |= {"settings": dict(changed)} if changed else {}
    keywords |= {} if any(map(chooses_members, changed)) else {"preset": "single"}
    told = ", ".join([data, *(f"{name}={value!r}" for name, value in keywords.items())])
    return f"import crystaltune as ct; ct.train({told})"


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that are not the default ones, by dotted key, and all that presets choose."""
    default = RunConfig(task=config.task, fold=config.fold)
    found = differences(default.model_dump(mode="json"), config.model_dump(mode="json"))
    own = flat(config)  # a preset lies under the settings, and depends on the number of rows
    return {key: now for key, (_, now) in found.items()} | {key: own[key] for key in GOVERNED}
