"""From atom features to a crystal's number."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainables.graphs.batch import Batch

ATTENTION_HEADS = 3


def crystal_sum(values: Tensor, batch: Batch) -> Tensor:
    """Sum over the atoms of each crystal: (A, k) -> (n, k)."""
    every = values * batch.atom_count[:, None]
    return values.new_zeros(len(batch), values.shape[1]).index_add(0, batch.atom_owner, every)


def mean_pool(features: Tensor, batch: Batch) -> Tensor:
    """Mean atom feature of each crystal, (n, D): the same for a cell and its supercells."""
    return crystal_sum(features, batch) / batch.n_atoms[:, None]


def attention_pool(features: Tensor, scores: Tensor, batch: Batch) -> Tensor:
    """Softmax-weighted sums of atom features, (n, heads * D).

    The weights of a crystal sum to 1, so, unlike chgnet's GraphAttentionReadOut(average=True), nothing is
    divided by the number of atoms afterwards and a supercell pools to the same features.
    """
    n_heads = scores.shape[1]
    highest = scores.new_full((len(batch), n_heads), -torch.inf)
    highest = highest.scatter_reduce(0, batch.atom_owner[:, None].expand_as(scores), scores.detach(), "amax")
    weight = torch.exp(scores - highest[batch.atom_owner])  # (A, heads)
    weight = weight / crystal_sum(weight, batch).index_select(0, batch.atom_owner)
    return crystal_sum((weight[:, :, None] * features[:, None, :]).flatten(1), batch)


class PropertyHead(nn.Module):
    """Pool, then an MLP, then the training fold's scale.

    Attributes:
        mean, std: standardisation of the target, fitted on the training part of a fold.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, *, pooling: Literal["mean", "attention"] = "mean", hidden: int = 64) -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, ATTENTION_HEADS))
        if pooling == "mean":
            self.score = nn.Sequential()
        self.mlp = nn.Sequential(
            nn.Linear(width * (ATTENTION_HEADS if pooling == "attention" else 1), hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 1),
        )
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def set_scale(self, targets: Tensor) -> None:
        """Standardise by these targets (the training part's)."""
        self.mean.fill_(float(targets.mean()))
        self.std.fill_(max(float(targets.std(correction=0)), 1e-12))

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """(A, D) -> (n,) in the target's unit."""
        if self.pooling == "attention":
            pooled = attention_pool(features, self.score(features), batch)
        else:
            pooled = mean_pool(features, batch)
        return self.mlp(pooled)[:, 0] * self.std + self.mean
