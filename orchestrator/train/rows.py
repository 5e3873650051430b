"""The test rows of a run: what was predicted, and what the crystals are."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trainables.crystals import chemical_system
from trainables.data.dataset import Dataset
from trainables.files import write_parquet

ROWS = "rows.parquet"
_BINS = 8  # of sites and of spreads
_FEWEST = 4  # rows that a bin needs on average


def write_rows(out: Path, dataset: Dataset, ids: Sequence[str]) -> None:
    """Keep formula and number of sites of predicted rows in the run's folder, for its report."""
    place = {row_id: row for row, row_id in enumerate(dataset.ids)}
    rows = [place[row_id] for row_id in ids]
    formulas, n_sites = dataset.structures.reduced_formulas, dataset.structures.n_atoms
    table = pd.DataFrame(
        {"id": list(ids), "formula": [formulas[row] for row in rows], "n_sites": [int(n_sites[row]) for row in rows]}
    )
    write_parquet(out / ROWS, table)


@dataclass(frozen=True)
class ElementError:
    """Mean absolute error of the rows that hold an element, and their number."""

    symbol: str
    mae: float
    rows: int


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Test rows with their predictions, each array (n,).

    Attributes:
        target: in its own unit, as `prediction` and `std` are.
        fallback: predicted from the composition alone.
        formula: None where it is not known.
        n_sites: atoms in the cell; nan where it is not known.
    """

    ids: NDArray[Any]
    fold: NDArray[np.int64]
    target: NDArray[np.float64]
    prediction: NDArray[np.float64]
    std: NDArray[np.float64]
    fallback: NDArray[np.bool_]
    formula: NDArray[Any]
    n_sites: NDArray[np.float64]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "PredictedRows":
        """Take the columns id, fold, target, prediction, std and fallback, and formula and n_sites where there are."""
        told = table.reindex(columns=["formula", "n_sites"])
        formula, n_sites = (told[name] for name in told.columns)
        ids, fold = (table[name].to_numpy() for name in ("id", "fold"))
        target, prediction, std = (table[name].to_numpy(float) for name in ("target", "prediction", "std"))
        fallback = table.fallback.to_numpy(bool)
        known = formula.astype(object).where(formula.notna(), None).to_numpy()
        return cls(ids, fold, target, prediction, std, fallback, known, n_sites.to_numpy(float))

    @classmethod
    def read(cls, run: Path) -> "PredictedRows":
        """Read the predictions of a run, and what it knows of the crystals.

        Raises:
            OSError, ValueError: there are none, or the file is damaged.
        """
        table = pd.read_parquet(run / "predictions.parquet")
        with suppress(OSError, ValueError):  # a run that an older version has finished has none
            table = table.merge(pd.read_parquet(run / ROWS), on="id", how="left")
        return cls.of(table)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def error(self) -> NDArray[np.float64]:
        """Prediction minus target."""
        return self.prediction - self.target

    @cached_property
    def absolute_error(self) -> NDArray[np.float64]:
        """Absolute error of each row."""
        return np.abs(self.error)

    @property
    def names(self) -> list[str]:
        """Id and formula of each row, or the id alone."""
        return [
            str(row_id) if formula is None else f"{row_id} {formula}"
            for row_id, formula in zip(self.ids, self.formula, strict=True)
        ]

    @property
    def knows_formulas(self) -> bool:
        """Return whether the formula of any row is known."""
        return any(formula is not None for formula in self.formula)

    def worst(self, n: int) -> "PredictedRows":
        """Return the rows with the largest errors, the largest first."""
        order = np.argsort(-self.absolute_error, kind="stable")[:n]
        return replace(self, **{field.name: getattr(self, field.name)[order] for field in fields(self)})

    def by_element(self) -> list[ElementError]:
        """Return the errors of the rows that hold an element, for every element, the largest first."""
        errors: dict[str, list[float]] = {}
        for formula, error in zip(self.formula, self.absolute_error, strict=True):
            for symbol in [] if formula is None else chemical_system(formula).split("-"):
                errors.setdefault(symbol, []).append(float(error))
        means = [ElementError(symbol, float(np.mean(found)), len(found)) for symbol, found in errors.items()]
        return sorted(means, key=lambda element: (-element.mae, element.symbol))


class ErrorBin(BaseModel):
    """Rows between two values (both among them): their number and mean absolute error."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    rows: int
    mae: float

    @property
    def label(self) -> str:
        """Return the values between which the rows are."""
        return f"{self.low:.4g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"


def error_bins(values: NDArray[np.float64], errors: NDArray[np.float64]) -> list[ErrorBin]:
    """Return the rows with a finite value in bins of about equal size, in ascending order.

    Args:
        values: (n,) by which rows are sorted into bins.
        errors: (n,) absolute errors.
    """
    known = np.isfinite(values)
    values, errors = values[known], errors[known]
    if not len(values):
        return []
    n_bins = max(1, min(_BINS, len(values) // _FEWEST))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)))
    place = np.searchsorted(edges[1:-1], values, side="left")  # a value on an edge belongs to the lower bin
    return [
        ErrorBin(
            low=float(values[inside].min()),
            high=float(values[inside].max()),
            rows=int(inside.sum()),
            mae=float(errors[inside].mean()),
        )
        for number in np.unique(place)
        for inside in [place == number]
    ]
