"""Test-time augmentation: several views of each crystal, and one number of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.graphs.batch import cut_by_cost, prediction_batches
from trainables.graphs.store import GraphStore
from trainables.levers import TtaConfig
from trainables.progress import Progress, silent
from trainables.tabular.model import TabularModel
from trainables.training.augment import Perturbation, draw, gathered, moved, view_cost
from trainables.training.frozen import FrozenEnergies
from trainables.training.memory import PREDICTION_COST, BatchBudget
from trainables.training.parallel import parts_mapper
from trainables.training.predict import Model, predict, with_readouts


def _trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean without the lowest and the highest quarter: (views, n) -> (n,)."""
    from scipy.stats import trim_mean  # half a second to import, and most runs predict one view

    return np.asarray(trim_mean(values, 0.25, axis=0))


# Each takes (views, n) and returns (n,).
AGGREGATES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda values: values.mean(axis=0),
    "median": lambda values: np.median(values, axis=0),
    "trimmed": _trimmed_mean,
}


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of n crystals in the task's unit; NaN where there is no graph.

    Attributes:
        std: (n,) standard deviation over the views; 0 for one view.
    """

    value: NDArray[np.float64]
    std: NDArray[np.float64]


def predict_views(
    model: Model,
    config: TtaConfig,
    store: GraphStore,
    skinned: GraphStore | None,
    rows: NDArray[np.int64],
    *,
    frozen: FrozenEnergies | None = None,
    progress: Progress = silent,
) -> Predicted:
    """Predict `config.views` views of the crystals `rows` and aggregate them; nothing is converted.

    One view is exactly the plain prediction, and so is every view of a model of tables. What is drawn for a crystal
    depends on the crystal and the view alone, not on the others that are predicted with it.

    Args:
        skinned: the same crystals with a skin (augment.skin_for); not needed for one view.
        frozen: for config.corrected; its clean energies are computed here.

    Raises:
        ValueError: no skinned store, or no frozen model, where it is wanted.
    """
    tabular = isinstance(model, TabularModel)  # strains and displacements are for the models that are trained on them
    plain = predict(model, store, rows, progress=progress) if config.identity or tabular else None
    if (config.views == 1 or tabular) and plain is not None:
        return Predicted(plain, np.where(np.isnan(plain), np.nan, 0.0))
    if skinned is None:
        raise ValueError(
            "several views require the crystals with a skin: skinned=, built with augment.skin_for(config)"
        )
    # Whatever the view, the read-outs are those of the clean crystal.
    readouts = with_readouts(model.readouts_of, store, next(model.parameters()).device, progress).readouts
    skinned = skinned if readouts is None else skinned.with_readouts(readouts)
    if config.corrected and frozen is None:
        raise ValueError("corrected views require the frozen pretrained CHGNet: frozen=")
    if config.corrected and frozen is not None:
        frozen.know(store, rows)
    views = _moved_views(model, config, skinned, rows, frozen if config.corrected else None, progress)
    if plain is not None:
        # A crystal may have a graph but none with a skin (too dense): then every view is the plain one.
        views = np.concatenate([plain[None], np.where(np.isnan(views), plain, views)])
    return Predicted(AGGREGATES[config.aggregate](views), views.std(axis=0))


def _moved_views(
    model: Model,
    config: TtaConfig,
    store: GraphStore,
    rows: NDArray[np.int64],
    frozen: FrozenEnergies | None,
    progress: Progress,
) -> NDArray[np.float64]:
    """(perturbed views, n); NaN where the store holds no graph."""
    n_views = config.views - int(config.identity)
    device = next(model.parameters()).device
    store = store.near(device)
    trim = replace(store.cutoffs, skin=0.0)
    usable = np.flatnonzero(~store.failed[rows])
    cost, cap = view_cost(config, store)[rows], BatchBudget(PREDICTION_COST[device.type], progress)
    batches = [usable[places] for places in prediction_batches(cost[usable], cap.cost)]
    model.eval()

    def at_once(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """(perturbed views, chosen): all views share what was gathered."""
        here, found = rows[chosen], []
        n_atoms = store.counts[here, 0]
        seeds = [_own_seed(store, int(row)) for row in here]
        with torch.inference_mode():  # a thread's own state
            gather = gathered(config, store, here)
            for number in range(n_views):
                draws = [_own_draw(config, n, seed, number) for n, seed in zip(n_atoms, seeds, strict=True)]
                change = Perturbation.join(draws)
                batch = moved(config, store, here, gather, change).batch(trim=trim).to(device)
                value = model(batch)
                value = value if frozen is None else value - frozen.difference(batch, here)
                found.append(value.double().cpu().numpy())
        return np.stack(found)

    def one_batch(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        return cap.fits(
            lambda most: np.concatenate([at_once(part) for part in cut_by_cost(chosen, cost, most)], axis=1)
        )

    values = np.full((n_views, len(rows)), np.nan)
    with parts_mapper(device) as over, progress.stage("predict views", len(usable), "crystals") as bar:
        for chosen, found in zip(batches, over(one_batch, batches), strict=True):
            values[:, chosen] = found
            bar.advance(len(chosen))
    return values


def _own_draw(config: TtaConfig, n_atoms: int, seed: int, number: int) -> Perturbation:
    """Return a crystal's own draw for the view of that number."""
    return draw(config, np.array([n_atoms]), np.random.default_rng([seed, number]))


def _own_seed(store: GraphStore, row: int) -> int:
    """Return a crystal's own seed, from its lattice and atoms."""
    atoms = slice(store.offsets[row, 0], store.offsets[row + 1, 0])
    sha = hashlib.sha256(store.arrays["lattice"][row].tobytes())
    for name in ("numbers", "frac"):
        sha.update(store.arrays[name][atoms].tobytes())
    return int.from_bytes(sha.digest()[:8], "little")
