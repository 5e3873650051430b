"""launch/submit.py gives a command the cluster's address exactly where it takes one, and passes on all else."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from orchestrator.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "submit.py"
COMMANDS = getattr(get_command(app), "commands", {})


@pytest.fixture(scope="module")
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crystaltune_submit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    *words: str, script: Path = SCRIPT, cwd: Path = ROOT, root: Path | None = ROOT
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    if root is not None:
        env["PYTHONPATH"] = str(root)
    return subprocess.run([sys.executable, str(script), *words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_gets_an_address_if_its_help_shows_one(submit: ModuleType, name: str) -> None:
    takes = any("--address" in parameter.opts for parameter in COMMANDS[name].params)
    expected = [name, "--address", "auto", "jdft2d"] if takes else [name, "jdft2d"]
    assert submit.on_cluster([name, "jdft2d"]) == expected


def test_training_ablations_and_searches_take_an_address_and_status_does_not(submit: ModuleType) -> None:
    for name in ("train", "ablate", "search"):
        assert submit.on_cluster([name, "jdft2d"])[1:3] == ["--address", "auto"]
    assert submit.on_cluster(["status", "runs/a", "--watch"]) == ["status", "runs/a", "--watch"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "jdft2d", "--address", "10.0.0.1:6379"],
        ["train", "jdft2d", "--address=10.0.0.1:6379"],
        ["train", "--ray", "jdft2d"],
        ["--version"],
        ["--help"],
        ["no-such-command", "jdft2d"],
        [],
    ],
)
def test_what_says_where_it_runs_or_is_no_command_is_left_alone(submit: ModuleType, words: Sequence[str]) -> None:
    assert submit.on_cluster(words) == list(words)


def test_the_address_stands_before_the_command_s_own_words(submit: ModuleType) -> None:
    assert submit.on_cluster(["train", "--", "--odd"]) == ["train", "--address", "auto", "--", "--odd"]


def test_without_a_command_it_prints_one_line_and_ends_with_2() -> None:
    done = run()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("usage: submit.py COMMAND")


def test_where_crystaltune_is_missing_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.py").write_text("raise ImportError('no such package')")
    done = run("train", "jdft2d", cwd=tmp_path, root=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "install it on every node" in done.stderr


def test_output_and_exit_code_are_the_command_s_from_a_copy_in_another_folder(tmp_path: Path) -> None:
    copy = Path(shutil.copy(SCRIPT, tmp_path))  # `ray submit` copies it to the home folder
    done = run("status", "nowhere", script=copy, cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere does not exist" in done.stderr
    assert run("spaces", script=copy, cwd=tmp_path).returncode == 0


def test_the_address_reaches_the_command(tmp_path: Path) -> None:
    bad = run("train", "jdft2d", "--address", "nonsense", "--out", str(tmp_path / "run"))
    assert bad.returncode == 2
    assert "nonsense" in bad.stderr


def test_it_decides_without_loading_anything_heavy() -> None:
    code = (
        "import runpy, sys\n"
        f"words = runpy.run_path({str(SCRIPT)!r})['on_cluster'](['train', 'jdft2d'])\n"
        "assert '--address' in words\n"
        "print(sorted({'ray', 'torch', 'chgnet', 'pandas', 'optuna', 'pymatgen'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
