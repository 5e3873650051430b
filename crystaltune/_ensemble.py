"""The command that makes an ensemble and a student of a configuration, as a function."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from crystaltune._commands import Config, TrainKeywords, folder_of
from crystaltune._places import resources_of
from crystaltune._rows import (
    Data,
    chosen_settings,
    folds_of,
    names_of,
    reject_unknown_keywords,
    shown,
    source_of,
)
from crystaltune._run import Run
from orchestrator.inputs.source import folds_to_run
from orchestrator.train.options import CombineName, EnsembleOptions, validate_ensemble
from trainables.progress import Progress


def ensemble(
    data: Data,
    *,
    seeds: int | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    combine: CombineName | None = None,
    views: int | None = None,
    distil: bool = False,
    settings: Mapping[str, Any] | None = None,
    config: Config | None = None,
    folds: int | str | Iterable[int] = range(5),
    auxiliary: str | Sequence[str] = (),
    published: str | os.PathLike[str] | None = None,
    deploy: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
    **options: Unpack[TrainKeywords],
) -> Run:
    """Make an ensemble of a configuration, and a student of it, resuming what `out` already holds.

    Args:
        data: as for `train`.
        seeds: number of seeds, of each variant with `vary`; by default the configuration's ensemble.members, or 4.
        vary: settings in which members differ, with their values, such as {"model.start": ["0.3.0", "r2scan"]}.
        combine: "mean", "median", "greedy", "stacked" or "soup"; by default the configuration's, and greedy if that is
            mean and something varies.
        views: views of each crystal that are averaged, as tta.views; by default the configuration's.
        distil: also train a student of out-of-fold teachers; `run.student` is its run.
        settings: keys of RunConfig, nested or dotted, over `config` and the task's preset.
        config: the members' configuration: a RunConfig, its content, the path of a YAML file, or a search's folder.
        folds: of the five: 0, [0, 1] or "0-4".
        auxiliary: tasks to train on jointly first, as NAME or NAME=FILE.
        published: a CSV of published test predictions to score beside the run's.
        deploy: then also train on all rows, for use, as `train` does.
        out: the run's folder; by default runs/ensemble-NAME.
        progress: whether to show it, or an object that shows it.
        target, unit, energy, name, limit, file, id, structure, drop_missing, total_energy, per_cell,
            folds_by, fold_column, test, device, processes, per_gpu, compiled, tf32, ray, address,
            cpus_per_model: as for `train`.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is finished is kept).
    """
    reject_unknown_keywords(ensemble, options, TrainKeywords)
    source = source_of(data, options)
    folder = folder_of(out, "ensemble-", source, "run.json")
    chosen_folds = folds_to_run(source, folds_of(folds))
    asked = EnsembleOptions(seeds, {} if vary is None else vary, combine, views, distil)
    with shown(progress) as bars:
        chosen = chosen_settings(config, settings, source.task, bars)
        validate_ensemble(asked, source.task, chosen)
        from orchestrator.train.ensemble import make_ensemble  # with torch: mistakes are told before
        from orchestrator.train.run import TrainOptions

        make_ensemble(
            source,
            folder,
            asked,
            settings=chosen,
            options=TrainOptions(
                chosen_folds, resources_of(options), None if published is None else Path(published), deploy
            ),
            auxiliary=names_of(auxiliary),
            progress=bars,
        )
    return Run(folder)
