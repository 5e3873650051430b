"""The file of predictions: format by its name, and refusals before anything is predicted."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.predict import files as prediction_files
from orchestrator.predict.files import check_predictions_path, predictions_path, write_predictions
from trainables.errors import UserError

TABLE = pd.DataFrame(
    {
        "id": ["007", "1e5", 'a,"b"\n', "é"],
        "prediction": [0.1 + 0.2, 1 / 3, -1e-17, 123456789.123456789],
        "std": [0.0, 1e-9, 2.5, float("nan")],
        "fallback": [True, False, False, True],
    }
)


def read(path: Path) -> pd.DataFrame:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return pd.read_parquet(path)
    if name.endswith((".csv", ".csv.gz")):
        return pd.read_csv(path, dtype={"id": str}, float_precision="round_trip")
    if name.endswith(".json"):
        return pd.DataFrame(json.loads(path.read_text()))
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "P.CSV", "p.csv.gz", "my.preds.json", "p.jsonl"])
def test_every_format_keeps_ids_as_text_and_all_digits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    check_predictions_path(path)
    assert not path.parent.exists()  # checking leaves nothing behind
    write_predictions(path, TABLE)
    pd.testing.assert_frame_equal(read(path), TABLE, check_exact=True)
    assert (path.read_bytes()[:4] == b"PAR1") == name.endswith("parquet")
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")
    if name.endswith("gz"):
        assert gzip.decompress(path.read_bytes()).startswith(b"id,prediction")
    assert list(path.parent.iterdir()) == [path]


def test_excel_keeps_ids_as_text(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    table = TABLE.assign(id=["007", "=A1", "1e5", "é"])
    write_predictions(tmp_path / "p.xlsx", table)
    found = pd.read_excel(tmp_path / "p.xlsx", dtype={"id": str})
    pd.testing.assert_frame_equal(found, table, rtol=1e-15, atol=0)  # openpyxl writes 16 digits


def test_excel_without_its_package_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prediction_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install openpyxl"):
        check_predictions_path(tmp_path / "p.xlsx")


@pytest.mark.parametrize("name", ["p", "p.txt", "p.csv.bz2", "p.xls", ".csv", "p.parquet.gz"])
def test_a_name_that_says_no_format_is_refused_with_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.parquet, \.csv, \.csv\.gz, \.json, \.jsonl, \.xlsx"):
        check_predictions_path(tmp_path / name)


def test_a_folder_is_refused_with_a_name_that_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError) as problem:
        predictions_path(tmp_path / "run", Path("in/new.csv.gz"), tmp_path)
    assert f"`out={tmp_path}` is a folder" in str(problem.value)
    assert str(tmp_path / "predict-new.parquet") in str(problem.value)


def test_a_place_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/x.parquet"), Path("/proc/new/x.csv"), tmp_path / "file" / "p.csv"):
        with pytest.raises(UserError, match=f"`out={out}` cannot be written") as problem:
            check_predictions_path(out)
        assert ".tmp" not in str(problem.value)


def test_the_structures_are_not_overwritten(tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("id,structure\n")
    with pytest.raises(UserError, match="is the file with the structures"):
        predictions_path(tmp_path, table, tmp_path / "." / "new.csv")


def test_by_default_predictions_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    assert predictions_path(tmp_path, Path("x/new.v2.csv.gz")) == tmp_path / "predict-new.v2.parquet"


@pytest.mark.parametrize(
    "name", ["run.json", "scores.json", "predictions.parquet", "fold_0/predicted.parquet", "my.csv"]
)
def test_a_runs_own_files_are_never_overwritten(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("the run's own")
    with pytest.raises(UserError, match=r"is in the run's folder.* named predict-"):
        check_predictions_path(path, tmp_path.parent / "new.csv", tmp_path)
    assert path.read_text() == "the run's own"
    check_predictions_path(tmp_path / f"predict-{Path(name).stem}.csv", tmp_path.parent / "new.csv", tmp_path)


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "t.json", "t.jsonl", "t.parquet", "t.xlsx"])
def test_a_table_of_the_users_is_never_overwritten(name: str, tmp_path: Path) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
    path = tmp_path / name
    path.write_bytes(b"id,structure,gap\na,b,1\n")
    with pytest.raises(UserError, match="exists and does not contain earlier predictions"):
        check_predictions_path(path, tmp_path / "new.csv", tmp_path / "run")


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.json", "p.jsonl", "p.parquet", "p.xlsx"])
def test_earlier_predictions_may_be_replaced(name: str, tmp_path: Path) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("openpyxl")
    write_predictions(tmp_path / name, TABLE)
    check_predictions_path(tmp_path / name, tmp_path / "new.csv", tmp_path / "run")


def test_test_predictions_of_a_run_are_no_earlier_predictions(tmp_path: Path) -> None:
    TABLE.assign(fold=0, target=0.0).to_parquet(tmp_path / "copied.parquet", index=False)
    with pytest.raises(UserError, match="does not contain earlier predictions"):
        check_predictions_path(tmp_path / "copied.parquet")
