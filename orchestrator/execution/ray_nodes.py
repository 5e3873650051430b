"""The nodes of a Ray cluster: which are there, whether the head answers, and whether they share a folder."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.execution.ray_worker import WorkerPlace, probe_name, storage_problem
from orchestrator.ray_session import Capacity, Share
from trainables.errors import UserError
from trainables.files import write_text
from trainables.progress import Progress

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_FRESH = 12.0  # since the last answer: the head may be gone
_SECONDS_UNTIL_LOST = 40.0  # since the last answer; after a minute Ray would end this process without a word
_SECONDS_TO_PROBE = 120.0  # a node's worker process starts first


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        key: Ray's.
    """

    key: str
    name: str
    cpus: float
    gpus: float

    @property
    def capacity(self) -> Capacity:
        """Return what it has."""
        return Capacity(((self.cpus, self.gpus),))


class Nodes:
    """The nodes that are there, looked at again and again in a thread: without its head Ray does not answer at all."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)

    def __enter__(self) -> "Nodes":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _look(self) -> None:
        found = [
            Node(node["NodeID"], node["NodeManagerHostname"], *(_given(node, name) for name in ("CPU", "GPU")))
            for node in ray.nodes()
            if node["Alive"]
        ]
        self._nodes, self._seen = found, time.monotonic()

    def _look_again_and_again(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            with suppress(Exception):
                self._look()

    @property
    def is_fresh(self) -> bool:
        """Return True where the head has answered a moment ago."""
        return time.monotonic() - self._seen < _SECONDS_FRESH

    @property
    def capacity(self) -> Capacity:
        """Return what there is."""
        return Capacity(tuple((node.cpus, node.gpus) for node in self._nodes))

    def fitting(self, share: Share) -> list[Node]:
        """Return the nodes that have room for a model when they are empty."""
        return [node for node in self._nodes if node.capacity.at_once(share)]

    def has(self, place: WorkerPlace | None) -> bool:
        """Return whether a worker's node is there; waits for the next look, as a loss is told before it is seen."""
        asked = time.monotonic()
        while self._seen < asked + _SECONDS_BETWEEN_LOOKS and time.monotonic() < asked + _SECONDS_FRESH:
            time.sleep(0.1)  # never asked from here: without its head Ray does not answer
        return place is not None and any(node.key == place.node_id for node in self._nodes)

    def require_head(self) -> None:
        """Raise a UserError where the head has not answered for long."""
        if reason := self.lost_head:
            raise UserError(f"{reason}. Start the cluster again and rerun the command to continue")

    @property
    def lost_head(self) -> str:
        """Return that the head has not answered for long, or an empty string."""
        silent = time.monotonic() - self._seen
        if silent <= _SECONDS_UNTIL_LOST:
            return ""
        return (
            f"the head of the Ray cluster has not answered for {silent:.0f} s: it is gone, or the network to it; what "
            "is finished is kept"
        )

    @contextmanager
    def telling_of_a_lost_head(self, progress: Progress, cure: str) -> Iterator[None]:
        """Say what has happened before Ray ends this process, for work that waits inside Ray itself."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_SECONDS_BETWEEN_LOOKS):
                if reason := self.lost_head:
                    progress.message(f"{reason}. This process ends now; {cure}")
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def _given(node: dict[str, dict[str, float]], name: str) -> float:
    return float(node["Resources"].get(name, 0.0))


@contextmanager
def actor_here(kind: type) -> Iterator[Any]:
    """Keep an actor of this class on the driver's machine, which takes no core."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        yield actor
    finally:
        with suppress(Exception):
            ray.kill(actor)


@contextmanager
def shared_folder(folder: Path | None) -> Iterator[str]:
    """Put a token into a folder, by which others see that theirs is the same; what probed it is removed afterwards."""
    token = uuid.uuid4().hex
    if folder is None:
        yield token
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / probe_name("driver"), token)
    try:
        yield token
    finally:
        for file in folder.glob(probe_name("*")):
            with suppress(OSError):
                file.unlink()


def require_shared(folder: Path | None, token: str, nodes: Sequence[Node]) -> None:
    """Let every node read and write in a folder, and look at what it wrote.

    Raises:
        UserError: a node does not share it, or cannot import crystaltune; told with its name.
    """
    if folder is None:
        return
    probe = ray.remote(_probe)
    asked = {
        node: probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.key, soft=False)
        ).remote(folder, token, probe_name(node.key))
        for node in nodes
    }
    problems = [
        f"node {node.name} cannot take part: {problem}"
        for node, answer in asked.items()
        if (problem := _answer(answer) or _unseen(folder, token, node))
    ]
    if problems:
        raise UserError(
            f"{'; '.join(problems)}. Results must lie on storage that all nodes share: use another `out`"
            if any(str(folder) in problem for problem in problems)
            else "; ".join(problems)
        )


def _probe(folder: Path, token: str, name: str) -> str:
    """Run on a node: what keeps it from taking part, or an empty string."""
    return storage_problem(folder, token, name)


def _answer(reference: object) -> str:
    try:
        return str(ray.get(reference, timeout=_SECONDS_TO_PROBE))
    except GetTimeoutError:
        return f"it has not answered for {_SECONDS_TO_PROBE:.0f} s"
    except RayError as error:
        last = " ".join(str(error).strip().rpartition("\n")[2].split())[:300]
        missing = "No module named" in last
        return f"{last}; install crystaltune there as on this machine" if missing else last


def _unseen(folder: Path, token: str, node: Node) -> str:
    """Return that what a node wrote is not seen here, or an empty string."""
    until = time.monotonic() + 10  # network storage shows new files late
    while time.monotonic() < until:
        with suppress(OSError):
            if (folder / probe_name(node.key)).read_text(encoding="utf-8") == token:
                return ""
        time.sleep(0.2)
    return f"what it writes to {folder} is not seen on this machine"
