"""Training on a frozen trunk: its atom features are computed once, and every step is the head's alone."""

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.config import RunConfig
from trainables.graphs.batch import Gather, collate, prediction_batches
from trainables.graphs.store import GraphStore
from trainables.levers import Freezable
from trainables.model.chgnet import CrystalModel
from trainables.model.engine import trunk_features
from trainables.progress import Progress, silent
from trainables.training.memory import PREDICTION_COST

TRUNK: tuple[Freezable, ...] = ("embedding", "basis", "block_1", "block_2", "block_3", "block_4")


def trunk_is_known(config: RunConfig) -> bool:
    """Return whether no step changes what the trunk makes of a crystal: it is frozen, and nothing is perturbed."""
    return set(TRUNK) <= set(config.model.freeze) and not config.augment.active


def with_known_trunk(
    model: CrystalModel, store: GraphStore, rows: NDArray[np.int64], progress: Progress = silent
) -> GraphStore:
    """Return the store with the model's trunk features of the crystals `rows`; every other crystal's are zeros.

    They lie where the store does: 4 x atom_fea_dim bytes a folded atom.
    """
    device = next(model.parameters()).device
    n_atoms = len(store.tensor("fold_atom"))
    trunk = torch.zeros(n_atoms, model.atom_fea_dim, device=store.device)
    model.eval()
    with torch.no_grad(), progress.stage("frozen trunk", len(rows), "crystals") as bar:
        for places in prediction_batches(store.cost[rows], PREDICTION_COST[device.type]):
            here = rows[places]
            found = trunk_features(model, collate(store, here).to(device)).to(store.device)
            trunk[Gather(store, here).rows("fold_atom").places] = found
            bar.advance(len(here))
    return store.with_trunk(trunk, device)
