"""What keeps a crystal's symmetry: its point group's invariant strains and its sites' invariant displacements.

An operation (W, w) of the space group, on fractional coordinates, turns vectors by R = L^T W L^-T (L: lattice vectors
as rows). A strain e keeps the symmetry when R e R^T = e for all operations; a displacement field u does when
u(image of a) = R u(a). Both are linear conditions, so projections by averaging over the group solve them.
"""

from dataclasses import dataclass

import numpy as np
import spglib
from numpy.typing import NDArray

from trainables.crystals import Crystal

SYMPREC = 0.01  # A, spglib's tolerance; folds don't depend on it, as they compare distances themselves
_PROBE_STRAIN = 0.05
_PROBE_DISPLACEMENT = 0.1  # A

_ROOT_HALF = np.sqrt(0.5)
# Orthonormal symmetric tensors, (6, 3, 3): the basis of Mandel's notation (xx, yy, zz, yz, xz, xy).
MANDEL = np.zeros((6, 3, 3))
for _k, (_i, _j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
    MANDEL[_k, _i, _j] = MANDEL[_k, _j, _i] = 1.0 if _i == _j else _ROOT_HALF


@dataclass(frozen=True, eq=False)
class SiteSymmetry:
    """The invariant strains and displacements of a crystal of n atoms.

    Attributes:
        strain: (6, 6) projector on the invariant tensors, in Mandel's notation.
        site: (n,) the atom of the same orbit whose displacement decides this atom's.
        motion: (n, 3, 3) from any displacement of that atom to this atom's invariant one, cartesian.
    """

    strain: NDArray[np.float64]
    site: NDArray[np.int64]
    motion: NDArray[np.float64]

    def project(
        self, strain: NDArray[np.float64], displacement: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the invariant parts of a strain (3, 3) and of displacements (n, 3) A."""
        kept = self.strain @ np.einsum("kij,ij->k", MANDEL, strain)
        return np.einsum("k,kij->ij", kept, MANDEL), np.einsum("aij,aj->ai", self.motion, displacement[self.site])


def site_symmetry(crystal: Crystal) -> SiteSymmetry:
    """Find the space group and what it leaves invariant; a crystal that spglib cannot read has no symmetry."""
    turns, images = _operations(crystal)
    n_atoms = len(crystal.numbers)
    tensors = np.einsum("kij,oai,obj,lab->okl", MANDEL, turns, turns, MANDEL, optimize=True)  # each turn on tensors
    site = images.min(axis=0)  # the first atom of each orbit
    motion = np.empty((n_atoms, 3, 3))
    for first in np.unique(site):
        fixed = turns[images[:, first] == first].mean(axis=0)  # projector on the displacements its site allows
        members, operation = np.unique(images[:, first], return_index=True)
        motion[members] = turns[operation] @ fixed
    return SiteSymmetry(tensors.mean(axis=0).T, site, motion)


def _operations(crystal: Crystal) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cartesian turns (o, 3, 3) of the space group and the image (o, n) of every atom under each."""
    alone = np.eye(3)[None], np.arange(len(crystal.numbers))[None]
    try:
        cell = crystal.lattice.tolist(), crystal.frac.tolist(), crystal.numbers.tolist()
        found = spglib.get_symmetry(cell, symprec=SYMPREC)
    except (spglib.SpglibError, TypeError):
        found = None
    if found is None:
        return alone
    rotations, shifts = found["rotations"].astype(np.float64), found["translations"]
    images = [_image(crystal, turn, shift) for turn, shift in zip(rotations, shifts, strict=True)]
    whole = [image for image in images if image is not None]
    if len(whole) < len(images):  # what is left would be no group
        return alone
    to_cartesian = crystal.lattice.T
    return to_cartesian @ rotations @ np.linalg.inv(to_cartesian), np.array(whole)


def _image(crystal: Crystal, turn: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Place of every atom's image, or None where atoms are not exchanged one for one."""
    moved = crystal.frac @ turn.T + shift
    apart = moved[:, None] - crystal.frac[None]  # (n, n, 3)
    apart -= np.round(apart)
    distance = np.linalg.norm(apart @ crystal.lattice, axis=2)
    distance[crystal.numbers[:, None] != crystal.numbers[None]] = np.inf
    image = distance.argmin(axis=1)
    return image if len(np.unique(image)) == len(image) else None


def probes(crystal: Crystal, symmetry: SiteSymmetry, number: int = 4) -> list[Crystal]:
    """Return the crystal strained and displaced at random without losing symmetry.

    Distances that are equal in the crystal and in its probes are equal under every such change, but for accidents of
    a few in a million.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        strain, displacement = symmetry.project(
            rng.normal(0, _PROBE_STRAIN, (3, 3)), rng.normal(0, _PROBE_DISPLACEMENT, crystal.frac.shape)
        )
        lattice = crystal.lattice @ (np.eye(3) + strain)
        found.append(Crystal(lattice, crystal.numbers, crystal.frac + displacement @ np.linalg.inv(lattice)))
    return found
