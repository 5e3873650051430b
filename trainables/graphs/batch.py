"""Batches: which crystals go together, and their arrays side by side.

Collating is a fixed number of array operations, whatever the number of crystals.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.graphs.convert import ragged_ranges
from trainables.graphs.store import COUNTED, GraphStore


@dataclass(frozen=True, eq=False)
class Batch:
    """Crystals side by side: A atom rows, B bonds, E edges, S short bonds, G angles in n crystals.

    A row stands for `*_count` equal ones (all 1 in a full graph). An edge is a directed bond as its receiver meets it.
    """

    n_atoms: Tensor  # (n,) int64 atoms in the cell
    numbers: Tensor  # (A,) int64 atomic numbers
    atom_count: Tensor  # (A,) int64
    atom_owner: Tensor  # (A,) int64 crystal of each atom row
    length: Tensor  # (B,) float64 A
    receiver: Tensor  # (E,) int64 into A
    sender: Tensor  # (E,) int64 into A
    bond: Tensor  # (E,) int64 into B
    edge_count: Tensor  # (E,) int64
    short: Tensor  # (S,) int64 into B
    left: Tensor  # (G,) int64 into S, the bond that receives
    right: Tensor  # (G,) int64 into S
    middle: Tensor  # (G,) int64 into A, the common atom
    angle_count: Tensor  # (G,) int64
    cosine: Tensor  # (G,) float64

    def __len__(self) -> int:
        return len(self.n_atoms)

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def collate(store: GraphStore, rows: NDArray[np.int64]) -> Batch:
    """Gather the folded graphs of the crystals `rows`: the clean views of these crystals."""
    arrays = store.arrays
    counts, begin = store.counts[rows], store.offsets[rows]  # (n, 9) each, in the order of COUNTED
    shift = np.cumsum(counts, axis=0) - counts  # (n, 9) first place of each crystal in the batch
    atom, bond, edge, short, angle = (_Rows(begin[:, k], counts[:, k], shift[:, k]) for k in range(_FOLD, len(COUNTED)))
    receiver_sender_bond = arrays["fold_edge"][edge.flat].astype(np.int64)  # (E, 3)
    left_right_middle = arrays["fold_angle"][angle.flat].astype(np.int64)  # (G, 3)
    atoms_before = np.repeat(begin[:, 0], atom.counts)
    return Batch(
        n_atoms=torch.from_numpy(counts[:, 0].copy()),
        numbers=_integers(arrays["numbers"][arrays["fold_atom"][atom.flat] + atoms_before]),
        atom_count=_integers(arrays["fold_atom_count"][atom.flat]),
        atom_owner=torch.from_numpy(np.repeat(np.arange(len(rows)), atom.counts)),
        length=torch.from_numpy(arrays["fold_length"][bond.flat]),
        receiver=torch.from_numpy(receiver_sender_bond[:, 0] + edge.of(atom)),
        sender=torch.from_numpy(receiver_sender_bond[:, 1] + edge.of(atom)),
        bond=torch.from_numpy(receiver_sender_bond[:, 2] + edge.of(bond)),
        edge_count=_integers(arrays["fold_edge_count"][edge.flat]),
        short=torch.from_numpy(arrays["fold_short"][short.flat].astype(np.int64) + short.of(bond)),
        left=torch.from_numpy(left_right_middle[:, 0] + angle.of(short)),
        right=torch.from_numpy(left_right_middle[:, 1] + angle.of(short)),
        middle=torch.from_numpy(left_right_middle[:, 2] + angle.of(atom)),
        angle_count=_integers(arrays["fold_angle_count"][angle.flat]),
        cosine=torch.from_numpy(arrays["fold_cosine"][angle.flat]),
    )


_FOLD = COUNTED.index("fold_atom")


class _Rows:
    """Rows of one kind: where they lie in the store, and where each crystal's begin in the batch."""

    def __init__(self, begin: NDArray[np.int64], counts: NDArray[np.int64], shift: NDArray[np.int64]) -> None:
        self.flat, self.counts, self._shift = ragged_ranges(begin, counts), counts, shift

    def of(self, other: "_Rows") -> NDArray[np.int64]:
        """For every row, the first place of its crystal's rows of the other kind."""
        return np.repeat(other._shift, self.counts)


def _integers(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


@dataclass(frozen=True, eq=False)
class View:
    """Full graphs side by side with their geometry's ingredients, to be strained and displaced as tensors.

    A atoms, B bonds, S short bonds, G angles in n crystals; half-bond 2s + e is short bond s seen from its end e.
    """

    n_atoms: Tensor  # (n,) int64
    numbers: Tensor  # (A,) int64
    atom_owner: Tensor  # (A,) int64
    frac: Tensor  # (A, 3) float64
    lattice: Tensor  # (n, 3, 3) float64, A
    bond_atoms: Tensor  # (2, B) int64
    bond_owner: Tensor  # (B,) int64
    bond_image: Tensor  # (B, 3) float64
    short: Tensor  # (S,) int64 into B
    angle_halves: Tensor  # (2, G) int64 into 2 S

    def batch(self) -> Batch:
        """The batch of these positions: every row stands for itself."""
        length, cosine = geometry(self)
        half_atom = self.bond_atoms[:, self.short].T.reshape(-1)  # (2 S,) atom of each half-bond
        ends, n_bonds, n_angles = self.bond_atoms, self.bond_atoms.shape[1], self.angle_halves.shape[1]
        return Batch(
            n_atoms=self.n_atoms,
            numbers=self.numbers,
            atom_count=torch.ones_like(self.numbers),
            atom_owner=self.atom_owner,
            length=length,
            receiver=ends.reshape(-1),
            sender=ends.flip(0).reshape(-1),
            bond=torch.arange(n_bonds, device=ends.device).repeat(2),
            edge_count=ends.new_ones(2 * n_bonds),
            short=self.short,
            left=self.angle_halves[0] >> 1,
            right=self.angle_halves[1] >> 1,
            middle=half_atom[self.angle_halves[0]],
            angle_count=ends.new_ones(n_angles),
            cosine=cosine,
        )


def geometry(view: View) -> tuple[Tensor, Tensor]:
    """Bond lengths (B,) in A and angle cosines (G,), in float64."""
    position = torch.bmm(view.frac[:, None], view.lattice[view.atom_owner])[:, 0]  # (A, 3)
    image = torch.bmm(view.bond_image[:, None], view.lattice[view.bond_owner])[:, 0]  # (B, 3)
    vector = position[view.bond_atoms[0]] - position[view.bond_atoms[1]] - image  # (B, 3)
    length = torch.linalg.vector_norm(vector, dim=1)
    unit = (vector / length[:, None])[view.short]  # (S, 3)
    halves = torch.stack([unit, -unit], dim=1).reshape(-1, 3)  # (2 S, 3)
    return length, (halves[view.angle_halves[0]] * halves[view.angle_halves[1]]).sum(dim=1)


def full_view(store: GraphStore, rows: NDArray[np.int64]) -> View:
    """Gather the full graphs of the crystals `rows`."""
    arrays, crystal = store.arrays, np.arange(len(rows))
    counts, begin = store.counts[rows], store.offsets[rows]
    shift = np.cumsum(counts, axis=0) - counts
    atom, bond, short, angle = (_Rows(begin[:, k], counts[:, k], shift[:, k]) for k in range(4))
    bond_atoms = arrays["bond_atoms"][bond.flat].astype(np.int64) + bond.of(atom)[:, None]
    halves = arrays["angle_halves"][angle.flat].astype(np.int64) + 2 * angle.of(short)[:, None]
    return View(
        n_atoms=torch.from_numpy(atom.counts.copy()),
        numbers=_integers(arrays["numbers"][atom.flat]),
        atom_owner=torch.from_numpy(np.repeat(crystal, atom.counts)),
        frac=torch.from_numpy(arrays["frac"][atom.flat]),
        lattice=torch.from_numpy(arrays["lattice"][rows]),
        bond_atoms=torch.from_numpy(np.ascontiguousarray(bond_atoms.T)),
        bond_owner=torch.from_numpy(np.repeat(crystal, bond.counts)),
        bond_image=torch.from_numpy(arrays["bond_image"][bond.flat].astype(np.float64)),
        short=torch.from_numpy(arrays["short_bond"][short.flat].astype(np.int64) + short.of(bond)),
        angle_halves=torch.from_numpy(np.ascontiguousarray(halves.T)),
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
