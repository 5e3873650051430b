"""A finished or partly finished run, as its folder has it."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from crystaltune._crystals import crystals_of
from crystaltune._rows import path_of, shown
from orchestrator.evaluation.scores import Scores
from orchestrator.train.options import STUDENT
from trainables.config import RunConfig
from trainables.errors import UserError
from trainables.files import read_json
from trainables.progress import Progress


class Run:
    """A run: a folder with methods. `train` and `ensemble` return one; `open_run` opens one that is there."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the folder of a run.

        Raises:
            UserError: it is not the folder of a run.
        """
        self.folder = path_of(folder, "folder")
        if not (self.folder / "run.json").is_file():
            raise UserError(f"{self.folder} does not contain a run (run.json is missing)")

    @property
    def scores(self) -> Scores:
        """Return the scores: `run.scores.mean.mae`, `run.scores.folds[0].mae`, `run.scores.baselines["linear"]`.

        Raises:
            UserError: no fold is finished.
        """
        try:
            return Scores.model_validate(read_json(self.folder / "scores.json"))
        except (OSError, ValueError):
            raise UserError(f"{self.folder} has no scores yet: train at least one fold") from None

    @property
    def predictions(self) -> pd.DataFrame:
        """Return the test predictions: id, fold, target, prediction, std, fallback.

        Raises:
            UserError: no fold is finished.
        """
        try:
            return pd.read_parquet(self.folder / "predictions.parquet")
        except (OSError, ValueError):
            raise UserError(f"{self.folder} has no predictions yet: train at least one fold") from None

    @property
    def config(self) -> RunConfig:
        """Return the configuration of fold 0."""
        return RunConfig.model_validate(read_json(self.folder / "run.json")["config"])

    @property
    def report(self) -> Path:
        """Return the path of report.html, which is written once a fold is finished."""
        return self.folder / "report.html"

    @property
    def record(self) -> Path | None:
        """Return the Matbench record's results file, or None where there can be none (scores.no_record_because)."""
        path = self.scores.record
        return None if path is None else self.folder / path

    @property
    def student(self) -> "Run | None":
        """Return the run of the student that `ensemble` made beside this one, or None."""
        folder = self.folder / STUDENT
        if not (folder / "run.json").is_file():
            return None
        student = Run(folder)
        return student if student.config.distil.weight else None  # else a run of one's own that happens to lie there

    def predict(
        self,
        data: Any,
        *,
        out: str | os.PathLike[str] | None = None,
        device: str = "auto",
        progress: bool | Progress = True,
    ) -> pd.DataFrame:
        """Predict structures with the mean of the trained folds.

        Args:
            data: the path of a table, a structure file or a folder of them, a DataFrame with a column `structure`, or
                one or several pymatgen Structures, ASE Atoms, dictionaries of crystals or CIF texts.
            out: also write the predictions there, in the format of the name's ending.

        Returns:
            Columns id, prediction, std (over all models; NaN of a single one), low and high (ends of a 90 % interval,
            from the errors of the run's test rows), fallback (the composition alone was used), in_training (the crystal
            is a row of the run) and problem (why there is no prediction; empty where there is one), in the order of
            the structures.

        Raises:
            UserError: no fold is trained, or nothing that can be read.
        """
        from orchestrator.predict.files import check_predictions_path, write_predictions
        from orchestrator.predict.run import load_folds, predict_rows

        if out is not None:
            check_predictions_path(Path(out))
        with shown(progress) as bars:
            folds = load_folds(self.folder, device)
            table = predict_rows(self.folder, folds, crystals_of(data, folds[0].task, bars), bars)
        if out is not None:
            write_predictions(Path(out), table)
        return table

    def write_record(self) -> Path:
        """Write the Matbench record of a run with all five folds of a whole Matbench task.

        Raises:
            UserError: why there can be none.
        """
        from orchestrator.record.submission import record_run

        return record_run(self.folder).path

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the scores of the folds, and of what they are compared with."""
        return f"<p>{_title(self.scores)}</p>{_score_frame(self.scores).to_html(index=False, na_rep='')}"


def _title(scores: Scores) -> str:
    from html import escape

    from orchestrator.report.terminal import title_of

    return escape(title_of(scores))


def _score_frame(scores: Scores) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"": f"fold {fold}", "MAE": f"{values.mae:.4g}", "RMSE": f"{values.rmse:.4g}", "rows": values.n}
        for fold, values in scores.folds.items()
    ]
    own = {} if scores.own is None else {"crystaltune": scores.own}
    for name, other in {**own, **scores.baselines, **scores.published}.items():
        mean = other.mean
        rows.append({"": name, "MAE": f"{mean.mae:.4g}", "RMSE": f"{mean.rmse:.4g}", "rows": mean.n})
    return pd.DataFrame(rows)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open the folder of a run.

    Raises:
        UserError: it is not the folder of a run.
    """
    return Run(folder)
