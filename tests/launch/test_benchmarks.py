"""The benchmark of a GPU runs through on a CPU: what it measures there is nothing to go by, but that it runs is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.trains

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_benchmark_runs_on_a_cpu_and_skips_what_needs_cuda(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--sections", "0,3,7,11,2,5"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MATMINER_DATA": str(tmp_path / "none")}
    run = subprocess.run(
        [*words, "--out", str(tmp_path / "gpu.json")], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {number: section.get("failed") for number, section in found.items() if "failed" in section} == {}
    assert found["2"] == found["5"] == {"skipped": "needs CUDA"}
    assert all(found[number]["found"] for number in ("0", "3", "7", "11"))
    assert found["11"]["found"][0]["structures_per_s"] > 0
