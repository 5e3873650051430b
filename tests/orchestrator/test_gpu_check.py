"""A GPU that is there and cannot be used is told with both versions; one that was hidden is not."""

import subprocess
from pathlib import Path

import pytest
import torch
from said import Said

from orchestrator.execution import gpu_check
from orchestrator.execution.gpu_check import tell_unused_gpu, unused_gpu
from orchestrator.execution.pool import allocate
from trainables.errors import UserError

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\nGCC version:\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs-builder)\n"


@pytest.fixture(autouse=True)
def _no_gpu_for_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(gpu_check, "_DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("text", "version"), [(OLD, "470.57.02"), (OPEN, "550.54.14")])
def test_an_old_driver_is_told_with_both_versions(text: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "version").write_text(text)
    said = Said()
    tell_unused_gpu("auto", said)
    assert len(said.lines) == 1
    assert f"its driver {version} does not support PyTorch {torch.__version__}" in said.lines[0]
    assert "built for CUDA 13.2" in said.lines[0]
    assert said.lines[0].endswith("Running on the CPU.")


def test_asking_for_it_is_refused_with_the_same_reason(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(OLD)
    with pytest.raises(UserError, match=r"`device=cuda`: this machine has an NVIDIA GPU, but its driver 470.57.02"):
        allocate(1, "cuda")


def test_a_build_without_cuda_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(OLD)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in unused_gpu()


def test_a_device_that_does_not_exist_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a4f0c7e")
    assert "CUDA_VISIBLE_DEVICES=GPU-8a4f0c7e names none" in unused_gpu()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_gpus_hidden_on_purpose_are_not_told(hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(OLD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unused_gpu() == ""


def test_a_machine_without_gpu_and_a_choice_of_the_cpu_say_nothing(tmp_path: Path) -> None:
    assert unused_gpu() == ""
    (tmp_path / "version").write_text(OLD)
    said = Said()
    tell_unused_gpu("cpu", said)
    assert not said.lines


def test_nvidia_smi_is_asked_where_the_kernel_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    told = subprocess.CompletedProcess([], 0, stdout="535.104.05\n535.104.05\n")
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *words, **options: told)
    assert "driver 535.104.05" in unused_gpu()
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *words, **options: subprocess.CompletedProcess([], 9, ""))
    assert unused_gpu() == ""
