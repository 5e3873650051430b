"""Where Ray is started: the one place with ray.init."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker
from ray.exceptions import RayError

from orchestrator.ray_environment import asked_address, check_address, cure, temporary_folder
from trainables.errors import UserError
from trainables.processes import n_cores

_OBJECT_STORE_BYTES = 256 * 1024**2  # trials share files, not objects


@dataclass(frozen=True)
class Share:
    """What a trial asks for."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Capacity:
    """What Ray has to give: (CPUs, GPUs) of each machine."""

    machines: tuple[tuple[float, float], ...]

    def at_once(self, share: Share) -> int:
        """Trials that run at once: each on one machine."""
        return sum(_fitting(cpus, gpus, share) for cpus, gpus in self.machines)


def _fitting(cpus: float, gpus: float, share: Share) -> int:
    by_gpus = gpus / share.gpus if share.gpus else float("inf")
    return int(min(cpus / share.cpus, by_gpus) + 1e-9)


@contextmanager
def ray_session(address: str | None = None, *, cores: int | None = None, gpus: int | None = None) -> Iterator[Capacity]:
    """Start Ray on this machine, or join it at `address` ("auto": the cluster this machine belongs to).

    A Ray that runs in this process already is used as it is.

    Args:
        cores, gpus: of a Ray of one's own; by default what the machine has.

    Raises:
        UserError: nothing answers at the address, or no folder can hold Ray's sockets.
    """
    if address is None and ray.is_initialized():  # the caller's own Ray: used as it is, and left running
        yield _capacity()
        return
    with _restored():
        yield from _started(address, cores, gpus)


def _started(address: str | None, cores: int | None, gpus: int | None) -> Iterator[Capacity]:
    given = address
    check_address(given)
    # A worker takes Ray's niceness of 15 from its own environment: trials run at the driver's priority instead.
    environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}}
    common = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": environment}
    told, address = asked_address(given)
    if not address and shlex.quote(sys.executable) != sys.executable:
        # Ray pastes this path into a line of bash as it is: with a space in it, workers never start.
        environment["py_executable"] = shlex.quote(sys.executable)
    try:
        if address:
            ray.init(address=address, **common)
        else:
            os.environ.pop("RAY_ADDRESS", None)  # "local": workers would look at it
            ray.init(
                address="local",  # without it, Ray joins whatever `ray start` has left running on this machine
                num_cpus=cores or n_cores(),
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",  # Ray would listen on all interfaces
                _temp_dir=str(temporary_folder()),
                **common,
            )
    except (OSError, RuntimeError, ValueError, RayError) as error:  # the last: a token that is missing or wrong
        reason = " ".join(str(error).split())[:200]
        if address:
            raise UserError(f"{told}: Ray cannot be joined there ({reason}); {cure(given, answers=True)}") from None
        raise UserError(f"Ray cannot be started: {reason}") from None
    try:
        yield _capacity()
    finally:
        ray.shutdown()


@contextmanager
def _restored() -> Iterator[None]:
    """Undo afterwards what Ray changes of this process: variables of its own, its log, what it prints of its nodes."""
    logger = logging.getLogger("ray")
    level, before, shows = logger.level, dict(os.environ), worker._worker_logs_enabled
    worker._worker_logs_enabled = False  # a page of every process that is killed, between a command's own lines
    try:
        yield
    finally:
        logger.setLevel(level)
        worker._worker_logs_enabled = shows
        for name in {*before, *os.environ}:
            if name.startswith("RAY_") or name == "PYTHONBREAKPOINT":
                if name in before:
                    os.environ[name] = before[name]
                else:
                    del os.environ[name]


def _capacity() -> Capacity:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Capacity(tuple((float(node.get("CPU", 0.0)), float(node.get("GPU", 0.0))) for node in nodes))


def is_alive() -> bool:
    """Return false where no machine is left that could run anything: Ray would wait for ever."""
    try:
        return bool(_capacity().machines)
    except Exception:  # its head does not answer
        return False


def share_for(capacity: Capacity, cpus: float, gpus: float | None, *, asked: str = "") -> Share:
    """Return what a trial gets: by default a core, and where there are GPUs a whole one.

    Args:
        asked: how a refusal names what was asked for; by default as a search's parameters.

    Raises:
        UserError: what no node can give: Ray would wait for ever.
    """
    if gpus is None:
        gpus = 1.0 if any(machine[1] for machine in capacity.machines) else 0.0
    share = Share(cpus, gpus)
    if not capacity.at_once(share):
        there = "; ".join(f"{each[0]:g} CPUs and {each[1]:g} GPUs" for each in capacity.machines) or "nothing"
        asked = asked or f"`cpus={cpus:g}` and `gpus={gpus:g}`"
        raise UserError(f"{asked}: no machine has both (Ray has {there}); request less")
    return share
