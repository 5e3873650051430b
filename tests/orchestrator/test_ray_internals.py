"""What is used of Ray's private parts is there, and does what it is used for."""

import pytest
from ray._private import worker


def test_what_ray_prints_of_its_nodes_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"lines": ["a worker died"], "pid": "raylet", "is_err": False}
    worker.print_to_stdstream(told, ignore_prefix=False)
    assert "a worker died" in capsys.readouterr().out
    monkeypatch.setattr(worker, "_worker_logs_enabled", False)
    worker.print_to_stdstream({**told, "lines": ["another worker died"]}, ignore_prefix=False)
    assert capsys.readouterr().out == ""
