"""Folded against full graphs, in energy."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data.tasks import TASKS
from trainables.graphs.batch import Batch, collate
from trainables.graphs.perturb import perturbed, project_displacement, project_strain
from trainables.graphs.store import Check, GraphStore
from trainables.graphs.view import folded_view, full_view
from trainables.model.chgnet import SCRATCH_ARCHITECTURE, Start, build_model

_SAMPLE = 32  # crystals: a second


def fold_check(start: Start) -> Check:
    """Return what open_or_build asks of a new store: the largest energy difference that folding makes on a sample."""

    def check(store: GraphStore) -> float:
        """In eV/atom, of the untouched weights on crystals spread over the store; nan where a prediction is."""
        # Random weights would answer with noise, and the store serves the pretrained ones too.
        pretrained = SCRATCH_ARCHITECTURE if start == "scratch" else start
        model, whole = build_model(pretrained, TASKS["matbench_mp_e_form"]).eval(), np.flatnonzero(~store.failed)
        sample = whole[np.unique(np.linspace(0, len(whole) - 1, min(len(whole), _SAMPLE)).astype(int))]
        pairs = [pair for row in sample[:, None] for pair in _same_crystals(store, row)]
        with torch.inference_mode():
            differences = [float((model(folded) - model(full)).abs()) for folded, full in pairs]
        return float(np.max(differences, initial=0.0))

    return check


def _same_crystals(store: GraphStore, row: NDArray[np.int64]) -> Iterator[tuple[Batch, Batch]]:
    """One crystal's folded and full graphs, clean and, where the store has its symmetry, changed within it."""
    full = full_view(store, row)
    yield collate(store, row), full.batch()
    if not store.has_symmetry:
        return
    folded, generator = folded_view(store, row), torch.Generator().manual_seed(0)
    strain = torch.randn(1, 3, 3, dtype=torch.float64, generator=generator)
    displacement = torch.randn(len(full.frac), 3, dtype=torch.float64, generator=generator)
    # Within the skin: see graphs.perturb.needed_skin.
    strain *= store.cutoffs.skin / (4 * (store.cutoffs.atom + store.cutoffs.skin)) / torch.linalg.matrix_norm(strain)
    displacement *= store.cutoffs.skin / 8 / displacement.norm(dim=1).max()
    symmetry = folded.symmetry
    if symmetry is not None:
        kept = project_strain(symmetry, strain), project_displacement(symmetry, displacement)
        yield (
            perturbed(folded, store.cutoffs, strain=strain, displacement=displacement).batch(),
            perturbed(full, store.cutoffs, strain=kept[0], displacement=kept[1]).batch(),
        )
