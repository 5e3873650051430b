"""Predictions of a trained model, in the order asked for."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import RunConfig
from trainables.data.tasks import Task, custom_task
from trainables.graphs.batch import collate, cut_by_cost, prediction_batches
from trainables.graphs.store import GraphStore
from trainables.levers import ModelConfig
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.model.readout_names import readout_names
from trainables.progress import Progress, silent
from trainables.tabular.known import crystal_table
from trainables.tabular.model import TabularModel
from trainables.tabular.shapes import shaped
from trainables.training.checkpoint import Checkpoint, read_checkpoint
from trainables.training.memory import PREDICTION_COST, BatchBudget
from trainables.training.parallel import parts_mapper

Model = CrystalModel | TabularModel
_ANY_PROPERTY = custom_task("readouts", "", "", "property")  # what is read does not depend on the task


def predict(
    model: Model,
    store: GraphStore,
    rows: NDArray[np.int64],
    *,
    progress: Progress = silent,
    output: str = "forward",
    cap: BatchBudget | None = None,
) -> NDArray[np.float64]:
    """Predict the crystals `rows` of the store, in that order.

    Args:
        output: the model's method to call; "graph_energy" gives energies without the reference, "pooled" (n, D)
            mean atom features.
        cap: how much at once, where a caller keeps what it learnt of the memory.

    Returns:
        (len(rows),) in the task's unit; NaN where the store holds no graph.
    """
    if isinstance(model, TabularModel) and output in ("forward", "table"):
        table = crystal_table(model, store, partial(_in_batches, model, progress=progress, output="table", cap=cap))
        found = table[rows]
        return found.astype(np.float64) if output == "table" else model.of_table(found, store.counts[rows, 0])
    if output == "forward":
        store = with_readouts(model.readouts_of, store, next(model.parameters()).device, progress)
    return _in_batches(model, store, rows, progress=progress, output=output, cap=cap)


def with_readouts(
    config: ModelConfig | None, store: GraphStore, device: torch.device, progress: Progress = silent
) -> GraphStore:
    """Return the store with the read-outs of all its crystals by an untrained CHGNet, which a property head reads.

    Args:
        config: of that CHGNet; with None, or where they are known, it is the store as it is.
    """
    if config is None or store.readouts is not None:
        return store
    model = TabularModel(ModelConfig(start=config.start, phonons=config.phonons), _ANY_PROPERTY).to(device)
    table = crystal_table(model, store, partial(_in_batches, model, progress=progress, output="table", cap=None))
    names, wanted = model.features.names, readout_names(phonons=config.phonons)
    columns = np.array([names.index(name) for name in wanted])
    return store.with_readouts(torch.from_numpy(np.ascontiguousarray(table[:, columns])))


def _in_batches(
    model: Model,
    store: GraphStore,
    rows: NDArray[np.int64],
    *,
    progress: Progress,
    output: str,
    cap: BatchBudget | None,
) -> NDArray[np.float64]:
    device = next(model.parameters()).device
    store = store.near(device)
    usable = np.flatnonzero(~store.failed[rows])
    cap = cap or BatchBudget(PREDICTION_COST[device.type], progress)
    batches = [usable[places] for places in prediction_batches(store.cost[rows[usable]], cap.cost)]
    model.eval()
    frequencies = model.frequencies(store, rows, progress) if isinstance(model, TabularModel) else None

    def at_once(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        with torch.inference_mode():  # a thread's own state
            batch = collate(store, rows[chosen])
            if isinstance(model, TabularModel):
                batch = shaped(batch, store, rows[chosen], None if frequencies is None else frequencies[chosen])
            found: Tensor = getattr(model, output)(batch.to(device))
            return found.double().cpu().numpy()

    def one_batch(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the whole batch, in two where the memory has turned out too small for it."""
        return cap.fits(
            lambda cost: np.concatenate([at_once(part) for part in cut_by_cost(chosen, store.cost[rows], cost)])
        )

    values = np.full(len(rows), np.nan)
    with parts_mapper(device) as over, progress.stage("predict", len(usable), "crystals") as bar:
        for chosen, found in zip(batches, over(one_batch, batches), strict=True):
            if found.ndim > values.ndim:
                values = np.full((len(rows), *found.shape[1:]), np.nan)
            values[chosen] = found
            bar.advance(len(chosen))
    return values


def with_graph(store: GraphStore, rows: NDArray[np.int64], config: RunConfig) -> NDArray[np.bool_]:
    """Return True where CHGNet is used; the other rows get the composition model (the isolated-atoms policy)."""
    usable = ~store.failed[rows]
    if config.data.isolated_atoms == "fallback":
        usable &= store.n_isolated[rows] == 0
    return usable


def save_model(model: Model, config: RunConfig, task: Task, about: dict[str, Any]) -> Checkpoint:
    """Return a checkpoint that load_model can read without anything else."""
    described = {"config": config.model_dump(mode="json"), "task": vars(task), **about}
    return Checkpoint(model.without_training_parts(), described)


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Model, RunConfig, Task]:
    """Return a trained model from its checkpoint (a path without suffix).

    Raises:
        DamagedCheckpoint: a file is missing, cut off or changed.
    """
    checkpoint = read_checkpoint(path)
    config = RunConfig.model_validate(checkpoint.about["config"])
    task = Task(**checkpoint.about["task"])
    model = (
        TabularModel(config.model, task) if config.model.family == "tabular" else configured_model(config.model, task)
    )
    model.load_state_dict(checkpoint.tensors)
    return model.to(device), config, task
