"""A run's models, loaded once, for use in one's own script."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crystaltune._crystals import crystals_of
from crystaltune._rows import path_of
from crystaltune._run import Run

if TYPE_CHECKING:
    from orchestrator.predict.export import RunCalculator


class Model:
    """What a run has learnt.

    Attributes:
        run: that it comes from.
        unit: of predictions.
    """

    def __init__(self, folder: str | os.PathLike[str], device: str = "auto") -> None:
        from orchestrator.predict.run import load_folds

        self.run = Run(path_of(folder, "folder"))
        self._folds = load_folds(self.run.folder, device)
        self.unit: str = self._folds[0].task.unit

    def predict(self, structures: Any) -> NDArray[np.float64]:
        """Predict the mean of the folds.

        Args:
            structures: one crystal (a pymatgen Structure, ASE Atoms, a dictionary or text), several, a DataFrame with
                a column `structure`, or the path of a file or folder.

        Returns:
            (n,) in `unit`; NaN where a crystal cannot be used. `table` says why.
        """
        return self.table(structures)["prediction"].to_numpy(dtype=np.float64)

    def table(self, structures: Any) -> pd.DataFrame:
        """Predict with everything that `Run.predict` tells beside the value."""
        from orchestrator.predict.run import predict_rows

        return predict_rows(self.run.folder, self._folds, crystals_of(structures, self._folds[0].task))

    def calculator(self, device: str = "cpu") -> "RunCalculator":
        """Return ASE's calculator: energy, forces and stress, where the run is of energies.

        Raises:
            UserError: it is of another property, or its members are combined by a median.
        """
        from orchestrator.predict.export import RunCalculator

        return RunCalculator(self._folds, device)

    def __repr__(self) -> str:
        return f"Model({str(self.run.folder)!r})"


def load(folder: str | os.PathLike[str], device: str = "auto") -> Model:
    """Load the models of a run.

    Args:
        folder: of a run.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: it is not the folder of a run, or no fold is trained.
    """
    return Model(folder, device)
