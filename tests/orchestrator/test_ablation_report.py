"""What the reports hold of an analysis."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ladder_data import ABOUT, CURVE, analysed, full_ladder, ladder, outcome, predictions, row
from rich.console import Console

from orchestrator.ablation.analysis import Analysis
from orchestrator.ablation.figures import pictures
from orchestrator.ablation.report import document, flat_table, summary_table, write_reports


@pytest.fixture(scope="module")
def full() -> Analysis:
    return full_ladder()


def test_reports_hold_every_experiment_and_read_back(full: Analysis, tmp_path: Path) -> None:
    write_reports(tmp_path, full, ABOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"ablation.{x}" for x in ("html", "json", "md", "parquet")
    ]
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert (content["about"], content["experiments"]) == (ABOUT, [row.content() for row in full.rows])
    assert (content["sentences"], content["published"]) == (full.sentences, full.published)
    table = pd.read_parquet(tmp_path / "ablation.parquet")
    assert list(table["name"]) == [row.name for row in full.rows]
    by_name = table.set_index("name")
    assert by_name.loc["E3", "interval_high"] == row(full, "E3")["interval"][1]
    assert by_name.loc["E3", "control_name"] == "L3"
    assert by_name.loc["E3", "control_interval_low"] == row(full, "E3")["control"]["interval"][0]
    assert by_name.loc["E3", "mae_fold_4"] == row(full, "E3")["per_fold"]["4"]
    assert by_name.loc["E5", "marks"] == "12 auxiliary rows are test crystals and were KEPT"
    assert np.isnan(by_name.loc["E1", "mae_mean"])


def test_a_table_without_any_number_has_number_columns(tmp_path: Path) -> None:
    failed = analysed({"E0": outcome("E0", pd.DataFrame(), failed="no space")})
    assert flat_table(failed)["mae_mean"].dtype == float
    write_reports(tmp_path, failed, ABOUT)
    assert failed.sentences == ["No experiment could be compared with its parent or with E0."]
    assert "failed (no space)" in (tmp_path / "ablation.md").read_text()


def test_markdown_has_a_line_an_experiment_and_begins_with_the_limits(full: Analysis) -> None:
    text = document(full, ABOUT).markdown()
    assert text.startswith(
        "# Ablation: matbench_mp_e_form (eV/atom), PARTIAL: 600 of 132,752 rows, no leaderboard score, tier pretrained"
    )
    first = text.split("## ")[2]
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # aligned
    assert [line.split("|")[1].strip(" *") for line in lines[2:]] == [row.name for row in full.rows]
    assert "- E5 *: 12 auxiliary rows are test crystals and were KEPT" in first
    assert "- E1: failed (out of memory | at step 3)" in first
    for wanted in (
        "## Against a control of equal cost, in training or in use (eV/atom)",
        "fold 4",
        *full.sentences,
        "crystaltune ablate",
        "torch 2.15.0",
        "0123456789ab",
    ):
        assert wanted in text
    assert document(full, {"title_parts": ["mine", "SYNTHETIC"]}).markdown().startswith("# Ablation: mine, SYNTHETIC\n")


def column(text: str, title: str, name: str) -> dict[str, str]:
    """A column of a table in Markdown, by experiment."""
    lines = [line for line in text.split(f"## {title}")[1].split("## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {line[0]: line[cells[0].index(name)] for line in cells[2:]}


def test_predictions_a_crystal_are_models_times_views() -> None:
    outcomes = {name: one for name, one in ladder().items() if name in ("E0", "E3", "E2")}
    outcomes["E3"] = replace(outcomes["E3"], views=4)
    outcomes["E2"] = replace(outcomes["E2"], device="mixed: A100, H200")
    analysis = analysed(outcomes)
    text = document(analysis, ABOUT).markdown()
    assert column(text, "The experiments", "predictions") == {"E0": "1", "E2": "1 x 4 = 4", "E3": "3 x 4 = 12"}
    assert column(text, "The experiments", "device")["E2"] == "mixed: A100, H200"
    assert flat_table(analysis).set_index("name").loc["E3", "cost_predictions"] == 12


def test_replicates_are_shown_beside_their_spread() -> None:
    outcomes = {"E0": outcome("E0", predictions(0, replicates=3)), "E3": outcome("E3", predictions(0.2, replicates=1))}
    text = document(analysed(outcomes), ABOUT).markdown()
    assert column(text, "Against the parent", "replicates") == {"E0": "3", "E3": "1"}
    spread = column(text, "Against the parent", "+- seeds")
    assert (bool(spread["E0"]), spread["E3"]) == (True, "")
    assert "replicates of two experiments are not paired by seed" in text


def test_shared_and_out_of_fold_teachers_are_told_where_there_are_students(full: Analysis) -> None:
    shared = "Students of a fold share their teachers, so their spread over seeds does not include the teachers"
    out_of_fold = "so E3&#39;s seeds serve E0 and E3 but not E4"
    page, text = document(full, ABOUT).html(), document(full, ABOUT).markdown()
    assert shared in page
    assert out_of_fold in page
    assert shared in text
    assert out_of_fold.replace("&#39;", "'") in text
    without = document(analysed({name: one for name, one in ladder().items() if name in ("E0", "E3")}), ABOUT).html()
    assert shared not in without
    assert out_of_fold not in without
    in_sample = document(
        full, ABOUT | {"base": {"distil": {"teachers": "in_sample"}}}
    ).html()  # then they are E0's own runs
    assert shared in in_sample
    assert out_of_fold not in in_sample


def test_the_page_holds_everything_and_links_nowhere(full: Analysis) -> None:
    page = document(full, ABOUT).html()
    bare = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"'](?!#)|url\((?!#)|@import|https?://", bare)
    assert page.count('class="plot"') == 3
    assert page.count("plotly.js v") == 1
    for one in full.rows:
        assert re.search(rf"<td[^>]*>{one.name}( \*)?</td>", page)
    ids = re.findall(r' id="([^"]+)"', bare)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', bare)) <= {(i, "") for i in ids} | {("", i) for i in ids}
    assert "PARTIAL" in page
    hostile = document(analysed({"E0": outcome("E0", predictions(0), description="<b>bold</b>")}), ABOUT).html()
    assert "&lt;b&gt;bold" in hostile
    assert document(full, ABOUT).html() == page


def test_nothing_is_said_twice(full: Analysis) -> None:
    page = document(full, ABOUT).html()
    items = re.findall(r"<li>(.*?)</li>", page)
    assert len(items) == len(set(items)) > len(full.sentences)
    console = Console(width=80, record=True)
    console.print(summary_table(full))
    text = console.export_text()
    assert not [sentence for sentence in full.sentences if sentence in " ".join(text.split())]


def test_the_page_follows_the_readers_colours_and_scrolls_what_is_wide(full: Analysis) -> None:
    page = document(full, ABOUT).html()
    assert '<meta name="color-scheme" content="light dark">' in page
    drawn = re.findall(r"<script type=.application/json.*?</script>", page, flags=re.DOTALL)
    assert len(drawn) == 3
    for picture in drawn:
        assert "var(--" in picture
        assert not re.search(r"#[0-9a-f]{6}\b", picture)
    boxes = re.findall(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+">\s*<(\w+)', page)
    assert (boxes.count("table"), boxes.count("div")) == (
        re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).count("<table"),
        3,
    )


def test_differences_that_hardly_differ_are_drawn() -> None:
    outcomes = ladder(E3=1e-6, E4=1e-6)
    outcomes["E3"] = replace(
        outcomes["E3"], curve=tuple(point | {"mae": 0.031, "min": 0.031, "max": 0.031 + 1e-7} for point in CURVE)
    )
    drawn = pictures(analysed(outcomes))
    assert len(drawn) == 3
    for picture in drawn:
        assert picture.figure.data
        assert all(np.isfinite(trace.x).all() for trace in picture.figure.data if not isinstance(trace.x[0], str))


def test_pictures_are_left_out_where_there_is_nothing_to_draw(full: Analysis) -> None:
    assert len(pictures(full)) == 3
    captions = [picture.caption for picture in pictures(full)]
    assert captions[1].startswith("MAE against the cost of training alone: ")
    assert captions[2].startswith("MAE of the plain mean of some of an ensemble's members, however the experiment")
    assert len(pictures(analysed({"E0": outcome("E0", predictions(0))}))) == 1
    assert not pictures(analysed({"E0": outcome("E0", pd.DataFrame(), failed="no")}))


def test_every_experiment_and_published_line_is_named_in_the_cost_picture(full: Analysis) -> None:
    points, *lines = pictures(full)[1].figure.data
    placed = [one.shown_name for one in full.rows if one.mae]
    assert list(points.text) == placed
    assert sorted(line.text[1] for line in lines) == ["ALIGNN", "CGCNN", "CrabNet", "coNGN"]  # the dummy is far above
    near = [(x, y, at) for x, y, at in zip(points.x, points.y, points.textposition, strict=True)]
    assert len({(x, round(y, 4), at) for x, y, at in near}) == len(near)  # no two names at one place


def test_the_terminals_table_fits_80_columns(full: Analysis) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(full))
    shown = capture.get()
    assert all(one.name in shown for one in full.rows)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "E5 *: 12 auxiliary rows" in shown


# real predictions
