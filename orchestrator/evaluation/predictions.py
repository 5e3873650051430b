"""Predictions of rows as arrays, from the tables in which they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model predicts, each array (n,).

    Attributes:
        ids: of the rows.
        part: what a row is to the model: test, val, or labelled (for a student).
        prediction: in the target's unit, as `std` is.
        std: over the members of an ensemble, or over the views of a single model; 0 for one view.
        fallback: predicted from the composition alone.
    """

    ids: NDArray[Any]
    part: NDArray[Any]
    prediction: NDArray[np.float64]
    std: NDArray[np.float64]
    fallback: NDArray[np.bool_]

    @classmethod
    def read(cls, file: Path) -> "Predictions":
        """Read a file of predictions: columns id, part, prediction, std, fallback.

        Raises:
            OSError, ValueError, KeyError: there is none, or it is damaged.
        """
        table = pd.read_parquet(file)
        ids, part = (table[name].to_numpy(object) for name in ("id", "part"))
        prediction, std = (table[name].to_numpy(float) for name in ("prediction", "std"))
        (fallback,) = (table[name].to_numpy(bool) for name in ("fallback",))
        return cls(ids, part, prediction, std, fallback)

    @classmethod
    def join(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return the rows of several, one after the other."""
        return cls(*(np.concatenate([getattr(each, field.name) for each in parts]) for field in fields(cls)))

    def of(self, part: str) -> "Predictions":
        """Return the rows of one part, in their order."""
        return self.take(np.flatnonzero(self.part == part))

    def take(self, rows: NDArray[np.int64]) -> "Predictions":
        """Return some rows, in the order given."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def for_ids(self, ids: tuple[str, ...]) -> "Predictions":
        """Return the rows of some ids, in the order of the ids.

        Raises:
            KeyError: an id has no row.
        """
        row_of = {row_id: row for row, row_id in enumerate(self.ids)}
        return self.take(np.array([row_of[row_id] for row_id in ids], dtype=np.int64))

    def table(self) -> pd.DataFrame:
        """Return a table with the columns id, prediction, std and fallback."""
        names = ("prediction", "std", "fallback")
        return pd.DataFrame({"id": self.ids} | {name: getattr(self, name) for name in names})
