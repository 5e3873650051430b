"""What Ray is asked for when it is started; tests of searches start it for real."""

import sys
from typing import Any

import pytest
import ray

from orchestrator.ray_session import ray_session
from trainables.errors import UserError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that ray.init got; it starts nothing."""
    arguments: dict[str, Any] = {}

    def init(**given: Any) -> None:
        arguments.update(given)
        raise ConnectionError("not in this test")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return arguments


def start(address: str | None = None) -> None:
    with pytest.raises(UserError, match="not in this test"), ray_session(address, cores=1):
        pass


def test_workers_start_with_an_interpreter_in_a_folder_with_a_space(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/my project/.venv/bin/python")
    start()
    assert asked["runtime_env"]["py_executable"] == "'/home/me/my project/.venv/bin/python'"
    assert asked["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def test_an_ordinary_interpreter_is_left_to_ray(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3.11")
    start()
    assert "py_executable" not in asked["runtime_env"]


def test_on_a_cluster_every_machine_has_its_own_interpreter(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/my project/.venv/bin/python")
    start("auto")
    assert "py_executable" not in asked["runtime_env"]


def test_trials_run_at_the_drivers_own_priority(asked: dict[str, Any]) -> None:
    """Ray's workers are at nice 15 by default: a study beside any other work starves."""
    start()
    assert asked["runtime_env"]["env_vars"]["RAY_worker_niceness"] == "0"
