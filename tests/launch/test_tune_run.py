"""The example of Ray Tune by hand runs as it is shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trains

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_example_runs_both_ways_on_the_embedded_sample(tmp_path: Path) -> None:
    words = [sys.executable, "launch/tune_run.py", "--limit", "40", "--epochs", "2", "--trials", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*words, "--out", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stdout.splitlines() if "MAE" in line]
    assert [line.split(":")[0] for line in lines] == ["Tuner", "tune.run"]
