"""The sections of RunConfig: what can be chosen, one field a toggle, with what each may be.

The defaults are the plain run; every lever is off until it is asked for.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from trainables.config import RunConfig

Start = Literal["0.3.0", "r2scan", "0.2.0", "scratch"]
Freezable = Literal["embedding", "basis", "block_1", "block_2", "block_3", "block_4", "head", "reference"]
Combine = Literal["mean", "median", "greedy", "stacked"]
FULL_WIDTH = 64


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

    start: Start = "0.3.0"
    init_seed: int | None = Field(None, ge=0, description="of fresh weights; by default the run's own seed")
    pooling: Literal["mean", "attention"] = Field("mean", description="of a property head; energies are sums")
    freeze: tuple[Freezable, ...] = Field((), description="parts that keep their starting weights")
    width: int = Field(FULL_WIDTH, ge=8, le=FULL_WIDTH, description="of features; below 64 (CHGNet-lite) from scratch")
    head: Literal["plain", "hurdle"] = Field("plain", description="hurdle: zero or not, then how much (band gaps)")
    floor: float | None = Field(None, description="predictions below it are raised to it, such as 0 for band gaps")


class OptimConfig(Section):
    """The optimiser and its course."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="peak learning rate, of the head")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate a block further from the head")
    weight_decay: float = Field(1e-2, ge=0, description="on matrices only, not on biases, norms or references")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a rising learning rate")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr: float = Field(1e-5, ge=0, description="learning rate at the end of a cosine or linear schedule")
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(32, ge=1, description="crystals of mean cost a batch")
    grad_clip: float = Field(10.0, ge=0, description="largest gradient norm; 0: no limit")
    averaging: Literal["ema", "swa", "none"] = Field("ema", description="of the weights that are validated and kept")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the exponential moving average; 0: none")
    swa_from: float = Field(0.75, ge=0, lt=1, description="share of all steps after which swa averages equally")


class LossConfig(Section):
    """Distance of prediction and target: in eV for energies, in standard deviations for other properties."""

    name: Literal["l1", "huber", "mse"] = "l1"
    delta: float = Field(0.1, gt=0, description="where huber turns from square to linear")


class DataConfig(Section):
    """Which rows take part, and how."""

    val_share: float = Field(0.1, gt=0, lt=1, description="share of the training fold held out, by reduced formula")
    split_seed: int = Field(0, ge=0, description="of the inner validation rows, which all seeds share")
    refit: bool = Field(False, description="train again on train + validation for the chosen number of epochs")
    isolated_atoms: Literal["fallback", "keep"] = Field(
        "fallback", description="crystals with an atom without neighbours: composition model, or CHGNet all the same"
    )


class PerturbConfig(Section):
    """A random strain and random displacements of a crystal.

    `size` is the standard deviation of a normal draw, the half-width of a uniform one: of each of a strain's six
    components in Mandel's notation (so that no direction is preferred), of each cartesian component in A.
    `symmetry` draws are projected on what keeps the crystal's space group and run on folded graphs.
    """

    strain: Literal["none", "isotropic", "symmetry", "free"] = "none"
    strain_size: float = Field(1e-3, ge=0, le=0.03)
    displacement: Literal["none", "symmetry", "free"] = "none"
    displacement_size: float = Field(0.005, ge=0, le=0.1, description="A")
    distribution: Literal["normal", "uniform"] = Field("normal", description="normal draws end at 5 sizes")

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
    """Training on perturbed crystals, drawn anew for each crystal and step."""

    probability: float = Field(1.0, gt=0, le=1, description="that a crystal is perturbed in a step")
    labels: Literal["kept", "corrected"] = Field(
        "kept", description="corrected: y + E(perturbed) - E(clean) of the frozen pretrained CHGNet (energies only)"
    )


class ConsistencyConfig(Section):
    """The perturbed crystal's prediction is drawn towards the clean one's ("stochastic symmetry averaging")."""

    weight: float = Field(0.0, ge=0, description="of the distance of both predictions; 0: off")
    target: Literal["stop_gradient", "two_sided"] = Field(
        "stop_gradient", description="stop_gradient: only the perturbed prediction moves"
    )
    ramp: float = Field(0.2, ge=0, le=1, description="share of all steps over which the weight rises from 0")
    supervised: bool = Field(False, description="the perturbed crystal gets half of the supervised loss as well")


class TtaConfig(PerturbConfig):
    """Test-time augmentation: predict several views of a crystal and take one number."""

    views: int = Field(1, ge=1, le=256, description="1: the plain prediction")
    strain: Literal["none", "isotropic", "symmetry", "free"] = "symmetry"
    displacement: Literal["none", "symmetry", "free"] = "symmetry"
    identity: bool = Field(True, description="the unperturbed crystal is one of the views")
    aggregate: Literal["mean", "median", "trimmed"] = Field("mean", description="trimmed: mean of the middle half")
    corrected: bool = Field(False, description="take off E(perturbed) - E(clean) of the frozen pretrained CHGNet")


class EnsembleConfig(Section):
    """Several seeds of the same run, combined; weights are chosen on the shared inner validation rows."""

    members: int = Field(1, ge=1, le=64, description="seeds seed, seed + 1, ...")
    combine: Literal[Combine, "soup"] = Field(
        "mean", description="soup: the average of the members' weights, one model"
    )


class DistilConfig(Section):
    """Learning from teachers beside the labels."""

    weight: float = Field(0.0, ge=0, le=1, description="share of the teachers' labels in the loss; 0: off")
    teachers: Literal["out_of_fold", "in_sample"] = Field(
        "out_of_fold", description="in_sample: teachers that were trained on the rows they label"
    )
    inner_folds: int = Field(3, ge=2, le=10, description="of the training fold, by reduced formula")
    seeds: int = Field(3, ge=1, le=64, description="teachers an inner fold; 1: born again")
    teacher_start: Start | None = Field(None, description="where teachers start; by default as the student, full width")
    weighting: Literal["none", "noise", "hardness"] = Field(
        "none", description="rows of large teacher disagreement count less (noise) or more (hardness)"
    )
    temperature: float = Field(1.0, gt=0, description="weight = exp(-+ disagreement / mean disagreement / temperature)")
    features: float = Field(0.0, ge=0, description="weight of matching the teachers' pooled atom features")


class MultitaskConfig(Section):
    """Joint training of a shared trunk on several tasks, before the target's own training."""

    tasks: tuple[str, ...] = Field((), description="auxiliary tasks; none: off")
    epochs: int = Field(5, ge=1, description="of the target's rows in the joint training")
    mixing: Literal["proportional", "sqrt", "equal"] = Field(
        "sqrt", description="steps of a task: as its rows, as their square root, or as many for each"
    )
    weighting: Literal["fixed", "uncertainty"] = Field("fixed", description="uncertainty: learnt scales of the losses")
    weight: float = Field(1.0, gt=0, description="of each auxiliary task's loss; the target's is 1")
    max_rows: int | None = Field(None, ge=1, description="at most so many rows of each auxiliary task, seeded")
    keep_overlap: bool = Field(False, description="keep auxiliary rows that are a test crystal: marks every number")


def lever_problems(config: "RunConfig") -> list[str]:
    """Return what is wrong with the sections together, one sentence each."""
    return list(_problems(config))


def _problems(config: "RunConfig") -> Iterator[str]:
    if config.model.width < FULL_WIDTH and config.model.start != "scratch":
        yield (
            f"model.width={config.model.width}: the shipped weights are {FULL_WIDTH} wide, a narrower model wants "
            "model.start=scratch"
        )
    if config.consistency.weight > 0 and not config.augment.active:
        yield "consistency.weight > 0 wants a perturbation: set augment.strain or augment.displacement (size above 0)"
    if config.tta.views == 1 and not config.tta.identity:
        yield "tta.identity=false wants tta.views of 2 or more: one view is the plain prediction"
    if config.tta.views > 1 and not config.tta.active:
        yield "tta.views > 1 wants a perturbation: set tta.strain or tta.displacement (size above 0)"
    if config.ensemble.combine == "soup" and config.model.start == "scratch":
        yield "ensemble.combine=soup wants members of one start: model.start=scratch gives every seed its own"
    if config.data.refit and config.ensemble.members > 1 and config.ensemble.combine in ("greedy", "stacked"):
        yield (
            f"ensemble.combine={config.ensemble.combine} chooses weights on the inner validation rows, which "
            "data.refit=true trains on: use mean or median, or no refit"
        )
    teacher = config.distil.teacher_start
    if config.distil.weight > 0 and teacher is not None and (teacher == "0.2.0") != (config.model.start == "0.2.0"):
        yield "0.2.0 sees 5 A, the other weights 6 A: distil.teacher_start and model.start must see equally far"
    if config.task in config.multitask.tasks:
        yield f"multitask.tasks holds the target itself ({config.task}): name other tasks"
    if len(set(config.multitask.tasks)) < len(config.multitask.tasks):
        yield "multitask.tasks names a task twice"
