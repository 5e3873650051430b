"""The command as it is typed: help, mistakes, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.cli.errors import as_options

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "pandas", "pymatgen", "chgnet", "ray", "matplotlib", "scipy", "sqlalchemy", "optuna", "numpy")
# Says at its end which heavy packages it has loaded.
CODE = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from orchestrator.cli.main import main
sys.argv[0] = "crystaltune"
main()
"""


def crystaltune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"} | environment,
        timeout=120,
        check=False,
    )


def test_help_names_every_command_without_loading_torch() -> None:
    told = crystaltune("--help")
    assert told.returncode == 0
    for command in ("tasks", "prepare", "train", "ensemble", "ablate", "predict", "record", "baseline", "quickstart"):
        assert command in told.stdout
    assert told.stderr.strip() == "loaded:"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`folds=7`: folds are 0 to 4", "--folds 7: folds are 0 to 4"),
        ("resume it with `resume=True`, or use another `out`", "resume it with --resume, or use another --out"),
        ("`auxiliary=mp_gap=a b.csv`: no such file", "--aux mp_gap=a b.csv: no such file"),
        ("`check_seeds=0`, `compiled=on`", "--check-seeds 0, --compile on"),
        ("set `optim.lr` lower", "set `optim.lr` lower"),
        ("is not in use there (see its `when`)", "is not in use there (see its `when`)"),
    ],
)
def test_parameters_in_messages_are_spelled_as_options(message: str, shown: str) -> None:
    assert as_options(message) == shown


def test_the_version_is_told() -> None:
    told = crystaltune("--version")
    assert (told.returncode, told.stdout) == (0, f"crystaltune {version('crystaltune')}\n")


def test_a_shell_can_complete_commands_and_options() -> None:
    told = crystaltune(_CRYSTALTUNE_COMPLETE="complete_bash", COMP_WORDS="crystaltune train --comp", COMP_CWORD="2")
    assert "--compile" in told.stdout


def test_a_space_with_a_mistake_is_told_before_torch_and_ray_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("dimensions: 3\n")
    told = crystaltune("search", "jdft2d", "--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / "s"))
    assert told.returncode == 2
    said, loaded = told.stderr.splitlines()
    assert said.startswith("error: ")
    assert not {"torch", "ray", "pandas"} & set(loaded.split())


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.06, 0.1, 0.15])
def test_ctrl_c_while_commands_are_imported_is_no_traceback(seconds: float) -> None:
    answered = "from orchestrator.cli.interrupts import handle_interrupts as answer; answer()"  # what main does first
    code = f"{answered}; from orchestrator.cli.entry import main; print('ready', flush=True); main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "spaces"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert "Traceback" not in told, told
    if seconds == 0.03:
        assert process.returncode == 130
        assert "stopped" in told


def test_tasks_lists_all_eight() -> None:
    told = crystaltune("tasks")
    assert told.returncode == 0
    assert told.stdout.count("matbench_") == 8


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("train", "matbench_jdft2e"), "did you mean matbench_jdft2d?"),
    (("train", "jdft2d", "--flods", "0"), "--flods"),
    (("train", "jdft2d", "--folds", "7"), "folds are 0 to 4"),
    (("train", "jdft2d", "--set", "optim.lrr=3"), "did you mean 'optim.lr'"),
    (("train", "jdft2d", "--config", "missing.yaml"), "missing.yaml cannot be read"),
    (("train", "mine", "--data", "missing.csv"), "there is no such file"),
    (("train", "matbench_mp_is_metal"), "classification"),
    (("predict", "missing", "missing.csv"), "missing does not exist: train one first"),
    (("report", "missing"), "contains neither a run nor a search"),
    (("record", "missing"), "does not contain a finished run"),
    (("trian",), "trian"),
    (("train",), "TASK"),
    (("train", "jdft2d", "--limit", "x"), "--limit"),
    (("train", "jdft2d", "--processes", "0"), "--processes"),
    (("train", "jdft2d", "--compile", "yes"), "--compile yes: 'yes' is not one of 'auto', 'on', 'off'"),
    (("train", "jdft2d", "--tf32", "--device", "cpu"), "leave out --tf32"),
    (("train", "sample", "--data", "README.md"), "another task name"),
    (("train", "mine", "--data", "tests"), "is a folder"),
    (("prepare", "sample", "--start", "0.4"), "'0.4' is not one of '0.3.0'"),
    (("train", "jdft2d", "--set", "augment.strian=free"), "did you mean 'augment.strain'"),
    (("train", "jdft2d", "--set", "consistency.weight=1"), "requires a perturbation"),
    (("ablate", "jdft2d", "--experiments", "E0,E9"), "available: E0"),
    (("ablate", "mp_e_form", "--experiments", "E5"), "--aux mp_gap"),
    (("ablate", "jdft2d", "--start", "0.4"), "one of 0.3.0"),
    (("ablate", "jdft2d", "--budget", "equal"), "'equal' is not one of 'own', 'equal-steps'"),
    (("ablate", "jdft2d", "--set", "tta.vews=3"), "did you mean 'tta.views'"),
    (("ablate", "jdft2d", "--seeds", "0"), "--seeds 0: input should be greater than or equal to 1"),
    (("train", ".."), "is a path"),
    (("train", "JDFT2D", "--target", "y"), "matbench_jdft2d predicts 'exfoliation_en'"),
    (("train", "jdft2d", "--set", "epochs=3"), "did you mean 'optim.epochs'"),
    (("train", "jdft2d", "--set", "early_stopping=5"), "did you mean 'optim.patience'?"),
    (("train", "jdft2d", "--epochs", "3"), "no such option --epochs: use --set optim.epochs=3"),
    (("train", "jdft2d", "--lr", "3e-4"), "use --set optim.lr=3e-4"),
    (("train", "jdft2d", "--gpu"), "use --device cuda"),
    (("train", "jdft2d", "--seed", "7"), "use --set seed=7"),
    (("train", "jdft2d", "--out", "README.md"), "is a file"),
    (("train", "jdft2d", "--out", "tests"), "contains other files"),
    (("train", "jdft2d", "--set", "model.head=hurdl"), "did you mean 'hurdle'"),
    (("train", "mp_e_form", "--set", "model.head=hurdle"), "is an energy"),
    (("train", "jdft2d", "--aux", "mp_gapp"), "did you mean matbench_mp_gap?"),
    (("train", "jdft2d", "--published", "missing.csv"), "missing.csv: there is no such file"),
    (("baseline", "jdft2d", "--folds", "5"), "folds are 0 to 4"),
    (("search", "jdft2d", "--space", "optim", "--trials", "0"), "--trials 0"),
    (("search", "jdft2d", "--space", "optim", "--sampler", "cma"), "'cma' is not one of 'tpe'"),
    (("search", "jdft2d", "--space", "optim", "--scheduler", "pbt"), "'pbt' is not one of 'asha'"),
    (("search", "jdft2d", "--space", "optim", "--objectives", "cost"), "mae, or mae,cost"),
    (("search", "jdft2d", "--space", "optim", "--time-budget", "two"), "--time-budget two"),
    (("search", "jdft2d", "--space", "optim", "--resume"), "contains no study"),
    (("search", "jdft2d", "--space", "optim", "--address", "nowhere"), "HOST:PORT or auto was expected"),
    (("train", "sample", "--address", "nowhere"), "--address nowhere: HOST:PORT or auto was expected"),
    (("ablate", "sample", "--address", "127.0.0.1:1"), "no Ray answers there"),
    (("ablate", "sample", "--gpus", "8"), "--gpus 8 is for the estimate of --plan"),
    (("ablate", "sample", "--plan", "--structures-per-second", "9"), "is for the estimate of --gpus"),
    (("train", "sample", "--cpus-per-model", "2"), "is for models on Ray: add --ray or --address"),
    (("train", "sample", "--ray", "--cpus-per-model", "0"), "--cpus-per-model 0.0: must be a number above 0"),
    (("search", "jdft2d"), "--space"),
    (("search", "jdft2d", "--space", "optim", "--cpus-per-trial", "nan"), "--cpus-per-trial nan"),
    (("search", "jdft2d", "--space", "optim", "--cpus-per-trial", "0"), "--cpus-per-trial 0"),
    (("search", "jdft2d", "--space", "optim", "--gpus-per-trial", "1.5"), "--gpus-per-trial 1.5"),
    (("train", "jdft2d", "--limit"), "requires an argument"),
    (("train", "jdft2d", "--config", "/dev/zero"), "/dev/zero is no regular file"),
    (("train", "mine", "--data", "/dev/zero"), "/dev/zero is not a regular file"),
    (("train", "jdft2d", "--set", "task=mp_gap"), "--set task=mp_gap: use the command's first"),
    (("train", "jdft2d", "--set", "fold=2"), "--set fold=2: use --folds"),
    (("train", "jdft2d", "--set", "optim.lr=true"), "optim.lr=True: input should be a number"),
    (("train", "jdft2d", "--set", "optim.lr=[" + "1, " * 500 + "1]"), "... (1,503 characters)"),
    (("train", "jdft2d", "--out", "/proc/run"), "--out /proc/run cannot be created (nothing can be created in /proc"),
    (("train", "jdft2d", "--out", "README.md/run"), "README.md/run cannot be created"),
    (("train", "jdft2d", "--out", "d" * 300), "File name too long"),
    (("predict", "README.md", "missing.csv"), "README.md is a file"),
    (("ensemble", "jdft2e"), "did you mean matbench_jdft2d?"),
    (("ensemble", "jdft2d", "--seeds", "0"), "--seeds 0: input should be greater than or equal to 1"),
    (("ensemble", "jdft2d", "--views", "300"), "tta.views=300: input should be less than or equal to 256"),
    (("ensemble", "jdft2d", "--vary", "model.start"), "--vary model.start: KEY=VALUE,VALUE was expected"),
    (("ensemble", "jdft2d", "--vary", "model.strat=0.3.0,r2scan"), "unknown key 'model.strat' (did you mean 'model.st"),
    (("ensemble", "jdft2d", "--vary", "model.start=0.3.0,r2scn"), "did you mean 'r2scan'"),
    (("ensemble", "jdft2d", "--vary", "model.start=r2scan"), "at least two different values were expected"),
    (("ensemble", "jdft2d", "--vary", "optim.lr=1e-3,0.001"), "at least two different values were expected"),
    (("ensemble", "jdft2d", "--vary", "data.val_share=0.1,0.2"), "data.val_share cannot be varied: members are comb"),
    (("ensemble", "jdft2d", "--vary", "seed=1,2"), "seed cannot be varied: ensemble.members is the number of seeds"),
    (("ensemble", "jdft2d", "--vary", "optim.lr=1e-3,[,"), "is not a YAML value"),
    (("ensemble", "jdft2d", "--vary", "optim.lr=1,2", "--vary", "optim.lr=3,4"), "--vary optim.lr is given twice"),
    (("ensemble", "jdft2d", "--vary", "optim.lr=1,2", "--combine", "soup"), "leave out ensemble.vary"),
    (("ensemble", "jdft2d", "--vary", "optim.lr=1,2", "--seeds", "40"), "make 80 members; at most 64 are allowed"),
    (("ensemble", "jdft2d", "--vary", "distil.seeds=1,2", "--distil"), "cannot be varied with --distil"),
    (("ensemble", "mp_e_form", "--vary", "model.head=plain,hurdle"), "is an energy"),
    (("ensemble", "jdft2d", "--combine", "best"), "'best' is not one of 'mean'"),
    (("ensemble", "jdft2d", "--set", "data.refit=true", "--combine", "greedy"), "data.refit=true trains on"),
    (("ensemble", "jdft2d", "--config", "tests"), "tests is a folder"),
    (("ensemble", "jdft2d", "--members", "3"), "use --seeds 3"),
    (("train", "jdft2d", "--distil"), "--distil is an option of ensemble, not of train"),
]
# One interpreter is told every mistake, one after the other, so that a module that any of them loads is seen.
ALL = f"""
import contextlib, io, json, sys
from orchestrator.cli.main import main
for line in json.load(sys.stdin):
    sys.argv = ["crystaltune", *line]
    told, code = io.StringIO(), 0
    with contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([code, told.getvalue(), loaded]), flush=True)
"""


@pytest.fixture(scope="module")
def told_of_mistakes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    """Exit code, stderr and heavy modules after each of MISTAKES."""
    folder = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run(
        [sys.executable, "-c", ALL],
        input=json.dumps([arguments for arguments, _ in MISTAKES]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100", "CRYSTALTUNE_CACHE": folder, "MATMINER_DATA": folder},
        timeout=300,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("place", range(len(MISTAKES)), ids=lambda place: " ".join(MISTAKES[place][0])[:60])
def test_a_mistake_is_one_line_exit_code_2_and_told_before_anything_heavy_is_loaded(
    told_of_mistakes: list[tuple[int, str, list[str]]], place: int
) -> None:
    code, told, loaded = told_of_mistakes[place]
    assert code == 2
    assert MISTAKES[place][1] in told
    (said,) = told.splitlines()
    assert said.startswith("error: ")
    assert not loaded


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    told = crystaltune("train", "jdft2d", "--folds", "7", CRYSTALTUNE_CACHE=str(tmp_path))
    assert told.returncode == 2
    said, loaded = told.stderr.splitlines()
    assert said == "error: --folds 7: folds are 0 to 4"
    assert loaded.strip() == "loaded:"
