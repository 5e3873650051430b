"""The highest frequency at the Gamma point of an untrained potential, without its whole force-constant matrix.

The dynamical matrix D is applied to vectors by central differences of forces. Its largest eigenvalue comes from the
Lanczos method (Golub and Van Loan, Matrix Computations, 4th ed., section 10.1), in as many applications whatever the
number of atoms. Long-range electrostatics have no part in it: the highest frequency is a transverse one.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Element
from torch import Tensor

from trainables.graphs.batch import cut_by_cost
from trainables.graphs.store import GraphStore
from trainables.graphs.view import View, full_view
from trainables.model.engine import atom_features
from trainables.model.readout_names import FREQUENCIES
from trainables.preemption import Preempted, asked_to_stop
from trainables.progress import Progress, silent
from trainables.training.memory import GRADIENT_COST

_STEP = 0.02  # A, the largest displacement of an atom in a difference
_LANCZOS = 8  # vectors
_ROUNDING = 0.01  # of the largest diagonal element
_WAVENUMBER = 521.471  # 1/cm of a frequency whose square is 1 eV / (A^2 u)
_MASSES = torch.tensor([1.0] + [float(Element.from_Z(z).atomic_mass) for z in range(1, 119)], dtype=torch.float64)


def gamma_frequencies(
    net: Any, store: GraphStore, rows: NDArray[np.int64], progress: Progress = silent
) -> NDArray[np.float64]:
    """Return the highest frequency of each of the crystals `rows`, (n, 1), in 1/cm; NaN without a graph.

    An imaginary one is negative. Bonds that a displacement of 0.02 A brings within the cutoff carry next to nothing.
    """
    found, device = np.full((len(rows), len(FREQUENCIES)), np.nan), next(net.parameters()).device
    usable = np.flatnonzero(~store.failed[rows])
    order = usable[np.argsort(store.counts[rows[usable], 1], kind="stable")]
    size = store.counts[rows, 1].astype(np.float64) * _COST_OF_A_BOND
    with progress.stage("frequencies", len(usable), "crystals") as bar:
        for part in cut_by_cost(order, size, GRADIENT_COST[device.type]):
            found[part] = _of_batch(net, full_view(store.near(device), rows[part])).cpu().numpy()
            bar.advance(len(part))
            if asked_to_stop():
                raise Preempted
    return found


_COST_OF_A_BOND = 10.0  # in units of GraphStore.cost, of an unfolded graph with its angles


def _of_batch(net: Any, view: View) -> Tensor:
    """Return the highest frequency of each crystal, (n, 1)."""
    n, owner = len(view.rows.n_atoms), view.atom_owner
    weight = _MASSES.to(owner.device)[view.rows.numbers] ** -0.5  # (A,)

    def applied(vector: Tensor) -> Tensor:
        """D times a vector of mass-weighted displacements, (A, 3), each crystal for itself."""
        moved = vector * weight[:, None]
        longest = torch.zeros(n, dtype=moved.dtype, device=moved.device)
        longest = longest.scatter_reduce(0, owner, torch.linalg.vector_norm(moved, dim=1), "amax").clamp(min=1e-12)
        scale = (_STEP / longest)[owner][:, None]
        difference = _forces(net, view, -moved * scale) - _forces(net, view, moved * scale)
        return difference / (2 * scale) * weight[:, None]

    def dot(first: Tensor, second: Tensor) -> Tensor:
        return torch.zeros(n, dtype=first.dtype, device=first.device).index_add(0, owner, (first * second).sum(dim=1))

    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(owner), 3), generator=generator).double() * 2 - 1
    vector = signs.to(owner.device)
    size = dot(vector, vector).sqrt()
    vector = vector / size[owner][:, None]
    basis, diagonal, beside = [vector], [], []
    for step in range(_LANCZOS):
        new = applied(basis[-1])
        diagonal.append(dot(new, basis[-1]))
        for earlier in basis:  # orthogonal to all, or rounding finds the first ones again
            new = new - dot(new, earlier)[owner][:, None] * earlier
        length, scale = dot(new, new).sqrt(), torch.stack(diagonal).abs().amax(dim=0)
        # What is left where all directions are spent is rounding.
        length = torch.where(length > _ROUNDING * scale, length, 0.0)
        if step + 1 < _LANCZOS:
            beside.append(length)
            basis.append(torch.where(length > 0, 1 / length.clamp(min=1e-12), 0.0)[owner][:, None] * new)
    small = torch.diag_embed(torch.stack(diagonal, dim=1))
    off = torch.diag_embed(torch.stack(beside, dim=1), offset=1)
    highest = torch.linalg.eigvalsh(small + off + off.transpose(1, 2))[:, -1]
    return (torch.sign(highest) * highest.abs().sqrt() * _WAVENUMBER)[:, None]


def _forces(net: Any, view: View, displacement: Tensor) -> Tensor:
    """Return the forces on displaced atoms, (A, 3) eV/A."""
    with torch.enable_grad():
        moved = displacement.clone().requires_grad_(True)
        to_frac = torch.linalg.inv(view.lattice)[view.atom_owner]
        batch = replace(view, frac=view.frac + torch.bmm(moved[:, None], to_frac)[:, 0]).batch()
        energy = net.mlp(atom_features(net, batch)).sum()
        (gradient,) = torch.autograd.grad(energy, moved)
    return -gradient
