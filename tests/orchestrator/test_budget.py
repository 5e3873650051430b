"""Epochs that fit into a time, by a speed that is measured; a run that has begun keeps what it began with."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from said import Said, refusal
from small_data import rocksalts

import crystaltune as ct
from orchestrator.train import budget as budget_module
from orchestrator.train.budget import MOST_EPOCHS

pytestmark = pytest.mark.trains
SMALL: dict[str, Any] = {"model.start": "scratch", "model.width": 8, "optim.batch_size": 8}


def trained(out: Path, said: Said, *, time_budget: float | str | None, **others: Any) -> ct.Run:
    cells = rocksalts(20)
    frame = pd.DataFrame({"structure": cells, "y": [cell.volume for cell in cells]})
    given = {"folds": [0], "settings": SMALL, "device": "cpu", "processes": 1} | others
    return ct.train(frame, target="y", time_budget=time_budget, out=out, progress=said, **given)


def test_epochs_fill_the_time_and_a_run_that_has_begun_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "structures_per_second", lambda *_: 100.0)
    said = Said()
    run = trained(tmp_path / "out", said, time_budget=6.0)
    epochs = run.config.optim.epochs
    told = next(line for line in said.lines if line.startswith("optim.epochs="))
    assert told.startswith(f"optim.epochs={epochs}: about ")
    assert "100 structures/s measured here" in told
    assert 2 <= epochs < MOST_EPOCHS
    more = trained(tmp_path / "more", Said(), time_budget="12s").config.optim.epochs
    assert more > epochs
    again = Said()
    assert trained(tmp_path / "out", again, time_budget="2h").config.optim.epochs == epochs
    assert any(line == f"optim.epochs={epochs}, as this run began" for line in again.lines)


@pytest.mark.parametrize(
    ("time_budget", "settings", "words"),
    [
        (0.5, {}, "one epoch of all models takes about"),
        ("soon", {}, "a time such as 90s, 30min or 2h was expected"),
        ("2h", {"model.family": "tabular"}, "model.family=tabular has no epochs"),
    ],
)
def test_what_cannot_be_is_one_line(
    time_budget: float | str, settings: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "structures_per_second", lambda *_: 1.0)
    assert words in refusal(
        lambda: trained(tmp_path / "out", Said(), time_budget=time_budget, settings=settings or SMALL)
    )
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_speed_is_measured(tmp_path: Path) -> None:
    said = Said()
    run = trained(tmp_path / "out", said, time_budget=20.0, settings=SMALL | {"optim.batch_size": 4})
    assert 1 <= run.config.optim.epochs <= MOST_EPOCHS
