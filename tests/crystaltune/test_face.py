"""The package as a user of Python meets it: names, tables in memory, runs, studies, and nothing left behind."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from small_data import rocksalts, smooth_targets

import crystaltune as ct
from crystaltune._rows import folds_of, names_of, source_of
from orchestrator.study.options import budget_seconds

# isort: split
import ray.tune  # sets a log level and a filter of warnings when it is imported

from trainables.data.own_table import read_table

pytestmark = pytest.mark.trains

SMALL = {"model.start": "scratch", "model.width": 8, "optim.epochs": 2, "optim.batch_size": 8}
ROOT = Path(__file__).resolve().parents[2]


def frame(n_crystals: int = 20) -> pd.DataFrame:
    structures = rocksalts(n_crystals)
    return pd.DataFrame(
        {
            "id": [f"salt-{number:02d}" for number in range(n_crystals)],
            "structure": structures,
            "gap": smooth_targets(structures, "property"),
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ct.Run:
    folder = tmp_path_factory.mktemp("run") / "salts"
    return ct.train(
        frame(), target="gap", unit="eV", settings=SMALL, folds=(0, 1), out=folder, device="cpu", progress=False
    )


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])} | environment,
        timeout=300,
        check=False,
    )


def test_importing_the_package_loads_nothing_heavy_and_every_name_resolves(tmp_path: Path) -> None:
    told = python(
        """
        import sys
        import crystaltune as ct
        heavy = {"torch", "ray", "pandas", "numpy", "pymatgen", "chgnet", "matplotlib", "optuna"} & set(sys.modules)
        assert not heavy, heavy
        for wrong in ({"folds": 7}, {"config": "missing.yaml"}, {"device": "cuda", "limit": 0}):
            try:
                ct.train("jdft2d", **wrong)
            except ct.UserError as error:
                assert "\\n" not in str(error)
            else:
                raise AssertionError(wrong)
        heavy = {"torch", "ray", "scipy", "optuna", "chgnet"} & set(sys.modules)
        assert not heavy, f"before a mistake was told: {heavy}"
        for name in ct.__all__:
            assert getattr(ct, name) is not None
            assert name in dir(ct)
        assert len(set(ct.__all__)) == len(ct.__all__)
        """,
        tmp_path,
    )
    assert told.returncode == 0, told.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ct.trian  # noqa: B018


def test_a_frame_is_read_as_its_file_is(tmp_path: Path) -> None:
    table = frame()
    table.assign(structure=[cell.as_dict() for cell in table["structure"]]).to_json(
        tmp_path / "salts.json", orient="records", double_precision=15
    )
    from_file = read_table(tmp_path / "salts.json", "salts", "gap", unit="eV")
    from_frame = ct.load_dataset(table, target="gap", unit="eV", progress=False)
    assert from_frame.ids == from_file.ids
    for one, other in zip(from_frame.structures, from_file.structures, strict=True):
        np.testing.assert_array_equal(one.numbers, other.numbers)
        np.testing.assert_allclose(one.lattice, other.lattice, atol=1e-12)
    np.testing.assert_allclose(from_frame.targets, from_file.targets, atol=1e-12)


@pytest.mark.parametrize("kind", ["structure", "dictionary", "cif"])
def test_cells_may_be_structures_dictionaries_or_cif_text(kind: str) -> None:
    table = frame(3)
    make: Any = {
        "structure": lambda cell: cell,
        "dictionary": lambda cell: cell.as_dict(),
        "cif": lambda cell: cell.to(fmt="cif"),
    }
    cells = [make[kind](cell) for cell in table["structure"]]
    dataset = ct.load_dataset(table.assign(structure=cells), target="gap", progress=False)
    assert [len(crystal.numbers) for crystal in dataset.structures] == [2, 2, 2]
    assert dataset.task.name == "gap"


def test_the_index_names_rows_where_no_column_does() -> None:
    table = frame(3).set_index("id")
    assert ct.load_dataset(table, target="gap", progress=False).ids == ("salt-00", "salt-01", "salt-02")


def test_a_run_has_scores_predictions_and_a_configuration(run: ct.Run) -> None:
    assert set(run.scores.folds) == {0, 1}
    assert run.scores.mean is not None
    predictions = run.predictions
    error = (predictions["prediction"] - predictions["target"]).abs()
    assert run.scores.folds[0].mae == pytest.approx(error[predictions["fold"] == 0].mean())
    assert run.scores.baselines["linear"].mean.n == len(predictions)
    assert run.config.model.width == 8
    assert run.record is None
    assert "table of your own" in str(run.scores.no_record_because)
    assert "fold 1" in run._repr_html_()
    assert ct.open_run(run.folder).scores == run.scores


def test_a_run_predicts_frames_structures_and_files(run: ct.Run, tmp_path: Path) -> None:
    table = frame(6)
    whole = run.predict(table, device="cpu", progress=False)
    columns = ["id", "prediction", "std", "low", "high", "fallback", "in_training", "problem"]
    assert list(whole.columns) == columns
    assert list(whole["id"]) == list(table["id"])
    alone = run.predict(table["structure"][2], device="cpu", progress=False)
    assert alone["prediction"][0] == pytest.approx(whole["prediction"][2], abs=1e-6)
    several = run.predict(list(table["structure"]), device="cpu", progress=False)
    np.testing.assert_allclose(several["prediction"], whole["prediction"], atol=1e-6)
    before = set(run.folder.rglob("*"))
    table.assign(structure=[cell.to(fmt="cif") for cell in table["structure"]]).to_csv(
        tmp_path / "new.csv", index=False
    )
    from_file = run.predict(tmp_path / "new.csv", out=tmp_path / "new.json", device="cpu", progress=False)
    np.testing.assert_allclose(from_file["prediction"], whole["prediction"], atol=1e-4)
    assert len(pd.read_json(tmp_path / "new.json")) == 6
    assert set(run.folder.rglob("*")) == before


def test_training_again_resumes(run: ct.Run) -> None:
    first = run.folder / "fold_0" / "model.safetensors"
    written = first.stat().st_mtime_ns
    again = ct.train(
        frame(), target="gap", unit="eV", settings=SMALL, folds=[0], out=run.folder, device="cpu", progress=False
    )
    assert first.stat().st_mtime_ns == written
    assert again.scores.mean == run.scores.mean


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folds": 7}, "`folds=7`"),
        ({"target": "no such"}, "no column 'no such'"),
        ({"settings": {"optim.lrr": 1}}, "did you mean 'optim.lr'"),
        ({"settings": {"task": "x"}}, "settings"),
        ({"name": "jdft2d"}, "`name=jdft2d`"),
        ({"published": "missing.csv"}, "`published=missing.csv`"),
    ],
)
def test_mistakes_are_told_in_one_line_without_options(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"target": "gap", "out": tmp_path / "out", "progress": False} | arguments
    with pytest.raises(ct.UserError) as caught:
        ct.train(frame(6), **given)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("epochs", "it is a setting, so use settings={'optim.epochs': ...}"),
        ("fold", "did you mean 'folds'?"),
        ("setting", "did you mean 'settings'?"),
        ("targets", "did you mean 'target'?"),
        (
            "zzz",
            "it takes data, settings, config, folds, auxiliary, published, deploy, time_budget, preset, out, progress",
        ),
    ],
)
def test_an_unknown_keyword_is_a_type_error_that_says_what_may_be_meant(keyword: str, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        ct.train(frame(6), **{keyword: 3})
    assert f"train() got an unexpected keyword argument '{keyword}'" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folds": None}, "`folds=None`: a number or a list of numbers"),
        ({"folds": 1.0}, "`folds=1.0`: a number or a list"),
        ({"folds": []}, "`folds` is empty"),
        ({"folds": "0-9"}, "folds are 0 to 4"),
        ({"settings": ["optim.epochs=1"]}, "`settings` of type list: a dictionary was expected"),
        ({"config": 3}, "`config` of type int: a path was expected"),
        ({"out": 5}, "`out` of type int: a path was expected"),
        ({"progress": "yes"}, "`progress='yes'`"),
        ({"unit": 5}, "`unit=5`: text was expected"),
        ({"energy": "yes"}, "`energy=yes`: True or False"),
        ({"energy": True, "unit": "meV"}, "`unit=meV`: with `energy=True`"),
        ({"limit": 1.5}, "`limit=1.5`: must be a whole number"),
        ({"processes": 0}, "`processes=0`: must be a whole number of at least 1"),
        ({"device": "gpu"}, "`device=gpu`: must be one of auto, cpu, cuda"),
        ({"target": "formula"}, "column 'formula' has 6 cells that are no numbers, such as 'NaCl': only numbers"),
        ({"target": "structure"}, "cannot be the target: it has the ids, the structures"),
    ],
)
def test_values_of_the_wrong_kind_are_one_line(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    table = frame(6).assign(formula="NaCl")
    given: dict[str, Any] = {"target": "gap", "out": tmp_path / "out", "progress": False} | arguments
    with pytest.raises(ct.UserError) as caught:
        ct.train(table, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "tp"}, "`sampler=tp`: must be one of tpe, gp, random"),
        ({"scheduler": "ashaa"}, "`scheduler=ashaa`: must be one of asha"),
        ({"top": -2}, "`top=-2`: must be at least 0"),
        ({"probes": -1}, "`probes=-1`: must be at least 0"),
        ({"grace": 0}, "`grace=0`: must be at least 1"),
        ({"factor": 1}, "`factor=1`: must be at least 2"),
        ({"trials": 1.5}, "`trials=1.5`: must be a whole number"),
        ({"fold": 7}, "`fold=7`: folds are 0 to 4"),
        ({"time_budget": -1}, "`time_budget=-1`: must be a time above 0"),
        ({"time_budget": "two hours"}, "`time_budget=two hours`: a time such as 90s, 30min or 2h"),
        ({"objectives": "mae,speed"}, "`objectives=mae,speed`: must be mae, or mae,cost"),
        ({"gpus": 1, "device": "cpu"}, "`gpus=1` asks for GPUs and `device=cpu` for none"),
        ({"space": 3}, "`space` of type int: a path was expected"),
    ],
)
def test_what_a_search_cannot_have_is_one_line(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"target": "gap", "space": "optim", "out": tmp_path / "out", "progress": False} | arguments
    with pytest.raises(ct.UserError) as caught:
        ct.search(frame(6), **given)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folds_names_and_times_may_be_written_as_on_the_command_line() -> None:
    assert folds_of("0-2,4") == (0, 1, 2, 4)
    assert folds_of(range(2)) == (0, 1)
    assert names_of("mae, cost") == names_of(["mae", "cost"]) == ("mae", "cost")
    assert budget_seconds("2h") == 7200


def test_a_table_in_memory_is_named_by_its_target_without_what_no_folder_can_have() -> None:
    table = frame(6).rename(columns={"gap": "E/f (eV)"})
    assert source_of(table, {"target": "E/f (eV)"}).task == "E_f_eV"
    assert source_of(table, {}).task == "table"


def test_columns_of_one_name_and_an_index_of_levels() -> None:
    table = frame(6)
    with pytest.raises(ct.UserError, match="the table has several columns named gap"):
        ct.load_dataset(pd.concat([table, table[["gap"]]], axis=1), target="gap", progress=False)
    bare = table.drop(columns="id", errors="ignore")
    bare.index = pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]])
    assert ct.load_dataset(bare, target="gap", progress=False).ids[:2] == ("a-1", "a-2")


def test_dir_names_what_is_there_and_nothing_else() -> None:
    assert [name for name in dir(ct) if not name.startswith("__")] == sorted(ct.__all__)


@pytest.mark.parametrize("data", [["a"], 3, None, {"structure": []}])
def test_data_of_another_type_are_refused_in_one_line(data: Any) -> None:
    with pytest.raises(ct.UserError, match=rf"`data` of type {type(data).__name__} cannot be read: use a task's name"):
        ct.train(data)


# Set by pytest itself, and by OpenMP's and Ray's own packages when they are imported.
_LIBRARIES = ("PYTEST", "KMP_", "RAY_CLIENT_MODE", "ONEDNN_PRIMITIVE_CACHE")


def process_state() -> dict[str, Any]:
    """What a caller's process must keep."""
    return {
        "threads": torch.get_num_threads(),
        "interrupt": signal.getsignal(signal.SIGINT),
        "environment": {key: value for key, value in os.environ.items() if not key.startswith(_LIBRARIES)},
        "folder": Path.cwd(),
        # Those that a library adds for its own warnings when it is first imported are not ours.
        "filters": [each for each in warnings.filters if each[1] is None and each[2].__module__ == "builtins"],
        "optuna": optuna.logging.get_verbosity(),
        "levels": {name: logging.getLogger(name).level for name in ("", "ray", "ray.tune", "optuna")},
        "random": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


def test_training_and_predicting_leave_the_process_as_it_was(tmp_path: Path) -> None:
    torch.set_num_threads(3)
    try:
        before = process_state()
        run = ct.train(
            frame(), target="gap", settings=SMALL, folds=0, out=tmp_path / "run", device="cpu", progress=False
        )
        run.predict(frame(4), device="cpu", progress=False)
        assert process_state() == before
    finally:
        torch.set_num_threads(1)


def test_a_search_gives_a_study_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = process_state()
    study = ct.search(
        frame(),
        space="optim",
        trials=2,
        target="gap",
        unit="eV",
        settings=SMALL,
        check_seeds=2,
        top=1,
        out=tmp_path / "study",
        device="cpu",
        max_concurrent=1,
        progress=False,
    )
    assert not ray.is_initialized()
    assert process_state() == before
    assert study.best_config.model.width == 8
    assert len(study.trials) >= 2
    assert study.verdict is not None
    assert study.verdict.sentence.startswith("Verdict")
    assert study.report.is_file()
    assert "Verdict" in study._repr_html_()
    with pytest.raises(ct.UserError, match="`resume=True`"):
        ct.search(frame(), space="optim", target="gap", out=tmp_path / "study", progress=False)


def test_a_script_without_a_guard_trains_in_several_processes_and_runs_once(tmp_path: Path) -> None:
    told = python(
        f"""
        from pathlib import Path
        with Path("times.txt").open("a") as counted:
            counted.write("x")
        import crystaltune as ct
        from small_data import rocksalts, smooth_targets
        import pandas as pd
        structures = rocksalts(20)
        table = pd.DataFrame({{"structure": structures, "gap": smooth_targets(structures, "property")}})
        run = ct.train(table, target="gap", settings={SMALL}, folds=(0, 1), processes=2, device="cpu", progress=True)
        print(f"{{run.scores.mean.mae:.3f}}")
        """,
        tmp_path,
    )
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "times.txt").read_text() == "x"
    assert float(told.stdout) > 0
    assert (tmp_path / "runs" / "gap" / "scores.json").is_file()
    assert "fold 1 seed 0: validation MAE" in told.stderr  # progress was shown


def test_ray_is_imported_after_its_variables_are_set(tmp_path: Path) -> None:
    told = python(
        """
        import os, sys, importlib.abc
        os.environ.pop("RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)
        class Watch(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "ray":
                    assert os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV") == "0", "ray came first"
                    print("ray")
                return None
        sys.meta_path.insert(0, Watch())
        import importlib, pkgutil
        import crystaltune
        import orchestrator, trainables.ray_trainable
        names = [found.name for found in pkgutil.walk_packages(orchestrator.__path__, "orchestrator.")]
        assert len(names) > 50
        for name in names:
            importlib.import_module(name)
        """,
        tmp_path,
    )
    assert told.returncode == 0, told.stderr
    assert "ray" in told.stdout


def test_ray_that_was_imported_before_is_warned_of(tmp_path: Path) -> None:
    code = "import os\nos.environ.pop('RAY_ENABLE_UV_RUN_RUNTIME_ENV', None)\nimport ray\nimport orchestrator\n"
    told = python(code, tmp_path)
    assert "ray was imported before crystaltune" in told.stderr
    assert told.returncode == 0
