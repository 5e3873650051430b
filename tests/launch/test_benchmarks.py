"""Benchmarks run through, here on a CPU: what they measure is nothing to go by, but that they run is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def run_of(*words: str) -> list[dict[str, Any]]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_reading_is_measured_for_each_kind_of_file() -> None:
    found = run_of("benchmarks/reading.py", "--files", "20", "--cifs", "5")
    assert [line["crystals"] for line in found] == [20, 20, 5]
    assert all(line["per_s"] > 0 for line in found)


def test_the_ladder_on_paper_takes_no_less_than_its_work_and_its_longest_chain() -> None:
    found = run_of("benchmarks/scaling.py", "--speed", "1000", "--rows", "10000", "--gpus", "1", "8", "512")
    assert [line["models"] for line in found] == [105] * 3
    assert found[0]["busy"] == 1.0
    assert found[0]["hours"] > found[1]["hours"] > found[2]["hours"] == found[2]["longest_chain_hours"]


@pytest.mark.slow  # starts Ray twice; what it measures, tests of clusters hold
def test_scheduling_is_measured_with_as_many_models_as_asked_for() -> None:
    pauses, plan = run_of("benchmarks/scheduling.py", "--jobs", "4", "--seconds", "0.1", "--models", "50")
    assert pauses["pauses"]["ideal_s"] == 0.2
    assert plan["plan"]["models"] == 50
