"""The tasks: one row each."""

from dataclasses import dataclass
from typing import Literal

from trainables.errors import UserError
from trainables.hints import closest

N_FOLDS = 5
Quantity = Literal["energy_per_atom", "energy_per_cell", "property", "property_per_cell"]
Tier = Literal[
    "scratch",
    "pretrained-disjoint",
    "pretrained-structure-overlap",
    "pretrained-label-overlap",
    "pretrained-overlap-unknown",
]


@dataclass(frozen=True)
class Task:
    """What is predicted and how it may be compared.

    Attributes:
        quantity: which head fits it. Energies use CHGNet's own energy head and a refitted per-element
            reference; every other property gets a fresh head on pooled atom features, whose output is multiplied by the
            number of atoms where the property belongs to the whole cell.
        overlap: how CHGNet's pretraining data (MPtrj: Materials Project relaxations) meets this task.
        official_rows: rows of the whole Matbench v0.1 task, or None outside Matbench.
    """

    name: str
    target: str
    unit: str
    quantity: Quantity
    overlap: Tier
    official_rows: int | None = None
    synthetic: bool = False

    @property
    def is_matbench(self) -> bool:
        """Return whether it is a Matbench task."""
        return self.official_rows is not None

    @property
    def is_energy(self) -> bool:
        """Return whether the target is an energy."""
        return self.quantity.startswith("energy")

    @property
    def is_sum(self) -> bool:
        """Return whether a property's target belongs to the whole cell: twice the cell has twice the value."""
        return self.quantity == "property_per_cell"

    def tier(self, pretrained: bool) -> Tier:
        """Honesty tier of a result that pretrained weights have (or have no) part in."""
        return self.overlap if pretrained else "scratch"

    def mbid(self, row: int) -> str:
        """Matbench's id of an official 0-based row, for example mb-jdft2d-001."""
        if self.official_rows is None:
            raise ValueError(f"{self.name} is not a Matbench task")
        digits = len(str(self.official_rows))
        return f"{self.name.replace('matbench', 'mb').replace('_', '-')}-{row + 1:0{digits}d}"


# Sizes, targets and units: matbench 0.6's own metadata; tests compare them with it.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("matbench_mp_e_form", "e_form", "eV/atom", "energy_per_atom", "pretrained-label-overlap", 132752),
        Task("matbench_mp_gap", "gap pbe", "eV", "property", "pretrained-structure-overlap", 106113),
        Task("matbench_perovskites", "e_form", "eV/unit cell", "energy_per_cell", "pretrained-disjoint", 18928),
        Task("matbench_log_gvrh", "log10(G_VRH)", "log10(GPa)", "property", "pretrained-structure-overlap", 10987),
        Task("matbench_log_kvrh", "log10(K_VRH)", "log10(GPa)", "property", "pretrained-structure-overlap", 10987),
        Task("matbench_dielectric", "n", "unitless", "property", "pretrained-structure-overlap", 4764),
        Task("matbench_phonons", "last phdos peak", "cm^-1", "property", "pretrained-structure-overlap", 1265),
        Task("matbench_jdft2d", "exfoliation_en", "meV/atom", "property", "pretrained-disjoint", 636),
    )
}

SAMPLE_TASK = Task(
    "synthetic_sample", "e_form_synthetic", "eV/atom", "energy_per_atom", "pretrained-label-overlap", synthetic=True
)

NOT_REGRESSION = {
    "matbench_mp_is_metal": "a classification task",
    "matbench_expt_gap": "a composition task without structures",
    "matbench_expt_is_metal": "a composition task without structures",
    "matbench_glass": "a composition task without structures",
    "matbench_steels": "a composition task without structures",
}


def full_name(name: str) -> str:
    """Return a known task's whole name, however it was written (JDFT2D, mp-e-form, sample); other names as they are."""
    plain = name.lower().replace("-", "_")
    if plain in ("sample", SAMPLE_TASK.name):
        return SAMPLE_TASK.name
    full = _with_prefix(plain)
    return full if full in TASKS else name


def _with_prefix(name: str) -> str:
    return name if name.startswith("matbench_") else f"matbench_{name}"


def find_task(name: str) -> Task:
    """Return the Matbench task or the synthetic sample called `name`.

    The prefix matbench_ may be left out; capitals and dashes are as good as small letters and underscores.

    Raises:
        UserError: no such task, with the nearest names; or a Matbench task without structures.
    """
    if full_name(name) == SAMPLE_TASK.name:
        return SAMPLE_TASK
    if full_name(name) in TASKS:
        return TASKS[full_name(name)]
    full = _with_prefix(name.lower().replace("-", "_"))
    if full in NOT_REGRESSION:
        raise UserError(f"{full} is {NOT_REGRESSION[full]}; crystaltune does structure regression: {', '.join(TASKS)}")
    known = [*TASKS, SAMPLE_TASK.name]
    short = {name.removeprefix("matbench_"): name for name in known}  # the common prefix would make all look near
    near = closest(full.removeprefix("matbench_"), short, cutoff=0.5)
    hint = f"did you mean {short[near]}?" if near else f"known: {', '.join(known)}"
    raise UserError(
        f"unknown task '{name}': {hint} (for your own table, choose another name and pass its file as `data`)"
    )


def custom_task(name: str, target: str, unit: str, quantity: Quantity) -> Task:
    """Return a task for the user's own table; its overlap with CHGNet's pretraining data is unknown."""
    return Task(name, target, unit, quantity, "pretrained-overlap-unknown")
