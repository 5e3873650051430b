"""The commands as functions: each checks what was asked, runs, and returns what it left behind."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from crystaltune._places import MachineOptions, ProcessOptions, machine_of, resources_of
from crystaltune._rows import (
    Data,
    RowOptions,
    chosen_settings,
    folds_of,
    names_of,
    path_of,
    picked,
    reject_unknown_keywords,
    shown,
    source_of,
)
from crystaltune._run import Run
from crystaltune._study import Study
from orchestrator.ablation.ladder import parse_experiments, parse_starts
from orchestrator.evaluation.scores import BaselineScores
from orchestrator.inputs.source import Source, check_folder, default_folder, folds_to_run
from orchestrator.study.options import (
    SamplerName,
    SchedulerName,
    SearchOptions,
    TrialResources,
    budget_seconds,
    require_folder,
    validate_options,
)
from trainables.choices import PresetName
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.progress import Progress

if TYPE_CHECKING:
    from orchestrator.ablation.analysis import Analysis
    from search_spaces.space import Space
    from trainables.data.dataset import Dataset
    from trainables.training.trial import TrialData

Config = RunConfig | Mapping[str, Any] | str | os.PathLike[str]


class TrainKeywords(RowOptions, ProcessOptions, total=False):
    """Keywords of `train` that say how rows are read and where models are trained."""


def train(
    data: Data,
    *,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    folds: int | str | Iterable[int] = range(5),
    auxiliary: str | Sequence[str] = (),
    published: str | os.PathLike[str] | None = None,
    deploy: bool = False,
    time_budget: float | str | None = None,
    preset: PresetName = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
    **options: Unpack[TrainKeywords],
) -> Run:
    """Train and test the folds of a task, resuming what `out` already holds.

    Args:
        data: a Matbench task's name, the path of a table, or a DataFrame with a column `structure`.
        settings: keys of RunConfig, nested or dotted, such as {"optim.lr": 3e-4}, over `config` and the task's preset.
        config: a RunConfig, its content, the path of a YAML file, or a search's folder.
        folds: of the five: 0, [0, 1] or "0-4".
        auxiliary: tasks to train on jointly first, as NAME or NAME=FILE.
        published: a CSV of published test predictions to score beside the run's.
        deploy: then also train on all rows, for use: `predict` and `load` take that model, and the folds say how good
            it is.
        time_budget: seconds, or text such as "2h": train for as many epochs as fit into it.
        preset: what a fold is made of: "single" (one fine-tuned CHGNet), "blend" (a fine-tuned CHGNet and a tabular
            model, weighted on held-out rows) or "auto": a blend for properties of 100 to 10,000 rows.
        out: the run's folder; by default runs/NAME.
        progress: whether to show it, or an object that shows it.
        target: column to predict; by default the only numeric one.
        unit: of the target, for tables and reports.
        energy: the target is an energy in eV/atom, which CHGNet's energy head fits.
        name: of your own table, for its folder and reports; by default the file's, or the target's.
        limit: use this many rows, chosen at random with a fixed seed.
        file: a local copy of a Matbench task's file, whole or partial.
        id, structure: columns of your own table, where they have none of the usual names.
        drop_missing: leave out rows without a target.
        total_energy: the target is the energy of the whole cell in eV: it is divided by the number of atoms.
        per_cell: the target is a property of the whole cell, which grows with it: atoms are summed over.
        folds_by: what keeps rows in one fold: "formula", "chemical-system", "composition", "random" or a column; by
            default the formula or, where there are too few formulas, every crystal by itself.
        fold_column: column with the test fold of each row, 0 to 4; empty: never tested.
        test: a file or a DataFrame with the rows to test on; all others are trained on.
        device: "auto", "cpu" or "cuda".
        processes: models trained at the same time; by default one per core, or one per GPU.
        per_gpu: models that share a GPU.
        compiled: torch.compile: "auto" (for long runs), "on" or "off".
        tf32: TF32 matrix products on a GPU, where they are exact enough on a sample.
        ray: train on Ray: on the cluster that RAY_ADDRESS names, else on a Ray started here.
        address: a Ray cluster to train on, as HOST:PORT, or "auto" for the one that this machine belongs to.
        cpus_per_model: cores for each model on Ray.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is finished is kept).
    """
    reject_unknown_keywords(train, options, TrainKeywords)
    source = source_of(data, options)
    folder = folder_of(out, "", source, "run.json")
    chosen_folds = folds_to_run(source, folds_of(folds))
    with shown(progress) as bars:
        chosen = chosen_settings(config, settings, source.task, bars)
        from orchestrator.train.run import TrainOptions  # with torch: mistakes are told before
        from orchestrator.train.run import train as run_training

        run_training(
            source,
            folder,
            settings=chosen,
            options=TrainOptions(
                chosen_folds,
                resources_of(options),
                None if published is None else Path(published),
                deploy,
                None if time_budget is None else _budget(time_budget),
                preset,
            ),
            auxiliary=names_of(auxiliary),
            progress=bars,
        )
    return Run(folder)


class SearchKeywords(RowOptions, MachineOptions, total=False):
    """Keywords of `search` beside rows and machine.

    Attributes:
        fold: outer fold whose training part is searched on.
        seed: random seed for the sampler and all trials.
        sampler: Optuna's: "tpe", "gp" or "random".
        scheduler: early stopping: "asha", "hyperband", "median" or "none".
        grace: minimum number of steps before a trial can be stopped.
        factor: reduction factor: the best 1/factor of the trials continue at each rung.
        validations_per_epoch: steps an epoch.
        objectives: what is minimised: "mae" or "mae,cost".
        probes: cheap trials on a frozen trunk that are run first; the search starts from the best of them.
        top: number of the best trials that are retrained with new seeds, and the baseline with them.
        check_seeds: new seeds for each of them.
        time_budget: seconds, or text such as "2h", after which this session stops; continue with resume=True.
        address: a Ray cluster to join, as HOST:PORT, or "auto"; by default Ray is started on this machine.
        cpus, gpus: for each trial.
        max_concurrent: trials at the same time.
    """

    fold: int
    seed: int
    sampler: SamplerName
    scheduler: SchedulerName
    grace: int
    factor: int
    validations_per_epoch: int
    objectives: str | Sequence[str]
    probes: int
    top: int
    check_seeds: int
    time_budget: float | str
    address: str
    cpus: float
    gpus: float
    max_concurrent: int


def search(
    data: Data,
    *,
    space: str | os.PathLike[str],
    trials: int = 32,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    auxiliary: str | Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Progress = True,
    **options: Unpack[SearchKeywords],
) -> Study:
    """Search the hyperparameters of a task with Ray Tune and Optuna, confirm the best, and write the report.

    Args:
        data: as for `train`.
        space: a search space's name, or a YAML or Python file with one.
        trials: number of trials, not counting the confirmation runs.
        resume: continue the study in `out`.
        fold: outer fold whose training rows are searched on.
        seed: random seed for the sampler and all trials.
        sampler: Optuna's: "tpe", "gp" or "random".
        scheduler: early stopping: "asha", "hyperband", "median" or "none".
        grace: minimum number of steps before a trial can be stopped.
        factor: reduction factor: the best 1/factor of the trials continue at each rung.
        validations_per_epoch: steps per epoch.
        objectives: what is minimised: "mae" or "mae,cost".
        probes: cheap trials on a frozen trunk that are run first; the search starts from the best of them.
        top: number of the best trials that are retrained with new seeds, and the baseline with them.
        check_seeds: new seeds for each of them.
        time_budget: seconds, or text such as "2h", after which this session stops; continue with resume=True.
        address: a Ray cluster to join, as HOST:PORT, or "auto"; by default Ray is started on this machine.
        cpus, gpus: for each trial.
        max_concurrent: trials at the same time.
        target, unit, energy, name, limit, file, id, structure, drop_missing, total_energy, per_cell,
            folds_by, fold_column, test, device, compiled, tf32: as for `train`.

    Raises:
        UserError: a mistake in what was asked, or a study whose trials all failed (what is finished is kept).
    """
    reject_unknown_keywords(search, options, SearchKeywords)
    source = source_of(data, options)
    folder = folder_of(out, "search-", source, "study.json", suffix=f"-{path_of(space, 'space').stem}")
    names = ("fold", "seed", "sampler", "scheduler", "grace", "factor", "validations_per_epoch")
    asked = SearchOptions(
        str(space),
        trials=trials,
        budget=_budget(options.get("time_budget", math.inf)),
        resume=resume,
        place=TrialResources(**picked(options, "address", "cpus", "gpus", "max_concurrent")),
        resources=machine_of(options),
        objectives=names_of(options.get("objectives", "mae")),
        **picked(options, *names, "probes", "top", "check_seeds"),
    )
    validate_options(asked)
    require_folder(folder, resume=resume)
    with shown(progress) as bars:
        chosen = chosen_settings(config, settings, source.task, bars)
        from orchestrator.study.run import search as run_search

        run_search(
            source,
            folder,
            asked,
            settings=chosen,
            auxiliary=names_of(auxiliary),
            progress=bars,
            show=getattr(bars, "above", None),
        )
    return Study(folder)


class AblateKeywords(RowOptions, ProcessOptions, total=False):
    """Keywords of `ablate` that say how rows are read and where models are trained."""


def ablate(
    data: Data,
    experiments: str | Sequence[str] | None = None,
    *,
    folds: int | str | Iterable[int] = range(5),
    seeds: int = 3,
    starts: str | Sequence[str] = (),
    equal_steps: bool = False,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    auxiliary: str | Sequence[str] = (),
    published: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
    **options: Unpack[AblateKeywords],
) -> "Analysis":
    """Run a ladder of experiments, resuming what `out` holds, and say what each lever did.

    Args:
        data: as for `train`.
        experiments: such as ["E0", "E1"]; their parents and controls come along. By default the whole ladder.
        seeds: seeds of every experiment.
        starts: weights to start from; further ones give a twin of every experiment.
        equal_steps: take the steps of joint training from the target's own epochs.
        target, unit, energy, name, limit, file, id, structure, drop_missing, total_energy, per_cell,
            folds_by, fold_column, test, device, processes, per_gpu, compiled, tf32, ray, address,
            cpus_per_model: as for `train`.

    Returns:
        The analysis: rows, and what follows from them in sentences; ablation.html in `out` shows it.

    Raises:
        UserError: a mistake in what was asked, or no experiment that finished (what is finished is kept).
    """
    reject_unknown_keywords(ablate, options, AblateKeywords)
    source = source_of(data, options)
    folder = folder_of(out, "ablation-", source, "ablation.json")
    names = parse_experiments(
        None if experiments is None else ",".join(names_of(experiments)), with_auxiliary=bool(auxiliary)
    )
    if not isinstance(seeds, int) or seeds < 1:
        raise UserError(f"`seeds={seeds}`: must be a whole number of at least 1")
    chosen_folds, chosen_starts = folds_to_run(source, folds_of(folds)), parse_starts(names_of(starts))
    resources = resources_of(options)
    with shown(progress) as bars:
        chosen = chosen_settings(config, settings, source.task, bars)
        from orchestrator.ablation.run import AblationOptions
        from orchestrator.ablation.run import ablate as run_ablation

        predicted = None if published is None else Path(published)
        asked = AblationOptions(names, chosen_folds, seeds, chosen_starts, equal_steps, predicted, resources)
        analysis = run_ablation(source, folder, asked, settings=chosen, auxiliary=names_of(auxiliary), progress=bars)
    assert analysis is not None  # only a plan has none
    return analysis


def baseline(
    data: Data,
    *,
    folds: int | str | Iterable[int] = range(5),
    published: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
    **options: Unpack[RowOptions],
) -> BaselineScores:
    """Score the mean, the composition alone and the untouched CHGNet on the folds of a task.

    Args:
        data: as for `train`.
    """
    from orchestrator.train.run import baseline_run

    reject_unknown_keywords(baseline, options, RowOptions)
    source = source_of(data, options)
    chosen = folds_to_run(source, folds_of(folds))
    with shown(progress) as bars:
        return baseline_run(source, chosen, None if published is None else Path(published), bars)


def load_dataset(data: Data, *, progress: bool | Progress = True, **options: Unpack[RowOptions]) -> "Dataset":
    """Read and check the rows of a task or of a table.

    Args:
        data: as for `train`.

    Raises:
        UserError: rows that cannot be used (ids listed).
    """
    from orchestrator.inputs.datasets import load_dataset as load

    reject_unknown_keywords(load_dataset, options, RowOptions)
    source = source_of(data, options)
    with shown(progress) as bars:
        return load(source, bars)


def prepare_trials(
    data: Data,
    space: "str | Space",
    out: str | os.PathLike[str],
    *,
    fold: int = 0,
    settings: Mapping[str, Any] | None = None,
    validations_per_epoch: int = 1,
    progress: bool | Progress = True,
    **options: Unpack[RowOptions],
) -> "TrialData":
    """Make what trials of a space share, for a search of one's own with Ray Tune and FineTune.

    Args:
        data: as for `train`.
        out: folder for teachers and models that trials share.
    """
    from orchestrator.study.trial_data import prepare_trials as prepare

    reject_unknown_keywords(prepare_trials, options, RowOptions)
    source = source_of(data, options)
    with shown(progress) as bars:
        return prepare(
            source,
            space,
            Path(out),
            fold=fold,
            settings=settings,
            validations_per_epoch=validations_per_epoch,
            progress=bars,
        )


def folder_of(out: str | os.PathLike[str] | None, prefix: str, source: Source, marker: str, suffix: str = "") -> Path:
    """Return the folder of a command's results, after checking that they may go there.

    Args:
        marker: as check_folder.

    Raises:
        UserError: it holds something else.
    """
    default = default_folder(prefix, source.task)
    folder = default.with_name(default.name + suffix) if out is None else path_of(out, "out")
    check_folder(folder, marker=marker)
    return folder


def _budget(given: float | str) -> float:
    return budget_seconds(given) if isinstance(given, str) else given
