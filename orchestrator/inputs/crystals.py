"""What identifies the crystals of a run, so that predictions of crystals it has learnt from can be told."""

from pathlib import Path

import pandas as pd

from trainables.data.dataset import Dataset
from trainables.data.grouping import crystal_keys
from trainables.files import write_parquet

CRYSTALS = "crystals.parquet"


def keep_crystals(run: Path, dataset: Dataset) -> None:
    """Write what identifies the crystals of a run into its folder, once."""
    if not (run / CRYSTALS).exists():
        names = crystal_keys(dataset.structures)
        write_parquet(run / CRYSTALS, pd.DataFrame({"id": dataset.ids, "crystal": names}))


def kept_crystals(run: Path) -> frozenset[str] | None:
    """Return what identifies the crystals of a run; None where it has kept nothing."""
    try:
        return frozenset(pd.read_parquet(run / CRYSTALS)["crystal"])
    except (OSError, ValueError, KeyError):
        return None
