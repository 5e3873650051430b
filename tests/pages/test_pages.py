"""What a browser makes of the report pages, on a telephone and on a screen, by day and by night, and on paper."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium, installed
from ladder_data import ABOUT as LADDER
from ladder_data import full_ladder
from members_data import members_summary
from run_report_data import run_results
from study_report_data import checked, distributions, manifest, with_crashes

from orchestrator.ablation.report import document as ablation_document
from orchestrator.study.report.analysis import analyse
from orchestrator.study.report.sections import document
from orchestrator.train.report import document as run_document

MEASURE = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")
LONG = "/home/someone/" + 40 * "unbroken" + "/table.json.gz"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = checked(folder)
    made.trial(40, [], "FAIL", f"no such file: {LONG}")
    about = manifest(command=f"crystaltune search mine --data {LONG}")
    analysis = with_crashes(analyse(about, made.trials(), distributions), (1_700_000_000.0, "search", f"lost {LONG}"))
    written = {
        "study": document(analysis, folder).html(),
        "ablation": ablation_document(full_ladder(), LADDER).html(),
        "run": run_document(run_results()).html(),
        "ensemble": run_document(replace(run_results(), members=members_summary())).html(),
    }
    for name, text in written.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in written}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = installed()
    if program is None:
        pytest.skip("needs Chromium to lay the pages out: apt-get install chromium")
    opened = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["study", "ablation", "run", "ensemble"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_its_window_and_can_be_read(
    browser: Chromium, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    browser.show(pages[name], width, scheme)
    found: dict[str, Any] = browser.value(MEASURE)
    assert found["window_width"] == width
    assert found["page_width"] <= width
    assert found["hidden"] == []  # what is wider than its place can be scrolled, also by keyboard
    assert found["n_scrolling"] >= (3 if width == 400 else 0)
    assert found["background"] < 0.02 if scheme == "dark" else found["background"] > 0.9
    assert found["n_words"] > 100
    assert found["n_drawn"] > 30
    assert found["words_contrast"] >= 4.5
    assert found["drawn_contrast"] >= 4.5
    assert found["words_size"] >= 13
    assert found["drawn_size"] >= 9
    assert found["n_plots"] == found["n_plots_drawn"] >= 3
    assert browser.value("performance.getEntriesByType('resource').length") == 0  # nothing is fetched


@pytest.mark.parametrize("name", ["study", "ablation", "run", "ensemble"])
def test_paper_stays_white(browser: Chromium, pages: dict[str, Path], name: str) -> None:
    browser.show(pages[name], 700, "dark", media="print")
    found: dict[str, Any] = browser.value(MEASURE)
    assert found["background"] == pytest.approx(1)
    assert found["words_contrast"] >= 4.5
    assert found["page_width"] <= 700
