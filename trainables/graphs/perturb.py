"""Strained and displaced views of crystals without a new neighbour search.

A store built with a skin holds every bond that a small strain and small displacements can bring within the cutoffs;
bonds beyond them change nothing, because every message carries a radial basis that is exactly 0 there.
"""

from dataclasses import replace

import torch
from torch import Tensor

from trainables.graphs.convert import Cutoffs
from trainables.graphs.symmetry import MANDEL
from trainables.graphs.view import Symmetry, View


class SkinTooThin(ValueError):
    """A perturbation that could bring bonds within the cutoffs that the store does not hold."""


def needed_skin(cutoff: float, *, displacement: float, strain: float) -> float:
    """Return the skin, in A, that makes perturbed views exact.

    Atoms further apart than cutoff + skin end at least (1 - strain)(cutoff + skin) - 2 displacement apart, which is
    not below the cutoff for skin >= (cutoff + 2 displacement) / (1 - strain) - cutoff.

    Args:
        cutoff: of the longest bonds, A.
        displacement: the furthest that an atom moves, A.
        strain: spectral norm of the strain.
    """
    if not 0 <= strain < 1 or displacement < 0:
        raise ValueError(f"a strain of {strain} and a displacement of {displacement} A bound nothing")
    return (cutoff + 2 * displacement) / (1 - strain) - cutoff


def perturbed(
    view: View, cutoffs: Cutoffs, *, strain: Tensor | None = None, displacement: Tensor | None = None
) -> View:
    """Return the view with its lattices strained, then its atoms displaced.

    A folded view is moved by the projections of strain and displacement that keep its crystals' symmetry.

    Args:
        cutoffs: those of the store the view was gathered from.
        strain: (n, 3, 3); lattice vectors become lattice @ (1 + strain), as in chgnet's own stress.
        displacement: (A, 3) A, cartesian.

    Raises:
        SkinTooThin: the store's skin does not cover this perturbation.
        ValueError: a view that is perturbed already.
    """
    if view.moved:
        raise ValueError("the skin covers one perturbation: perturb the view as it was gathered")
    if view.symmetry is not None:
        strain = None if strain is None else project_strain(view.symmetry, strain)
        displacement = None if displacement is None else project_displacement(view.symmetry, displacement)
    _check_skin(cutoffs, strain, displacement)
    if strain is not None:
        one = torch.eye(3, dtype=view.lattice.dtype, device=view.lattice.device)
        view = replace(view, lattice=view.lattice @ (one + strain.to(view.lattice)))
    if displacement is not None:
        to_frac = torch.linalg.inv(view.lattice)[view.atom_owner]  # (A, 3, 3)
        moved = torch.bmm(displacement.to(view.frac)[:, None], to_frac)[:, 0]
        view = replace(view, frac=view.frac + moved)
    return replace(view, moved=True)


def project_strain(symmetry: Symmetry, strain: Tensor) -> Tensor:
    """Return the parts of strains (n, 3, 3) that keep the crystals' point groups."""
    basis = torch.from_numpy(MANDEL).to(symmetry.strain.device)
    kept = torch.einsum("nkl,lij,nij->nk", symmetry.strain, basis, strain.to(basis))
    return torch.einsum("nk,kij->nij", kept, basis)


def project_displacement(symmetry: Symmetry, displacement: Tensor) -> Tensor:
    """Return the displacements (A, 3) that keep the crystals' space groups; those of each orbit's first atom decide."""
    decisive = displacement.to(symmetry.motion)[symmetry.site]
    return torch.bmm(symmetry.motion, decisive[:, :, None])[:, :, 0]


def _check_skin(cutoffs: Cutoffs, strain: Tensor | None, displacement: Tensor | None) -> None:
    largest_strain = 0.0 if strain is None else float(torch.linalg.matrix_norm(strain, ord=2).max())
    furthest = 0.0 if displacement is None else float(torch.linalg.vector_norm(displacement, dim=1).max())
    needed = needed_skin(max(cutoffs.atom, cutoffs.bond), displacement=furthest, strain=largest_strain)
    if needed > cutoffs.skin + 1e-12:
        raise SkinTooThin(
            f"a strain of {largest_strain:.3g} and displacements of {furthest:.3g} A need a skin of {needed:.3f} A, "
            f"the store has {cutoffs.skin} A: build it with Cutoffs(skin={needed:.3f})"
        )
