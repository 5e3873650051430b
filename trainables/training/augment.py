"""Random strains and displacements: how large they can become, their draws, and views moved by them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.config import RunConfig
from trainables.graphs.convert import Cutoffs
from trainables.graphs.perturb import needed_skin, perturbed, project_displacement, project_strain
from trainables.graphs.store import GraphStore
from trainables.graphs.symmetry import MANDEL
from trainables.graphs.view import View, folded_view, full_view, symmetry_of
from trainables.levers import PerturbConfig

# A normal draw longer than this many sizes is scaled back (3 strains in 10,000, 2 displacements in 100,000), so that a
# skin can cover every draw.
_LONGEST = 5.0
# Symmetry operations found to spglib's tolerance are not quite orthogonal: projected displacements of real crystals
# were up to 7e-4 longer than what was drawn.
_PROJECTED = 1.01
_STILL = 1e-9  # A, or a lattice fraction; what moves less has moved by rounding
SKIN_STEP = 0.1  # A; skins are multiples of it, so that near sizes share a store


@dataclass(frozen=True, eq=False)
class Perturbation:
    """One random change of each of n crystals with A atoms together; None where there is none of its kind."""

    strain: NDArray[np.float64] | None  # (n, 3, 3)
    displacement: NDArray[np.float64] | None  # (A, 3) A, cartesian
    first_atom: NDArray[np.int64]  # (n + 1,)

    def part(self, begin: int, end: int) -> "Perturbation":
        """Return the change of crystals begin to end - 1."""
        atoms = slice(self.first_atom[begin], self.first_atom[end])
        return Perturbation(
            None if self.strain is None else self.strain[begin:end],
            None if self.displacement is None else self.displacement[atoms],
            self.first_atom[begin : end + 1] - self.first_atom[begin],
        )

    @staticmethod
    def join(draws: "list[Perturbation]") -> "Perturbation":
        """Return the changes of crystals side by side; all of one configuration."""
        counts = np.concatenate([np.diff(draw.first_atom) for draw in draws])
        strains = [draw.strain for draw in draws if draw.strain is not None]
        displacements = [draw.displacement for draw in draws if draw.displacement is not None]
        return Perturbation(
            np.concatenate(strains) if strains else None,
            np.concatenate(displacements) if displacements else None,
            _first_atoms(counts),
        )


def largest(config: PerturbConfig) -> tuple[float, float]:
    """Bounds of what can be drawn: the strain's spectral norm, and a displacement's length in A."""
    strain = config.strain_size if config.strains else 0.0
    displacement = config.displacement_size if config.displaces else 0.0
    if config.distribution == "normal":
        return _LONGEST * strain, _LONGEST * displacement
    # The spectral norm is at most the Frobenius norm; an isotropic strain's is its only number.
    return strain * (1.0 if config.strain == "isotropic" else math.sqrt(6)), displacement * math.sqrt(3)


def skin_for(config: RunConfig, cutoffs: Cutoffs) -> float:
    """Return the skin, in A, of the store that a configuration's views want; 0 where it has none."""
    wanted: list[PerturbConfig] = [config.augment] if config.augment.active else []
    wanted += [config.tta] if config.tta.views > 1 else []
    return max((skin_of(each, cutoffs) for each in wanted), default=0.0)


def skin_of(config: PerturbConfig, cutoffs: Cutoffs) -> float:
    """Return the skin, in A, that covers every draw and its projection, rounded up."""
    strain, displacement = (_PROJECTED * bound for bound in largest(config))
    needed = needed_skin(max(cutoffs.atom, cutoffs.bond), displacement=displacement, strain=strain)
    steps = math.ceil(needed / SKIN_STEP - 1e-9)
    return round(max(steps, int(config.active)) * SKIN_STEP, 6)  # the tiniest draws want a store with symmetry, too


def draw(
    config: PerturbConfig, n_atoms: NDArray[np.int64], rng: np.random.Generator, *, probability: float = 1.0
) -> Perturbation:
    """Random changes of crystals of n_atoms (n,) atoms; before any projection on their symmetry.

    Args:
        probability: that a crystal is changed; others get zeros.
    """
    n, first_atom = len(n_atoms), _first_atoms(n_atoms)
    changed = rng.random(n) < probability if probability < 1 else np.ones(n, dtype=bool)
    strain = displacement = None
    if config.strains:
        n_components = 1 if config.strain == "isotropic" else 6
        components = _limited(config, rng, (n, n_components), config.strain_size) * changed[:, None]
        basis = np.eye(3)[None] if config.strain == "isotropic" else MANDEL
        strain = np.einsum("nk,kij->nij", components, basis)
    if config.displaces:
        displacement = _limited(config, rng, (int(first_atom[-1]), 3), config.displacement_size)
        displacement *= np.repeat(changed, n_atoms)[:, None]
    return Perturbation(strain, displacement, first_atom)


def _limited(
    config: PerturbConfig, rng: np.random.Generator, shape: tuple[int, int], size: float
) -> NDArray[np.float64]:
    if config.distribution == "uniform":
        return rng.uniform(-size, size, shape)
    drawn = rng.normal(0.0, size, shape)
    length = np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn * np.minimum(1.0, _LONGEST * size / np.maximum(length, 1e-300))


def _first_atoms(n_atoms: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(n_atoms)]).astype(np.int64)


def view_cost(config: PerturbConfig, store: GraphStore) -> NDArray[np.float64]:
    """(n,) what each crystal's view costs, in units of GraphStore.cost."""
    return store.cost if config.keeps_symmetry else store.full_cost


def gathered(config: PerturbConfig, store: GraphStore, rows: NDArray[np.int64]) -> View:
    """Return the view to be moved: folded where nothing breaks the crystals' symmetry."""
    return folded_view(store, rows) if config.keeps_symmetry else full_view(store, rows)


def moved(config: PerturbConfig, store: GraphStore, rows: NDArray[np.int64], view: View, change: Perturbation) -> View:
    """Return the view of the crystals `rows` with what was drawn for them."""
    device = view.lattice.device
    strain = None if change.strain is None else torch.from_numpy(change.strain).to(device)
    displacement = None if change.displacement is None else torch.from_numpy(change.displacement).to(device)
    if view.symmetry is None and "symmetry" in (config.strain, config.displacement):
        # A full view because the other kind is free: this one still keeps the symmetry.
        symmetry = symmetry_of(store, rows)
        if strain is not None and config.strain == "symmetry":
            strain = project_strain(symmetry, strain)
        if displacement is not None and config.displacement == "symmetry":
            displacement = project_displacement(symmetry, displacement)
    return perturbed(view, store.cutoffs, strain=strain, displacement=displacement)


def has_moved(before: View, after: View) -> Tensor:
    """(n,) True for the crystals that were strained or displaced: not where nothing was drawn or symmetry left it."""
    strained = (after.lattice - before.lattice).abs().amax(dim=(1, 2)) > _STILL
    displaced = (after.frac - before.frac).abs().amax(dim=1) > _STILL  # (A,)
    n_displaced = displaced.new_zeros(len(strained), dtype=torch.int64).index_add(
        0, before.atom_owner, displaced.long()
    )
    return strained | (n_displaced > 0)
