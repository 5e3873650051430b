"""The sections of RunConfig: what can be chosen, one field a toggle, with what each may be.

The defaults are the plain run; every lever is off until it is asked for.
"""

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from trainables.mappings import flattened

Start = Literal["0.3.0", "r2scan", "0.2.0", "scratch"]
Freezable = Literal["embedding", "basis", "block_1", "block_2", "block_3", "block_4", "head", "reference"]
Combine = Literal["mean", "median", "greedy", "stacked"]
FULL_WIDTH = 64
MOST_MEMBERS = 64
MOST_MODELS = 160  # of a fold

# What members of an ensemble have in common, by key or section, and why.
_SAME_ROWS = "members are combined by what they predict for the same rows, which none was trained on"
_SHARED = {
    "task": _SAME_ROWS,
    "fold": _SAME_ROWS,
    "data": _SAME_ROWS,
    "multitask.tasks": "all members are trained on the same tasks",
    "seed": "ensemble.members is the number of seeds",
    "ensemble": "it says how members are combined",
    "tta": "all members predict in the same way",
}


# Levers that came later are left out where they are off, so that runs keep the fingerprints and files they had before.
_OFF = {"transform": "none", "scale": "std", "family": "chgnet", "phonons": False, "physics": False}
_OFF_OPTIM = {"patience": 0, "ema_half_life": 0.0, "towards_start": 0.0}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1: a learning rate of it is a mistake."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and (kind in (int, float) or {int, float} & set(get_args(kind))):
            raise PydanticCustomError("number_expected", "input should be a number")
        return value


class ModelConfig(Section):
    """What is trained, and from where it starts."""

    start: Start = Field("0.3.0", description="Weights to start from; scratch means random weights.")
    family: Literal["chgnet", "tabular"] = Field(
        "chgnet",
        description="Kind of model; tabular is ridge regression and trees on numbers of each crystal, those of the "
        "untrained CHGNet among them: seconds, and of model, optim and loss only start and floor apply.",
    )
    phonons: bool = Field(
        False,
        description="Of a tabular model and of model.physics: the untrained CHGNet's highest frequency at the Gamma "
        "point, too, which takes minutes for a thousand crystals.",
    )
    physics: bool = Field(
        False,
        description="Give a property head read-outs of the untrained CHGNet beside the pooled features: energy, "
        "pressure, bulk modulus, moments, site energies and, with model.phonons, the highest vibration. It does "
        "without where they tell little of the training rows' targets.",
    )
    init_seed: int | None = Field(
        None, ge=0, description="Seed for randomly initialised weights (default: the run's seed)."
    )
    pooling: Literal["mean", "attention"] = Field(
        "mean", description="Pooling of atom features in a property head; energies are sums over atoms."
    )
    freeze: tuple[Freezable, ...] = Field((), description="Parts of the model that keep their starting weights.")
    width: int = Field(
        FULL_WIDTH, ge=8, le=FULL_WIDTH, description="Width of the features; below 64 (CHGNet-lite) only from scratch."
    )
    head: Literal["plain", "hurdle"] = Field(
        "plain", description="Property head; hurdle predicts whether a value is zero, then how large it is."
    )
    floor: float | None = Field(
        None, description="Predictions below this value are raised to it, for example 0 for band gaps."
    )
    transform: Literal["none", "log", "asinh"] = Field(
        "none",
        description="Function that a property is learnt under, for targets over several orders of magnitude: log "
        "(targets above 0) or asinh (any sign); scores stay in the target's own unit.",
    )
    scale: Literal["std", "robust"] = Field(
        "std",
        description="What a property is standardised by: mean and standard deviation, or median and median absolute "
        "deviation, which outliers hardly move.",
    )

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if _OFF.get(name, ...) != value}


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate (of the head).")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the learning rate for each block further from the head."
    )
    weight_decay: float = Field(
        1e-2, ge=0, description="Weight decay of matrices; biases, norms and references have none."
    )
    towards_start: float = Field(
        0.0,
        ge=0,
        description="Decay of pretrained matrices towards where they started, instead of weight decay towards zero, "
        "against forgetting (L2-SP).",
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of all steps during which the learning rate rises.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning-rate schedule.")
    final_lr: float = Field(1e-5, ge=0, description="Learning rate at the end of a cosine or linear schedule.")
    epochs: int = Field(30, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(32, ge=1, description="Crystals of average cost in a batch.")
    grad_clip: float = Field(10.0, ge=0, description="Largest norm of the gradient; 0 means no limit.")
    averaging: Literal["ema", "swa", "none"] = Field(
        "ema", description="Averaging of the weights that are validated and kept."
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="Decay of the exponential moving average; 0 means none.")
    ema_half_life: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Half-life of the exponential moving average as a share of all steps, which then fits runs of any "
        "length; 0 leaves it to optim.ema_decay.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Epochs without a better validation error after which training ends; 0 trains all epochs.",
    )
    swa_from: float = Field(0.75, ge=0, lt=1, description="Share of all steps after which swa begins to average.")

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if _OFF_OPTIM.get(name, ...) != value}


class LossConfig(Section):
    """Distance of prediction and target: in eV for energies, in standard deviations for other properties."""

    name: Literal["l1", "huber", "mse"] = Field("l1", description="Loss function.")
    delta: float = Field(0.1, gt=0, description="Distance at which huber turns from square to linear.")


class DataConfig(Section):
    """Which rows take part, and how."""

    val_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the training fold held out for validation, by reduced formula."
    )
    split_seed: int = Field(
        0, ge=0, description="Seed that chooses the validation rows, which all seeds of a model share."
    )
    refit: bool = Field(
        False, description="Train again on training and validation rows for the chosen number of epochs."
    )
    isolated_atoms: Literal["fallback", "keep"] = Field(
        "fallback",
        description="How crystals with an atom without neighbours are predicted: from composition, or by CHGNet.",
    )


class PerturbConfig(Section):
    """A random strain and random displacements of a crystal.

    `size` is the standard deviation of a normal draw, the half-width of a uniform one: of each of a strain's six
    components in Mandel's notation (so that no direction is preferred), of each cartesian component in A.
    `symmetry` draws are projected on what keeps the crystal's space group and run on folded graphs.
    """

    strain: Literal["none", "isotropic", "symmetry", "free"] = Field("none", description="Kind of strain.")
    strain_size: float = Field(1e-3, ge=0, le=0.03, description="Size of the strain.")
    displacement: Literal["none", "symmetry", "free"] = Field("none", description="Kind of displacements.")
    displacement_size: float = Field(0.005, ge=0, le=0.1, description="Size of the displacements in A.")
    distribution: Literal["normal", "uniform"] = Field(
        "normal",
        description="Distribution of strains and displacements; normal draws are truncated at 5 times the size.",
    )

    @property
    def strains(self) -> bool:
        """Return whether cells are strained."""
        return self.strain != "none" and self.strain_size > 0

    @property
    def displaces(self) -> bool:
        """Return whether atoms are displaced."""
        return self.displacement != "none" and self.displacement_size > 0

    @property
    def active(self) -> bool:
        """Return whether crystals are perturbed at all."""
        return self.strains or self.displaces

    @property
    def keeps_symmetry(self) -> bool:
        """True where folded graphs serve: nothing that is drawn breaks the crystal's symmetry."""
        return not (self.strains and self.strain == "free") and not (self.displaces and self.displacement == "free")


class AugmentConfig(PerturbConfig):
    """Training on perturbed crystals, redrawn for each crystal and step."""

    probability: float = Field(1.0, gt=0, le=1, description="Probability that a crystal is perturbed in a step.")
    labels: Literal["kept", "corrected"] = Field(
        "kept",
        description="Labels of perturbed crystals; corrected adds the frozen CHGNet's energy change (energies only).",
    )


class ConsistencyConfig(Section):
    """The perturbed crystal's prediction is drawn towards the clean one's ("stochastic symmetry averaging")."""

    weight: float = Field(0.0, ge=0, description="Weight of the distance between both predictions; 0 switches it off.")
    target: Literal["stop_gradient", "two_sided"] = Field(
        "stop_gradient", description="Which prediction moves; with stop_gradient only the perturbed one."
    )
    ramp: float = Field(0.2, ge=0, le=1, description="Share of all steps over which the weight rises from 0.")
    supervised: bool = Field(False, description="Give half of the supervised loss to the perturbed crystal.")


class TtaConfig(PerturbConfig):
    """Test-time augmentation: predict several views of a crystal and take one number."""

    views: int = Field(1, ge=1, le=256, description="Number of views; 1 is the plain prediction.")
    strain: Literal["none", "isotropic", "symmetry", "free"] = Field("symmetry", description="Kind of strain.")
    displacement: Literal["none", "symmetry", "free"] = Field("symmetry", description="Kind of displacements.")
    identity: bool = Field(True, description="Use the unperturbed crystal as one of the views.")
    aggregate: Literal["mean", "median", "trimmed"] = Field(
        "mean", description="How views become one number; trimmed is the mean of the middle half."
    )
    corrected: bool = Field(
        False, description="Subtract the frozen CHGNet's energy change of each view (energies only)."
    )


class EnsembleConfig(Section):
    """Several seeds of one run, or of several that differ in some settings, combined.

    Weights are chosen on the inner validation rows, which all members share.
    """

    members: int = Field(
        1, ge=1, le=MOST_MEMBERS, description="Number of seeds (seed, seed + 1, ...) of each varied configuration."
    )
    combine: Literal[Combine, "soup"] = Field(
        "mean", description="How members are combined; soup averages their weights into one model."
    )
    vary: dict[str, tuple[Any, ...]] = Field(
        {},
        description="Settings in which members differ, each with its values, for example model.start: [0.3.0, r2scan]; "
        "every combination has all seeds.",
    )
    inner_folds: int = Field(
        0,
        ge=0,
        le=10,
        description="Parts of the training fold, by reduced formula: of each member one model a part is trained on the "
        "others and validated on that part, and their mean predicts. Members are then weighted by all training rows, "
        "each predicted by models that did not see it. 0: one model a member, and data.val_share.",
    )

    @field_validator("vary", mode="before")
    @classmethod
    def _by_dotted_key(cls, value: Any) -> Any:
        """Sections may be nested; the order of keys, and so that of the members, does not depend on how they came."""
        return dict(sorted(flattened(value).items())) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _members_differ(self) -> "EnsembleConfig":
        for key, values in self.vary.items():
            reason = next((why for start, why in _SHARED.items() if f"{key}.".startswith(f"{start}.")), None)
            if reason is not None:
                raise ValueError(f"ensemble.vary: {key} cannot be varied: {reason}")
            if len(values) < 2 or any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(
                    f"ensemble.vary: {key} has {_values(values)}; at least two different values were expected"
                )
        if self.size > MOST_MEMBERS:
            raise ValueError(
                f"ensemble.vary and ensemble.members={self.members} make {self.size} members; at most {MOST_MEMBERS} "
                "are allowed"
            )
        if self.inner_folds == 1:
            raise ValueError("ensemble.inner_folds=1: at least 2 parts were expected, or 0 for none")
        if self.size * max(1, self.inner_folds) > MOST_MODELS:
            raise ValueError(
                f"{self.size} members in ensemble.inner_folds={self.inner_folds} parts make "
                f"{self.size * self.inner_folds} models a fold; at most {MOST_MODELS} are allowed"
            )
        if self.inner_folds and self.combine == "soup":
            raise ValueError(
                "ensemble.combine=soup averages weights that were trained on the same rows: leave out "
                "ensemble.inner_folds, or use greedy, stacked, mean or median"
            )
        if self.vary and self.combine == "soup":
            raise ValueError(
                "ensemble.combine=soup averages the weights of models of one configuration: leave out ensemble.vary, "
                "or use greedy, stacked, mean or median"
            )
        return self

    def __hash__(self) -> int:
        return hash(
            (self.members, self.combine, self.inner_folds, *self.vary)
        )  # of the keys alone: a value may be a list

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if not self.vary:
            content.pop("vary", None)
        if not self.inner_folds:
            content.pop("inner_folds", None)
        return content

    @property
    def variants(self) -> list[dict[str, Any]]:
        """Return the values of the varied settings, by dotted key, of each configuration; one without any if none."""
        return [dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())]

    @property
    def size(self) -> int:
        """Return the number of members: every variant has as many seeds."""
        return self.members * prod(map(len, self.vary.values()))

    @property
    def per_member(self) -> int:
        """Return the number of models of each member: one a part, where there are parts."""
        return max(1, self.inner_folds)


def _values(values: tuple[Any, ...]) -> str:
    return f"the value{'s' * (len(values) != 1)} {', '.join(map(str, values))}" if values else "no value"


class DistilConfig(Section):
    """Learning from teachers beside the labels."""

    weight: float = Field(0.0, ge=0, le=1, description="Share of the teachers' labels in the loss; 0 switches it off.")
    teachers: Literal["out_of_fold", "in_sample"] = Field(
        "out_of_fold", description="Whether teachers label rows that they were not trained on, or their own."
    )
    inner_folds: int = Field(
        3, ge=2, le=10, description="Parts into which the training fold is split for its teachers, by reduced formula."
    )
    seeds: int = Field(3, ge=1, le=64, description="Teachers per inner fold (1: a born-again network).")
    teacher_start: Start | None = Field(
        None, description="Weights that teachers start from (default: those of the student), at full width."
    )
    weighting: Literal["none", "noise", "hardness"] = Field(
        "none", description="How rows on which teachers disagree count: less (noise) or more (hardness)."
    )
    temperature: float = Field(
        1.0, gt=0, description="Temperature of that weight, exp(-+ disagreement / mean disagreement / temperature)."
    )
    features: float = Field(0.0, ge=0, description="Weight of matching the teachers' pooled atom features.")


class MultitaskConfig(Section):
    """Joint training of a shared trunk on several tasks, before the target's own training."""

    tasks: tuple[str, ...] = Field((), description="Auxiliary tasks; none switches joint training off.")
    epochs: int = Field(5, ge=1, description="Passes over the target's rows in the joint training.")
    mixing: Literal["proportional", "sqrt", "equal"] = Field(
        "sqrt", description="How steps are divided among tasks: by rows, by their square root, or equally."
    )
    weighting: Literal["fixed", "uncertainty"] = Field(
        "fixed", description="Weights of the losses; uncertainty learns their scales."
    )
    weight: float = Field(1.0, gt=0, description="Weight of each auxiliary task's loss; the target's is 1.")
    max_rows: int | None = Field(
        None, ge=1, description="Largest number of rows of each auxiliary task, chosen at random with a fixed seed."
    )
    keep_overlap: bool = Field(
        False, description="Keep auxiliary rows that are test crystals; every score then carries a caveat."
    )
