"""From what the user typed to a checked Dataset."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from orchestrator.inputs.source import Source, auxiliary_sources, check_source, known_task
from trainables.crystals import CrystalTable
from trainables.data.cache import cache_home
from trainables.data.dataset import MOST_IDS, BadRows, Dataset, read_matbench
from trainables.data.findings import Finding, findings, too_few
from trainables.data.folds import fold_of_rows
from trainables.data.grouping import GROUPINGS, crystal_keys, grouped
from trainables.data.locate import matbench_file
from trainables.data.own_table import TableOptions, dataset_of_frame, read_table
from trainables.data.same_crystal import CrystalSet
from trainables.data.tasks import find_task
from trainables.errors import UserError, listed
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model.chgnet import Start, cutoffs_of
from trainables.model.folding import fold_check
from trainables.progress import Progress
from trainables.sample import load_sample

_SHOWN = 5  # ids of a finding, in a message


def load_dataset(source: Source, progress: Progress) -> Dataset:
    """Read and check the rows.

    Raises:
        UserError: unknown task, missing or damaged file, or rows that cannot be used (ids listed).
    """
    check_source(source)
    dataset = _read(source, progress)
    if source.has_test_rows:
        dataset = _with_test(dataset, source, progress)
    dataset, told = grouped(dataset.limit(source.limit), source.folds_by)
    if told:
        progress.message(told)
    if source.folds_by not in (None, *GROUPINGS) or source.fold_column is not None:
        _require_twins_together(dataset)
    if source.is_own_table and not dataset.task.is_matbench:
        _tell_findings(findings(dataset, chosen_folds=source.folds_by is not None), progress)
    return dataset


def _require_twins_together(dataset: Dataset) -> None:
    """Refuse folds of the caller's own that test on crystals which are trained on.

    Raises:
        UserError: equal crystals are in different folds.
    """
    folds: dict[str, set[int]] = defaultdict(set)
    keys = crystal_keys(dataset.structures)
    for key, fold in zip(keys, fold_of_rows(dataset).tolist(), strict=True):
        folds[key].add(fold)
    apart = [row_id for row_id, key in zip(dataset.ids, keys, strict=True) if len(folds[key]) > 1]
    if apart:
        raise UserError(
            f"equal crystals are in different folds, so that test rows are trained on: {listed(apart, MOST_IDS)}; give "
            "them the same fold or group"
        )


def _tell_findings(found: Sequence[Finding], progress: Progress) -> None:
    """Say what the rows say about themselves.

    Raises:
        UserError: rows with which training makes no sense.
    """
    for finding in found:
        ids = f" ({listed(finding.ids, _SHOWN)})" if finding.ids else ""
        text = f"{finding.text}{ids}" + (f": {finding.cure}" if finding.cure else "")
        if finding.level == "error":
            raise UserError(text)
        if finding.level == "warning":
            progress.message(f"warning: {text}")


def look_at(source: Source, progress: Progress) -> tuple[Dataset | None, list[Finding]]:
    """Read rows and say what there is to say about them; no rows where they cannot be used as they are.

    Raises:
        UserError: nothing that can be read.
    """
    check_source(source)
    try:
        dataset = _read(source, progress).limit(source.limit)
    except BadRows as bad:
        cure = "correct or remove these rows"
        return None, [Finding("error", kind, tuple(ids), cure) for kind, ids in bad.kinds.items()]
    return dataset, [*too_few(dataset), *findings(dataset)]


def facts_of(dataset: Dataset) -> dict[str, str]:
    """Return what is in the rows, in words."""
    n_atoms, formulas = dataset.structures.n_atoms, dataset.structures.reduced_formulas
    elements = int(dataset.structures.element_counts.any(axis=0).sum())
    unit = f" {dataset.task.unit}" if dataset.task.unit else ""
    return {
        "rows": f"{len(dataset):,}, of {len(set(formulas)):,} formulas with {elements} elements",
        "atoms": f"{int(n_atoms.min())} to {int(n_atoms.max())} in a cell, {n_atoms.mean():.1f} on average",
        "target": (
            f"'{dataset.task.target}', {dataset.targets.min():.4g} to {dataset.targets.max():.4g}{unit}, "
            f"mean {dataset.targets.mean():.4g}, SD {dataset.targets.std():.4g}"
        ),
    }


def _with_test(dataset: Dataset, source: Source, progress: Progress) -> Dataset:
    """Add the rows to test on, as fold 0; what is trained on is in no fold.

    Raises:
        UserError: rows that are in both.
    """
    reading, target = _reading(source, progress), dataset.task.target
    if source.test_frame is not None:
        test, named = dataset_of_frame(source.test_frame, source.task, target, **reading), "`test`"
    else:
        test, named = read_table(cast(Path, source.test), source.task, target, **reading), str(source.test)
    both = [row_id for row_id in test.ids if row_id in set(dataset.ids)]
    if both:
        raise UserError(f"{named} has ids that the training rows have, too: {listed(both, MOST_IDS)}")
    seen = CrystalSet.of(dataset.structures).holds(CrystalSet.of(test.structures))
    same = [test.ids[row] for row in np.flatnonzero(seen)]
    if same:
        raise UserError(f"{named} has crystals that are trained on, too: {listed(same, MOST_IDS)}")
    formulas = set(dataset.structures.reduced_formulas)
    siblings = sum(formula in formulas for formula in test.structures.reduced_formulas)
    if siblings:
        progress.message(
            f"warning: {siblings:,} of {len(test):,} test rows have a formula that is trained on, too: scores say less "
            "of new compounds"
        )
    return Dataset(
        (*dataset.ids, *test.ids),
        CrystalTable.pack([*dataset.structures, *test.structures]),
        np.concatenate([dataset.targets, test.targets]),
        dataset.task,
        outer=np.repeat(np.array([-1, 0], dtype=np.int8), [len(dataset), len(test)]),
    )


def _read(source: Source, progress: Progress) -> Dataset:
    if source.frame is not None:
        return dataset_of_frame(source.frame, source.task, source.target, **_reading(source, progress))
    if source.file is None:
        task = find_task(source.task)
        if task.synthetic:
            return load_sample(progress)
        return read_matbench(matbench_file(task, progress), task, progress)
    official = known_task(source.task)
    if official is not None:
        return read_matbench(source.file, official, progress)
    return read_table(source.file, source.task, source.target, **_reading(source, progress))


def _reading(source: Source, progress: Progress) -> dict[str, Any]:
    return {
        "unit": source.unit,
        "energy": source.energy or source.total_energy,
        "options": TableOptions(
            id=source.id,
            structure=source.structure,
            drop_missing=source.drop_missing,
            total_energy=source.total_energy,
            per_cell=source.per_cell,
            group=None if source.folds_by in (None, *GROUPINGS) else source.folds_by,
            fold=source.fold_column,
        ),
        "progress": progress,
    }


def graph_store(dataset: Dataset, start: Start, progress: Progress, *, skin: float = 0.0) -> GraphStore:
    """Return the dataset's packed graphs for these weights, from this machine's cache or built into it and checked.

    Args:
        skin: A added to the cutoffs, for views that are strained and displaced (training.augment.skin_of).
    """
    folder, cutoffs = cache_home() / "graphs", replace(cutoffs_of(start), skin=skin)
    return open_or_build(dataset.structures, cutoffs, folder, check=fold_check(start), progress=progress)


def load_auxiliary(texts: Sequence[str], progress: Progress) -> dict[str, Dataset]:
    """Read auxiliary tasks given as NAME or NAME=FILE; by their whole names.

    Raises:
        UserError: as load_dataset, or a name given twice.
    """
    return {name: load_dataset(source, progress) for name, source in auxiliary_sources(texts).items()}


def prepare_data(source: Source, start: str, progress: Progress) -> str:
    """Read, check and convert a task's rows; returns what there is, in one line.

    Raises:
        UserError: as load_dataset, or unknown weights.
    """
    if start not in get_args(Start):
        raise UserError(f"`start={start}`: must be one of {', '.join(get_args(Start))}")
    dataset = load_dataset(source, progress)
    store = graph_store(dataset, cast(Start, start), progress)
    official = f" of {dataset.task.official_rows:,} official ones (PARTIAL)" if dataset.partial else ""
    odd = f"; {int(store.failed.sum())} without a graph, {int((store.n_isolated > 0).sum())} with isolated atoms"
    return (
        f"{dataset.task.name}: {len(dataset):,} rows{official}, {dataset.structures.n_atoms.mean():.1f} atoms, "
        f"{2 * store.counts[:, 1].mean():.0f} bonds, {store.counts[:, 3].mean():.0f} angles per crystal{odd}; "
        f"graphs: {store.n_bytes / 1e6:.0f} MB in {store.folder}"
    )
