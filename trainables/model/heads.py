"""From atom features to a crystal's number."""

import copy
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from trainables.graphs.batch import Batch
from trainables.model.transform import TargetTransform, location_and_spread

ATTENTION_HEADS = 3
_FARTHEST = 5.0  # standard deviations
_RIDGE = 0.1  # of the number of rows, on each standardised number
_TELLS = 0.6  # share of the mean's error, below which read-outs are read


class Outputs(NamedTuple):
    """What a head says of n crystals.

    A hurdle head says whether the target is above zero (`logit`) and how large it is then (`value`).
    """

    value: Tensor  # (n,) as it is learnt: in the target's unit, unless there is a transform
    logit: Tensor | None = None  # (n,) of "above zero"
    transform: TargetTransform | None = None

    def in_unit(self) -> Tensor:
        """Return the value in the target's unit, (n,)."""
        return self.value if self.transform is None else self.transform.inverse(self.value)

    def as_learnt(self, targets: Tensor) -> Tensor:
        """Return targets (n,) as the value is learnt."""
        return targets if self.transform is None else cast(Tensor, self.transform(targets))

    def expected(self) -> Tensor:
        """Return a differentiable prediction, (n,): the value, times its probability where there is a hurdle."""
        return self.in_unit() if self.logit is None else torch.sigmoid(self.logit) * self.in_unit()

    def expected_as_learnt(self) -> Tensor:
        """Return the differentiable prediction as targets are learnt, (n,)."""
        return self.value if self.logit is None else self.as_learnt(self.expected())

    def decided(self) -> Tensor:
        """Return the prediction, (n,): of a hurdle the value where it is more likely than zero.

        That is the mixture's median but for the value's own spread, and the median minimises the absolute error.
        """
        return self.in_unit() if self.logit is None else torch.where(self.logit > 0, self.in_unit(), 0.0)


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


class Readouts(nn.Module):
    """Numbers of each crystal, standardised, with a linear map to what a head says.

    Attributes:
        center, scale: (R,) mean and standard deviation on the training part.
        heard: 1 where the numbers tell enough of the training part's targets to be read, else 0.
    """

    center: Tensor
    scale: Tensor
    heard: Tensor

    def __init__(self, n: int, n_out: int) -> None:
        """Take nothing yet: what is learnt begins at zero."""
        super().__init__()
        self.register_buffer("center", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))
        self.register_buffer("heard", torch.ones(()))
        self.linear = nn.Linear(n, n_out)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def fit(self, readouts: Tensor, targets: Tensor) -> None:
        """Standardise by the numbers of the training part, (rows, R), and begin with a ridge regression on them.

        Where that regression's error on rows left out is not far below the mean's, the numbers would only be noise to
        the head: on parts of three tasks they helped where it was 42 % of it, did harm at 86 % and little at 89 %.

        Args:
            targets: (rows,) standardised; NaN where there is nothing to learn.
        """
        there = readouts.isfinite().all(dim=1)
        if not there.any():
            return
        known = readouts[there].double()
        self.center.copy_(known.mean(dim=0))
        self.scale.copy_(known.std(dim=0, correction=0).clamp(min=1e-6))
        learnt = there & targets.isfinite()
        if self.linear.weight.any() or not learnt.any():
            return
        fitted = _ridge(self(readouts[learnt]).double(), targets[learnt])
        self.heard.fill_(float(fitted.share_of_error < _TELLS))
        if self.heard:
            with torch.no_grad():
                self.linear.weight[0], self.linear.bias[0] = fitted.slope, fitted.level

    def forward(self, readouts: Tensor) -> Tensor:
        """Return standardised numbers, (n, R), of which none is far beyond those that were trained on."""
        standard = (readouts - self.center) / self.scale
        return torch.nan_to_num(standard, nan=0.0).clamp(-_FARTHEST, _FARTHEST) * self.heard


class _Ridge(NamedTuple):
    """A ridge regression: (R,) slopes, the level, and its error on rows left out over the mean's."""

    slope: Tensor
    level: Tensor
    share_of_error: float


def _ridge(x: Tensor, y: Tensor) -> _Ridge:
    """Fit (n, R) to (n,); the errors on rows left out one by one are exact (Hastie et al., ESL, section 7.10)."""
    middle, mean, n = x.mean(dim=0), y.mean(), len(x)
    centred = x - middle
    inverse = torch.linalg.inv(centred.T @ centred + _RIDGE * n * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
    slope = inverse @ (centred.T @ (y - mean))
    own = (centred @ inverse * centred).sum(dim=1) + 1 / n  # what a row has of its own prediction
    error = ((y - mean - centred @ slope) / (1 - own).clamp(min=1e-6)).abs().mean()
    return _Ridge(slope, mean - slope @ middle, float(error / (y - mean).abs().mean().clamp(min=1e-12)))


class PropertyHead(nn.Module):
    """Pool, then an MLP, then the training fold's scale.

    Attributes:
        mean, std: standardisation of the target, fitted on the training part of a fold; per atom with `per_cell`.
        transform: what the target is learnt under, before it is standardised.
        robust: standardise by median and median absolute deviation.
        per_cell: the value is that of the whole cell: an atom's times the number of atoms.
        readouts: what the head reads beside pooled features: read-outs of the untrained potential, standardised on
            the training part, into the first layer and, by a linear term, straight into the value.
    """

    mean: Tensor
    std: Tensor
    per_cell: bool = False
    robust: bool = False

    def __init__(
        self,
        width: int,
        *,
        pooling: Literal["mean", "attention"] = "mean",
        hidden: int = 64,
        n_out: int = 1,
        n_readouts: int = 0,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, ATTENTION_HEADS))
        if pooling == "mean":
            self.score = nn.Sequential()
        self.mlp = nn.Sequential(
            nn.Linear(width * (ATTENTION_HEADS if pooling == "attention" else 1) + n_readouts, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, n_out),
        )
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.transform: TargetTransform | None = None
        self.readouts = Readouts(n_readouts, n_out) if n_readouts else None

    def set_scale(self, targets: Tensor) -> None:
        """Standardise by these targets (the training part's)."""
        values = targets
        if self.transform is not None:
            self.transform.fit(targets)
            values = self.transform(targets.to(self.transform.unit.device)).cpu()
        location, spread = location_and_spread(values, robust=self.robust)
        self.mean.fill_(location)
        self.std.fill_(max(spread, 1e-12))

    def fit_readouts(self, readouts: Tensor, targets: Tensor) -> None:
        """Standardise by read-outs of the training part, (rows, R), and begin with what they say of its targets.

        To be called after set_scale; where a linear term is there already it stays.
        """
        if self.readouts is None:
            return
        learnt = self._learnt(targets.to(readouts.device))
        self.readouts.fit(readouts, (learnt - self.mean.double()) / self.std.double())

    def _learnt(self, targets: Tensor) -> Tensor:
        """Return targets as they are learnt, (rows,) float64; NaN where they are not."""
        return targets.double() if self.transform is None else self.transform(targets).double()

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """Return (A, D) -> (n,) in the target's unit."""
        return self.outputs(features, batch).decided()

    def outputs(self, features: Tensor, batch: Batch) -> Outputs:
        """Return the outputs for pooled features and their batch."""
        return Outputs(self._scaled(self._raw(features, batch)[:, 0], batch), transform=self.transform)

    def _scaled(self, raw: Tensor, batch: Batch) -> Tensor:
        value = raw * self.std + self.mean
        return value * batch.n_atoms if self.per_cell else value

    def _raw(self, features: Tensor, batch: Batch) -> Tensor:
        if self.pooling == "attention":
            pooled = attention_pool(features, self.score(features), batch)
        else:
            pooled = mean_pool(features, batch)
        if self.readouts is None:
            return cast(Tensor, self.mlp(pooled))
        known = self.readouts(batch.readouts)
        return cast(Tensor, self.mlp(torch.cat([pooled, known], dim=1)) + self.readouts.linear(known))


class HurdleHead(PropertyHead):
    """Two answers: whether the target is above zero, and how large it is where it is.

    Attributes:
        mean, std: of the training part's targets above zero.
    """

    def __init__(
        self, width: int, *, pooling: Literal["mean", "attention"] = "mean", hidden: int = 64, n_readouts: int = 0
    ) -> None:
        super().__init__(width, pooling=pooling, hidden=hidden, n_out=2, n_readouts=n_readouts)

    def set_scale(self, targets: Tensor) -> None:
        """Set the scale of the outputs from the training targets."""
        above = targets[targets > 0]
        super().set_scale(above if len(above) else targets)

    def _learnt(self, targets: Tensor) -> Tensor:
        above = torch.where(targets > 0, targets, torch.nan)
        return super()._learnt(above)

    def outputs(self, features: Tensor, batch: Batch) -> Outputs:
        """Return the outputs for pooled features and their batch."""
        raw = self._raw(features, batch)
        return Outputs(self._scaled(raw[:, 0], batch), raw[:, 1], self.transform)


class EnergyHead(nn.Module):
    """CHGNet's energy read-out for an auxiliary task: an energy a site and a reference an element."""

    def __init__(self, mlp: nn.Module, reference: Tensor, *, per_cell: bool) -> None:
        """Take a copy of a read-out and its per-element reference, (elements,) eV."""
        super().__init__()
        self.mlp, self.per_cell = copy.deepcopy(mlp), per_cell
        self.reference = nn.Parameter(reference.detach().clone())

    def outputs(self, features: Tensor, batch: Batch) -> Outputs:
        """Return the outputs for pooled features and their batch."""
        site = self.mlp(features)[:, 0] + self.reference.index_select(0, batch.numbers - 1)  # (A,)
        energy = crystal_sum(site[:, None], batch)[:, 0]
        return Outputs(energy if self.per_cell else energy / batch.n_atoms)
