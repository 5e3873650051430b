"""How many cores there are for us, and who sees Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainables import processes
from trainables.processes import ignored_by_children, n_cores


def group(root: Path, name: str, **files: str) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_text(content + "\n")


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("0::/", {".": {"cpu__max": "200000 100000"}}, [2.0]),
        ("0::/", {".": {"cpu__max": "max 100000"}}, []),
        ("0::/a/b", {"a": {"cpu__max": "150000 100000"}, "a/b": {"cpu__max": "400000 100000"}}, [4.0, 1.5]),
        ("4:cpu,cpuacct:/x\n0::/", {"cpu/x": {"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"}}, [0.5]),
        ("4:cpu,cpuacct:/x", {"cpu/x": {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}}, []),
        ("", {}, []),
    ],
)
def test_quotas_of_control_groups_are_found(
    membership: str, groups: dict[str, dict[str, str]], expected: list[float], tmp_path: Path
) -> None:
    for name, files in groups.items():
        group(tmp_path / "cgroup", name, **files)
    (tmp_path / "self").write_text(membership + "\n")
    assert list(processes._quotas(tmp_path / "cgroup", tmp_path / "self")) == expected


@pytest.mark.parametrize(("quota", "cores"), [([2.0], 2), ([1.5, 40.0], 2), ([0.2], 1), ([], 64), ([100.0], 64)])
def test_a_container_with_a_quota_has_so_many_cores(
    quota: list[float], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(processes, "_quotas", lambda root, membership: iter(quota))
    assert n_cores() == cores


def test_children_ignore_ctrl_c_from_their_first_instruction_on() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with ignored_by_children():
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "True"
    assert signal.getsignal(signal.SIGINT) is before
