"""Every long command in a real pseudo-terminal: what stands on the screen when it has ended, or was stopped."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
from screen import Terminal

from orchestrator.execution.log import ExecutionLog, PlannedModel
from orchestrator.execution.summary import RunSummary

pytestmark = pytest.mark.trains

SMALL = ("sample", "--limit", "40", "--set", "optim.epochs=1")
LONG = ("sample", "--limit", "60", "--set", "optim.epochs=3000")
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from orchestrator.cli.main import main; sys.argv[0] = 'crystaltune'; main()",
)
ROOT = Path(__file__).resolve().parents[2]
_COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
_CONTROL = re.compile(rb"\x1b\[")

_WIDE = pytest.param(160, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


class Shell:
    """Runs crystaltune in terminals, in a folder of its own."""

    def __init__(self, work: Path, cache: Path) -> None:
        self._work, self._cache = work, cache

    def open(
        self, *arguments: str, columns: int = 80, rows: int = 40, env: Mapping[str, str | None] | None = None
    ) -> Terminal:
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        known = {"CRYSTALTUNE_CACHE": str(self._cache), "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        return Terminal(
            [*COMMAND, *arguments], columns=columns, rows=rows, env={**known, **(env or {})}, cwd=self._work
        )

    def run(
        self, *arguments: str, columns: int = 80, code: int = 0, env: Mapping[str, str | None] | None = None
    ) -> tuple[str, bytes]:
        """All that stands in the terminal when the command has ended, and the bytes that made it."""
        with self.open(*arguments, columns=columns, env=env) as terminal:
            assert terminal.wait() == code, terminal.text()
            text, raw = terminal.text(), terminal.raw
        assert "Traceback" not in text, text
        assert all(len(line) <= columns for line in text.splitlines())
        return text, raw


@pytest.fixture(scope="module")
def shell(work: Path, one_cache: Path) -> Shell:
    return Shell(work, one_cache)


@pytest.fixture(scope="module")
def trained(shell: Shell) -> tuple[str, bytes]:
    """A finished run in the folder r, and its screen of 80 columns."""
    return shell.run("train", *SMALL, "--folds", "0", "--out", "r")


def test_train_that_has_ended_shows_the_same_on_a_wide_screen(shell: Shell, trained: tuple[str, bytes]) -> None:
    text, _ = shell.run("train", *SMALL, "--folds", "0", "--out", "r", columns=160)
    wide, narrow = (
        re.findall(r"^ *(?:crystaltune|zero-shot) +\d.*$", shown, flags=re.M) for shown in (text, trained[0])
    )
    assert wide == narrow
    assert len(wide) == 2


def line_with(text: str, part: str) -> str:
    found = [line for line in text.splitlines() if part in line]
    assert found, f"no line with '{part}':\n{text}"
    return found[0]


def test_train_ends_with_its_scores_where_they_are_and_what_comes_next(trained: tuple[str, bytes]) -> None:
    text, _ = trained
    assert text.splitlines()[0] == "train sample, fold 0, in r"
    assert re.search(r"^ *crystaltune +0\.\d+ +0\.\d+ +0\.\d+ +\d+ +\d+$", text, flags=re.MULTILINE), text
    assert "Everything is in r (report.html, scores.json, predictions.parquet)." in text
    after = text[text.index("Next:") :]
    assert "crystaltune search sample --limit 40 --space optim" in " ".join(after.split())
    assert "crystaltune predict r structures.csv" in after


def test_a_table_of_ones_own_hears_nothing_of_matbench_records(trained: tuple[str, bytes]) -> None:
    assert "No Matbench record" not in trained[0]


def test_words_are_never_cut_at_the_edge_of_the_screen(shell: Shell) -> None:
    text, _ = shell.run("tasks", columns=60)
    assert "embedded, no download" in " ".join(text.split())
    assert not re.search(r"down\nload|dow\nnload", text)


def test_text_has_no_colour_of_its_own_so_that_it_reads_on_light_and_dark(trained: tuple[str, bytes]) -> None:
    """Only bars are coloured; words are the terminal's own foreground, bold or dim."""
    coloured = re.findall(rb"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m([^\x1b]*)", trained[1])
    assert coloured, "the bars are coloured"
    assert not [part for part in coloured if re.search(rb"\w", part)], coloured


def test_no_color_is_obeyed(shell: Shell, trained: tuple[str, bytes]) -> None:
    _, raw = shell.run("train", *SMALL, "--folds", "0", "--out", "r", env={"NO_COLOR": "1"})
    assert not _COLOUR.search(raw)
    assert _COLOUR.search(trained[1])


def test_a_dumb_terminal_gets_lines_and_no_control_sequences(shell: Shell, trained: tuple[str, bytes]) -> None:
    text, raw = shell.run("train", *SMALL, "--folds", "0", "--out", "r", env={"TERM": "dumb"})
    assert not _CONTROL.search(raw), raw
    assert "Everything is in r" in text


@pytest.mark.parametrize("columns", [80, _WIDE])
def test_predict_shows_its_first_rows_and_where_all_are(shell: Shell, trained: tuple[str, bytes], columns: int) -> None:
    table = ROOT / "tests" / "terminal" / "three.csv"
    text, _ = shell.run("predict", "r", str(table), "--out", f"p{columns}.csv", columns=columns)
    assert line_with(text, "id").split()[:5] == ["id", "prediction", "std", "low", "high"]
    assert re.search(r"^3 predictions in p\d+\.csv$", text, flags=re.MULTILINE), text


def test_predict_says_which_rows_it_could_not_use(shell: Shell, trained: tuple[str, bytes], work: Path) -> None:
    whole = (ROOT / "tests" / "terminal" / "three.csv").read_text()
    (work / "four.csv").write_text(whole.rstrip("\n") + "\nbad,not a crystal\n")
    text, _ = shell.run("predict", "r", "four.csv", "--out", "four_predicted.csv", code=1)
    assert "3 predictions in four_predicted.csv" in text
    assert "1 row could not be used; column `problem` says why:" in text
    assert "1 x neither a structure's text nor the path of a file" in " ".join(text.split())
    assert len(pd.read_csv(work / "four_predicted.csv")) == 4


def test_check_tells_what_is_in_the_rows_and_what_is_wrong(shell: Shell, work: Path) -> None:
    table = ROOT / "tests" / "terminal" / "three.csv"
    rows = pd.read_csv(table)
    rows.assign(y=[1.0, 2.0, float("nan")]).to_csv(work / "three_y.csv", index=False)
    text, _ = shell.run("check", "three_y.csv", code=2)
    assert "missing targets (--drop-missing leaves such rows out)" in " ".join(text.split())
    text, _ = shell.run("check", "three_y.csv", "--drop-missing", code=2)
    assert "2 rows are too few: five folds need at least 10" in " ".join(text.split())
    assert "rows: 2, of 2 formulas" in text


@pytest.mark.parametrize("columns", [80, _WIDE])  # the second time everything is there already
def test_ablate_shows_what_each_lever_did(shell: Shell, columns: int) -> None:
    arguments = (*SMALL, "--folds", "0", "--seeds", "1", "--experiments", "E0,A1", "--out", "a")
    text, _ = shell.run("ablate", *arguments, columns=columns)
    assert text.splitlines()[0] == "ablate sample: E0, A1, in a"
    assert "2 models" in text
    assert re.search(r"^ *A1 +0\.\d+ .* none seen$", text, flags=re.MULTILINE), text
    assert "Everything is in a (ablation.html, ablation.md, ablation.json)." in text


@pytest.mark.parametrize("columns", [80, _WIDE])
def test_search_runs_in_a_terminal(shell: Shell, work: Path, columns: int) -> None:
    """Ray Tune pickles what it is given: a live display among it ended every search in a terminal."""
    arguments = [*SMALL, "--space", "optim", "--trials", "2", "--check-top", "0", "--out", "s"]
    arguments += ["--resume"] if (work / "s").exists() else []
    text, _ = shell.run("search", *arguments, columns=columns)
    assert re.search(r"^ *E0 +0\.\d+", text, flags=re.MULTILINE), text
    assert "0/s" not in text
    assert text.count("Verdict:") == 1
    assert "crystaltune train sample --limit 40 --config s/best.yaml" in " ".join(text[text.index("Next:") :].split())
    assert (work / "s" / "report.html").is_file()
    if "--resume" not in arguments:
        assert line_with(text, "trial  state").split()[:3] == ["trial", "state", "step"]
        assert re.search(r"^ *0 +complete +1 +0\.\d+", text, flags=re.MULTILINE), text


@pytest.mark.parametrize("columns", [80, _WIDE])
def test_quickstart_ends_with_five_folds_and_two_things_to_try(shell: Shell, columns: int) -> None:
    text, _ = shell.run("quickstart", "--limit", "40", "--set", "optim.epochs=1", columns=columns)
    assert "a few minutes, in runs/quickstart" in " ".join(text.split())
    assert [line.split()[1] for line in text.splitlines() if re.match(r" *fold \d  ", line)] == list("01234")
    assert "crystaltune train jdft2d" in text[text.index("Next:") :]
    assert "crystaltune train my_gaps --data table.csv" in " ".join(text[text.index("Next:") :].split())


def children(pid: int) -> list[int]:
    """Processes of a process, its children's included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(stat.parent.name), *children(int(stat.parent.name))]
        except OSError:  # it has just ended
            continue
    return found


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def stopped(terminal: Terminal, *, by: signal.Signals = signal.SIGINT) -> str:
    """Ctrl-C, or a signal, and what stands there then; none of the command's processes is left."""
    processes = children(terminal.pid) if Path("/proc/self").exists() else []
    if by == signal.SIGINT:
        terminal.send("\x03")
    else:
        os.kill(terminal.pid, by)
    assert terminal.wait(timeout=60) == 128 + by, terminal.text()
    text = terminal.text()
    assert "Traceback" not in text, text
    assert "KeyboardInterrupt" not in text, text
    end = time.monotonic() + 20
    while not gone(processes) and time.monotonic() < end:
        time.sleep(0.1)
    assert gone(processes)
    return "".join(text.split())  # a long line is cut where the screen ends


STOPS = {
    "train": (("train", *LONG, "--out", "t"), "structures/s", "Continue with: crystaltune train sample"),
    "ablate": (
        ("ablate", *LONG, "--folds", "0", "--experiments", "E0", "--seeds", "1", "--out", "b"),
        "structures/s",
        "Continue with: crystaltune ablate sample",
    ),
    "quickstart": (
        ("quickstart", "--limit", "60", "--set", "optim.epochs=3000", "--out", "q"),
        "structures/s",
        "Continue with: crystaltune quickstart",
    ),
    "search": (
        ("search", *LONG, "--space", "optim", "--trials", "4", "--out", "c{columns}"),
        "running",
        "--out c{columns} --resume",
    ),
    "predict": (("predict", "r", str(ROOT / "tests" / "terminal" / "three.csv")), "predict ", "stopped"),
}


@pytest.mark.parametrize("columns", [80, _WIDE])
@pytest.mark.parametrize("command", STOPS)
def test_ctrl_c_says_how_to_continue(shell: Shell, trained: tuple[str, bytes], command: str, columns: int) -> None:
    arguments, working, said = STOPS[command]
    with shell.open(*(word.format(columns=columns) for word in arguments), columns=columns) as terminal:
        terminal.expect(working)
        assert "".join(said.format(columns=columns).split()) in stopped(terminal)
        shown = [line for line in terminal.text().splitlines() if re.search(r"━{4}| running$|complete", line)]
        assert len(shown) == len(set(shown)), f"a line stands there twice:\n{terminal.text()}"


@pytest.mark.parametrize("columns", [80, _WIDE])
def test_status_is_watched_until_ctrl_c(shell: Shell, work: Path, columns: int) -> None:
    """The log of a session whose process, this one, is at work."""
    folder = work / f"watched{columns}"
    folder.mkdir()
    log = ExecutionLog(folder)
    log.session([PlannedModel("a", "teacher", (), 10.0), PlannedModel("b", "student", ("a",), 10.0)], 2, ["cpu"])
    log.begin("a", "cpu")
    with shell.open("status", folder.name, "--watch", columns=columns) as terminal:
        terminal.expect("needs teacher")
        log.end("a", RunSummary(status="finished", reason="", structures=10, seconds=1.0, structures_per_s=10.0))
        terminal.expect("1 finished, 1 ready")
        stopped(terminal)
    text, _ = shell.run("doctor", columns=columns)
    assert line_with(text, "GPU").split()[1] == "ok"
    assert text.rstrip().endswith("Nothing stands in the way.")


def test_a_search_that_was_stopped_before_it_was_one_is_begun_again_without_resume(shell: Shell) -> None:
    with shell.open("search", *LONG, "--space", "optim", "--out", "n") as terminal:
        terminal.expect("search sample")
        assert stopped(terminal).endswith("--spaceoptim--outn")


def test_sigterm_as_of_a_batch_system_is_answered_as_ctrl_c_is(shell: Shell) -> None:
    with shell.open("train", *LONG, "--folds", "0,1", "--out", "term") as terminal:
        terminal.expect("structures/s")
        text = stopped(terminal, by=signal.SIGTERM)
        assert "Continuewith:crystaltunetrainsample" in text
        assert "resource_tracker" not in text


@pytest.mark.long
def test_models_on_ray_have_bars_and_end_with_ctrl_c(shell: Shell) -> None:
    with shell.open("train", *LONG, "--folds", "0,1", "--ray", "--out", "ray") as terminal:
        terminal.expect("fold1-seed0 train")
        terminal.expect("structures/s")
        text = stopped(terminal)
        assert "Continuewith:crystaltunetrainsample--limit60--setoptim.epochs=3000--folds0,1--ray--outray" in text


def test_ctrl_c_while_torch_is_loaded_is_no_traceback(shell: Shell) -> None:
    with shell.open("train", *LONG, "--out", "e") as terminal:
        terminal.expect("train sample")
        assert "Continuewith:crystaltunetrainsample" in stopped(terminal)


@pytest.fixture(scope="module", autouse=True)
def _ray_is_set_up_for_children() -> Iterator[None]:
    """A terminal under `uv run`: Ray must not take this environment apart."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("RAY_ADDRESS", raising=False)
        yield
