"""Batches that know the cells of their crystals: how large they are, and how much of each is vacuum."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.crystals import Crystal
from trainables.data.bad_structures import vacuum_widths
from trainables.graphs.batch import Batch, collate
from trainables.graphs.store import GraphStore


@dataclass(frozen=True, eq=False)
class ShapedBatch(Batch):
    """A batch with what its graphs do not say.

    Attributes:
        shape: volume of the cell (A^3), widest vacuum along a lattice direction (A), and the cell's height there (A).
        frequencies: as vibrations.gamma_frequencies; no columns where they are not wanted.
    """

    shape: Tensor  # (n, 3) float64
    frequencies: Tensor  # (n, 1 or 0) float64


def shaped(
    batch: Batch, store: GraphStore, rows: NDArray[np.int64], frequencies: NDArray[np.float64] | None = None
) -> ShapedBatch:
    """Return a batch of the crystals `rows` with their shapes and, where they are known, frequencies (n, 1)."""
    own, device = {field.name: getattr(batch, field.name) for field in fields(Batch)}, batch.n_atoms.device
    found = np.array([_shape(store, int(row)) for row in rows]).reshape(-1, 3)
    known = np.empty((len(rows), 0)) if frequencies is None else frequencies
    return ShapedBatch(**own, shape=torch.from_numpy(found).to(device), frequencies=torch.from_numpy(known).to(device))


def shaped_batch(store: GraphStore, rows: NDArray[np.int64]) -> ShapedBatch:
    """Gather the crystals `rows` with their shapes."""
    return shaped(collate(store, rows), store, rows)


def _shape(store: GraphStore, row: int) -> tuple[float, float, float]:
    atoms = slice(int(store.offsets[row, 0]), int(store.offsets[row, 0] + store.counts[row, 0]))
    lattice = np.asarray(store.arrays["lattice"][row], dtype=np.float64)
    crystal = Crystal(lattice, store.arrays["numbers"][atoms], np.asarray(store.arrays["frac"][atoms], np.float64))
    widths, volume = vacuum_widths(crystal), abs(float(np.linalg.det(lattice)))
    place = int(np.argmax(widths))
    across = np.linalg.norm(np.cross(lattice[(place + 1) % 3], lattice[(place + 2) % 3]))
    return volume, float(widths[place]), volume / float(across)
