"""A search, as its folder has it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from crystaltune._rows import path_of
from trainables.config import RunConfig, load_config, parse_config
from trainables.errors import UserError

if TYPE_CHECKING:
    from orchestrator.study.report.verdict import Verdict


class Study:
    """A search: a folder with methods. `search` returns one; `open_study` opens one that is there."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the folder of a search.

        Raises:
            UserError: it is not the folder of a search.
        """
        self.folder = path_of(folder, "folder")
        if not (self.folder / "study.json").is_file():
            raise UserError(f"{self.folder} does not contain a study (study.json is missing)")

    @property
    def best_config(self) -> RunConfig:
        """Return the best configuration: `ct.train(task, config=study.best_config)`.

        Raises:
            UserError: no trial is complete.
        """
        path = self.folder / "best.yaml"
        if not path.is_file():
            raise UserError(f"{self.folder} has no best configuration yet: no trial is complete")
        return parse_config(load_config(path), str(path))

    @property
    def trials(self) -> pd.DataFrame:
        """Return a row for each trial: its parameters, states, errors and times."""
        try:
            return pd.read_parquet(self.folder / "trials.parquet")
        except (OSError, ValueError):
            raise UserError(f"{self.folder} has no table of trials yet: write its report") from None

    @property
    def verdict(self) -> "Verdict | None":
        """Return what the confirmation runs decided (None without a complete trial); `verdict.sentence` says it."""
        from orchestrator.study.run import read_analysis

        return read_analysis(self.folder).verdict

    @property
    def report(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    def write_report(self) -> Path:
        """Write the report anew, also while the search runs in another process."""
        from orchestrator.study.run import report

        report(self.folder)
        return self.report

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict and the trials."""
        from html import escape

        verdict = self.verdict
        said = "No trial is complete." if verdict is None else verdict.sentence
        return f"<p>{escape(said)}</p>{self.trials.head(20).to_html(index=False, na_rep='')}"


def open_study(folder: str | os.PathLike[str]) -> Study:
    """Open the folder of a search.

    Raises:
        UserError: it is not the folder of a search.
    """
    return Study(folder)
