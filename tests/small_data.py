"""Datasets of a few small crystals, for tests of training."""

from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from trainables.config import RunConfig
from trainables.data.crystals import Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.folds import FoldSplit, make_split
from trainables.data.tasks import Task, custom_task
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build

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
