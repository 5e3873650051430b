"""What identifies the crystals of a run, so that predictions of crystals it has learnt from can be told."""

from pathlib import Path

import numpy as np
import pandas as pd

from trainables.data.dataset import Dataset
from trainables.data.same_crystal import CrystalSet
from trainables.files import write_parquet
from trainables.progress import Progress

CRYSTALS = "crystals.parquet"


def keep_crystals(run: Path, dataset: Dataset, progress: Progress) -> None:
    """Write what identifies the crystals of a run into its folder, once."""
    if kept_crystals(run) is None:
        found = CrystalSet.of(dataset.structures, progress)
        table = {"id": dataset.ids, "formula": found.formulas, "numbers": found.numbers}
        write_parquet(run / CRYSTALS, pd.DataFrame(table))


def kept_crystals(run: Path) -> CrystalSet | None:
    """Return what identifies the crystals of a run; None where it has kept nothing that can be read."""
    try:
        table = pd.read_parquet(run / CRYSTALS)
        return CrystalSet(tuple(table["formula"]), tuple(np.asarray(row, np.float32) for row in table["numbers"]))
    except (OSError, ValueError, KeyError):
        return None
