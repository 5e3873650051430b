"""Soft targets: what teachers say of rows, and how sure they are.

A teacher that was trained on a row has memorised its label, so what it says there is the label and teachers agree.
Soft targets therefore come from teachers that have not seen the row, and say so of every row where they have.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.errors import UserError, listed
from trainables.files import write_atomically
from trainables.levers import DistilConfig


@dataclass(frozen=True, eq=False)
class Labels:
    """One teacher's predictions.

    Attributes:
        seen: the ids that took part in its training, inner validation included.
        features: (n, D) its pooled atom features, or None.
    """

    ids: tuple[str, ...]
    prediction: NDArray[np.float64]  # (n,) in the task's unit
    seen: frozenset[str]
    features: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """Mean and standard deviation of the teachers of each row.

    Attributes:
        in_sample: (n,) True where a teacher that labelled the row had seen it.
        features: (n, D) mean over the teachers, or None.
    """

    ids: tuple[str, ...]
    mean: NDArray[np.float64]  # (n,) in the task's unit
    std: NDArray[np.float64]  # (n,)
    in_sample: NDArray[np.bool_]
    features: NDArray[np.float64] | None = None

    @classmethod
    def from_teachers(cls, teachers: Sequence[Labels]) -> "SoftTargets":
        """Gather all teachers' labels by row; rows in order of their ids."""
        tables = [
            pd.DataFrame({"id": t.ids, "prediction": t.prediction, "seen": [row in t.seen for row in t.ids]})
            for t in teachers
        ]
        by_id = pd.concat(tables, ignore_index=True).groupby("id")
        ids = tuple(str(row) for row in by_id.groups)
        return cls(
            ids,
            by_id["prediction"].mean().to_numpy(dtype=np.float64),
            np.asarray(by_id["prediction"].std(ddof=0), dtype=np.float64),
            by_id["seen"].any().to_numpy(),
            _mean_features(ids, teachers),
        )

    def check(self, config: DistilConfig, wanted: Collection[str]) -> None:
        """Refuse labels of teachers that saw the row, and rows without a finite label.

        Raises:
            UserError: with the rows.
        """
        known = [row for row, seen in zip(self.ids, self.in_sample, strict=True) if seen]
        if known and config.teachers == "out_of_fold":
            raise UserError(
                f"{len(known)} soft targets come from teachers that were trained on those rows ({listed(known, 5)}), "
                "which repeat the labels: use out-of-fold teachers, or ask for distil.teachers=in_sample by name"
            )
        told = {row for row, mean in zip(self.ids, self.mean, strict=True) if np.isfinite(mean)}
        lacking = sorted(set(wanted) - told)
        if lacking:
            raise UserError(f"{len(lacking)} training rows have no soft target ({listed(lacking, 5)})")

    def aligned(self, ids: Sequence[str]) -> "SoftTargets":
        """Return the rows `ids`, in that order."""
        place = {row: index for index, row in enumerate(self.ids)}
        rows = np.array([place[row] for row in ids], dtype=np.int64)
        features = None if self.features is None else self.features[rows]
        return SoftTargets(tuple(ids), self.mean[rows], self.std[rows], self.in_sample[rows], features)

    def row_weights(self, config: DistilConfig) -> NDArray[np.float64]:
        """(n,) of mean 1: exp(-d / T) for noise, exp(d / T) for hardness, d: disagreement over its mean."""
        mean = self.std.mean()
        if config.weighting == "none" or mean == 0:
            return np.ones(len(self.std))
        sign = -1.0 if config.weighting == "noise" else 1.0
        exponent = sign * self.std / mean / config.temperature
        weights = np.exp(exponent - exponent.max())  # the largest would overflow at a low temperature
        return weights / weights.mean()

    def save(self, path: Path) -> None:
        """Write `path` (npz), whole or not at all."""
        arrays = {"ids": np.array(self.ids), "mean": self.mean, "std": self.std, "in_sample": self.in_sample}
        if self.features is not None:
            arrays["features"] = self.features
        write_atomically(path, lambda temporary: _save_arrays(temporary, arrays))

    @classmethod
    def load(cls, path: Path) -> "SoftTargets":
        """Read them from a file."""
        with np.load(path, allow_pickle=False) as arrays:
            features = arrays.get("features")
            ids = tuple(str(row) for row in arrays["ids"])
            return cls(ids, arrays["mean"], arrays["std"], arrays["in_sample"], features)


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # its stubs take every name for its own option


def _mean_features(ids: Sequence[str], teachers: Sequence[Labels]) -> NDArray[np.float64] | None:
    """(n, D) mean over the teachers of each row; None where a teacher has none."""
    if any(teacher.features is None for teacher in teachers):
        return None
    place = {row: index for index, row in enumerate(ids)}
    known = [teacher.features for teacher in teachers if teacher.features is not None]
    total, count = np.zeros((len(ids), known[0].shape[1])), np.zeros(len(ids))
    for teacher, features in zip(teachers, known, strict=True):
        rows = np.array([place[row] for row in teacher.ids])
        np.add.at(total, rows, features)
        np.add.at(count, rows, 1)
    return total / count[:, None]
