"""Folded against full graphs, in energy."""

import numpy as np
import torch

from trainables.data.tasks import TASKS
from trainables.graphs.batch import collate
from trainables.graphs.store import Check, GraphStore
from trainables.graphs.view import full_view
from trainables.model.chgnet import Start, build_model

_SAMPLE = 32  # crystals: a second


def fold_check(start: Start) -> Check:
    """What open_or_build asks of a new store: the largest energy difference that folding makes on a sample."""

    def check(store: GraphStore) -> float:
        """In eV/atom, of the untouched weights on crystals spread over the store."""
        model, whole = build_model(start, TASKS["matbench_mp_e_form"]).eval(), np.flatnonzero(~store.failed)
        sample = whole[np.unique(np.linspace(0, len(whole) - 1, min(len(whole), _SAMPLE)).astype(int))]
        with torch.inference_mode():
            return max(
                (
                    float((model(collate(store, row)) - model(full_view(store, row).batch())).abs())
                    for row in sample[:, None]
                ),
                default=0.0,
            )

    return check
