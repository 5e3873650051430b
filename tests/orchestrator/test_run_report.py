"""What a run's report says, and that it is written from the run's folder whatever the run was."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_report_data import run_results
from said import Said
from small_data import tiny_dataset

from orchestrator.evaluation.scores import score_folds
from orchestrator.inputs.source import Source
from orchestrator.report.format import few_rows
from orchestrator.train import report as report_module
from orchestrator.train.figures import _place
from orchestrator.train.report import document, read_results, write_report
from orchestrator.train.rows import PredictedRows, error_bins
from orchestrator.train.run import TrainOptions, train
from trainables.crystals import SYMBOLS
from trainables.errors import UserError


def words(page: str) -> str:
    """The page's text, without scripts and marks."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_it_says_the_score_its_limits_and_how_to_repeat_it() -> None:
    results = run_results(marks=("3 auxiliary rows are test crystals and were KEPT",), failed={3: "out of memory"})
    page = document(results).html()
    text = words(page)
    own = results.own
    assert f"{own.mean.mae:.{results.decimals}f} ± {own.std.mae:.{results.decimals}f} eV/atom" in text
    assert "the mean of 3 folds" in text
    assert "Folds:  3, 4 of the five are not trained." in text.replace("</b>", "")
    assert "3 auxiliary rows are test crystals and were KEPT" in text
    assert "fold 3 (out of memory)" in text
    assert f"{own.mean.n_fallback} rows were predicted from their composition alone" in text
    assert "below dummy" in text
    assert "optim.lr" in text
    assert "ct.train(&#39;mine&#39;" in page
    assert "0123456789abcdef" in text
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Scores", "Predictions against targets", "Learning curves", "Error by element", "Where errors are large",
        "The 20 worst rows (eV/atom)", "What it cost", "How to repeat it",
    ]  # fmt: skip
    assert page.count('class="plot"') == 5


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"data": "matbench_jdft2d", "limit": 40}, "ct.train('matbench_jdft2d', limit=40, folds=[0, 1, 2], settings="),
        (
            {"data": "t.csv", "name": "mine", "target": "gap", "unit": "eV"},
            "ct.train('t.csv', name='mine', target='gap', unit='eV', folds=[0, 1, 2], settings=",
        ),
        ({"data": None, "name": "energy", "energy": True}, "ct.train(frame, name='energy', energy=True, folds=["),
    ],
)
def test_the_line_that_repeats_a_run_names_its_rows(rows: dict[str, Any], line: str) -> None:
    results = run_results()
    told = replace(results, manifest=results.manifest.model_copy(update={"rows": rows}))
    section = document(told).sections[-1]
    assert section.commands[0].startswith(f"import crystaltune as ct; {line}")
    assert ("`frame` is the DataFrame with the rows." in section.sentences) == (rows["data"] is None)


def test_the_worst_rows_are_the_worst() -> None:
    results = run_results()
    section = next(part for part in document(results).sections if part.title.startswith("The 20 worst"))
    shown = [row[0].removesuffix(" *") for row in section.tables[0].rows]
    rows = results.rows
    errors = pd.Series(np.abs(rows.prediction - rows.target), index=rows.ids).sort_values(ascending=False)
    assert shown == list(errors.index[:20])
    assert section.tables[0].rows[0][1] == rows.formula[list(rows.ids).index(errors.index[0])]


def test_errors_by_element_are_means_over_the_rows_that_hold_it() -> None:
    table = pd.DataFrame({"id": list("abcd"), "fold": 0, "target": 0.0, "std": 0.0, "fallback": False})
    table = table.assign(formula=["NaCl", "NaF", "MgO", None], prediction=[0.1, -0.3, 0.5, 9.0])
    errors = PredictedRows.of(table).by_element()
    of = {element.symbol: element for element in errors}
    assert of["Na"].mae == pytest.approx(0.2)
    assert of["Na"].rows == 2
    assert of["O"].mae == pytest.approx(0.5)
    assert [element.symbol for element in errors] == ["Mg", "O", "F", "Na", "Cl"]


@pytest.mark.parametrize("n_rows", [1, 5, 33, 300])
def test_bins_hold_every_known_row_once_and_in_order(n_rows: int) -> None:
    values = np.random.default_rng(n_rows).integers(1, 40, n_rows).astype(float)
    values[::7] = np.nan
    errors = np.arange(n_rows, dtype=float)
    bins = error_bins(values, errors)
    known = np.isfinite(values)
    assert sum(each.rows for each in bins) == known.sum()
    assert sum(each.mae * each.rows for each in bins) == pytest.approx(errors[known].sum())
    assert all(one.high < other.low for one, other in itertools.pairwise(bins))


def test_every_element_has_a_place_of_its_own_in_the_periodic_table() -> None:
    places = {SYMBOLS[number]: _place(number) for number in range(1, len(SYMBOLS))}
    assert len(set(places.values())) == len(places)
    assert (places["H"], places["He"], places["B"], places["Sc"], places["Hf"]) == (
        (1, 1), (1, 18), (2, 13), (4, 3), (6, 4),
    )  # fmt: skip
    assert (places["La"], places["Lu"], places["U"]) == ((9, 3), (9, 17), (10, 6))
    assert all(1 <= column <= 18 for _, column in places.values())


@pytest.mark.parametrize("n_rows", [1, 2, 7])
def test_few_rows_give_a_whole_page(n_rows: int) -> None:
    results = run_results(n_rows, folds=(0,))
    page = document(results).html()
    assert "of one fold" in words(page)
    assert page.count('class="plot"') >= 2


@pytest.mark.parametrize(
    ("n", "said"), [(1, "1 validation row decides nothing"), (99, "99 validation rows decide little"), (100, None)]
)
def test_few_rows_are_said_to_decide_little(n: int, said: str | None) -> None:
    found = few_rows(n, "validation")
    assert [sentence[: len(said or "") + 10] for sentence in found] == ([f"Few rows: {said}"] if said else [])


@pytest.mark.parametrize("n_rows", [10, 150])
def test_a_report_of_ten_rows_says_that_they_decide_nothing(n_rows: int) -> None:
    page = words(document(run_results(n_rows, folds=(0,))).html())
    assert ("decide nothing, for other rows of the same kind" in page) == (n_rows == 10)


def test_equal_targets_and_a_perfect_model_give_a_page() -> None:
    results = run_results(40, noise=0.0)
    ones = np.ones(len(results.rows))
    rows = replace(results.rows, target=ones, prediction=ones, std=np.nan * ones)
    own = score_folds(pd.DataFrame({"fold": rows.fold, "target": ones, "prediction": ones}))
    flat = report_module.Results(results.folder, results.scores, own, results.manifest, rows, results.models)
    page = document(flat).html()
    assert "0.0000" in page
    assert "std of the prediction" not in page


def test_a_hundred_thousand_rows_are_counted_and_not_drawn_one_by_one() -> None:
    page = document(run_results(100_000)).html()
    data = re.findall(r"<script type=.application/json.*?</script>", page, flags=re.DOTALL)
    assert sum(map(len, data)) < 400_000
    assert "logarithmic scale" in page


def test_without_formulas_the_rest_is_reported() -> None:
    results = run_results()
    unknown = np.full(len(results.rows), None)
    bare = report_module.Results(
        results.folder,
        results.scores,
        results.own,
        results.manifest,
        replace(results.rows, formula=unknown, n_sites=np.full(len(unknown), np.nan)),
        {},
    )
    headings = [part.title for part in document(bare).sections]
    assert "Error by element" not in headings
    assert "What it cost" not in headings
    assert "Predictions against targets" in headings


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no scores to report"):
        write_report(tmp_path)


@pytest.mark.trains
def test_training_leaves_a_report_and_a_report_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_dataset(24)
    rows = [
        {"id": row_id, "structure": crystal.to_structure().to(fmt="cif"), "y": target}
        for row_id, crystal, target in zip(data.ids, data.structures, data.targets, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    settings = {"model.start": "scratch", "model.width": 8, "optim.epochs": 2, "optim.batch_size": 8}
    source, out = Source("tiny", tmp_path / "table.csv", unit="eV"), tmp_path / "run"
    train(source, out, settings=settings, options=TrainOptions((0,)))
    results = read_results(out)
    assert all(results.rows.formula)
    assert results.models[0][0].history
    assert "Learning curves" in (out / "report.html").read_text()
    (out / "report.html").unlink()

    def fails(run: Path) -> Path:
        raise ZeroDivisionError("no\nreport")

    said = Said()
    monkeypatch.setattr(report_module, "write_report", fails)
    scores = train(source, out, settings=settings, options=TrainOptions((0,)), progress=said)
    assert scores.mean is not None
    assert any("report.html could not be written (ZeroDivisionError: no report)" in line for line in said.lines)
    assert not (out / "report.html").exists()
