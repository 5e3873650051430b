"""A search: from a task's name and a space to a best configuration and an honest report of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from orchestrator.execution.folders import only_process
from orchestrator.inputs.context import TaskContext, open_context
from orchestrator.inputs.source import Source
from orchestrator.study.callbacks import CheckpointCleaner, StudyDisplay
from orchestrator.study.driver import Callback, StudyDriver
from orchestrator.study.journal import Journal, Trial, TrialState, crashes_of, trials_of
from orchestrator.study.manifest import (
    ConfirmationPlan,
    StudyManifest,
    began_base,
    begin,
    manifest_of,
    read_manifest,
    require_same_study,
)
from orchestrator.study.options import JOURNAL, MANIFEST, SearchOptions, require_folder, validate_options
from orchestrator.study.optuna_export import OptunaExport
from orchestrator.study.pruner import Pruner, pruner_of
from orchestrator.study.report.analysis import Analysis, analyse
from orchestrator.study.report.files import write_study_reports
from orchestrator.study.sampler import Sampler, distributions_of
from orchestrator.study.trial_data import require_disk_space, trial_data, with_models
from orchestrator.study.warm_start import PROBES, begin_journal, best_probes, validate_probes
from search_spaces.reading import load_space
from search_spaces.space import Space
from trainables.config import parse_config
from trainables.errors import UserError
from trainables.progress import Progress, silent
from trainables.training.trial import TrialData


@dataclass(eq=False)
class _Study:
    """What the phases of a search share."""

    folder: Path
    options: SearchOptions
    manifest: StudyManifest
    space: Space
    data: TrialData
    context: TaskContext
    show: Callable[[RenderableType], None] | None
    deadline: float
    keeper: Any = None  # of graphs, for nodes of a cluster

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / JOURNAL)

    @property
    def progress(self) -> Progress:
        return self.context.progress


def search(
    source: Source,
    out: Path,
    options: SearchOptions,
    *,
    settings: Mapping[str, Any] | None = None,
    auxiliary: Sequence[str] = (),
    progress: Progress = silent,
    show: Callable[[RenderableType], None] | None = None,
) -> Analysis:
    """Search, check the best, and write best.yaml, report.html, report.md and trials.parquet into `out`.

    Args:
        settings: keys of RunConfig over the task's preset: what the space changes, and E0.
        show: puts a table above the progress bars, where there is a terminal.

    Raises:
        UserError: a mistake in what was asked; another study, or none to go on with, in `out`; or a study whose
            trials all failed (what is done is kept).
    """
    deadline = time.monotonic() + options.budget
    space = load_space(options.space)
    validate_options(options)
    options.resources.check(progress)
    if options.probes:
        validate_probes(space)
    require_folder(out, resume=options.resume)
    began = began_base(out) if options.resume else None
    context = open_context(source, settings or {}, auxiliary, began=began, progress=progress)
    config = context.config.changed({"fold": options.fold, "seed": options.seed})
    space.check(config, context.task, options.space)
    space = space.for_task(context.task, config.multitask.tasks)
    manifest = manifest_of(context, space, config, options)
    with only_process(out):
        if options.resume:
            require_same_study(out, manifest, progress)
        with _ray(options) as (capacity, share), _keeper(options, out.absolute(), share, progress) as keeper:
            at_once = min(options.place.max_concurrent or capacity, capacity)
            require_disk_space(out, at_once)
            begin(out, manifest, options)
            study = _prepared(context, space, out, options, manifest, show, deadline)
            study.keeper = keeper
            try:
                finished = (
                    _probe(study, share, at_once) and _search(study, share, at_once) and _check(study, share, at_once)
                )
            except Exception as error:
                _note_crash(study, error)
                raise
            finally:
                analysis = report(out)
    _require_a_finished_trial(analysis, out)
    if not finished:
        progress.message("the time budget ended before the study did: continue it with `resume=True`")
    return analysis


def _note_crash(study: _Study, error: Exception) -> None:
    """Let the report tell of what nobody expected; the mistakes that are meant for people are told already."""
    if not isinstance(error, UserError):
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        study.journal.append("crash", time=round(time.time(), 3), phase="study", reason=reason[:500])


def _prepared(
    context: TaskContext,
    space: Space,
    out: Path,
    options: SearchOptions,
    manifest: StudyManifest,
    show: Callable[[RenderableType], None] | None,
    deadline: float,
) -> _Study:
    """Make what trials share."""
    base = parse_config(manifest.base, MANIFEST)
    data = trial_data(
        context,
        space,
        base,
        out,
        validations_per_epoch=options.validations_per_epoch,
        resources=options.model_resources,
    )
    return _Study(out, options, manifest, space, data, context, show, deadline)


def report(folder: Path) -> Analysis:
    """Write a study's reports anew from its journal.

    Raises:
        UserError: no study is there, or its files are damaged.
    """
    analysis = read_analysis(folder)
    write_study_reports(folder, analysis)
    return analysis


def read_analysis(folder: Path) -> Analysis:
    """Return what follows from the trials of a study.

    Raises:
        UserError: no study is there, or its files are damaged.
    """
    manifest = read_manifest(folder)
    events = Journal(folder / JOURNAL).read()
    return analyse(manifest, trials_of(events), distributions_of, crashes_of(events))


@contextmanager
def _ray(options: SearchOptions) -> Iterator[tuple[int, Any]]:
    """Ray with what a trial asks for checked: (trials at once, a trial's share)."""
    from orchestrator.ray_session import ray_session, share_for  # ray takes seconds to import

    with ray_session(options.place.address) as capacity:
        gpus = 0.0 if options.resources.device == "cpu" else options.place.gpus
        share = share_for(capacity, options.place.cpus, gpus)
        yield capacity.at_once(share), share


@contextmanager
def _keeper(options: SearchOptions, out: Path, share: Any, progress: Progress) -> Iterator[Any]:
    """On a cluster whose nodes share the study's folder, an actor that hands out graphs; None on this machine alone."""
    if options.model_resources.cluster is None:
        yield None
        return
    from orchestrator.execution.ray_nodes import Nodes, actor_here, require_shared, shared_folder
    from orchestrator.execution.ray_stores import StoreKeeper

    cure = "start the cluster again and continue with `resume=True`"
    with Nodes() as nodes, actor_here(StoreKeeper) as keeper:
        with shared_folder(out) as token:
            require_shared(out, token, nodes.fitting(share))
        with nodes.telling_of_a_lost_head(progress, cure):
            yield keeper


def _probe(study: _Study, share: Any, at_once: int) -> bool:
    """Cheap trials on a frozen trunk, whose best the search begins with; True where all have ended."""
    if not study.options.probes:
        return True
    probing = replace(study, folder=study.folder / PROBES, data=replace(study.data, probes=True), show=None)
    begin_journal(probing.folder)
    pruner = Pruner("none", study.data.n_steps(study.data.base))
    return _phase(probing, "probe", _sampling(study).ask, pruner, study.options.probes, share, at_once)


def _sampling(study: _Study, starts: Sequence[Trial] = ()) -> Sampler:
    options = study.options
    n_objectives = len(options.objectives)
    return Sampler(study.space, study.data.base, options.sampler, options.seed, n_objectives, tuple(starts))


def _search(study: _Study, share: Any, at_once: int) -> bool:
    """Return the search itself; True where all its trials have ended."""
    options = study.options
    pruner = pruner_of(options, study.space, study.data.n_steps(study.data.base))
    sampling = _sampling(study, best_probes(study.folder, options))
    return _phase(study, "search", sampling.ask, pruner, options.trials, share, at_once)


def _check(study: _Study, share: Any, at_once: int) -> bool:
    """Return the best and E0 again, at full length and with fresh seeds; True where all have ended."""
    trials = trials_of(study.journal.read())
    planned = planned_checks(trials.values(), study.manifest.checks, study.options.top)
    if not planned:
        return True
    if study.space.runs == "prediction":
        seeds = study.manifest.checks.seeds
        study.data = with_models(study.data, seeds, study.folder, study.context, study.options.model_resources)
    begun = sum(trial.of is not None for trial in trials.values())
    left = iter(planned[begun:])

    def ask(number: int, before: Sequence[Trial]) -> Trial | None:
        check = next(left, None)
        return None if check is None else replace(check, number=number)

    pruner = Pruner("none", study.data.n_steps(study.data.base))
    return _phase(study, "check", ask, pruner, len(planned), share, at_once)


def planned_checks(trials: Iterable[Trial], checks: ConfirmationPlan, top: int) -> list[Trial]:
    """Return what is trained again: E0 and the best trials, one seed of all after the other.

    The best are the complete ones, by their MAE, then those that were stopped last: early stopping judges by one seed
    and part of the way, so they are given the whole of it. A study that was searched on after its checks keeps those
    it has, and adds those of new best ones.
    """
    trials = list(trials)
    searched = [trial for trial in trials if trial.of is None]
    candidates = sorted((t for t in searched if t.state in (TrialState.COMPLETE, TrialState.PRUNED)), key=_rank)
    if not top or not candidates:
        return []
    known = [trial for trial in trials if trial.of is not None]
    baseline = [trial for trial in candidates if trial.number == 0]
    others = [trial for trial in candidates if trial.number != 0]
    done = {(trial.of, trial.seed) for trial in known}
    new = [
        Trial(0, dict(trial.changes), {}, "check", seed, of=trial.number)
        for seed in checks.seeds
        for trial in [*baseline, *others[:top]]
        if (trial.number, seed) not in done
    ]
    return [*known, *new]


def _rank(trial: Trial) -> tuple[bool, int, float, int]:
    pruned = trial.state == TrialState.PRUNED
    return pruned, -trial.last if pruned else 0, trial.values[0], trial.number


def _phase(
    study: _Study,
    name: str,
    ask: Callable[[int, Sequence[Trial]], Trial | None],
    pruner: Pruner,
    n_trials: int,
    share: Any,
    at_once: int,
) -> bool:
    from ray import tune

    from orchestrator.study.ray_tune import FineTuneOnNode, run_phase
    from trainables.ray_trainable import FineTune

    searching = name != "check"
    events = study.journal.read(study.progress, mend=True)
    records = [trial for trial in trials_of(events).values() if (trial.of is None) == searching]
    costs = _cost(study) if searching and len(study.options.objectives) > 1 else None
    with study.progress.stage(name, n_trials, "trials") as bar:
        callbacks: list[Callback] = [
            StudyDisplay(name, study.manifest.unit, pruner, records, bar, study.show, study.progress.message),
            CheckpointCleaner(study.folder / "trials", records),
        ]
        if searching:
            file, objectives = study.folder / "optuna.db", len(study.options.objectives)
            callbacks.append(OptunaExport(file, study.folder.name, records, objectives, study.progress))
        driver = StudyDriver(
            study.journal,
            ask,
            pruner,
            n_trials,
            mine=lambda trial: (trial.of is None) == searching,
            cost=costs,
            callbacks=callbacks,
            deadline=study.deadline,
        )
        if study.keeper is None:
            trainable = tune.with_parameters(FineTune, data=study.data)
        else:
            trainable = tune.with_parameters(FineTuneOnNode, data=study.data, keeper=study.keeper)
        run_phase(
            driver, trainable, share, study.folder, max_concurrent=at_once, callbacks=study.options.loggers(), name=name
        )
    return driver.finished


def _cost(study: _Study) -> Callable[[Trial], float]:
    """Return the second objective: structures processed in training, or predictions a crystal."""
    if study.space.runs == "prediction":
        return lambda trial: float(study.data.config(trial.changes).tta.views)
    return lambda trial: float(trial.structures)


def _require_a_finished_trial(analysis: Analysis, out: Path) -> None:
    """Raise a UserError where every trial failed."""
    ended = [trial for trial in analysis.searched.values() if trial.state != TrialState.RUNNING]
    if ended and all(trial.state == TrialState.FAIL for trial in ended):
        reasons = "; ".join(f"{failure.reason} ({len(failure.numbers)} times)" for failure in analysis.failures)
        raise UserError(f"all {len(ended)} trials failed: {reasons}; see {out / 'report.html'}")
