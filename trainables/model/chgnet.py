"""The model that is trained: CHGNet with its own weights and state_dict keys, energy only, over packed batches."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from trainables.data.tasks import Task
from trainables.graphs.batch import Batch
from trainables.graphs.convert import Cutoffs
from trainables.levers import FULL_WIDTH, ModelConfig, Start
from trainables.model.engine import atom_features
from trainables.model.heads import EnergyHead, HurdleHead, Outputs, PropertyHead, crystal_sum, mean_pool
from trainables.model.modules import ChgnetModules
from trainables.model.readout_names import readout_names
from trainables.model.transform import TargetTransform

WEIGHT_FILES = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "0.2.0": "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
SCRATCH_ARCHITECTURE: Start = "0.3.0"
TRAINING_PARTS = ("auxiliary.", "log_scale.", "match.")  # of a model that is trained; none of them predicts
_WIDTHS = ("atom_fea_dim", "bond_fea_dim", "angle_fea_dim", "atom_conv_hidden_dim", "bond_conv_hidden_dim")


class CrystalModel(ChgnetModules):
    """CHGNet's modules under a packed, energy-only forward pass.

    Without a head its state_dict has exactly stock's keys; a property head adds `head.*`.

    Attributes:
        per_cell: energies are given for the whole cell instead of an atom.
        compiled: predictions go through torch.compile.
        floor: predictions below it are raised to it.
        head: None where the prediction is CHGNet's own energy.
        readouts_of: the configuration of the untrained CHGNet whose read-outs batches have to come with; None where
            the head reads none.
        auxiliary: heads of other tasks, by name, while they are trained jointly.
        log_scale: their losses' learnt scales, where there are some, and the target's under "target".
        match: from pooled features to a teacher's, while those are matched.
    """

    per_cell: bool = False
    compiled: bool = False
    floor: float | None = None
    readouts_of: ModelConfig | None = None

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self.arguments = dict(arguments)  # of chgnet's CHGNet of the same shape
        # An instance's: torch keeps modules apart from attributes, so a class attribute would hide the head for ever.
        self.head: PropertyHead | None = None
        self.auxiliary = nn.ModuleDict()
        self.log_scale = nn.ParameterDict()
        self.match: nn.Linear | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Predictions (n,) in the task's unit."""
        predicted = self.outputs(self.features(batch), batch).decided()
        return predicted if self.floor is None else predicted.clamp(min=self.floor)

    def features(self, batch: Batch) -> Tensor:
        """Atom features (A, D) that all heads read."""
        return atom_features(self, batch, compiled=self.compiled)

    def outputs(self, features: Tensor, batch: Batch, head: str = "") -> Outputs:
        """Return what the model's own head, or an auxiliary one, makes of atom features."""
        if head:
            return cast(PropertyHead | EnergyHead, self.auxiliary[head]).outputs(features, batch)
        if self.head is not None:
            return self.head.outputs(features, batch)
        per_atom = crystal_sum(self.mlp(features), batch)[:, 0] / batch.n_atoms + self.reference(batch)
        return Outputs(per_atom * batch.n_atoms if self.per_cell else per_atom)

    def pooled(self, batch: Batch) -> Tensor:
        """Mean atom features, (n, D)."""
        return mean_pool(self.features(batch), batch)

    def without_training_parts(self) -> dict[str, Tensor]:
        """Return the state that predicts: no auxiliary heads, scales of losses or matching."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(TRAINING_PARTS)}

    def graph_energy(self, batch: Batch) -> Tensor:
        """Return the graph network's share of the energy, without the per-element reference: (n,) eV/atom."""
        site_energy = self.mlp(atom_features(self, batch))  # (A, 1)
        return crystal_sum(site_energy, batch)[:, 0] / batch.n_atoms

    def reference(self, batch: Batch) -> Tensor:
        """Per-element reference energy, (n,) eV/atom."""
        site_reference = self.composition_model.fc.weight[0].index_select(0, batch.numbers - 1)  # (A,)
        return crystal_sum(site_reference[:, None], batch)[:, 0] / batch.n_atoms

    @property
    def cutoffs(self) -> Cutoffs:
        """Return the cutoffs of its graphs."""
        return Cutoffs(self.atom_cutoff, self.bond_cutoff)


def build_model(
    start: Start,
    task: Task,
    *,
    pooling: Literal["mean", "attention"] = "mean",
    seed: int = 0,
    width: int = FULL_WIDTH,
    head: Literal["plain", "hurdle"] = "plain",
    floor: float | None = None,
    transform: Literal["none", "log", "asinh"] = "none",
    scale: Literal["std", "robust"] = "std",
    physics: bool = False,
    phonons: bool = False,
) -> CrystalModel:
    """CHGNet from the weights its wheel ships (or random ones), with the head the task's quantity asks for.

    Args:
        pooling: how a property head pools atoms; energies always use CHGNet's own sum.
        seed: of the random weights: a fresh head's, and all of them for `scratch`.
        width: of all features; only random weights can be narrower than CHGNet's.
        head, floor, transform, scale, physics, phonons: of a property (levers.ModelConfig).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load(start, width)
        model.per_cell, model.floor = task.quantity == "energy_per_cell", floor
        if not task.is_energy:
            model.readouts_of = ModelConfig(start=start, phonons=phonons) if physics else None
            kind: type[PropertyHead] | type[HurdleHead] = {"plain": PropertyHead, "hurdle": HurdleHead}[head]
            n_readouts = len(readout_names(phonons=phonons)) if physics else 0
            model.head = kind(model.atom_fea_dim, pooling=pooling, n_readouts=n_readouts)
            model.head.per_cell, model.head.robust = task.is_sum, scale == "robust"
            if transform != "none":
                model.head.transform = TargetTransform(transform)
    for parameter in model.parameters():
        parameter.requires_grad = True
    return model


def configured_model(config: ModelConfig, task: Task, seed: int = 0) -> CrystalModel:
    """Return the untrained model of a configuration; `seed` is the run's."""
    return build_model(
        config.start,
        task,
        pooling=config.pooling,
        seed=seed if config.init_seed is None else config.init_seed,
        width=config.width,
        head=config.head,
        floor=config.floor,
        transform=config.transform,
        scale=config.scale,
        physics=config.physics,
        phonons=config.phonons,
    )


@cache
def cutoffs_of(start: Start) -> Cutoffs:
    """Return the graph radii the weights were trained with."""
    model_args = _read_weights(start if start != "scratch" else SCRATCH_ARCHITECTURE)["model_args"]
    return Cutoffs(float(model_args["atom_graph_cutoff"]), float(model_args["bond_graph_cutoff"]))


@cache
def _read_weights(name: str) -> Mapping[str, Any]:
    """Return a weights file's model_args and state_dict; not to be changed, for it is read once a process."""
    path = files("chgnet").joinpath("pretrained", *WEIGHT_FILES[name].split("/"))
    content: Mapping[str, Any] = torch.load(str(path), map_location="cpu", weights_only=True)["model"]
    return content


def _load(start: Start, width: int = FULL_WIDTH) -> CrystalModel:
    content = _read_weights(start if start != "scratch" else SCRATCH_ARCHITECTURE)
    arguments = dict(content["model_args"])
    # chgnet's own loader does the same: only 0.2.0 was trained with output biases.
    arguments["mlp_out_bias"] = start == "0.2.0"
    arguments["version"] = start
    if width != FULL_WIDTH:
        arguments |= dict.fromkeys(_WIDTHS, width) | {"mlp_hidden_dims": [width] * len(arguments["mlp_hidden_dims"])}
    model = CrystalModel(arguments)
    if start == "scratch":  # random weights, and MPtrj's reference energies, with which chgnet begins as well
        model.composition_model.fc.weight.data.copy_(content["state_dict"]["composition_model.fc.weight"])
    else:
        model.load_state_dict(content["state_dict"])
    return model
