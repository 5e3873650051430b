"""The command as it is typed: help, mistakes, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def crystaltune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from orchestrator.cli import main; sys.argv[0] = 'crystaltune'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
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
    for command in ("tasks", "prepare", "train", "ablate", "predict", "record", "baseline", "quickstart"):
        assert command in told.stdout
    code = "import sys, orchestrator.cli; assert 'torch' not in sys.modules and 'matbench' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_tasks_lists_all_eight() -> None:
    told = crystaltune("tasks")
    assert told.returncode == 0
    assert told.stdout.count("matbench_") == 8


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("train", "matbench_jdft2e"), "did you mean matbench_jdft2d?"),
        (("train", "jdft2d", "--flods", "0"), "--flods"),
        (("train", "jdft2d", "--folds", "7"), "folds are 0 to 4"),
        (("train", "jdft2d", "--set", "optim.lrr=3"), "did you mean 'optim.lr'"),
        (("train", "jdft2d", "--config", "missing.yaml"), "missing.yaml cannot be read"),
        (("train", "mine", "--data", "missing.csv"), "there is no such file"),
        (("train", "matbench_mp_is_metal"), "classification"),
        (("predict", "missing", "missing.csv"), "no trained fold"),
        (("record", "missing"), "holds no finished run"),
        (("trian",), "trian"),
        (("train",), "TASK"),
        (("train", "jdft2d", "--limit", "x"), "--limit"),
        (("train", "jdft2d", "--processes", "0"), "--processes"),
        (("train", "jdft2d", "--compile", "yes"), "auto, on or off was wanted"),
        (("train", "jdft2d", "--tf32", "--device", "cpu"), "leave out --tf32"),
        (("train", "sample", "--data", "README.md"), "another task name"),
        (("train", "mine", "--data", "tests"), "is a folder"),
        (("prepare", "sample", "--start", "0.4"), "one of 0.3.0"),
        (("train", "jdft2d", "--set", "augment.strian=free"), "did you mean 'augment.strain'"),
        (("train", "jdft2d", "--set", "consistency.weight=1"), "wants a perturbation"),
        (("ablate", "jdft2d", "--experiments", "E0,E9"), "known are E0"),
        (("ablate", "mp_e_form", "--experiments", "E5"), "--aux mp_gap"),
        (("ablate", "jdft2d", "--start", "0.4"), "one of 0.3.0"),
        (("ablate", "jdft2d", "--budget", "equal"), "own or equal-steps"),
        (("ablate", "jdft2d", "--set", "tta.vews=3"), "did you mean 'tta.views'"),
        (("ablate", "jdft2d", "--seeds", "0"), "--seeds"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], part: str, tmp_path: Path) -> None:
    told = crystaltune(*arguments, CRYSTALTUNE_CACHE=str(tmp_path), MATMINER_DATA=str(tmp_path))
    assert told.returncode == 2
    assert part in told.stderr
    assert "Traceback" not in told.stderr
    assert len([line for line in told.stderr.splitlines() if line.startswith("error: ")]) == 1
