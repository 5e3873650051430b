"""Which of many tasks may begin: one whose needs are all there, and of those the one with the most work behind it.

Nothing waits for a level to be finished: whatever can run may be taken. What is taken first is the head of the longest
path of work to the end (critical-path list scheduling: Graham, SIAM J. Appl. Math. 17, 416 (1969), bounds it by twice
the best order).
"""

import heapq
from collections.abc import Iterable, Mapping

from trainables.errors import listed


class TaskQueue:
    """Tasks by key, and what is left of them.

    Args:
        needs: the tasks that have to be done before each; every task is a key of it.
        work: of each task, in any unit.

    Raises:
        ValueError: a need that is no task, or tasks that need each other.
    """

    def __init__(self, needs: Mapping[str, Iterable[str]], work: Mapping[str, float]) -> None:
        self._needs = {key: set(others) for key, others in needs.items()}
        unknown = sorted({other for others in self._needs.values() for other in others} - set(self._needs))
        if unknown:
            raise ValueError(f"{listed(unknown)} are needed and are no tasks")
        self._dependents: dict[str, list[str]] = {key: [] for key in self._needs}
        for key, others in self._needs.items():
            for other in others:
                self._dependents[other].append(key)
        order = _topological(self._needs, self._dependents)
        self._path: dict[str, float] = {}
        for key in reversed(order):
            behind = max((self._path[other] for other in self._dependents[key]), default=0.0)
            self._path[key] = work[key] + behind
        self._place = {key: place for place, key in enumerate(order)}
        self._left = set(self._needs)
        self._ready: list[tuple[float, int, str]] = []
        for key in order:
            self._offer(key)

    def _offer(self, key: str) -> None:
        if not self._needs[key]:
            heapq.heappush(self._ready, (-self._path[key], self._place[key], key))

    def __len__(self) -> int:
        """Return how many tasks are neither done nor dropped."""
        return len(self._left)

    @property
    def left(self) -> frozenset[str]:
        """Return the tasks that are neither done nor dropped."""
        return frozenset(self._left)

    @property
    def n_ready(self) -> int:
        """Return how many tasks could begin now."""
        return len(self._ready)

    def path(self, key: str) -> float:
        """Return the work on the longest path from a task to the end, its own included."""
        return self._path[key]

    def take(self) -> str | None:
        """Return the task to begin next, or None where none can begin before another ends."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def put_back(self, key: str) -> None:
        """Offer a task again that was taken and has not ended."""
        self._offer(key)

    def done(self, key: str) -> None:
        """Note that a task that was taken has been done."""
        self._left.remove(key)
        for other in self._dependents[key]:
            self._needs[other].discard(key)
            if other in self._left:
                self._offer(other)

    def drop(self, key: str) -> list[str]:
        """Note that a task that was taken has failed; return those that need it, directly or not: they are dropped."""
        self._left.remove(key)
        dropped: list[str] = []
        for other in self._dependents[key]:
            if other in self._left:
                dropped += [other, *self.drop(other)]
        return dropped


def _topological(needs: Mapping[str, set[str]], dependents: Mapping[str, list[str]]) -> list[str]:
    """Return the tasks in an order in which each comes after all that it needs."""
    open_needs = {key: len(others) for key, others in needs.items()}
    order = [key for key, count in open_needs.items() if not count]
    for key in order:  # grows meanwhile
        for other in dependents[key]:
            open_needs[other] -= 1
            if not open_needs[other]:
                order.append(other)
    if len(order) < len(needs):
        raise ValueError(f"tasks need each other: {listed(sorted(set(needs) - set(order)))}")
    return order


def schedule(
    needs: Mapping[str, Iterable[str]], seconds: Mapping[str, float], workers: int
) -> dict[str, tuple[float, float]]:
    """Return when each task begins and ends on that many workers, in seconds, as the queue would hand them out."""
    queue = TaskQueue(needs, seconds)
    spans: dict[str, tuple[float, float]] = {}
    running: list[tuple[float, str]] = []
    now = 0.0
    while len(queue):
        while len(running) < workers and (key := queue.take()) is not None:
            spans[key] = now, now + seconds[key]
            heapq.heappush(running, (spans[key][1], key))
        now, ended = heapq.heappop(running)
        queue.done(ended)
    return spans
