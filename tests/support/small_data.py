"""Datasets of a few small crystals, for tests of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Lattice, Structure

from trainables.config import RunConfig
from trainables.crystals import Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.folds import FoldSplit, Part, make_split
from trainables.data.tasks import Quantity, Task, custom_task
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build
from trainables.training.augment import skin_for
from trainables.training.data import TrainingData
from trainables.training.distill import Labels, SoftTargets
from trainables.training.fit import fit
from trainables.training.joint import Auxiliary
from trainables.training.objective import Objective, TaskData
from trainables.training.result import FitResult

CATIONS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Fe", "Ni")
ANIONS = ("O", "S", "F", "Cl")


def rocksalts(n_crystals: int) -> list[Structure]:
    """Primitive rocksalt cells, each of another formula or volume."""
    rng = np.random.default_rng(0)
    cells = []
    for index in range(n_crystals):
        cation, anion = CATIONS[index % 8], ANIONS[index // 8 % 4]
        lattice = Lattice(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * rng.uniform(2.1, 2.6))
        cells.append(Structure(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    return cells


def tiny_dataset(n_crystals: int = 24, *, energy: bool = True, task: Task | None = None) -> Dataset:
    """Rocksalts whose target is a smooth function of volume and composition."""
    structures = rocksalts(n_crystals)
    targets = np.array([-2.0 + 0.02 * s.volume + 0.1 * s.species[0].X for s in structures])
    task = task or custom_task("tiny", "y", "eV/atom", "energy_per_atom" if energy else "property")
    crystals = CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)
    return Dataset(tuple(f"tiny-{i:03d}" for i in range(n_crystals)), crystals, targets, task)


def tiny_run(
    folder: Path, *, energy: bool = True, **changes: object
) -> tuple[RunConfig, FoldSplit, GraphStore, Dataset]:
    """A configuration, a split without test rows, a store and their dataset; changes are dotted keys with __."""
    dataset = tiny_dataset(energy=energy)
    settings = {"optim.epochs": 3, "optim.batch_size": 8, "data.val_share": 0.2}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    config = RunConfig(task="tiny").changed(settings)
    store = open_or_build(dataset.structures, Cutoffs(), folder / "graphs", workers=1)
    split = make_split(dataset, 0, val_share=config.data.val_share, seed=0).without_test()
    return config, split, store, dataset


def wurtzites(n_crystals: int) -> list[Structure]:
    """Polar hexagonal cells of four atoms: two strains and two displacements keep the symmetry of each."""
    rng, cells = np.random.default_rng(1), []
    for index in range(n_crystals):
        cation, anion = CATIONS[index % 8], ANIONS[index // 8 % 4]
        u, a = rng.uniform(0.36, 0.4), rng.uniform(3.2, 4.0)
        sites = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, u], [2 / 3, 1 / 3, u + 0.5]]
        cells.append(Structure(Lattice.hexagonal(a, 1.6 * a), [cation, cation, anion, anion], sites))
    return cells


def smooth_targets(structures: Sequence[Structure], kind: str) -> NDArray[np.float64]:
    """A smooth function of volume and composition; `gap`: what is above its median, else 0."""
    volume = np.array([s.volume / len(s) for s in structures])
    smooth = -2.0 + 0.04 * volume + 0.1 * np.array([s.species[0].X for s in structures])
    if kind == "gap":
        return np.maximum(smooth - np.median(smooth), 0.0)
    return smooth * [len(s) for s in structures] if kind == "energy_per_cell" else smooth


@dataclass(frozen=True, eq=False)
class LeverRun:
    """Wurtzites, and all that fit wants for a configuration with levers."""

    config: RunConfig
    split: FoldSplit
    store: GraphStore
    skinned: GraphStore | None
    dataset: Dataset
    soft: SoftTargets | None = None
    auxiliary: tuple[Auxiliary, ...] = ()

    def fit(self, folder: Path, **others: Any) -> FitResult:
        given: dict[str, Any] = {"skinned": self.skinned, "soft_targets": self.soft, "auxiliary": self.auxiliary}
        return fit(self.config, TrainingData(self.dataset.task, self.split, self.store, **given | others), folder)

    def objective(self, **others: Any) -> Objective:
        """The loss of the training rows, as training alone sets it up for an energy."""
        soft = None if self.soft is None else self.soft.aligned(self.split.train.ids)
        given: dict[str, Any] = {"part": self.split.train, "store": self.store, "skinned": self.skinned, "soft": soft}
        stream = TaskData(self.dataset.task, **given | {"scale": torch.ones(())} | others)
        return Objective(self.config, stream, torch.device("cpu"))


def lever_run(
    graphs: Path,
    kind: str = "energy_per_atom",
    *,
    auxiliary: tuple[str, ...] = (),
    n_auxiliary: int = 40,
    **changes: object,
) -> LeverRun:
    """A run on wurtzites; changes are dotted keys with __, stores are kept under `graphs`.

    Args:
        kind: a task's quantity, or "gap" for a property that is 0 for every other crystal.
        auxiliary: kinds of the auxiliary tasks, on n_auxiliary rocksalts each.
    """
    n_crystals, structures = 24, wurtzites(24)
    quantity: Quantity = "property" if kind == "gap" else kind  # type: ignore[assignment]
    task = custom_task("tiny", "y", "eV", quantity)
    table = CrystalTable.pack(Crystal.from_structure(s) for s in structures)
    ids = tuple(f"tiny-{i:03d}" for i in range(n_crystals))
    dataset = Dataset(ids, table, smooth_targets(structures, kind), task)
    settings: dict[str, Any] = {"optim.epochs": 4, "optim.batch_size": 8, "optim.lr": 3e-3, "data.val_share": 0.2}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    settings["multitask.tasks"] = [f"aux {name}" for name in auxiliary]
    config = RunConfig(task="tiny").changed(settings)
    skin = skin_for(config, Cutoffs())
    return LeverRun(
        config,
        make_split(dataset, 0, val_share=config.data.val_share, seed=0).without_test(),
        open_or_build(table, Cutoffs(), graphs, workers=1),
        open_or_build(table, Cutoffs(skin=skin), graphs, workers=1) if skin else None,
        dataset,
        soft_targets(dataset) if config.distil.weight > 0 else None,
        tuple(tiny_auxiliary(graphs, name, n_auxiliary) for name in auxiliary),
    )


def tiny_auxiliary(graphs: Path, kind: str, n_crystals: int) -> Auxiliary:
    """Rocksalts of another task."""
    structures = rocksalts(n_crystals)
    table = CrystalTable.pack(Crystal.from_structure(s) for s in structures)
    task = custom_task(f"aux {kind}", "z", "eV", "property" if kind == "gap" else kind)  # type: ignore[arg-type]
    dataset = Dataset(tuple(f"aux-{i:03d}" for i in range(n_crystals)), table, smooth_targets(structures, kind), task)
    rows = np.arange(n_crystals)
    part = Part(dataset.ids, rows, dataset.targets)
    return Auxiliary(task, part, open_or_build(table, Cutoffs(), graphs, workers=1))


def soft_targets(dataset: Dataset, *, n_teachers: int = 3, width: int | None = 64) -> SoftTargets:
    """Out-of-fold labels of every row: the truth and each teacher's own error, with features of `width`."""
    rng, n = np.random.default_rng(2), len(dataset)
    error = rng.uniform(0.01, 0.2, n)  # rows differ in how sure the teachers are
    features = rng.normal(0, 0.1, (n, width or 0))
    return SoftTargets.from_teachers(
        [
            Labels(
                dataset.ids,
                dataset.targets + rng.normal(0, error),
                frozenset(),
                None if width is None else features + 0.01 * number,
            )
            for number in range(n_teachers)
        ]
    )
