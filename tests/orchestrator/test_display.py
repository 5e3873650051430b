"""What a person sees of long jobs: bars that fit, rates that mean something, logs that stay short."""

import io
import re
import threading

import pyte
import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.report import progress as display_module
from orchestrator.report.progress import BarDisplay, LineDisplay, clock, display, rate_text
from orchestrator.study.callbacks import live_table
from orchestrator.study.journal import Trial, TrialState
from orchestrator.study.pruner import Pruner
from trainables.training.result import StepResult


def terminal(width: int, monkeypatch: pytest.MonkeyPatch, **others: object) -> io.StringIO:
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, highlight=False, markup=False, **others)  # type: ignore[arg-type]
    monkeypatch.setattr(display_module, "console", console)
    return shown


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(display_module.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("speed", "unit", "text"),
    [
        (1234.4, "structures", "1,234 structures/s"),
        (2.5, "trials", "2.5 trials/s"),
        (1 / 28, "trials", "28 s/trial"),
        (0.5, "trials", "2.0 s/trial"),
        (1 / 4000, "runs", "4,000 s/run"),
    ],
)
def test_a_rate_below_one_a_second_is_seconds_for_each(speed: float, unit: str, text: str) -> None:
    assert rate_text(speed, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "0:07"), (760, "12:40"), (11100, "3:05:00"), (2 * 86400 + 11100, "2d 3:05:00"), (-1, "0:00")],
)
def test_times_are_read_as_clocks_show_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_stage_is_one_line_at_every_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(width, monkeypatch)
    with BarDisplay() as bars, bars.stage("fold 3 seed 11 without part 2 train", 20_000, "structures") as bar:
        for _ in range(4):
            bar.advance(5_000, "epoch 3/200 val MAE 0.2299 (best 0.2253) eV/atom")
    plain = Text.from_ansi(shown.getvalue()).plain
    lines = [line for line in plain.split("\n") if line.strip()]
    assert all(len(line) <= width for line in lines)
    assert all(line.startswith("fold 3 seed 1") for line in lines), lines
    assert re.search(r" 100% .*\d structures/s 0:00", lines[-1]), lines[-1]


def test_a_log_of_a_long_job_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten hours that advance every second: a line in ten seconds would be 3,600."""
    shown, moved = terminal(80, monkeypatch), Clock(monkeypatch)
    with LineDisplay().stage("train", 36_000, "structures") as bar:
        for second in range(36_000):
            moved.now = float(second)
            bar.advance(1)
    lines = shown.getvalue().splitlines()
    assert 20 < len(lines) < 90
    assert lines[0].startswith("train | 0% of 36,000 structures | 1.0 structures/s | ETA ")
    assert lines[-1].startswith("train | 100% of 36,000 structures")


def test_a_message_in_a_log_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(80, monkeypatch)
    LineDisplay().message("word " * 60)
    assert len(shown.getvalue().splitlines()) == 1


def test_bars_are_for_terminals_that_can_move_their_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(80, monkeypatch)
    assert isinstance(display(), BarDisplay)
    terminal(80, monkeypatch, _environ={"TERM": "dumb"})
    assert isinstance(display(), LineDisplay)
    monkeypatch.setattr(display_module, "console", Console(file=io.StringIO()))
    assert isinstance(display(), LineDisplay)


@pytest.mark.parametrize(("widgets", "kind"), [(None, LineDisplay), (object(), BarDisplay)])
def test_a_notebook_without_widgets_gets_lines(widgets: object, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "console", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(display_module, "find_spec", lambda name: widgets)
    assert isinstance(display(), kind)


def trial(number: int, state: str, mae: float) -> Trial:
    changes = {"optim.lr": 3e-4, "optim.layer_decay": 0.8, "optim.weight_decay": 0.01, "optim.batch_size": 16}
    record = Trial(number, changes, {}, state=TrialState(state))
    record.results.append(StepResult(3, 3.0, mae, mae, 0.1, 200, 61.0))
    return record


def test_the_live_table_shows_every_number_in_80_columns() -> None:
    shown = io.StringIO()
    trials = [trial(104, "PRUNED", 0.2345678), trial(105, "COMPLETE", 0.2212), trial(106, "RUNNING", 31.0625)]
    Console(file=shown, width=80).print(live_table(trials, Pruner("asha", 9), "meV/atom"))
    lines = shown.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    (header,) = [line for line in lines if "trial" in line and "state" in line]
    assert header.split() == ["trial", "state", "step", "MAE", "(meV/atom)", "time", "changes"]
    for number, word, mae in (("104", "stopped", "0.2346"), ("105", "complete", "0.2212"), ("106", "running", "31.06")):
        (row,) = [line for line in lines if line.strip().startswith(number)]
        assert [word, "3", mae, "61", "s"] == row.split()[1:6]


def test_a_display_may_be_used_from_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(80, monkeypatch)
    with BarDisplay() as bars, bars.stage("all", 400, "rows") as bar:
        threads = [threading.Thread(target=lambda: [bar.advance(1) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bars._bars.tasks[0].completed == 400


def test_no_message_is_erased_by_bars_that_come_and_go_in_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn without one lock for all, a line above the bars is lost now and then."""
    shown = terminal(80, monkeypatch)
    monkeypatch.setattr(display_module, "_SECONDS_BETWEEN_FRAMES", 0.001)

    def worker(bars: BarDisplay, number: int) -> None:
        for turn in range(20):
            with bars.stage(f"stage {number}.{turn}" + " predict" * (turn % 2), 10, "rows") as bar:
                bar.advance(10)
                bars.message(f"message {number}.{turn}")

    with BarDisplay() as bars:
        threads = [threading.Thread(target=worker, args=(bars, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    screen = pyte.HistoryScreen(80, 40, history=2000, ratio=0.5)
    pyte.Stream(screen).feed(shown.getvalue().replace("\n", "\r\n"))
    lines = ["".join(row[x].data for x in range(80)).rstrip() for row in screen.history.top] + screen.display
    found = {line.strip() for line in lines if line.startswith("message")}
    assert found == {f"message {number}.{turn}" for number in range(4) for turn in range(20)}
