"""CHGNet's message passing over a packed batch: the same numbers as stock, fewer operations.

What differs from chgnet.model.CHGNet._compute, none of it in the result:

- the first Linear of every gated MLP is split by input block and multiplied before the gather: a row an atom
  or bond instead of a row a message; its core and gate halves are one product;
- the bonds' share of an atom convolution is computed once a bond, for both directions;
- bond convolutions and angle updates run on the bonds within the 3 A cutoff only: other bonds' features never
  change, so their share of the next atom convolution comes straight from the radial basis;
- the last angle update, which nothing reads, is left out;
- bases are computed once a batch from geometry in float64;
- rows that are equal by symmetry are computed once and counted (graphs.quotient);
- on a CPU, rows are padded to few different numbers, for each of which oneDNN has a kernel (model.linear).
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.graphs.batch import Batch, KnownBatch
from trainables.model.compiled import compiled_once
from trainables.model.linear import has_onednn, linear, rows_for

# Stock writes 1 / sqrt(2) through float32, whatever the model's dtype; so do we, to agree in float64.
_FOURIER_CONSTANT = float(1 / torch.sqrt(torch.tensor([2]))) / math.sqrt(math.pi)
_COSINE_SHRINK = 1 - 1e-6  # chgnet.model.encoders.AngleEncoder, for acos


def atom_features(net: Any, batch: Batch, *, compiled: bool = False) -> Tensor:
    """Atom features after the last convolution and the read-out norm.

    Args:
        net: a chgnet.model.CHGNet (only its parameters are used).
        compiled: through torch.compile (model.compiled), compiled once a process for all sizes.

    Returns:
        (A, atom_fea_dim)
    """
    atom = batch.trunk if isinstance(batch, KnownBatch) else trunk_features(net, batch, compiled=compiled)
    return atom if net.readout_norm is None else net.readout_norm(atom)


def trunk_features(net: Any, batch: Batch, *, compiled: bool = False) -> Tensor:
    """Atom features after the last convolution, (A, atom_fea_dim)."""
    passed = message_passing
    # A compiler would specialise on dimensions of 0 and 1.
    if compiled and min(len(batch), len(batch.length), len(batch.short), len(batch.left)) > 1:
        passed = compiled_once(message_passing)
    atom = passed(net, padded(batch) if batch.length.device.type == "cpu" and has_onednn() else batch)
    return atom[: len(batch.numbers)]


def features_of_blocks(net: Any, batch: Batch) -> list[Tensor]:
    """Return the atom features after every convolution, (A, D) each."""
    found: list[Tensor] = []
    message_passing(net, padded(batch) if batch.length.device.type == "cpu" and has_onednn() else batch, found)
    return [features[: len(batch.numbers)] for features in found]


def padded(batch: Batch) -> Batch:
    """Return the batch padded with rows that count for nothing to the numbers of linear.rows_for."""
    rows = {
        **dict.fromkeys(("numbers", "atom_count", "atom_owner"), len(batch.numbers)),
        "length": len(batch.length),
        **dict.fromkeys(("receiver", "sender", "bond", "edge_count"), len(batch.bond)),
        "short": len(batch.short),
        **dict.fromkeys(("left", "right", "middle", "angle_count", "cosine"), len(batch.left)),
    }
    filling = {"numbers": 1, "length": 1}  # hydrogen, 1 A; zeros elsewhere: first rows, counted 0 times
    return replace(
        batch,
        **{
            name: F.pad(getattr(batch, name), (0, rows_for(n) - n), value=filling.get(name, 0))
            for name, n in rows.items()
            if n > 0
        },
    )


def message_passing(net: Any, batch: Batch, after_each: list[Tensor] | None = None) -> Tensor:
    """Atom features after the last convolution, (A, D).

    Args:
        after_each: gets the atom features after every convolution.
    """
    dtype = net.bond_embedding.weight.dtype
    bond_basis = net.bond_basis_expansion.rbf_expansion_ag(batch.length.to(dtype))  # (B, radial)
    short_basis = net.bond_basis_expansion.rbf_expansion_bg(batch.length[batch.short].to(dtype))  # (S, radial)
    angle_basis = fourier(batch.cosine.to(dtype), net.angle_basis_expansion.fourier_expansion)
    angle = linear(angle_basis, net.angle_embedding.weight)  # (G, D)
    atom = net.atom_embedding(batch.numbers - 1)  # (A, D)
    edge_weight = (
        _rows(linear(bond_basis, net.bond_weights_ag.weight), batch.bond) * batch.edge_count[:, None]
    )  # (E, D)
    short_weight = linear(short_basis, net.bond_weights_bg.weight)  # (S, D)
    angle_weight = _rows(short_weight, batch.right) * batch.angle_count[:, None]  # (G, D)
    short_first = net.bond_embedding(_rows(bond_basis, batch.short))  # (S, D) bond features before any update
    short_gain: Tensor | None = None  # (S, D) what the bond convolutions have added
    shift = short_weight.new_zeros(net.bond_fea_dim)  # (D,) what their output biases add to every bond
    for index, conv in enumerate(net.atom_conv_layers):
        bond_term = _bond_term(conv.twoBody_atom, net.bond_embedding.weight, bond_basis, shift)
        if short_gain is not None:
            bond_term = bond_term.index_add(0, batch.short, linear(short_gain, _blocks(conv.twoBody_atom, atom)[1]))
        atom = _atom_conv(conv, atom, bond_term, edge_weight, batch)
        if after_each is not None:
            after_each.append(atom)
        if index == len(net.atom_conv_layers) - 1:
            break
        bond_conv = net.bond_conv_layers[index]
        short = short_first + shift if short_gain is None else short_first + shift + short_gain
        update = _bond_conv(bond_conv, atom, short, angle, short_weight, angle_weight, batch)
        gain = linear(update, bond_conv.mlp_out.layers[1].weight)
        short_gain = gain if short_gain is None else short_gain + gain
        if bond_conv.mlp_out.layers[1].bias is not None:  # 0.2.0
            shift = shift + bond_conv.mlp_out.layers[1].bias
        if index < len(net.atom_conv_layers) - 2:
            short = short_first + shift + short_gain
            mlp = net.angle_layers[index].twoBody_bond
            angle = angle + _gated(mlp, _angle_first_layer(mlp, atom, short, angle, batch))
    return atom


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
    """Return the first Linear of a gated MLP's core and gate (after a Dropout where there is no hidden layer)."""
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
    """Return the rest of a gated MLP after its merged first Linear: (rows, 2 H) -> (rows, D)."""
    core, gate = first.chunk(2, dim=1)
    if len(mlp.mlp_core.layers) == 4:
        last_core, last_gate = mlp.mlp_core.layers[3], mlp.mlp_gate.layers[3]
        core, gate = F.silu(core), F.silu(gate)
        core = linear(core, last_core.weight, last_core.bias)
        gate = linear(gate, last_gate.weight, last_gate.bias)
    if mlp.norm is not None:
        core, gate = mlp.bn1(core), mlp.bn2(gate)
    return F.silu(core) * torch.sigmoid(gate)


def _bond_term(mlp: Any, embedding: Tensor, bond_basis: Tensor, shift: Tensor) -> Tensor:
    """Return the bonds' share of an atom convolution's first Linear, from the radial basis alone: (B, 2 H)."""
    block = _blocks(mlp, embedding.T)[1]  # (2 H, D)
    return linear(bond_basis, block @ embedding, _bias(mlp) + block @ shift)


def _atom_conv(conv: Any, atom: Tensor, bond_term: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    w_receiver, _, w_sender = _blocks(conv.twoBody_atom, atom)
    first = _rows(linear(atom, w_receiver), batch.receiver) + _rows(linear(atom, w_sender), batch.sender)
    message = _gated(conv.twoBody_atom, first + _rows(bond_term, batch.bond)) * weight  # (E, D)
    received = torch.zeros_like(atom).index_add(0, batch.receiver, message)
    out: Tensor = conv.mlp_out(received) + atom
    return out


def _angle_first_layer(mlp: Any, atom: Tensor, short: Tensor, angle: Tensor, batch: Batch) -> Tensor:
    """Return merged first Linear over [left bond, right bond, angle, atom]: (G, 2 H)."""
    w_left, w_right, w_angle, w_atom = _blocks(mlp, atom)
    legs = _rows(linear(short, w_left, _bias(mlp)), batch.left) + _rows(linear(short, w_right), batch.right)
    return legs + _rows(linear(atom, w_atom), batch.middle) + linear(angle, w_angle)


def _bond_conv(
    conv: Any, atom: Tensor, short: Tensor, angle: Tensor, weight: Tensor, angle_weight: Tensor, batch: Batch
) -> Tensor:
    """Messages to each short bond before the output Linear: (S, D)."""
    mlp = conv.twoBody_bond
    message = _gated(mlp, _angle_first_layer(mlp, atom, short, angle, batch)) * angle_weight  # (G, D)
    received = torch.zeros_like(short).index_add(0, batch.left, message)
    return received * weight  # the left bond's weight is common to all its messages
