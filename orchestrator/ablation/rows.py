"""The rows of an ablation's table, as values; `content()` is what the files hold."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Decision(StrEnum):
    """What a comparison decides.

    Better and worse: a corrected p below 0.05, and the bootstrap's interval on one side of zero. Not compared: there
    are numbers, but none of the other experiment on the same rows.
    """

    BASELINE = "baseline"
    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference seen"
    FAILED = "failed"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Comparison:
    """An experiment against another one, on the same test rows; no numbers where that cannot be.

    Attributes:
        difference: in MAE, mean over folds, in the target's unit; negative favours the experiment.
        interval: 95 %, from a bootstrap over chemical systems; None where there are too few.
        p: over folds where there are several, else the bootstrap's, which is p_bootstrap.
        p_corrected: Holm's, over all comparisons of its family.
        detectable: the smallest difference that could have been called significant, alone.
        detectable_corrected: the same as the only difference of its family.
        n_systems: chemical systems of the test rows.
        per_fold_difference: by fold.
        reason: why there is no comparison.
    """

    decision: Decision = Decision.NOT_COMPARED
    reason: str = ""
    note: str = ""
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_bootstrap: float | None = None
    p_corrected: float | None = None
    detectable: float | None = None
    detectable_corrected: float | None = None
    n_systems: int | None = None
    per_fold_difference: dict[str, float] | None = None

    @property
    def by_fold(self) -> dict[str, float]:
        """Return the difference of each fold."""
        return self.per_fold_difference or {}

    def content(self) -> dict[str, Any]:
        """Return what the files hold."""
        numbers = ("p", "p_bootstrap", "p_corrected", "detectable", "detectable_corrected", "n_systems")
        interval = None if self.interval is None else list(self.interval)
        return {
            "difference": self.difference,
            "interval": interval,
            **{name: getattr(self, name) for name in numbers},
            "per_fold_difference": self.by_fold,
            "note": self.note,
            "decision": str(self.decision),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Control:
    """The comparison with an experiment of equal cost.

    Attributes:
        equal_in: "training", "use", "training and use" or "neither"; empty where one of the two has no numbers.
    """

    name: str
    equal_in: str
    comparison: Comparison

    def content(self) -> dict[str, Any]:
        """Return what the files hold."""
        return {"name": self.name, "equal_in": self.equal_in, **self.comparison.content()}


@dataclass(frozen=True)
class Cost:
    """What an experiment costs.

    Attributes:
        structures: processed in training by all its models on all folds, a replicate.
        seconds: of training, for the same.
        models: a fold and replicate, teachers included.
        members: models that predict a crystal together.
        views: of a crystal that each of them predicts.
    """

    structures: int
    seconds: float | None
    device: str
    models: int
    members: int
    views: int

    @property
    def predictions(self) -> int:
        """Return the predictions of a crystal at test time."""
        return self.members * self.views

    def content(self) -> dict[str, Any]:
        """Return what the files hold."""
        return {
            "structures": self.structures,
            "seconds": self.seconds,
            "device": self.device,
            "models": self.models,
            "members": self.members,
            "views": self.views,
            "predictions": self.predictions,
        }


@dataclass(frozen=True)
class Errors:
    """What an experiment scored; nothing where it failed.

    Attributes:
        n_rows, folds, replicates: numbers of test rows, folds and replicates.
        mae_std: the population's, over folds; None for one.
        mae_seed_std: the sample's, over replicates; None for one.
        max_error, p95_error: of each replicate's absolute errors, mean over replicates.
        per_fold: MAE by fold.
    """

    n_rows: int | None = None
    folds: int | None = None
    replicates: int | None = None
    mae_mean: float | None = None
    mae_std: float | None = None
    mae_seed_std: float | None = None
    max_error: float | None = None
    p95_error: float | None = None
    per_fold: dict[str, float] | None = None

    def content(self) -> dict[str, Any]:
        """Return what the files hold."""
        return {**vars(self), "per_fold": self.per_fold or {}}


@dataclass(frozen=True)
class ExperimentRow:
    """One experiment: what it is, what it scored and cost, and how it compares with its parent and its control.

    Attributes:
        caveats: what must be said beside every number.
        failed: why it has no numbers.
        curve: of an ensemble: n_members, mae, min and max.
        against_parent: with the decision about the experiment: baseline and failed are decisions, too.
    """

    name: str
    description: str
    change: str
    parent: str | None
    tier: str
    caveats: tuple[str, ...]
    failed: str
    errors: Errors
    cost: Cost
    curve: list[dict[str, Any]]
    against_parent: Comparison
    control: Control | None = None

    @property
    def mae(self) -> float | None:
        """Return the mean MAE over folds."""
        return self.errors.mae_mean

    @property
    def decision(self) -> Decision:
        """Return what the comparison with the parent decides."""
        return self.against_parent.decision

    @property
    def shown_name(self) -> str:
        """Return the name, with a star where the numbers have caveats."""
        return f"{self.name} *" if self.caveats else self.name

    def content(self) -> dict[str, Any]:
        """Return what the files hold."""
        return {
            "name": self.name,
            "says": self.description,
            "change": self.change,
            "parent": self.parent,
            "tier": self.tier,
            "marks": list(self.caveats),
            "failed": self.failed,
            **self.errors.content(),
            "cost": self.cost.content(),
            "curve": self.curve,
            **self.against_parent.content(),
            "control": None if self.control is None else self.control.content(),
        }
