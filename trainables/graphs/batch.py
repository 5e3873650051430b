"""Batches: which crystals go together, and their arrays side by side.

Collating is a fixed number of array operations, whatever the number of crystals.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.graphs.convert import ragged_ranges
from trainables.graphs.store import GraphStore


@dataclass(frozen=True, eq=False)
class Batch:
    """Crystals side by side: A atoms, B bonds, S short bonds, G angles in n crystals.

    Half-bond 2s + e is short bond s seen from its end e; angles are sorted by their left half-bond.
    """

    n_atoms: Tensor  # (n,) int64
    numbers: Tensor  # (A,) int64 atomic numbers
    atom_owner: Tensor  # (A,) int64 crystal of each atom
    frac: Tensor  # (A, 3) float64
    lattice: Tensor  # (n, 3, 3) float64, A
    bond_atoms: Tensor  # (2, B) int64
    bond_owner: Tensor  # (B,) int64
    bond_image: Tensor  # (B, 3) float64
    short_bond: Tensor  # (S,) int64 into B
    angle_halves: Tensor  # (2, G) int64 into 2 S

    def __len__(self) -> int:
        return len(self.n_atoms)

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def collate(store: GraphStore, rows: NDArray[np.int64]) -> Batch:
    """Gather the crystals `rows` of the store into one batch."""
    counts, begin = store.counts[rows], store.offsets[rows]  # (n, 4) each: atoms, bonds, short bonds, angles
    shift = np.cumsum(counts, axis=0) - counts  # (n, 4) first place of each crystal in the batch
    n_atoms, n_bonds, n_short, n_angles = counts.T
    atoms, bonds, shorts, angles = (ragged_ranges(begin[:, k], counts[:, k]) for k in range(4))
    arrays, crystal = store.arrays, np.arange(len(rows))
    bond_atoms = arrays["bond_atoms"][bonds].astype(np.int64) + np.repeat(shift[:, 0], n_bonds)[:, None]
    short_bond = arrays["short_bond"][shorts].astype(np.int64) + np.repeat(shift[:, 1], n_short)
    angle_halves = arrays["angle_halves"][angles].astype(np.int64) + np.repeat(2 * shift[:, 2], n_angles)[:, None]
    return Batch(
        n_atoms=torch.from_numpy(n_atoms.copy()),
        numbers=torch.from_numpy(arrays["numbers"][atoms].astype(np.int64)),
        atom_owner=torch.from_numpy(np.repeat(crystal, n_atoms)),
        frac=torch.from_numpy(arrays["frac"][atoms]),
        lattice=torch.from_numpy(arrays["lattice"][rows]),
        bond_atoms=torch.from_numpy(np.ascontiguousarray(bond_atoms.T)),
        bond_owner=torch.from_numpy(np.repeat(crystal, n_bonds)),
        bond_image=torch.from_numpy(arrays["bond_image"][bonds].astype(np.float64)),
        short_bond=torch.from_numpy(short_bond),
        angle_halves=torch.from_numpy(np.ascontiguousarray(angle_halves.T)),
    )


def training_batches(cost: NDArray[np.float64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Shuffle rows and cut them where the summed cost passes multiples of `batch_size` mean costs.

    The number of batches is ceil(n / batch_size) in every epoch, and none costs more than `batch_size` mean
    crystals plus one. A function of its arguments alone, so a resumed run meets the same batches.

    Returns:
        Places in `cost`, one array a batch, none empty.
    """
    n, n_batches = len(cost), -(-len(cost) // batch_size)
    order, place = np.random.default_rng([seed, epoch]).permutation(n), np.arange(n)
    batch = _passed(cost[order], float(cost.sum()) / n_batches)
    # A crystal dearer than a whole batch skips multiples: go up by one at a time, and by then reach the last batch.
    batch = np.minimum.accumulate(batch - place) + place
    batch = np.minimum(np.maximum(batch, place + n_batches - n), n_batches - 1)
    return _split(order, batch)


def prediction_batches(cost: NDArray[np.float64], cap: float) -> list[NDArray[np.int64]]:
    """Places in `cost` in order of cost, cut so that a batch costs about `cap` at most (or is one crystal)."""
    order = np.argsort(cost, kind="stable")
    return cut_by_cost(order, cost, cap)


def cut_by_cost(order: NDArray[np.int64], cost: NDArray[np.float64], cap: float) -> list[NDArray[np.int64]]:
    """Cut `order` where its summed cost passes multiples of `cap`: no part costs more than `cap` plus one crystal."""
    return _split(order, _passed(cost[order], cap))


def _passed(cost: NDArray[np.float64], cap: float) -> NDArray[np.int64]:
    """How many multiples of `cap` the summed cost has passed before each crystal, (n,)."""
    before = np.cumsum(cost) - cost
    return (before / cap * (1 + 1e-12)).astype(np.int64)


def _split(order: NDArray[np.int64], batch: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [part for part in parts if len(part)]
