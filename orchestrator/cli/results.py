"""How the commands that train show what came of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.options import out_console, say

if TYPE_CHECKING:
    from orchestrator.evaluation.scores import Scores


def show_scores(scores: "Scores", folder: Path) -> None:
    """Print the scores of a run, what became of its record, and where everything is."""
    from orchestrator.record.matbench import MatbenchRecord
    from orchestrator.report.terminal import score_table

    out_console.print(score_table(scores))
    if scores.record:
        say(MatbenchRecord(folder / scores.record, scores.record_validated_by).sentence)
    elif scores.official_rows is not None:  # whoever trains on a table of their own expects none
        say(f"No Matbench record: {scores.no_record_because}")
    say(f"Everything is in {folder} (report.html, scores.json, predictions.parquet).")
