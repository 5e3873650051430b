"""CHGNet's modules: its parameters under its own names, so that its published weights load as they are.

Architecture: Deng et al., Nature Machine Intelligence 5, 1031 (2023); names, shapes and the order in which random
weights are drawn are those of chgnet 0.4.2's chgnet.model, which the tests compare with. They are written anew because
importing that package takes 3 s (ase, matplotlib and pymatgen's VASP readers come along) in every process, and only its
parameters are used: the pass over packed batches is model.engine's.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

N_ELEMENTS = 94  # hydrogen to plutonium
_COVERED = {
    "update_bond": True,
    "update_angle": True,
    "mlp_first": True,
    "is_intensive": True,
    "learnable_rbf": True,
    "non_linearity": "silu",
    "conv_norm": None,
    "conv_dropout": 0,
    "mlp_dropout": 0,
    "final_mlp": "MLP",
}


class Perceptron(nn.Module):
    """Linear layers with SiLU between them; keys as chgnet's MLP has them."""

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int] = (), *, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((n_in, *hidden)):
            layers += [nn.Linear(before, after, bias=bias), nn.SiLU()]
        # chgnet has a Dropout of rate 0 before the last layer: its place is kept, for the names of what follows it.
        layers += [nn.Identity(), nn.Linear((n_in, *hidden)[-1], n_out, bias=bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, n_in) -> (rows, n_out)"""
        out: Tensor = self.layers(x)
        return out


class GatedPerceptron(nn.Module):
    """Two perceptrons, one of which gates the other; applied by model.engine."""

    def __init__(self, n_in: int, n_out: int, hidden: int, norm: str | None) -> None:
        super().__init__()
        widths = (hidden,) if hidden else ()
        self.mlp_core = Perceptron(n_in, n_out, widths)
        self.mlp_gate = Perceptron(n_in, n_out, widths)
        self.norm = norm
        self.bn1 = _norm(norm, n_out)
        self.bn2 = _norm(norm, n_out)


def _norm(name: str | None, width: int) -> nn.LayerNorm | None:
    if name not in (None, "layer"):
        raise NotImplementedError(f"a CHGNet with {name} norms has no packed energy path")
    return None if name is None else nn.LayerNorm(width)


class AtomConvolution(nn.Module):
    """Parameters of one atom convolution."""

    def __init__(self, atom: int, bond: int, hidden: int, norm: str | None, *, out_bias: bool) -> None:
        super().__init__()
        self.twoBody_atom = GatedPerceptron(2 * atom + bond, atom, hidden, norm)
        self.mlp_out = Perceptron(atom, atom, bias=out_bias)


class BondConvolution(nn.Module):
    """Parameters of one bond convolution."""

    def __init__(self, atom: int, bond: int, angle: int, hidden: int, norm: str | None, *, out_bias: bool) -> None:
        super().__init__()
        self.twoBody_bond = GatedPerceptron(atom + 2 * bond + angle, bond, hidden, norm)
        self.mlp_out = Perceptron(bond, bond, bias=out_bias)


class AngleUpdate(nn.Module):
    """Parameters of one update of the angles."""

    def __init__(self, atom: int, bond: int, angle: int, hidden: int, norm: str | None) -> None:
        super().__init__()
        self.twoBody_bond = GatedPerceptron(atom + 2 * bond + angle, angle, hidden, norm)


class RadialBessel(nn.Module):
    """Bessel functions of a distance under a polynomial envelope (Gasteiger et al., arXiv:2011.14115, eqs. 7 and 8).

    Args:
        cutoff: in angstrom; the functions and their first derivatives are 0 from there on.
        exponent: p of the envelope.
    """

    def __init__(self, n_radial: int, cutoff: float, exponent: int) -> None:
        super().__init__()
        self.cutoff, self._inverse, self._scale = cutoff, 1 / cutoff, (2 * (1 / cutoff)) ** 0.5
        self._exponent = exponent
        self.frequencies = nn.Parameter(torch.Tensor(np.pi * np.arange(1, n_radial + 1, dtype=np.float32)))

    def forward(self, distance: Tensor) -> Tensor:
        """(rows,) in angstrom -> (rows, n_radial)"""
        distance = distance[:, None]
        wave = self._scale * torch.sin(self.frequencies * (distance * self._inverse)) / distance
        return self._envelope(distance / self.cutoff) * wave

    def _envelope(self, x: Tensor) -> Tensor:
        p = self._exponent
        inside = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        return torch.where(x < 1, inside, torch.zeros_like(x))


class _Frequencies(nn.Module):
    """Of the angles' Fourier basis, which model.engine evaluates."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.arange(1, order + 1, dtype=torch.float))


class _Reference(nn.Module):
    """CHGNet's AtomRef: an energy an element, eV."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(N_ELEMENTS, 1, bias=False)


class _Embedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_ELEMENTS, width)

    def forward(self, index: Tensor) -> Tensor:
        """Return (A,) atomic numbers less 1 -> (A, D)"""
        out: Tensor = self.embedding(index)
        return out


class _BondBasis(nn.Module):
    def __init__(self, n_radial: int, atom_cutoff: float, bond_cutoff: float, exponent: int) -> None:
        super().__init__()
        self.rbf_expansion_ag = RadialBessel(n_radial, atom_cutoff, exponent)
        self.rbf_expansion_bg = RadialBessel(n_radial, bond_cutoff, exponent)


class _AngleBasis(nn.Module):
    def __init__(self, n_angular: int) -> None:
        super().__init__()
        self.fourier_expansion = _Frequencies((n_angular - 1) // 2)


class ChgnetModules(nn.Module):
    """All of CHGNet's parameters, with random values but for the bases' frequencies.

    Args:
        arguments: chgnet.model.CHGNet's, as a weights file's model_args has them.

    Raises:
        NotImplementedError: a variant that the packed pass does not cover.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        _validate_architecture(arguments)
        self.model_args = dict(arguments)
        atom, bond, angle = (int(arguments[f"{what}_fea_dim"]) for what in ("atom", "bond", "angle"))
        norm, radial, n_conv = arguments["gMLP_norm"], int(arguments["num_radial"]), int(arguments["n_conv"])
        self.atom_fea_dim, self.bond_fea_dim, self.n_conv = atom, bond, n_conv
        self.atom_cutoff, self.bond_cutoff = (float(arguments[f"{what}_graph_cutoff"]) for what in ("atom", "bond"))
        # The order of what follows is chgnet's: random weights are drawn in it.
        self.composition_model = _Reference()
        self.atom_embedding = _Embedding(atom)
        self.bond_basis_expansion = _BondBasis(
            radial, self.atom_cutoff, self.bond_cutoff, int(arguments["cutoff_coeff"])
        )
        self.bond_embedding = nn.Linear(radial, bond, bias=False)
        self.bond_weights_ag = nn.Linear(radial, atom, bias=False)
        self.bond_weights_bg = nn.Linear(radial, bond, bias=False)
        self.angle_basis_expansion = _AngleBasis(int(arguments["num_angular"]))
        self.angle_embedding = nn.Linear(int(arguments["num_angular"]), angle, bias=False)
        bias = bool(arguments["mlp_out_bias"])
        hidden = int(arguments["atom_conv_hidden_dim"])
        self.atom_conv_layers = nn.ModuleList(
            AtomConvolution(atom, bond, hidden, norm, out_bias=bias) for _ in range(n_conv)
        )
        hidden = int(arguments["bond_conv_hidden_dim"])
        self.bond_conv_layers = nn.ModuleList(
            BondConvolution(atom, bond, angle, hidden, norm, out_bias=bias) for _ in range(n_conv - 1)
        )
        hidden = int(arguments["angle_layer_hidden_dim"])
        self.angle_layers = nn.ModuleList(AngleUpdate(atom, bond, angle, hidden, norm) for _ in range(n_conv - 1))
        self.site_wise = nn.Linear(atom, 1)  # magnetic moments: loaded and kept, never used here
        self.readout_norm = _norm(arguments["readout_norm"], atom)
        self.mlp = Perceptron(atom, 1, tuple(arguments["mlp_hidden_dims"]))


def _validate_architecture(arguments: Mapping[str, Any]) -> None:
    """Reject what the packed pass does not cover rather than compute something else."""
    other = {name: arguments[name] for name, value in _COVERED.items() if arguments.get(name, value) != value}
    if other:
        raise NotImplementedError(f"this CHGNet variant ({other}) has no packed energy path")
