"""Folders that version 0.1.0 wrote before orchestrator/ had rooms still resume, predict and report.

tests/old_folders.tar.xz holds table.csv (20 rocksalts) and what these commands left (--unit eV --target gap --data
table.csv --set model.start=scratch --set model.width=8 --set optim.epochs=2 --set optim.batch_size=8 --device cpu):

    train salts --folds 0,1 --out run             fold 1 cut back to its first epoch; run_scores.json is the whole run's
    ablate salts --folds 0,1 --experiments E0,E1 --seeds 1 --out ablation           without its pages and checkpoints
    search salts --space optim --trials 2 --check-seeds 2 --check-top 1 --out study       without Ray's files and models
"""

import hashlib
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from said import Said

from orchestrator.ablation.run import AblationOptions, ablate
from orchestrator.execution.resources import Resources
from orchestrator.inputs.source import Source
from orchestrator.predict.run import predict_file
from orchestrator.study.options import SearchOptions, TrialResources
from orchestrator.study.run import report, search
from orchestrator.train.run import TrainOptions, train
from trainables.errors import UserError
from trainables.files import read_json

pytestmark = pytest.mark.trains

SETTINGS = {"model.start": "scratch", "model.width": 8, "optim.epochs": 2, "optim.batch_size": 8}
ON_CPU = Resources("cpu", 1)


@dataclass(frozen=True)
class Old:
    """The unpacked folders."""

    folder: Path
    said: Said = field(default_factory=Said)

    @property
    def source(self) -> Source:
        return Source("salts", self.folder / "table.csv", "gap", "eV")


@pytest.fixture
def old(tmp_path: Path) -> Old:
    with tarfile.open(Path(__file__).parents[1] / "old_folders.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return Old(tmp_path / "old_folders")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its place in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_resumes_where_it_was_cut_off_and_predicts(old: Old) -> None:
    before = hashes(old.folder / "run" / "fold_0")
    first = old.folder / "run" / "fold_1" / "checkpoints" / "epoch-00000.safetensors"
    written = first.stat().st_mtime_ns
    train(
        old.source,
        old.folder / "run",
        settings=SETTINGS,
        options=TrainOptions((0, 1), ON_CPU),
        progress=old.said,
    )
    assert hashes(old.folder / "run" / "fold_0") == before
    assert first.stat().st_mtime_ns == written, "the epoch that was there was trained again"
    told, wanted = read_json(old.folder / "run" / "scores.json"), read_json(old.folder / "run_scores.json")
    assert told["fingerprint"] == wanted["fingerprint"]
    for fold in ("0", "1"):
        assert told["folds"][fold]["mae"] == pytest.approx(wanted["folds"][fold]["mae"], rel=1e-5)
    assert told["baselines"]["linear"]["mean"]["mae"] == pytest.approx(wanted["baselines"]["linear"]["mean"]["mae"])
    table, _ = predict_file(old.folder / "run", old.folder / "table.csv", device="cpu")
    assert len(table) == 20
    assert table["prediction"].notna().all()


def test_another_run_in_an_old_folder_is_still_refused(old: Old) -> None:
    with pytest.raises(UserError, match=r"optim.epochs was 2, is 3"):
        train(old.source, old.folder / "run", settings=SETTINGS | {"optim.epochs": 3})


def test_an_ablation_trains_nothing_again_and_comes_to_the_same_numbers(old: Old) -> None:
    folder = old.folder / "ablation"
    before, table = hashes(folder / "runs"), pd.read_parquet(folder / "ablation.parquet")
    told = read_json(folder / "ablation.json")
    options = AblationOptions(("E0", "E1"), (0, 1), seeds=1, resources=ON_CPU)
    ablate(old.source, folder, options, settings=SETTINGS, progress=old.said)
    after = hashes(folder / "runs")
    assert {name: after[name] for name in before if not name.endswith("record.json")} == {
        name: before[name] for name in before if not name.endswith("record.json")
    }
    assert read_json(folder / "ablation.json")["experiments"] == told["experiments"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "ablation.parquet"), table)
    assert (folder / "ablation.html").is_file()


def test_a_study_reports_the_same_and_goes_on(old: Old) -> None:
    folder = old.folder / "study"
    best, trials = (folder / "best.yaml").read_text(), pd.read_parquet(folder / "trials.parquet")
    analysis = report(folder)
    assert (folder / "best.yaml").read_text() == best
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trials.parquet"), trials)
    assert analysis.verdict is not None
    assert analysis.verdict.winner == 0
    options = SearchOptions(
        "optim", trials=3, check_seeds=2, top=1, resume=True, place=TrialResources(max_concurrent=1), resources=ON_CPU
    )
    gone_on = search(old.source, folder, options, settings=SETTINGS, progress=old.said)
    assert len(gone_on.searched) == 3
    assert gone_on.searched[0].values == analysis.searched[0].values
