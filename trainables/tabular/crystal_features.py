"""What a crystal is, as numbers: its elements, its geometry, what an untrained CHGNet sees in it, and its stiffness."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainables.graphs.batch import Batch
from trainables.model.engine import features_of_blocks
from trainables.model.heads import crystal_sum
from trainables.model.modules import N_ELEMENTS
from trainables.model.readout_names import readout_names
from trainables.tabular.elements import ELEMENT_NAMES, element_table
from trainables.tabular.shapes import ShapedBatch

_STRAIN = 0.015  # of lengths
_STEPS = (-1, 0, 1, 2)
PASSES = len(_STEPS)  # through CHGNet, of a crystal
_EV_PER_A3_IN_GPA = 160.21766
_THINNEST = 1.0  # A, of a layer of one atom
_VACUUM = 6.0  # A, what CHGNet does not see across
_SHORT = 3.0  # A, the longest bond that angles are between
GEOMETRY = (
    "log volume per atom", "log atoms", "shortest bond", "mean bond", "bonds to 3 A per atom", "bonds to 6 A per atom",
    "log area per atom", "thickness", "log filled volume per atom", "in vacuum",
)  # fmt: skip
_STATISTICS = ("mean", "SD", "min", "max")


class CrystalFeatures(nn.Module):
    """From a batch to a table, (n, width), in a fixed order (`names`).

    The energy's derivatives are those under isotropic strains, which scale bond lengths and keep angles, so that no
    other graph is needed: the bonds that a compression by 1.5 % brings within the cutoff carry next to nothing, for
    messages fall to zero there with the third power of the distance to it.
    """

    elements: Tensor

    def __init__(self, trunk: nn.Module | None, *, phonons: bool = False) -> None:
        """Take a CHGNet whose weights are not changed; None where nothing pretrained may have a part.

        Args:
            phonons: batches come with frequencies.
        """
        super().__init__()
        self.trunk, self.phonons = trunk, phonons
        for parameter in () if trunk is None else trunk.parameters():
            parameter.requires_grad = False
        self.register_buffer("elements", torch.from_numpy(element_table()).float(), persistent=False)

    @property
    def names(self) -> list[str]:
        """Return what each column is."""
        found = [f"share of Z={z}" for z in range(1, N_ELEMENTS + 1)]
        found += [f"{statistic} of {name}" for statistic in _STATISTICS for name in ELEMENT_NAMES]
        found += GEOMETRY
        if self.trunk is not None:
            found += readout_names(phonons=self.phonons)
            blocks, width = len(self._net.atom_conv_layers), int(self._net.atom_fea_dim)
            found += [f"block {b + 1} {s} {k}" for b in range(blocks) for s in _STATISTICS for k in range(width)]
        return found

    @property
    def _net(self) -> Any:
        return self.trunk

    @torch.no_grad()
    def forward(self, batch: ShapedBatch) -> Tensor:
        """Return the table of a batch, (n, len(names)) float32."""
        numbers = batch.numbers - 1
        shares = crystal_sum(nn.functional.one_hot(numbers, N_ELEMENTS).float(), batch) / batch.n_atoms[:, None]
        parts = [shares, pooled_statistics(self.elements[numbers], batch), _geometry(batch)]
        if self.trunk is not None:
            blocks = features_of_blocks(self.trunk, batch)
            parts += [self._physics(batch, blocks), batch.frequencies]
            parts += [pooled_statistics(features, batch) for features in blocks]
        return torch.cat([part.float() for part in parts], dim=1)

    def _physics(self, batch: ShapedBatch, blocks: list[Tensor]) -> Tensor:
        """Return read-outs of the untrained potential, (n, len(PHYSICS))."""
        net = self._net
        sites = net.mlp(blocks[-1] if net.readout_norm is None else net.readout_norm(blocks[-1]))  # (A, 1)
        _, spread, lowest, highest = pooled_statistics(sites, batch).unbind(dim=1)
        moments = net.site_wise(blocks[-2]).abs()
        mean_moment, _, _, largest_moment = pooled_statistics(moments, batch).unbind(dim=1)
        energies = []
        for step in _STEPS:
            strained = replace(batch, length=batch.length * (1 + step * _STRAIN))
            here = _site_energies(net, strained) if step else sites
            energies.append(crystal_sum(here, batch)[:, 0] / batch.n_atoms)
        first, second, third = _derivatives([energy.double() for energy in energies])
        volume = batch.shape[:, 0] / batch.n_atoms  # A^3
        # E(strain) with dV = 3 V strain: P = -dE/dV, and B = V d2E/dV2 (at P = 0).
        modulus, pressure = second / (9 * volume) * _EV_PER_A3_IN_GPA, -first / (3 * volume) * _EV_PER_A3_IN_GPA
        return torch.stack(
            [
                energies[1],
                energies[-1] - energies[1], torch.log10(modulus.clamp(min=0.1)), pressure,
                third / second.abs().clamp(min=0.1), spread, lowest, highest, mean_moment, largest_moment,
            ],
            dim=1,
        )  # fmt: skip


def _site_energies(net: Any, batch: Batch) -> Tensor:
    features = features_of_blocks(net, batch)[-1]
    sites: Tensor = net.mlp(features if net.readout_norm is None else net.readout_norm(features))
    return sites


def _derivatives(energies: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first three derivatives by strain at 0, of the cubic through the points -1, 0, 1 and 2."""
    before, e0, e1, e2 = energies
    first = (-2 * before - 3 * e0 + 6 * e1 - e2) / (6 * _STRAIN)
    second = (before - 2 * e0 + e1) / _STRAIN**2
    third = (-before + 3 * e0 - 3 * e1 + e2) / _STRAIN**3
    return first, second, third


def pooled_statistics(values: Tensor, batch: Batch) -> Tensor:
    """Return mean, SD, minimum and maximum over the atoms of each crystal: (A, k) -> (n, 4 k), in float32.

    Equal atoms that a folded graph holds once count as often as they are there.
    """
    values, n = values.float(), len(batch)
    mean = crystal_sum(values, batch) / batch.n_atoms[:, None]
    square = crystal_sum((values - mean[batch.atom_owner]) ** 2, batch) / batch.n_atoms[:, None]
    owner = batch.atom_owner[:, None].expand_as(values)
    ends = [
        values.new_full((n, values.shape[1]), start).scatter_reduce(0, owner, values, how)
        for start, how in ((torch.inf, "amin"), (-torch.inf, "amax"))
    ]
    return torch.cat([mean, square.clamp(min=0).sqrt(), *ends], dim=1)


def _geometry(batch: ShapedBatch) -> Tensor:
    """Return sizes and distances, (n, len(GEOMETRY)); of a crystal without bonds the distance is that of the cutoff."""
    n, owner = len(batch), batch.atom_owner[batch.receiver]
    length, count = batch.length[batch.bond].float(), (batch.edge_count * batch.atom_count[batch.receiver]).float()
    summed = [
        length.new_zeros(n).index_add(0, owner, values) for values in (count, count * length, count * (length < _SHORT))
    ]
    bonds, total, short = summed
    shortest = length.new_full((n,), 6.0).scatter_reduce(0, owner, length, "amin")
    mean = torch.where(bonds > 0, total / bonds.clamp(min=1), 6.0)
    atoms = batch.n_atoms.float()
    volume, vacuum, height = batch.shape.float().unbind(dim=1)
    alone = vacuum > _VACUUM
    # Of a bulk crystal, which direction has the widest gap is a matter of how its cell was chosen.
    area = torch.where(alone, volume / height / atoms, (volume / atoms) ** (2 / 3))
    thickness = torch.where(alone, (height - vacuum).clamp(min=_THINNEST), 0.0)
    filled = torch.where(alone, area * thickness, volume / atoms)
    return torch.stack(
        [
            torch.log(volume / atoms), torch.log(atoms), shortest, mean, short / atoms, bonds / atoms,
            torch.log(area), thickness, torch.log(filled), alone.float(),
        ],
        dim=1,
    )  # fmt: skip
