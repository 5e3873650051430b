"""Files of a finished run that were damaged: the same command makes them whole again, with the same numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from said import Said
from small_data import tiny_dataset

from orchestrator.execution import job as jobs_module
from orchestrator.execution.job import damage
from orchestrator.execution.resources import Resources
from orchestrator.inputs.source import Source
from orchestrator.predict.run import predict_file
from orchestrator.train.run import TrainOptions, train
from trainables.errors import UserError
from trainables.files import read_json

pytestmark = pytest.mark.trains

SETTINGS = {"optim.epochs": 2, "optim.batch_size": 8, "data.val_share": 0.3}
LEVERS = {"ensemble.members": 2, "distil.weight": 0.5, "distil.inner_folds": 2, "distil.seeds": 1}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV table of 24 crystals as CIF text."""
    data = tiny_dataset(24)
    rows = {"id": data.ids, "structure": [c.to_structure().to(fmt="cif") for c in data.structures], "y": data.targets}
    path = tmp_path_factory.mktemp("table") / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


Trained = Callable[..., dict[str, Any]]


@pytest.fixture
def trained(table: Path) -> Trained:
    """The same command again: trains fold 0 in a folder and returns the scores."""

    def run(out: Path, progress: Said | None = None, **changes: Any) -> dict[str, Any]:
        settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
        source, options = Source("tiny", table, unit="eV/atom", energy=True), TrainOptions((0,), Resources("cpu", 1))
        scores = train(source, out, settings=settings, options=options, progress=progress or Said()).content()
        return {key: value for key, value in scores.items() if key != "folds"} | {"mae": scores["folds"]["0"]["mae"]}

    return run


_FINISHED: dict[str, tuple[Path, dict[str, Any]]] = {}


def copy_of(name: str, tmp_path: Path, factory: pytest.TempPathFactory, trained: Trained, **changes: Any) -> Any:
    """A copy of a finished run, which is trained once for all tests, with its scores."""
    if name not in _FINISHED:
        folder = factory.mktemp(name) / "out"
        _FINISHED[name] = folder, trained(folder, **changes)
    folder, scores = _FINISHED[name]
    shutil.copytree(folder, tmp_path / "out")
    return tmp_path / "out", scores


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    file.write_bytes(content)


def remove(file: Path) -> None:
    file.unlink()


def garbage(file: Path) -> None:
    file.write_bytes(b"\x00\xffnothing of the kind")


def no_keys(file: Path) -> None:
    file.write_text("[]")


@pytest.fixture
def plain(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> tuple[Path, dict[str, Any]]:
    found: tuple[Path, dict[str, Any]] = copy_of("plain", tmp_path, tmp_path_factory, trained)
    return found


def contents(fold: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "composition.json", "predicted.parquet", "predictions.parquet")
    return {name: (fold / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(("model.safetensors", harm) for harm in (truncate, empty, flip, remove)),
        *(("model.json", harm) for harm in (flip, garbage)),
        *(("composition.json", harm) for harm in (flip, remove)),
    ],
)
def test_a_damaged_model_is_told_and_given_back_by_its_checkpoints(
    name: str, harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, before = plain
    whole, history = contents(out / "fold_0"), read_json(out / "fold_0" / "fit.json")["history"]
    harm(out / "fold_0" / name)
    assert damage(out / "fold_0")
    said = Said()
    assert trained(out, said) == before
    told = [line for line in said.lines if "is damaged" in line]
    assert len(told) == 1
    assert "fold_0" in told[0]
    assert "rebuilt" in told[0]
    assert not damage(out / "fold_0")
    assert contents(out / "fold_0") == whole
    assert read_json(out / "fold_0" / "fit.json")["history"] == history  # nothing was trained
    said = Said()
    trained(out, said)
    assert not any("damaged" in line for line in said.lines)


def test_without_whole_checkpoints_it_is_trained_anew(plain: tuple[Path, dict[str, Any]], trained: Trained) -> None:
    out, before = plain
    whole = contents(out / "fold_0")
    truncate(out / "fold_0" / "model.safetensors")
    for file in (out / "fold_0" / "checkpoints").glob("*.safetensors"):
        truncate(file)
    assert trained(out) == before
    assert contents(out / "fold_0")["model.safetensors"] == whole["model.safetensors"]


@pytest.mark.parametrize("harm", [flip, remove, garbage])
def test_damaged_predictions_are_made_again(
    harm: Callable[[Path], None],
    plain: tuple[Path, dict[str, Any]],
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, before = plain
    whole = contents(out / "fold_0")
    harm(out / "fold_0" / "predicted.parquet")
    monkeypatch.setattr(jobs_module, "fit", lambda *args, **kwargs: pytest.fail("it was trained again"))
    assert trained(out) == before
    assert contents(out / "fold_0") == whole


@pytest.mark.parametrize("harm", [garbage, no_keys])
@pytest.mark.parametrize("name", ["fold.json", "done.json"])
def test_damaged_notes_of_a_fold_are_written_again(
    name: str, harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, before = plain
    whole = contents(out / "fold_0")
    harm(out / "fold_0" / name)
    assert trained(out) == before
    assert contents(out / "fold_0") == whole


@pytest.mark.parametrize("harm", [truncate, empty, garbage, no_keys, remove])
def test_a_damaged_run_json_is_written_again_where_the_folds_are_this_runs(
    harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, scores = plain
    whole = (out / "run.json").read_bytes()
    harm(out / "run.json")
    said = Said()
    assert trained(out, said) == scores
    assert (out / "run.json").read_bytes() == whole
    assert any("run.json was damaged" in line for line in said.lines) == (harm is not remove)


@pytest.mark.parametrize("harm", [truncate, remove])
def test_without_run_json_folds_of_other_settings_are_refused(
    harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, _ = plain
    harm(out / "run.json")
    with pytest.raises(UserError, match=r"fold_0 belongs to a different run \(optim.lr was 0.001, is 0.002\)"):
        trained(out, optim__lr=0.002)


@pytest.mark.parametrize("key", ["structures_per_s", "best_val_mae", "best_epoch", "status", "reason"])
def test_a_key_of_done_json_that_lost_its_name_is_no_traceback(
    key: str, plain: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    """One flipped bit can change a key and leave valid JSON."""
    out, scores = plain
    done = out / "fold_0" / "done.json"
    done.write_text(done.read_text().replace(f'"{key}"', f'"{key[:-1]}?"', 1))
    assert trained(out) == scores
    assert key in read_json(done)


def test_a_run_of_an_older_version_without_hashes_is_whole(
    plain: tuple[Path, dict[str, Any]], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = plain
    for name in ("done.json", "fold.json"):
        content = read_json(out / "fold_0" / name)
        del content["sha256"]
        (out / "fold_0" / name).write_text(json.dumps(content))
    monkeypatch.setattr(jobs_module, "_make", lambda *args: pytest.fail("it was made again"))
    assert trained(out) == before


@pytest.mark.parametrize("harm", [truncate, flip, remove, garbage])
def test_a_damaged_fold_that_is_not_trained_now_is_told_and_left_out(
    harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], table: Path
) -> None:
    from orchestrator.execution.fold import collect_predictions
    from orchestrator.inputs.datasets import load_dataset

    out, _ = plain
    harm(out / "fold_0" / "predictions.parquet")
    said = Said()
    dataset = load_dataset(Source("tiny", table, energy=True), said)
    assert len(collect_predictions(dataset, range(5), out, said)) == 0
    assert [line for line in said.lines if "fold_0 is damaged" in line]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", truncate),
        ("model.json", no_keys),
        ("composition.json", garbage),
        ("fold.json", garbage),
        ("fold.json", no_keys),
        ("predictions.parquet", flip),
    ],
)
def test_predict_with_a_damaged_fold_is_one_line(
    name: str, harm: Callable[[Path], None], plain: tuple[Path, dict[str, Any]], table: Path, trained: Trained
) -> None:
    out, _ = plain
    harm(out / "fold_0" / name)
    with pytest.raises(UserError, match=r"fold_0.*damaged.*train"):
        predict_file(out, table, device="cpu")
    trained(out)
    assert len(predict_file(out, table, device="cpu")[0]) == 24


def test_a_damaged_member_and_a_damaged_teacher_are_made_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, trained: Trained
) -> None:
    out, before = copy_of("levers", tmp_path, tmp_path_factory, trained, **LEVERS)
    models = {file.relative_to(out): file.read_bytes() for file in out.rglob("model.safetensors")}
    assert len(models) == 4
    members = read_json(out / "fold_0" / "fold.json")["members"]
    teacher = next(file for file in models if "inner" in str(file))
    flip(out / teacher)
    truncate(out / "fold_0" / members[1] / "model.safetensors")
    said = Said()
    assert trained(out, said, **LEVERS) == before
    assert {file: (out / file).read_bytes() for file in models} == models
    assert len([line for line in said.lines if "is damaged" in line]) == 2


def test_a_damaged_soup_and_a_damaged_model_in_it_are_made_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, trained: Trained
) -> None:
    levers = {"ensemble.members": 2, "ensemble.combine": "soup"}
    out, before = copy_of("soup", tmp_path, tmp_path_factory, trained, **levers)
    models = {file.relative_to(out): file.read_bytes() for file in out.rglob("model.safetensors")}
    assert len(models) == 3
    for file in sorted(models)[:2]:
        empty(out / file)
    assert trained(out, **levers) == before
    assert {file: (out / file).read_bytes() for file in models} == models
