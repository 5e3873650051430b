"""An ensemble and a student from Python."""

from pathlib import Path
from typing import Any

import pytest
from small_data import rocksalts, smooth_targets

import crystaltune as ct

# isort: split
import pandas as pd

SMALL = {
    "model.start": "scratch", "model.width": 8, "optim.epochs": 1, "optim.batch_size": 8, "distil.inner_folds": 2,
    "distil.seeds": 1,
}  # fmt: skip


def frame(n_crystals: int = 20) -> pd.DataFrame:
    structures = rocksalts(n_crystals)
    return pd.DataFrame({"structure": structures, "gap": smooth_targets(structures, "property")})


@pytest.mark.trains
def test_an_ensemble_is_a_run_and_so_is_its_student(tmp_path: Path) -> None:
    run = ct.ensemble(
        frame(),
        target="gap",
        unit="eV",
        seeds=1,
        vary={"optim.lr": [1e-3, 3e-3]},
        distil=True,
        settings=SMALL,
        folds=0,
        out=tmp_path / "both",
        device="cpu",
        progress=False,
    )
    assert run.config.ensemble.size == 2
    assert run.config.ensemble.combine == "greedy"
    assert run.student is not None
    assert run.student.config.distil.weight == 0.5
    assert run.student.student is None
    assert run.student.scores.folds[0].n == run.scores.folds[0].n == len(run.predictions)
    for each in (run, run.student):
        assert len(each.predict(frame(4), device="cpu", progress=False)) == 4
        assert each.report.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vary": {"optim.lrr": [1, 2]}}, "did you mean 'optim.lr'"),
        ({"vary": {"optim.lr": [1e-3]}}, "at least two different values"),
        ({"vary": "optim.lr=1,2"}, "`vary` of type str: a dictionary was expected"),
        ({"seeds": 0}, "`seeds=0`: must be a whole number of at least 1"),
        ({"combine": "best"}, "ensemble.combine='best'"),
        ({"folds": 7}, "`folds=7`"),
        ({"config": 3}, "`config` of type int"),
    ],
)
def test_mistakes_are_one_line_without_options(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ct.UserError) as caught:
        ct.ensemble(frame(6), **{"target": "gap", "out": tmp_path / "out", "progress": False} | arguments)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_keyword_is_told_what_is_meant(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'seed' \(did you mean 'seeds'"):
        ct.ensemble(frame(6), seed=3)  # type: ignore[call-arg]


def test_the_folder_of_a_search_is_its_best_configuration(tmp_path: Path) -> None:
    with pytest.raises(ct.UserError, match=r"is a folder without best.yaml: a YAML file, or a search's folder, was"):
        ct.ensemble(frame(6), target="gap", config=tmp_path, out=tmp_path / "out", progress=False)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ct.UserError, match=r"has no best.yaml yet: no trial of this search is complete"):
        ct.ensemble(frame(6), target="gap", config=tmp_path, out=tmp_path / "out", progress=False)
    (tmp_path / "best.yaml").write_text("optim: {lrr: 1}\n")
    with pytest.raises(ct.UserError, match=r"did you mean 'optim\.lr'"):
        ct.ensemble(frame(6), target="gap", config=tmp_path, out=tmp_path / "out", progress=False)
