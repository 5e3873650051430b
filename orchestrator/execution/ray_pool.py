"""Jobs over a Ray cluster: a worker for every share of its machines, kept for as long as there are jobs.

Nothing is decided here but where jobs run. Which there are, and in what order, says their source; what they leave lies
in their folders, on storage that all machines share.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from orchestrator.execution.pool import Begun, Handed, Job, Result, Source
from orchestrator.execution.ray_nodes import Nodes, actor_here, require_shared, shared_folder
from orchestrator.execution.ray_stores import Fetch, StoreKeeper
from orchestrator.execution.ray_worker import EventSink, NodeProblem, Worker, WorkerPlace, WorkerTask
from orchestrator.execution.resources import Cluster
from orchestrator.provenance import versions
from orchestrator.ray_session import Capacity, Share, ray_session, share_for
from orchestrator.report.progress import replaying
from trainables.errors import UserError
from trainables.progress import Progress

_SECONDS_TO_WAIT = 1.0  # for a result, before the nodes are looked at again
_SECONDS_IDLE = 60.0  # after which workers without work give their machines back
_SECONDS_FOR_A_NODE = 900.0  # until a cluster that grows has a machine that is large enough
_WAITING_WORKERS = 8  # beyond what fits now: what a cluster that grows is asked for
_MOST_KILLS = 3  # of one job's worker before the job has failed
_MOST_LOSSES = 10  # of one job's node
_MOST_FAILED_STARTS = 3  # of workers in a row


class ClusterSource(Source[Handed], Protocol[Handed]):
    """A source that takes back a job whose worker was lost."""

    def put_back(self, name: str, reason: str) -> None:
        """Offer a job again that was taken and has not ended."""


@dataclass(frozen=True)
class ClusterRun:
    """How jobs are run on a cluster.

    Attributes:
        cluster: which, and a model's share of it.
        device: "auto", "cpu" or "cuda".
        at_once: most jobs at the same time; None for as many as fit.
        folder: of the results, which all nodes have to share; None where nothing is written.
    """

    cluster: Cluster
    device: str = "auto"
    at_once: int | None = None
    folder: Path | None = None


@dataclass(eq=False)
class _Hired:
    """A worker, and where it is once it has begun."""

    actor: Any
    place: WorkerPlace | None = None
    idle_since: float = 0.0


def run_on_ray(
    work: Callable[[Job, str, Progress], Result],
    source: ClusterSource[Job],
    run: ClusterRun,
    progress: Progress,
    *,
    failed: Callable[[str], Result],
    localise: Callable[[Job, Fetch], Job] | None = None,
    begun: Begun = lambda name, device: None,
    workers_changed: Callable[[int, bool], None] = lambda count, gpus: None,
) -> Iterator[tuple[str, Result]]:
    """Run the jobs of a source and yield (name, result) as each ends, until the source has none and none runs.

    A job whose worker or node is lost is put back, and fails where that happens again and again. Nodes that join later
    are used.

    Args:
        failed: makes a result of the reason why a job has none.
        localise: applied to a job on the node that does it.
        begun: called with the name of each job that is handed to a worker, and where that is.
        workers_changed: called with the number of workers, and whether they have GPUs.

    Raises:
        UserError: Ray cannot be joined or has lost its head, no machine is large enough, or a node does not share the
            folder.
    """
    with (
        ray_session(None if ray.is_initialized() else run.cluster.address) as capacity,
        actor_here(EventSink) as events,
        actor_here(StoreKeeper) as keeper,
        replaying(lambda: ray.get(events.take.remote(), timeout=10), progress),
        shared_folder(run.folder) as token,
        Nodes() as nodes,
    ):
        share, gpus = _share(capacity, run, nodes, progress)
        require_shared(run.folder, token, nodes.fitting(share))
        progress.message(_described(nodes, share, run.at_once))
        task = WorkerTask(run.device, max(1, int(share.cpus)), run.folder, token, events, keeper)
        fleet = _Fleet(work, source, share, task, nodes, run.at_once, progress)
        fleet.failed, fleet.localise, fleet.begun = failed, localise, begun
        fleet.workers_changed = lambda count: workers_changed(count, gpus)
        try:
            yield from fleet.run()
        finally:
            fleet.dismiss_all()


def _share(capacity: Capacity, run: ClusterRun, nodes: Nodes, progress: Progress) -> tuple[Share, bool]:
    """Return what a model gets and whether that is a GPU; waits for the first machine of a cluster that grows."""
    wanted = 0.0 if run.device == "cpu" else run.cluster.gpus
    if wanted is None and (run.device == "cuda" or any(gpus for _, gpus in capacity.machines)):
        wanted = run.cluster.gpus_of_a_model
    share = Share(run.cluster.cpus, wanted or 0.0)
    if run.cluster.address is None or run.device != "cuda":
        return _offered(capacity, share), share.gpus > 0
    _wait_for_a_node(share, nodes, progress)
    return share, True


def _offered(capacity: Capacity, share: Share) -> Share:
    """Return a model's share.

    Raises:
        UserError: no machine has it.
    """
    asked = f"`cpus_per_model={share.cpus:g}`" + (f" with {share.gpus:g} GPUs" if share.gpus else "")
    return share_for(capacity, share.cpus, share.gpus, asked=asked)


def _described(nodes: Nodes, share: Share, at_once: int | None) -> str:
    """Return what there is, in words."""
    fitting, count = len(nodes.fitting(share)), nodes.capacity.at_once(share)
    count = min(at_once or count, count)
    gpus = f" and {share.gpus:g} GPUs" if share.gpus else ""
    return (
        f"Ray has {fitting} node{'s' * (fitting != 1)} for models: {count} at once, "
        f"with {share.cpus:g} CPU{'s' * (share.cpus != 1)}{gpus} each"
    )


def _wait_for_a_node(share: Share, nodes: Nodes, progress: Progress) -> None:
    """Wait where no node has what a model wants: an autoscaler may bring one, when it sees the demand."""
    if nodes.fitting(share):
        return
    minutes = _SECONDS_FOR_A_NODE / 60
    progress.message(
        f"no node has {share.cpus:g} CPUs and {share.gpus:g} GPUs: waiting up to {minutes:.0f} minutes for one, which "
        "only comes where the cluster grows by itself"
    )
    demand = ray.remote(EventSink).options(num_cpus=share.cpus, num_gpus=share.gpus).remote()
    until = time.monotonic() + _SECONDS_FOR_A_NODE
    try:
        while not nodes.fitting(share):
            nodes.require_head()
            if time.monotonic() > until:
                _offered(nodes.capacity, share)
            time.sleep(_SECONDS_TO_WAIT)
    finally:
        ray.kill(demand)


class _Fleet:
    """The workers, and the jobs that they do."""

    def __init__(
        self,
        work: Callable[[Any, str, Progress], Any],
        source: ClusterSource[Any],
        share: Share,
        task: WorkerTask,
        nodes: Nodes,
        at_once: int | None,
        progress: Progress,
    ) -> None:
        self._work, self._source, self._share, self._task = work, source, share, task
        self._nodes, self._progress = nodes, progress
        self._most = at_once or 1_000_000
        self._coming: dict[Any, _Hired] = {}  # by reference of what they say when they begin
        self._idle: list[_Hired] = []
        self._running: dict[Any, tuple[_Hired, str]] = {}
        self._parked: list[_Hired] = []  # on nodes that cannot take part: their places stay taken
        self._kills: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._failed_starts, self._told, self._count = 0, set[str](), -1
        self._ended: list[tuple[str, Any]] = []
        self.failed: Callable[[str], Any] = str
        self.localise: Callable[[Any, Fetch], Any] | None = None
        self.begun: Begun = lambda name, device: None
        self.workers_changed: Callable[[int], None] = lambda count: None

    def run(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, result) as jobs end."""
        while True:
            self._assign()
            if not self._running and not self._source.n_ready:
                return
            self._hire()
            self._tell_count()
            if waiting := [*self._running, *self._coming]:
                ended, _ = ray.wait(waiting, num_returns=1, timeout=_SECONDS_TO_WAIT)
            else:
                ended = []
                time.sleep(_SECONDS_TO_WAIT)
            for reference in ended:
                self._note(reference)
            self._nodes.require_head()
            self._release_idle()
            while self._ended:
                yield self._ended.pop(0)

    def _assign(self) -> None:
        """Give every idle worker a job, while there are any."""
        while self._idle and len(self._running) < self._most and (item := self._source.take()) is not None:
            name, job = item
            hired = self._idle.pop()
            assert hired.place is not None
            self.begun(name, hired.place.label)
            reference = hired.actor.run.remote(self._work, job, name, self.localise)
            self._running[reference] = hired, name

    def _hire(self) -> None:
        """Ask for a worker for every job that could begin, as far as there is room for them or soon may be."""
        there = len(self._running) + len(self._idle) + len(self._coming)
        wanted = min(self._most, len(self._running) + self._source.n_ready) - there
        room = self._nodes.capacity.at_once(self._share) - there - len(self._parked) + _WAITING_WORKERS
        for _ in range(min(wanted, room)):
            actor = (
                ray.remote(Worker)
                .options(num_cpus=self._share.cpus, num_gpus=self._share.gpus, scheduling_strategy="SPREAD")
                .remote()
            )
            self._coming[actor.begin.remote(self._task)] = _Hired(actor)

    def _note(self, reference: Any) -> None:
        if reference in self._coming:
            self._note_begun(self._coming.pop(reference), reference)
        else:
            self._note_result(*self._running.pop(reference), reference)

    def _note_begun(self, hired: _Hired, reference: Any) -> None:
        try:
            place: WorkerPlace = ray.get(reference)
        except RayError as error:  # it died, or Ray's memory monitor has ended it
            self._dismiss(hired)
            self._failed_starts += self._nodes.is_fresh
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise UserError(f"no worker can begin on the cluster: {_last_line(error)}") from None
            return
        hired.place, self._failed_starts = place, 0
        if place.problem:
            self._park(hired, place.problem)
            return
        for note in filter(None, (place.note, _other_versions(place))):
            self._tell_once(f"node {place.node}: {note}")
        self._make_idle(hired)

    def _note_result(self, hired: _Hired, name: str, reference: Any) -> None:
        try:
            result = ray.get(reference)
        except RayTaskError as error:  # work returns its failures: this is one that nobody expected
            self._ended.append((name, self.failed(_last_line(error))))
        except Exception as error:  # the worker or its node, or what it had to hand over
            self._lost(hired, name, error)
            return
        else:
            if result is None:  # it was asked to stop, and has left a checkpoint
                self._dismiss(hired)
                self._put_back(name, f"its node {self._name(hired)} is being taken away")
                return
            if isinstance(result, NodeProblem):
                self._put_back(name, f"node {self._name(hired)} cannot make it ({result.reason})")
                self._park(hired, result.reason)
                return
            self._ended.append((name, result))
        self._make_idle(hired)

    def _park(self, hired: _Hired, problem: str) -> None:
        """Use a node no longer.

        Raises:
            UserError: there is no other.
        """
        self._parked.append(hired)
        node = self._name(hired)
        self._tell_once(f"node {node} is not used: {problem}")
        others = self._running or self._idle or self._coming
        if not others and self._nodes.capacity.at_once(self._share) <= len(self._parked):
            raise UserError(f"no node can take part: {node}: {problem}")

    def _lost(self, hired: _Hired, name: str, error: Exception) -> None:
        """Put the job of a worker that is gone back, or let it fail where that has happened too often."""
        self._dismiss(hired)
        node = self._name(hired)
        if isinstance(error, ActorUnavailableError) or not self._nodes.has(hired.place):
            self._losses[name] += self._nodes.is_fresh
            if self._losses[name] < _MOST_LOSSES:
                self._put_back(name, f"node {node} is lost or does not answer")
            else:
                self._ended.append((name, self.failed(f"its node was lost {_MOST_LOSSES} times")))
            return
        self._kills[name] += 1
        why = "out of memory" if "low on memory" in str(error) else "out of memory, most likely"
        if self._kills[name] >= _MOST_KILLS:
            self._ended.append((name, self.failed(f"its process was killed {_MOST_KILLS} times ({why})")))
            return
        self._most = max(1, min(self._most, len(self._running) + len(self._idle)))
        self._put_back(name, f"its process on node {node} was killed ({why}); continuing with {self._most} at once")

    def _put_back(self, name: str, reason: str) -> None:
        self._progress.message(f"{name} is put back: {reason}")
        self._source.put_back(name, reason)

    def _name(self, hired: _Hired) -> str:
        return "" if hired.place is None else hired.place.node

    def _make_idle(self, hired: _Hired) -> None:
        hired.idle_since = time.monotonic()
        self._idle.append(hired)

    def _release_idle(self) -> None:
        """Give machines back where nothing can begin on them for a while: a cluster that grows may shrink again."""
        if self._source.n_ready:
            return
        now = time.monotonic()
        for hired in [hired for hired in self._idle if now - hired.idle_since > _SECONDS_IDLE]:
            self._idle.remove(hired)
            self._dismiss(hired)
        for reference in list(self._coming):  # asked for when there was more to do
            self._dismiss(self._coming.pop(reference))

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._progress.message(text)

    def _tell_count(self) -> None:
        count = len(self._running) + len(self._idle)
        if count != self._count:
            self._count = count
            self.workers_changed(count)

    def _dismiss(self, hired: _Hired) -> None:
        if self._nodes.is_fresh:  # Ray would wait for its head
            with suppress(Exception):
                ray.kill(hired.actor)

    def dismiss_all(self) -> None:
        """End all workers."""
        running = [hired for hired, _ in self._running.values()]
        for hired in (*running, *self._idle, *self._coming.values(), *self._parked):
            self._dismiss(hired)


def _other_versions(place: WorkerPlace) -> str:
    """Return which packages are others than the driver's, or an empty string."""
    other = [
        f"{name} {there} (here {here})"
        for name, here in versions().items()
        if (there := place.versions.get(name)) != here
    ]
    return f"other versions than on this machine, so digits may differ: {', '.join(other)}" if other else ""


def _last_line(error: Exception) -> str:
    """Return the last line of a remote error: a traceback comes before it."""
    if isinstance(error, OutOfMemoryError):  # a page of processes, and advice
        return "its node is low on memory, and Ray's memory monitor ended it"
    return " ".join(str(error).strip().rpartition("\n")[2].split())[:300] or type(error).__name__
