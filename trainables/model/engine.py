"""CHGNet's message passing over a packed batch: the same numbers as stock, fewer operations.

What differs from chgnet.model.CHGNet._compute, none of it in the result:

- the first Linear of every gated MLP is split by input block and multiplied before the gather: a row an atom
  or bond instead of a row a message; its core and gate halves are one product;
- both directions of a bond share its bond term;
- bond convolutions and angle updates run on the bonds within the 3 A cutoff only: other bonds' features never
  change, so their share of the next atom convolution comes straight from the radial basis;
- the last angle update, which nothing reads, is left out;
- geometry and bases are computed once a batch, the geometry in float64.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.graphs.batch import Batch

# Stock writes 1 / sqrt(2) through float32, whatever the model's dtype; so do we, to agree in float64.
_FOURIER_CONSTANT = float(1 / torch.sqrt(torch.tensor([2]))) / math.sqrt(math.pi)
_COSINE_SHRINK = 1 - 1e-6  # chgnet.model.encoders.AngleEncoder, for acos


def atom_features(net: Any, batch: Batch) -> Tensor:
    """Atom features after the last convolution and the read-out norm.

    Args:
        net: a chgnet.model.CHGNet (only its parameters are used).

    Returns:
        (A, atom_fea_dim)
    """
    dtype = net.bond_embedding.weight.dtype
    bond_length, cosine = geometry(batch)
    bond_basis = net.bond_basis_expansion.rbf_expansion_ag(bond_length.to(dtype))  # (B, radial)
    short_basis = net.bond_basis_expansion.rbf_expansion_bg(bond_length[batch.short_bond].to(dtype))  # (S, radial)
    angle = net.angle_embedding(fourier(cosine.to(dtype), net.angle_basis_expansion.fourier_expansion))  # (G, D)
    atom = net.atom_embedding(batch.numbers - 1)  # (A, D)
    bond_weight = net.bond_weights_ag(bond_basis)  # (B, D)
    short_weight = net.bond_weights_bg(short_basis)  # (S, D)
    short_first = net.bond_embedding(_rows(bond_basis, batch.short_bond))  # (S, D) bond features before any update
    short_gain: Tensor | None = None  # (S, D) what the bond convolutions have added
    shift = bond_weight.new_zeros(net.bond_fea_dim)  # (D,) what their output biases add to every bond
    center = batch.bond_atoms.reshape(-1)  # (2 B,) receiving atom of every direction
    neighbor = batch.bond_atoms.flip(0).reshape(-1)  # (2 B,)
    half_atom = batch.bond_atoms[:, batch.short_bond].T.reshape(-1)  # (2 S,) atom of each short half-bond
    for index, conv in enumerate(net.atom_conv_layers):
        edge = _edge_term(conv.twoBody_atom, net.bond_embedding.weight, bond_basis, shift)
        if short_gain is not None:
            edge = edge.index_add(0, batch.short_bond, F.linear(short_gain, _blocks(conv.twoBody_atom, atom)[1]))
        atom = _atom_conv(conv, atom, edge, bond_weight, center, neighbor)
        if index == len(net.atom_conv_layers) - 1:
            break
        bond_conv = net.bond_conv_layers[index]
        short = short_first + shift if short_gain is None else short_first + shift + short_gain
        update = _bond_conv(bond_conv, atom, short, angle, short_weight, half_atom, batch.angle_halves)
        gain = F.linear(update, bond_conv.mlp_out.layers[1].weight)
        short_gain = gain if short_gain is None else short_gain + gain
        if bond_conv.mlp_out.layers[1].bias is not None:  # 0.2.0
            shift = shift + bond_conv.mlp_out.layers[1].bias
        if index < len(net.atom_conv_layers) - 2:
            short = short_first + shift + short_gain
            mlp = net.angle_layers[index].twoBody_bond
            angle = angle + _gated(mlp, _angle_first_layer(mlp, atom, short, angle, half_atom, batch.angle_halves))
    return atom if net.readout_norm is None else net.readout_norm(atom)


def geometry(batch: Batch) -> tuple[Tensor, Tensor]:
    """Bond lengths (B,) in A and angle cosines (G,), in float64."""
    position = torch.bmm(batch.frac[:, None], batch.lattice[batch.atom_owner])[:, 0]  # (A, 3)
    image = torch.bmm(batch.bond_image[:, None], batch.lattice[batch.bond_owner])[:, 0]  # (B, 3)
    vector = position[batch.bond_atoms[0]] - position[batch.bond_atoms[1]] - image  # (B, 3)
    length = torch.linalg.vector_norm(vector, dim=1)
    unit = (vector / length[:, None])[batch.short_bond]  # (S, 3)
    halves = torch.stack([unit, -unit], dim=1).reshape(-1, 3)  # (2 S, 3)
    left, right = halves[batch.angle_halves[0]], halves[batch.angle_halves[1]]
    return length, (left * right).sum(dim=1)


def fourier(cosine: Tensor, expansion: Any) -> Tensor:
    """Fourier basis of the angles, (G, 2 order + 1), as chgnet's AngleEncoder gives it."""
    theta = torch.acos(cosine * _COSINE_SHRINK)
    phase = torch.outer(theta, expansion.frequencies)  # (G, order)
    constant = phase.new_full((len(phase), 1), _FOURIER_CONSTANT)
    scale = 1 / math.sqrt(math.pi)
    return torch.cat([constant, torch.sin(phase) * scale, torch.cos(phase) * scale], dim=1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values[index], whose gradient is an index_add: that of plain indexing adds in no fixed order on a CPU."""
    return torch.index_select(values, 0, index)


def _first_linears(mlp: Any) -> tuple[Any, Any]:
    """The first Linear of a gated MLP's core and gate (after a Dropout where there is no hidden layer)."""
    place = 1 if len(mlp.mlp_core.layers) == 2 else 0
    return mlp.mlp_core.layers[place], mlp.mlp_gate.layers[place]


def _blocks(mlp: Any, like: Tensor) -> tuple[Tensor, ...]:
    """Core and gate weights stacked, (2 H, inputs), split into the input blocks of width D."""
    core, gate = _first_linears(mlp)
    return torch.cat([core.weight, gate.weight]).split(like.shape[1], dim=1)


def _bias(mlp: Any) -> Tensor:
    core, gate = _first_linears(mlp)
    return torch.cat([core.bias, gate.bias])


def _gated(mlp: Any, first: Tensor) -> Tensor:
    """The rest of a gated MLP after its merged first Linear: (rows, 2 H) -> (rows, D)."""
    core, gate = first.chunk(2, dim=1)
    if len(mlp.mlp_core.layers) == 4:
        last_core, last_gate = mlp.mlp_core.layers[3], mlp.mlp_gate.layers[3]
        core, gate = F.silu(first).chunk(2, dim=1)
        core, gate = last_core(core), last_gate(gate)
    if mlp.norm is not None:
        core, gate = mlp.bn1(core), mlp.bn2(gate)
    return F.silu(core) * torch.sigmoid(gate)


def _edge_term(mlp: Any, embedding: Tensor, bond_basis: Tensor, shift: Tensor) -> Tensor:
    """The bonds' share of an atom convolution's first Linear, from the radial basis alone: (B, 2 H)."""
    block = _blocks(mlp, embedding.T)[1]  # (2 H, D)
    return F.linear(bond_basis, block @ embedding, _bias(mlp) + block @ shift)


def _atom_conv(conv: Any, atom: Tensor, edge: Tensor, weight: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
    w_center, _, w_neighbor = _blocks(conv.twoBody_atom, atom)
    first = _rows(F.linear(atom, w_center), center) + _rows(F.linear(atom, w_neighbor), neighbor)  # (2 B, 2 H)
    first = (first.unflatten(0, (2, len(edge))) + edge).flatten(0, 1)
    message = _gated(conv.twoBody_atom, first)  # (2 B, D)
    message = (message.unflatten(0, (2, len(edge))) * weight).flatten(0, 1)
    received = torch.zeros_like(atom).index_add(0, center, message)
    out: Tensor = conv.mlp_out(received) + atom
    return out


def _angle_first_layer(
    mlp: Any, atom: Tensor, short: Tensor, angle: Tensor, half_atom: Tensor, halves: Tensor
) -> Tensor:
    """Merged first Linear over [left bond, right bond, angle, atom]: (G, 2 H)."""
    w_left, w_right, w_angle, w_atom = _blocks(mlp, atom)
    left = F.linear(short, w_left).repeat_interleave(2, dim=0)
    left = left + _rows(F.linear(atom, w_atom, _bias(mlp)), half_atom)  # (2 S, 2 H)
    right = F.linear(short, w_right)  # (S, 2 H)
    return _rows(left, halves[0]) + _rows(right, halves[1] >> 1) + F.linear(angle, w_angle)


def _bond_conv(
    conv: Any, atom: Tensor, short: Tensor, angle: Tensor, weight: Tensor, half_atom: Tensor, halves: Tensor
) -> Tensor:
    """Messages to each short bond before the output Linear: (S, D)."""
    mlp = conv.twoBody_bond
    message = _gated(mlp, _angle_first_layer(mlp, atom, short, angle, half_atom, halves))  # (G, D)
    received = torch.zeros_like(short).index_add(0, halves[0] >> 1, message * _rows(weight, halves[1] >> 1))
    return received * weight  # the left bond's weight is common to all its messages
