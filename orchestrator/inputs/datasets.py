"""From what the user typed to a checked Dataset."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from orchestrator.inputs.source import Source, auxiliary_sources, check_source, known_task
from trainables.data.cache import cache_home
from trainables.data.dataset import Columns, Dataset, dataset_of_frame, read_matbench, read_table
from trainables.data.locate import matbench_file
from trainables.data.tasks import find_task
from trainables.errors import UserError
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model.chgnet import Start, cutoffs_of
from trainables.model.folding import fold_check
from trainables.progress import Progress
from trainables.sample import load_sample


def load_dataset(source: Source, progress: Progress) -> Dataset:
    """Read and check the rows.

    Raises:
        UserError: unknown task, missing or damaged file, or rows that cannot be used (ids listed).
    """
    check_source(source)
    dataset = _read(source, progress)
    return dataset.limit(source.limit)


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
        "energy": source.energy,
        "columns": Columns(source.id, source.structure),
        "drop_missing": source.drop_missing,
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
