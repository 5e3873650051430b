"""What `crystaltune doctor` finds on machines that lack something, each with its cure."""

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.execution import doctor, gpu_check
from orchestrator.execution.doctor import Finding, Level, examine


@pytest.fixture(autouse=True)
def an_ordinary_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "CUDA_VISIBLE_DEVICES", "MATMINER_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_check, "driver_version", lambda: "")


def found(results: Path = Path("runs")) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(results)}


def test_everything_is_looked_at_once_and_an_ordinary_machine_has_no_problem() -> None:
    findings = list(examine())
    assert [finding.name for finding in findings] == [
        "versions", "cores", "memory", "compiler", "cache", "disk", "Matbench data", "Ray's folder", "Ray", "matbench",
        "GPU",
    ]  # fmt: skip
    assert not [finding for finding in findings if finding.level == Level.PROBLEM]
    assert f"torch {torch.__version__.partition('+')[0]}" in findings[0].found
    assert sys.executable in findings[0].found


def test_a_gpu_that_torch_cannot_use_is_a_problem_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "driver_version", lambda: "470.82.01")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    gpu = found()["GPU"]
    assert gpu.level == Level.PROBLEM
    assert "470.82.01" in gpu.found
    assert torch.__version__ in gpu.found
    assert gpu.cure.startswith("update the driver")


def test_gpus_that_are_used_are_named_and_hidden_ones_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES" in found()["GPU"].found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(name="NVIDIA H100", total_memory=85e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert found()["GPU"].found.startswith("NVIDIA H100 (85 GB), NVIDIA H100 (85 GB); PyTorch")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_stale_ray_address_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    ray = found()["Ray"]
    assert ray.level == Level.PROBLEM
    assert f"RAY_ADDRESS={address}: no Ray answers there" in ray.found
    assert ray.cure.startswith("unset RAY_ADDRESS")


def test_a_token_that_is_wanted_and_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token" in found()["Ray"].found
    (tmp_path / "token").write_text("abc")
    assert found()["Ray"].level == Level.OK


def test_a_data_folder_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / "nowhere"))
    assert found()["Matbench data"].level == Level.PROBLEM
    assert "correct MATMINER_DATA" in found()["Matbench data"].cure


def test_a_temporary_folder_that_is_too_long_for_sockets_is_passed_over_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    sockets = found()["Ray's folder"]
    assert sockets.level == Level.OK
    assert f"because {deep / 'ray'} cannot be used" in sockets.found


def test_little_memory_disk_and_no_compiler_are_warnings_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2e9)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    findings = found(tmp_path / "not" / "there" / "yet")
    assert findings["memory"].found.startswith("2.0 GB (the container's limit")
    assert "`processes=1`" in findings["memory"].cure
    assert f"1.0 GB free at {tmp_path}" in findings["disk"].found
    assert [findings[name].level for name in ("memory", "disk", "compiler")] == [Level.WARNING] * 3


def test_a_quota_is_told_beside_the_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "n_cores", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert found()["cores"].found.startswith("3 of 64")


def test_a_cache_that_cannot_be_is_a_finding_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path / "file"))
    findings = list(examine())
    assert len(findings) == 11
    cache = next(finding for finding in findings if finding.name == "cache")
    assert cache.level == Level.PROBLEM
    assert cache.cure == "set CRYSTALTUNE_CACHE to a folder of yours"
    disk = next(finding for finding in findings if finding.name == "disk")
    assert disk.level == Level.OK


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_limit", lambda: 1 / 0)
    assert found()["memory"].found == "this could not be checked (ZeroDivisionError: division by zero)"


def test_data_that_are_here_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path))
    (tmp_path / "matbench_jdft2d.json.gz").write_bytes(b"")
    assert found()["Matbench data"].found.startswith(f"jdft2d (in MATMINER_DATA: {tmp_path})")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "80")
    return CliRunner()


def test_the_command_ends_with_what_is_to_be_mended_and_exit_code_1(
    terminal: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal.invoke(app, ["doctor"]).exit_code == 0
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    told = terminal.invoke(app, ["doctor", "--json"])
    assert told.exit_code == 1
    findings = json.loads(told.stdout)
    assert {finding["name"] for finding in findings if finding["level"] == "problem"} == {"Ray"}
