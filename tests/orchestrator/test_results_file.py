"""Our results file against what matbench itself writes, and what is found in a file that was changed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matbench.bench import MatbenchBenchmark
from matbench.data_ops import score_array
from record_data import DESCRIPTION, PARAMS, TASK, in_official_order, table

from orchestrator.record.results_file import (
    DATESTAMP,
    digest,
    official_test_ids,
    results_document,
    score_fold,
    verify_file,
    write_document,
)
from orchestrator.record.submission import OFFICIAL_MAD
from trainables.data.folds import N_FOLDS
from trainables.data.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_test_ids_and_deviations_are_matbenchs_own(task: Any) -> None:
    # Not at the top: pytest looks for names in what a test file holds, and these tables grow by each that is asked for.
    from matbench.metadata import mbv01_metadata, mbv01_validation

    splits = mbv01_validation.splits[task.name]
    assert official_test_ids(task) == [list(splits[f"fold_{fold}"].test) for fold in range(N_FOLDS)]
    assert len(splits) == N_FOLDS
    assert OFFICIAL_MAD[task.name] == mbv01_metadata[task.name].mad


def by_matbench(predictions: pd.DataFrame, task: Any, path: Path) -> dict[str, Any]:
    """What matbench itself records of the same predictions and writes into `path`."""
    benchmark = MatbenchBenchmark(autoload=False, subset=[task.name])
    matbench_task = benchmark.tasks_map[task.name]
    rows = pd.concat(in_official_order(predictions, task))
    columns = {"structure": None, matbench_task.metadata.target: rows["target"]}
    matbench_task.df = pd.DataFrame(columns, index=rows.index)
    for fold, part in enumerate(in_official_order(predictions, task)):
        matbench_task.record(fold, part["prediction"].tolist(), params=PARAMS[fold])
    benchmark.add_metadata(DESCRIPTION.metadata())
    assert benchmark.is_valid
    benchmark.to_file(str(path))
    return dict(json.loads(path.read_text()))


def test_the_file_is_byte_for_byte_what_matbench_writes_but_for_the_last_digit_of_scores(tmp_path: Path) -> None:
    predictions = table()
    predictions.loc[::7, "target"] = 0.0  # left out of the MAPE
    theirs = by_matbench(predictions, TASK, tmp_path / "theirs")
    written = datetime.strptime(theirs["datestamp"], DATESTAMP).replace(tzinfo=UTC)
    ours = results_document(
        TASK, in_official_order(predictions), metadata=DESCRIPTION.metadata(), params=PARAMS, written=written
    )
    assert abs(datetime.now(UTC) - written).total_seconds() < 120  # both in UTC
    for fold, result in ours["tasks"][TASK.name]["results"].items():
        their_scores = theirs["tasks"][TASK.name]["results"][fold]["scores"]
        assert result["scores"] == pytest.approx(their_scores, rel=1e-14)
        result["scores"] = their_scores
    ours["hash"] = digest(ours)
    write_document(ours, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_scores_are_matbenchs_also_where_no_target_counts_for_the_mape() -> None:
    rows = pd.DataFrame({"target": [0.0, 1e-6], "prediction": [0.5, -0.25]})
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        theirs = score_array(rows["target"], rows["prediction"].tolist(), "regression")
    assert score_fold(rows) == pytest.approx(theirs, rel=1e-14, nan_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid results file that several tests read."""
    path = tmp_path_factory.mktemp("whole") / "results.json.gz"
    write_document(
        results_document(TASK, in_official_order(table()), metadata=DESCRIPTION.metadata(), params=PARAMS), path
    )
    return path


TAMPERED = {
    "prediction": (lambda fold: fold["data"].update({"mb-jdft2d-004": 1.0}), "the hash in"),
    "prediction, hash made anew": (lambda fold: fold["data"].update({"mb-jdft2d-004": 1.0}), "its predictions score"),
    "score, hash made anew": (lambda fold: fold["scores"].update(mae=1.0), "its predictions score"),
    "missing id, hash made anew": (lambda fold: fold["data"].popitem(), "official test ids"),
    "nan, hash made anew": (lambda fold: fold["data"].update({"mb-jdft2d-004": float("nan")}), "not finite numbers"),
    "text, hash made anew": (lambda fold: fold["data"].update({"mb-jdft2d-004": "1.0"}), "not finite numbers"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_results_file_that_was_changed_is_refused(case: str, whole: Path, tmp_path: Path) -> None:
    change, sentence = TAMPERED[case]
    verify_file(whole, TASK, in_official_order(table()))
    document = json.loads(whole.read_text())
    first = next(fold for fold in document["tasks"][TASK.name]["results"].values() if "mb-jdft2d-004" in fold["data"])
    change(first)
    if "hash made anew" in case:
        document["hash"] = digest(document)
    write_document(document, tmp_path / "tampered")
    with pytest.raises(RuntimeError, match=sentence):
        verify_file(tmp_path / "tampered", TASK, in_official_order(table()))
