"""What Ray finds around it: stale addresses, closed or too long temporary folders, paths that are no URLs."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from said import Said

from orchestrator import ray_environment
from orchestrator.ray_environment import asked_address, check_address, temporary_folder
from orchestrator.study.journal import Trial
from orchestrator.study.optuna_export import OptunaExport
from trainables.errors import UserError


@pytest.fixture
def closed_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_stale_ray_address_is_told_at_once_by_the_variables_name(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"environment variable RAY_ADDRESS=127.0.0.1:\d+: no Ray answers.*unset RAY_"):
        check_address(None)
    assert time.monotonic() - began < 5


def test_an_address_that_was_asked_for_is_told_by_the_options_name(closed_port: int) -> None:
    with pytest.raises(UserError, match=r"`address=127.0.0.1:\d+`: no Ray answers there .*leave out `address`"):
        check_address(f"127.0.0.1:{closed_port}")


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "host:99999999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT or auto was expected"):
        check_address(address)


def answering(answer: bytes) -> Iterator[int]:
    """A server on a port of this machine that says this to whoever connects, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)
                    connection.settimeout(10)
                    connection.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
OTHERS = {
    "silent": b"",
    "a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "HTTP/2 without gRPC": SETTINGS + bytes([0, 0, 1, 1, 5, 0, 0, 0, 1, 0x8D]),  # :status 404
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_listens_and_is_no_ray_is_told_in_seconds(kind: str) -> None:
    began = time.monotonic()
    for port in answering(OTHERS[kind]):
        with pytest.raises(
            UserError, match=r"no Ray answers there .something other than Ray listens there.; start a cluster"
        ):
            check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 6


def test_where_ray_encrypts_a_connection_is_all_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    for port in answering(b""):
        check_address(f"127.0.0.1:{port}")


def test_a_grpc_server_and_no_address_at_all_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real Ray: test_study_on_ray."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ok = SETTINGS + bytes([0, 0, 2, 1, 4, 0, 0, 0, 1, 0x20, 0x88])  # a table size, then :status 200
    for scheme in ("", "ray://"):
        for port in answering(ok):
            check_address(f"{scheme}127.0.0.1:{port}")
    check_address(None)
    check_address("auto")


def test_local_is_a_ray_of_ones_own_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    check_address("local")
    assert asked_address("local")[1] is None


def test_a_folder_whose_path_is_too_long_for_sockets_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 110)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    found = temporary_folder()
    assert long not in found.parents
    assert len(str(found / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store")) < 107


def test_another_users_closed_folder_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as base:
        monkeypatch.setenv("RAY_TMPDIR", base)
        (Path(base) / "ray").mkdir()
        usable = ray_environment._is_usable
        closed = Path(base) / "ray"
        monkeypatch.setattr(ray_environment, "_is_usable", lambda folder: folder != closed and usable(folder))
        assert temporary_folder() == Path(base) / f"ray-{os.getuid()}"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_not_usable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not ray_environment._is_usable(tmp_path)


def test_where_no_folder_will_do_the_variable_to_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_environment, "_is_usable", lambda folder: False)
    with pytest.raises(UserError, match=r"set RAY_TMPDIR to a folder of yours whose path has at most 3[0-9] char"):
        temporary_folder()


@pytest.mark.parametrize("name", ["plain", "g#1?x=%20 b"])
def test_the_optuna_copy_lies_in_the_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    """In an SQLite URL, ?, # and % would begin something else, and the file would lie beside the folder."""
    folder, said = tmp_path / name, Said()
    folder.mkdir()
    mirror = OptunaExport(folder / "optuna.db", "study", [], 1, said)
    mirror.on_trial_start(Trial(0, {}, {}))
    assert not said.lines
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert {path.name for path in folder.iterdir()} == {"optuna.db"}
    again = OptunaExport(folder / "optuna.db", "study", [], 1, said)
    assert len(optuna.load_study(study_name="study", storage=again._storage).trials) == 0
