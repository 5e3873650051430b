"""What a crystal is, as numbers: its elements, its geometry, what an untrained CHGNet sees in it, and its stiffness."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trainables.graphs.batch import Batch
from trainables.model.engine import features_of_blocks
from trainables.model.heads import crystal_sum
from trainables.model.modules import N_ELEMENTS
from trainables.tabular.elements import ELEMENT_NAMES, element_table

_STRAIN = 0.015  # of lengths; each larger one is a multiple
_STEPS = 3
_EV_PER_A3_IN_GPA = 160.21766
_SHORT = 3.0  # A, the longest bond that angles are between
GEOMETRY = (
    "log volume per atom", "log atoms", "shortest bond", "mean bond", "bonds to 3 A per atom", "bonds to 6 A per atom",
)  # fmt: skip
PHYSICS = (
    "energy", "energy of strain", "log bulk modulus", "pressure", "anharmonicity", "site energy SD",
    "lowest site energy", "highest site energy", "mean moment", "largest moment",
)  # fmt: skip
_STATISTICS = ("mean", "SD", "min", "max")


class CrystalFeatures(nn.Module):
    """From a batch to a table, (n, width), in a fixed order (`names`).

    The energy's derivatives are those under an isotropic expansion, which scales bond lengths and keeps angles, so that
    it needs no other graph: bonds that would come within the cutoff under a compression are never missing.
    """

    elements: Tensor

    def __init__(self, trunk: nn.Module | None) -> None:
        """Take a CHGNet whose weights are not changed; None where nothing pretrained may have a part."""
        super().__init__()
        self.trunk = trunk
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
            found += PHYSICS
            blocks, width = len(self._net.atom_conv_layers), int(self._net.atom_fea_dim)
            found += [f"block {b + 1} {s} {k}" for b in range(blocks) for s in _STATISTICS for k in range(width)]
        return found

    @property
    def _net(self) -> Any:
        return self.trunk

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """Return the table of a batch, (n, len(names)) float32."""
        numbers = batch.numbers - 1
        shares = crystal_sum(nn.functional.one_hot(numbers, N_ELEMENTS).float(), batch) / batch.n_atoms[:, None]
        parts = [shares, pooled_statistics(self.elements[numbers], batch), _geometry(batch)]
        if self.trunk is not None:
            blocks = features_of_blocks(self.trunk, batch)
            parts.append(self._physics(batch, blocks))
            parts += [pooled_statistics(features, batch) for features in blocks]
        return torch.cat([part.float() for part in parts], dim=1)

    def _physics(self, batch: Batch, blocks: list[Tensor]) -> Tensor:
        """Return read-outs of the untrained potential, (n, len(PHYSICS))."""
        net = self._net
        sites = net.mlp(blocks[-1] if net.readout_norm is None else net.readout_norm(blocks[-1]))  # (A, 1)
        _, spread, lowest, highest = pooled_statistics(sites, batch).unbind(dim=1)
        moments = net.site_wise(blocks[-2]).abs()
        mean_moment, _, _, largest_moment = pooled_statistics(moments, batch).unbind(dim=1)
        energies = [crystal_sum(sites, batch)[:, 0] / batch.n_atoms]
        for step in range(1, _STEPS + 1):
            longer = replace(batch, length=batch.length * (1 + step * _STRAIN))
            energies.append(crystal_sum(_site_energies(net, longer), batch)[:, 0] / batch.n_atoms)
        first, second, third = _derivatives([energy.double() for energy in energies])
        volume = batch.volume / batch.n_atoms  # A^3
        # E(strain) with dV = 3 V strain: P = -dE/dV, and B = V d2E/dV2 (at P = 0).
        modulus, pressure = second / (9 * volume) * _EV_PER_A3_IN_GPA, -first / (3 * volume) * _EV_PER_A3_IN_GPA
        return torch.stack(
            [
                energies[0], energies[-1] - energies[0], torch.log10(modulus.clamp(min=0.1)), pressure,
                third / second.abs().clamp(min=0.1), spread, lowest, highest, mean_moment, largest_moment,
            ],
            dim=1,
        )  # fmt: skip


def _site_energies(net: Any, batch: Batch) -> Tensor:
    features = features_of_blocks(net, batch)[-1]
    sites: Tensor = net.mlp(features if net.readout_norm is None else net.readout_norm(features))
    return sites


def _derivatives(energies: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first three derivatives by strain at 0, of the cubic through four equidistant points."""
    e0, e1, e2, e3 = energies
    first = (-11 * e0 + 18 * e1 - 9 * e2 + 2 * e3) / (6 * _STRAIN)
    second = (2 * e0 - 5 * e1 + 4 * e2 - e3) / _STRAIN**2
    third = (-e0 + 3 * e1 - 3 * e2 + e3) / _STRAIN**3
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


def _geometry(batch: Batch) -> Tensor:
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
    return torch.stack(
        [torch.log(batch.volume.float() / atoms), torch.log(atoms), shortest, mean, short / atoms, bonds / atoms], dim=1
    )
