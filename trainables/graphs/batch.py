"""Batches: which crystals go together, and their arrays side by side.

Collating is a fixed number of tensor operations, whatever the number of crystals, on the device the store lies on.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    readouts: Tensor  # (n, R) float32 what is known of each crystal beside its graph; R is 0 where nothing is

    def __len__(self) -> int:
        return len(self.n_atoms)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True, eq=False)
class KnownBatch(Batch):
    """Crystals of which a frozen trunk's atom features are known: there are no bonds."""

    trunk: Tensor  # (A, D) after the last convolution


def collate(store: GraphStore, rows: NDArray[np.int64]) -> Batch:
    """Gather the folded graphs of the crystals `rows`: the clean views of these crystals.

    Of a store that knows what a frozen trunk makes of its atoms (training.cached), that instead of the bonds.
    """
    if store.trunk is not None:
        return _with_trunk(store, store.trunk, rows)
    gather = Gather(store, rows)
    atom, bond, edge, short, angle = (gather.rows(kind) for kind in COUNTED[4:])
    receiver, sender, edge_bond = edge.take("fold_edge").unbind(1)  # the sums below are contiguous and int64
    left, right, middle = angle.take("fold_angle").unbind(1)
    to_atom, to_short = edge.shift("fold_atom"), angle.shift("fold_short")
    return Batch(
        n_atoms=gather.counts("atom"),
        numbers=gather.take("numbers", atom.take("fold_atom") + atom.begin("atom")).long(),
        atom_count=atom.take("fold_atom_count").long(),
        atom_owner=atom.owner,
        length=bond.take("fold_length"),
        receiver=receiver + to_atom,
        sender=sender + to_atom,
        bond=edge_bond + edge.shift("fold_bond"),
        edge_count=edge.take("fold_edge_count").long(),
        short=short.take("fold_short") + short.shift("fold_bond"),
        left=left + to_short,
        right=right + to_short,
        middle=middle + angle.shift("fold_atom"),
        angle_count=angle.take("fold_angle_count").long(),
        cosine=angle.take("fold_cosine"),
        readouts=gather.readouts(),
    )


def _with_trunk(store: GraphStore, trunk: Tensor, rows: NDArray[np.int64]) -> Batch:
    gather = Gather(store, rows)
    atom = gather.rows("fold_atom")
    none = torch.empty(0, dtype=torch.int64, device=store.device)
    return KnownBatch(
        n_atoms=gather.counts("atom"),
        numbers=gather.take("numbers", atom.take("fold_atom") + atom.begin("atom")).long(),
        atom_count=atom.take("fold_atom_count").long(),
        atom_owner=atom.owner,
        **dict.fromkeys(("length", "receiver", "sender", "bond", "edge_count", "short", "left", "right"), none),
        **dict.fromkeys(("middle", "angle_count", "cosine"), none),
        readouts=gather.readouts(),
        trunk=trunk.index_select(0, atom.places),
    )


class Gather:
    """The crystals `rows` of a store: where their rows of every kind lie there, and where they begin in the batch."""

    def __init__(self, store: GraphStore, rows: NDArray[np.int64]) -> None:
        counts, begin = store.counts[rows], store.offsets[rows]  # (n, kinds) each, in the order of COUNTED
        shift = np.cumsum(counts, axis=0) - counts
        self._store, self._crystals, self._totals = store, rows, counts.sum(axis=0).tolist()
        # One transfer for all kinds: (4, kinds, n).
        table = torch.from_numpy(np.stack([counts, begin, shift, begin - shift]).swapaxes(1, 2).copy())
        self._counts, self._begin, self._shift, self._places = table.to(store.device, non_blocking=True)

    def counts(self, kind: str) -> Tensor:
        """(n,) rows of each crystal."""
        return self._counts[COUNTED.index(kind)]

    def rows(self, kind: str) -> "Rows":
        """Return the rows of one kind of entries."""
        place = COUNTED.index(kind)
        owner = torch.repeat_interleave(self._counts[place], output_size=self._totals[place])
        return Rows(
            self, owner, torch.arange(len(owner), device=owner.device) + self._places[place].index_select(0, owner)
        )

    def take(self, name: str, places: Tensor) -> Tensor:
        """Rows `places` of the store's array `name`."""
        return self._store.tensor(name).index_select(0, places)

    def readouts(self) -> Tensor:
        """Return what the store knows of each crystal beside its graph, (n, R)."""
        known = self._store.readouts
        if known is None:
            return torch.empty(len(self._crystals), 0, device=self._store.device)
        return known.index_select(0, torch.from_numpy(self._crystals).to(known.device))

    def begin(self, kind: str, owner: Tensor) -> Tensor:
        """Return where the entries of each owner begin."""
        return self._begin[COUNTED.index(kind)].index_select(0, owner)

    def shift(self, kind: str, owner: Tensor) -> Tensor:
        """Return what the indices of each entry are shifted by."""
        return self._shift[COUNTED.index(kind)].index_select(0, owner)


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of one kind: the crystal each belongs to, and its place in the store."""

    gather: Gather
    owner: Tensor  # (rows,)
    places: Tensor  # (rows,)

    def take(self, name: str) -> Tensor:
        """Return the rows of the store's array `name`."""
        return self.gather.take(name, self.places)

    def begin(self, kind: str) -> Tensor:
        """For every row, where its crystal's rows of another kind begin in the store."""
        return self.gather.begin(kind, self.owner)

    def shift(self, kind: str) -> Tensor:
        """For every row, where its crystal's rows of another kind begin in the batch."""
        return self.gather.shift(kind, self.owner)


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
