"""Views: batches whose geometry is computed from positions, so that crystals can be strained and displaced.

A full view moves freely. A folded view moves by what keeps its symmetry (graphs.symmetry) and computes the distances
and angles of representatives only. All views of one gather share its index tensors.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.graphs.batch import Batch, Gather, Rows, collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore


@dataclass(frozen=True, eq=False)
class Symmetry:
    """What keeps each crystal's symmetry: A atoms in n crystals."""

    strain: Tensor  # (n, 6, 6) float64 projector on the point group's invariant tensors, in Mandel's notation
    site: Tensor  # (A,) int64 into A, the atom of the orbit whose displacement decides this one's
    motion: Tensor  # (A, 3, 3) float64 from a displacement of that atom to this one's


@dataclass(frozen=True, eq=False)
class View:
    """Positions and what is measured on them: A atoms and V vectors between them, for B bonds and G angles.

    Half-vector 2v + e is vector v seen from its end e.
    """

    rows: Batch  # the batch of the positions as stored; its indices are those of every view
    atom_owner: Tensor  # (A,) int64, of all atoms, folded or not
    frac: Tensor  # (A, 3) float64
    lattice: Tensor  # (n, 3, 3) float64, A
    ends: Tensor  # (2, V) int64 into A
    image: Tensor  # (V, 3) float64, cell of the second end
    owner: Tensor  # (V,) int64 crystal of each vector
    bond: Tensor  # (B,) int64 into V
    legs: Tensor  # (2, G) int64 into 2 V
    symmetry: Symmetry | None = None  # of a folded view
    moved: bool = False  # away from the positions the bonds were found for

    def batch(self, trim: Cutoffs | None = None) -> Batch:
        """Return the batch of these positions.

        Args:
            trim: leave out the bonds and angles beyond these cutoffs (without their skin), which change nothing.
        """
        length, cosine = self._geometry()
        batch = replace(self.rows, length=length, cosine=cosine)
        return batch if trim is None else trimmed(batch, trim)

    def _geometry(self) -> tuple[Tensor, Tensor]:
        """Bond lengths (B,) in A and angle cosines (G,), in float64."""
        position = torch.bmm(self.frac[:, None], self.lattice[self.atom_owner])[:, 0]  # (A, 3)
        image = torch.bmm(self.image[:, None], self.lattice[self.owner])[:, 0]  # (V, 3)
        vector = position[self.ends[0]] - position[self.ends[1]] - image  # (V, 3)
        length = torch.linalg.vector_norm(vector, dim=1)
        unit = vector / length[:, None]
        sign = 1 - 2 * ((self.legs[0] ^ self.legs[1]) & 1)  # -1 where the legs leave from different ends
        return length[self.bond], (unit[self.legs[0] >> 1] * unit[self.legs[1] >> 1]).sum(dim=1) * sign


def full_view(store: GraphStore, rows: NDArray[np.int64]) -> View:
    """Gather the full graphs of the crystals `rows`: every row stands for itself."""
    gather = Gather(store, rows)
    atom, bond, short, angle = (gather.rows(kind) for kind in ("atom", "bond", "short", "angle"))
    ends = (bond.take("bond_atoms") + bond.shift("atom")[:, None]).T.contiguous()  # (2, B)
    halves = (angle.take("angle_halves") + 2 * angle.shift("short")[:, None]).T.contiguous()  # (2, G) into 2 S
    short_bond = short.take("short_bond") + short.shift("bond")
    half_atom = ends[:, short_bond].T.reshape(-1)  # (2 S,) atom of each half-bond
    every, numbers = torch.arange(len(bond.owner), device=store.device), atom.take("numbers").long()
    topology = Batch(
        n_atoms=gather.counts("atom"),
        numbers=numbers,
        atom_count=torch.ones_like(numbers),
        atom_owner=atom.owner,
        length=ends.new_empty(0),
        receiver=ends.reshape(-1),
        sender=ends.flip(0).reshape(-1),
        bond=every.repeat(2),
        edge_count=ends.new_ones(2 * len(every)),
        short=short_bond,
        left=halves[0] >> 1,
        right=halves[1] >> 1,
        middle=half_atom[halves[0]],
        angle_count=halves.new_ones(halves.shape[1]),
        cosine=ends.new_empty(0),
        readouts=gather.readouts(),
    )
    return View(
        rows=topology,
        atom_owner=atom.owner,
        frac=atom.take("frac"),
        lattice=gather.take("lattice", torch.from_numpy(rows).to(store.device)),
        ends=ends,
        image=bond.take("bond_image").double(),
        owner=bond.owner,
        bond=every,
        legs=2 * short_bond[halves >> 1] + (halves & 1),
    )


def folded_view(store: GraphStore, rows: NDArray[np.int64]) -> View:
    """Gather the folded graphs of the crystals `rows`, to be moved by what keeps their symmetry.

    Raises:
        ValueError: a store without a skin, whose folds hold for the clean crystals only.
    """
    if not store.has_symmetry:
        raise ValueError("folded graphs can be moved in a store with a skin only: build it with Cutoffs(skin=...)")
    gather, places = Gather(store, rows), torch.from_numpy(rows).to(store.device)
    atom, bond, angle = (gather.rows(kind) for kind in ("atom", "fold_bond", "fold_angle"))
    halves = angle.take("fold_halves").long()  # (G, 2) half-bonds of the crystal's short bonds
    short_bond = gather.take("short_bond", ((halves >> 1) + angle.begin("short")[:, None]).reshape(-1)).long()
    owner = torch.cat([bond.owner, angle.owner.repeat_interleave(2)])  # the bonds, then both legs of every angle
    within = torch.cat([bond.take("fold_bond").long(), short_bond])  # place within the crystal's bonds
    stored = within + gather.begin("bond", owner)
    ends = gather.take("bond_atoms", stored).long() + gather.shift("atom", owner)[:, None]
    n_bonds = len(bond.owner)
    legs = 2 * torch.arange(n_bonds, len(owner), device=store.device) + (halves & 1).reshape(-1)
    return View(
        rows=collate(store, rows),
        atom_owner=atom.owner,
        frac=atom.take("frac"),
        lattice=gather.take("lattice", places),
        ends=ends.T.contiguous(),
        image=gather.take("bond_image", stored).double(),
        owner=owner,
        bond=torch.arange(n_bonds, device=store.device),
        legs=legs.reshape(-1, 2).T.contiguous(),
        symmetry=_symmetry(gather, atom, places),
    )


def symmetry_of(store: GraphStore, rows: NDArray[np.int64]) -> Symmetry:
    """Return what keeps the symmetry of the crystals `rows`.

    Raises:
        ValueError: a store without a skin, which holds none.
    """
    if not store.has_symmetry:
        raise ValueError("symmetry is in a store with a skin only: build it with Cutoffs(skin=...)")
    gather = Gather(store, rows)
    return _symmetry(gather, gather.rows("atom"), torch.from_numpy(rows).to(store.device))


def _symmetry(gather: Gather, atom: Rows, places: Tensor) -> Symmetry:
    return Symmetry(
        strain=gather.take("strain_projector", places),
        site=atom.take("site") + atom.shift("atom"),
        motion=atom.take("motion"),
    )


def trimmed(batch: Batch, cutoffs: Cutoffs) -> Batch:
    """Return the batch without bonds and angles beyond the cutoffs: fewer rows, the same numbers.

    Their messages carry a radial basis that is 0 beyond its cutoff.
    """
    near, close = batch.length < cutoffs.atom, batch.length[batch.short] < cutoffs.bond
    edge, angle = near[batch.bond], close[batch.left] & close[batch.right]
    bond_place, short_place = (torch.cumsum(kept, dim=0) - 1 for kept in (near, close))
    return replace(
        batch,
        length=batch.length[near],
        receiver=batch.receiver[edge],
        sender=batch.sender[edge],
        bond=bond_place[batch.bond[edge]],
        edge_count=batch.edge_count[edge],
        short=bond_place[batch.short[close]],
        left=short_place[batch.left[angle]],
        right=short_place[batch.right[angle]],
        middle=batch.middle[angle],
        angle_count=batch.angle_count[angle],
        cosine=batch.cosine[angle],
    )
