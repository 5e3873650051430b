"""The files of a study: what they hold, and that they can be made of any study."""

import html
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console
from study_report_data import (
    BASE,
    Maker,
    changes_of,
    checked,
    curve,
    distributions,
    manifest,
    params_of,
    searched,
    with_crashes,
)

from orchestrator.study.report.analysis import Analysis, analyse
from orchestrator.study.report.figures import parallel_picture
from orchestrator.study.report.files import study_table, write_study_reports
from orchestrator.study.report.sections import document, sections
from trainables.config import load_config, parse_config

SECTIONS = [
    "Conclusions",
    "Best configuration against E0",
    "What was searched, and on which data",
    "Optimisation history",
    "Learning curves and rungs",
    "Parameter importances",
    "Parallel coordinates",
    "Slices",
    "MAE against cost",
    "Failures",
    "How to repeat it",
]
_VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Tree(html.parser.HTMLParser):
    """Every element closed in its turn, no id twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.pictures = 0
        self.feed(text)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.pictures += ("class", "plot") in attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def without_scripts(page: str) -> str:
    """The page without plotly's own script and the figures' data."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def written(folder: Path, made: Maker, **changed: Any) -> tuple[Analysis, str, Tree]:
    analysis = analyse(manifest(**changed), made.trials(), distributions)
    write_study_reports(folder, analysis)
    page = (folder / "report.html").read_text(encoding="utf-8")
    return analysis, page, Tree(page)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis, str, Tree]:
    folder = tmp_path_factory.mktemp("a study")
    return folder, *written(folder, checked(folder))


def test_the_page_holds_every_section_and_picture(whole: tuple[Path, Analysis, str, Tree]) -> None:
    _, analysis, page, tree = whole
    assert tree.headings == SECTIONS
    assert tree.pictures == 8  # seeds, history, curves, two of importances, parallel, slices, cost
    assert "Study: ssa on matbench_jdft2d (meV/atom), PARTIAL: 600 of 636 rows, no leaderboard score" in page
    for wanted in (
        "+1.00",
        "407 training and 102 validation rows of fold 0",
        "tpe, seed 5",
        "asha, rungs at step 4, 12, factor 3",
        "validation MAE",
        "the loss was nan at step N (lr=N)",
        "crystaltune search jdft2d --space ssa --trials 18",
        "optuna 5.0.0",
        "0123456789abcdef",
        "mp_e_form fedcba98",
    ):
        assert wanted in page
    assert len(analysis.sentences) >= 4


def test_the_page_fetches_nothing(whole: tuple[Path, Analysis, str, Tree]) -> None:
    assert not re.search(r"(src|href)=[\"'](?!#)|url\((?!#)|@import|https?://", without_scripts(whole[2]))
    assert whole[2].count("plotly.js v") == 1  # one copy of its script draws all pictures


def test_nothing_is_said_twice(whole: tuple[Path, Analysis, str, Tree]) -> None:
    folder, analysis, page, _ = whole
    items = re.findall(r"<li>(.*?)</li>", page)
    assert len(items) == len(set(items)) > len(analysis.sentences)
    words = html.unescape(re.sub(r"<[^>]+>", "", without_scripts(page)))
    text = (folder / "report.md").read_text()
    for sentence in analysis.sentences:
        # Backticks are code on the page.
        assert (words.count(sentence.replace("`", "")), text.count(sentence)) == (1, 1)


def test_the_page_and_its_pictures_follow_the_readers_colours(whole: tuple[Path, Analysis, str, Tree]) -> None:
    page = whole[2]
    assert '<meta name="color-scheme" content="light dark">' in page
    pictures = re.findall(r"<script type=.application/json.*?</script>", page, flags=re.DOTALL)
    assert len(pictures) == 8
    for picture in (pictures[0], pictures[2], pictures[7]):  # ours; Optuna's have a scale of their own
        assert "var(--green)" in picture
        assert not re.search(r"#[0-9a-f]{6}\b", picture)


def test_the_best_trials_stand_out_in_the_readers_own_colours(whole: tuple[Path, Analysis, str, Tree]) -> None:
    picture = parallel_picture(whole[1])
    assert picture is not None
    lines = [trace for trace in picture.figure.data if trace.mode == "lines"]
    assert {trace.line.color for trace in lines} == {"var(--blue)"}
    by_mae = sorted(lines, key=lambda trace: trace.y[0])
    assert by_mae[0].opacity == 1.0
    assert [trace.opacity for trace in by_mae] == sorted((trace.opacity for trace in lines), reverse=True)


def test_what_may_be_too_wide_scrolls_by_itself_also_by_keyboard(whole: tuple[Path, Analysis, str, Tree]) -> None:
    page = whole[2]
    boxes = re.findall(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+">\s*<(\w+)', page)
    assert boxes.count("table") == without_scripts(page).count("<table") == 5
    assert boxes.count("div") == page.count('class="plot"') == 8


@pytest.mark.parametrize("spread", [0.0, 1e-12, 2e-5])
def test_values_that_hardly_differ_are_drawn(tmp_path: Path, spread: float) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    for number in range(7):
        given = {"params": {"lr": 0.23 + spread * number}, "values": [0.2301 + spread * number]}
        made.trial(number, [0.24, 0.2301 + spread * number], "COMPLETE", **given)
    narrow = FloatDistribution(0.23, 0.23 + 6 * spread)
    analysis = analyse(manifest(), made.trials(), lambda trial: dict.fromkeys(trial.params, narrow))
    assert len([picture for part in sections(analysis, tmp_path) for picture in part.pictures]) == 5
    assert document(analysis, tmp_path).html().count('class="plot"') == 5


def failures_in(analysis: Analysis, folder: Path) -> tuple[str, str]:
    """What page and Markdown have of failures."""
    report = document(analysis, folder)
    page = report.html().split("<h2>Failures</h2>")[1].split("<h2>")[0]
    return page, report.markdown().split("## Failures\n")[1].split("\n## ")[0]


def test_crashes_of_the_engine_are_told_beside_failed_trials(
    whole: tuple[Path, Analysis, str, Tree], tmp_path: Path
) -> None:
    crashes = [(1_700_000_000.5, "search", "the raylet <died> | again"), (1_700_003_600.0, "checks", "no answer")]
    page, text = failures_in(with_crashes(whole[1], *crashes), tmp_path)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Failed trials", "Crashes of the engine"]
    assert ">2023-11-14 22:13:20</td>" in page
    assert "the raylet &lt;died&gt; | again" in page
    assert re.search(r"\| 2023-11-14 23:13:20 +\| checks +\| no answer +\|", text)
    assert "### Crashes of the engine" in text
    assert "None." not in page


def test_crashes_alone_and_no_failure_at_all_are_told(tmp_path: Path) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    made.trial(0, curve(44.2, 36), "COMPLETE", origin="E0", params={})
    analysis = analyse(manifest(), made.trials(), distributions)
    page, text = failures_in(analysis, tmp_path)
    assert "<li>None.</li>" in page
    assert text.strip() == "- None."
    page, text = failures_in(with_crashes(analysis, (1_700_000_000.0, "search", "no answer")), tmp_path)
    assert "None." not in page + text
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Crashes of the engine"]


def test_the_command_to_train_names_the_quoted_file_and_the_fold(whole: tuple[Path, Analysis, str, Tree]) -> None:
    text = (whole[0] / "report.md").read_text()
    assert f"crystaltune train jdft2d --config '{whole[0] / 'best.yaml'}' --folds 0" in text


def test_the_markdown_says_the_same(whole: tuple[Path, Analysis, str, Tree]) -> None:
    folder, analysis, *_ = whole
    text = (folder / "report.md").read_text()
    assert all(f"- {sentence}" in text for sentence in analysis.sentences)
    assert re.search(r"\| optim\.lr +\| 0\.001 +\| 0\.0008 +\|", text)
    assert re.search(r"\| trial 7 \| +42\.70 \| +43\.00 \| +0\.20 \| +3 \| +\+1\.00 \| \+0\.25 to \+1\.75 \|", text)
    assert re.search(r"\| +4 \| +1 \| +15 \| +3 \|", text)
    assert "| strain " in text.split("## Parameter importances")[1]


def test_best_yaml_is_the_base_with_the_changes(whole: tuple[Path, Analysis, str, Tree]) -> None:
    read = parse_config(load_config(whole[0] / "best.yaml"), "best.yaml")
    assert read == BASE.changed(changes_of(7) | {"seed": 1})
    assert read.optim.lr == pytest.approx(8e-4)


def test_trials_parquet_has_a_row_a_trial_and_typed_columns(whole: tuple[Path, Analysis, str, Tree]) -> None:
    table = pd.read_parquet(whole[0] / "trials.parquet").set_index("number")
    assert list(table.index) == list(range(27))  # 18 and nine checks
    assert list(table.columns[:11]) == [
        "of", "origin", "state", "seed", "value", "cost", "last_step", "structures", "seconds", "tries", "reason",
    ]  # fmt: skip
    assert table.loc[7, ["state", "value", "cost", "last_step"]].tolist() == ["COMPLETE", 42.7, 3600.0, 36]
    assert pd.isna(table.loc[7, "of"])
    assert table.loc[21, ["of", "seed", "value"]].tolist() == [7, 1, 43.0]
    assert pd.isna(table.loc[5, "value"])
    assert table.loc[5, "reason"].startswith("the loss was nan")
    assert table.loc[7, "param.strain"] == params_of(7)["strain"]
    assert pd.isna(table.loc[6, "param.strain"])  # not used there
    assert table["param.strain"].dtype == float
    assert bool(table.loc[7, "param.strain.on"]) is True
    assert table.loc[7, "param.loss"] == "mse"
    assert table.loc[7, "config.optim.lr"] == 8e-4
    assert json.loads(table.loc[7, "config.multitask.tasks"]) == []


def test_the_terminal_table_has_80_columns_the_best_and_the_counts(whole: tuple[Path, Analysis, str, Tree]) -> None:
    console = Console(width=80, record=True)
    console.print(study_table(whole[1]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["trial", "7", "42.70", "43.00", "0.20", "3", "+1.00", "+0.25", "to", "+1.75"] in lines
    assert ["E0", "44.20", "44.00", "0.50", "3"] in lines
    assert "9 complete, 5 stopped early, 3 failed, 1 running" in text
    assert "erdict" not in text  # whoever prints the table says what follows after it


def test_a_study_of_one_trial_gives_a_whole_page(tmp_path: Path) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    made.trial(0, curve(44.2, 36), "COMPLETE", origin="E0", params={})
    analysis, page, tree = written(tmp_path, made)
    assert tree.headings == SECTIONS
    assert "The best configuration is E0&#39;s." in page
    assert "0 trials are too few for importances" in page
    assert (tmp_path / "best.yaml").exists()
    Console(width=80, record=True).print(study_table(analysis))


@pytest.mark.parametrize("begun", [False, True])
def test_a_study_without_a_complete_trial_gives_no_best_yaml(tmp_path: Path, begun: bool) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    if begun:
        made.trial(0, [], "FAIL", "no space left on device")
        made.trial(1, [], "RUNNING")
    analysis, page, tree = written(tmp_path, made)
    assert tree.headings == SECTIONS
    assert tree.pictures == 0
    assert "no trial completed" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "journal.jsonl", "report.html", "report.md", "trials.parquet",
    ]  # fmt: skip
    assert len(pd.read_parquet(tmp_path / "trials.parquet")) == 2 * begun
    assert "crystaltune train" not in page
    Console(width=80, record=True).print(study_table(analysis))


def test_a_study_of_two_objectives_names_its_front(tmp_path: Path) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    for number, (mae, cost) in enumerate([(44.0, 3600.0), (43.0, 7200.0), (43.5, 9000.0), (42.0, 9000.0)]):
        made.trial(number, curve(mae, 36), "COMPLETE", values=[mae, cost])
    analysis, page, tree = written(tmp_path, made, objectives=["mae", "cost"], scheduler={"name": "none"})
    assert analysis.front == [0, 1, 3]
    assert "on the front, from the lowest cost (structures processed in training) on: E0, trial 1, trial 3." in page
    assert tree.headings == SECTIONS
    assert pd.read_parquet(tmp_path / "trials.parquet")["cost"].tolist() == [3600.0, 7200.0, 9000.0, 9000.0]


@pytest.mark.parametrize("objectives", [["mae"], ["mae", "cost"]])
def test_a_study_of_predictions_has_no_curves_and_its_own_cost(tmp_path: Path, objectives: list[str]) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    for number, views in enumerate([1, 2, 4, 8, 16, 4, 8, 2, 16]):
        mae = 44.0 - 0.1 * views + 0.01 * number
        values = [mae, float(views)][: len(objectives)]
        given = {"changes": {"tta.views": views, "tta.strain_size": 1e-3}, "params": {"views": views}}
        made.trial(number, [], "COMPLETE", values=values, **given)
    changed = {"runs": "prediction", "objectives": objectives, "scheduler": {"name": "none"}}
    analysis, page, tree = written(tmp_path, made, **changed)
    assert (analysis.saving, analysis.rungs) == (None, [])
    assert tree.headings == SECTIONS
    assert "The trials only predict, so there are none." in page
    assert "predictions a crystal" in page
    assert analysis.front == [0, 1, 2, 3, 4]
    assert pd.read_parquet(tmp_path / "trials.parquet")["cost"].tolist() == [1, 2, 4, 8, 16, 4, 8, 2, 16]


def test_an_unchecked_study_shows_no_checks(tmp_path: Path) -> None:
    analysis, page, tree = written(tmp_path, searched(tmp_path), checks={"top": 0, "seeds": []})
    assert tree.pictures == 7
    assert "nothing was checked" in page
    assert "check MAE" not in page
    console = Console(width=80, record=True)
    console.print(study_table(analysis))
    assert "trial 7" in console.export_text()


def test_what_users_wrote_is_escaped(tmp_path: Path) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    made.trial(0, [], "FAIL", "<script>alert(1)</script> | & more")
    _, page, tree = written(tmp_path, made, command="crystaltune search 'a<b'")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "a&lt;b" in page
    assert tree.headings == SECTIONS
