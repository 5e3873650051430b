"""Tasks begin as soon as they can, the longest path first."""

import itertools

import numpy as np
import pytest

from orchestrator.execution.dependencies import TaskQueue, schedule

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "alone": []}
WORK = {"a": 1.0, "b": 5.0, "c": 1.0, "d": 2.0, "alone": 7.5}


def test_the_head_of_the_longest_path_is_taken_first_and_nothing_before_its_needs() -> None:
    queue = TaskQueue(DIAMOND, WORK)
    assert (queue.path("a"), queue.path("d"), len(queue), queue.n_ready) == (8.0, 2.0, 5, 2)
    assert [queue.take(), queue.take(), queue.take()] == ["a", "alone", None]
    queue.done("a")
    assert [queue.take(), queue.take(), queue.take()] == ["b", "c", None]
    queue.done("c")
    assert queue.take() is None
    queue.done("b")
    assert queue.take() == "d"
    assert len(queue) == 2


def test_a_task_that_is_put_back_is_offered_again() -> None:
    queue = TaskQueue(DIAMOND, WORK)
    assert queue.take() == "a"
    queue.put_back("a")
    assert [queue.take(), queue.take(), queue.take()] == ["a", "alone", None]


def test_a_failure_drops_all_that_need_it_and_nothing_else() -> None:
    queue = TaskQueue(DIAMOND, WORK)
    assert queue.take() == "a"
    assert sorted(queue.drop("a")) == ["b", "c", "d"]
    assert queue.take() == "alone"
    queue.done("alone")
    assert len(queue) == 0
    assert queue.take() is None


def test_a_failure_among_several_needs_drops_once() -> None:
    queue = TaskQueue(DIAMOND, WORK)
    queue.take()
    queue.done("a")
    queue.take()
    assert queue.take() == "b"
    assert queue.drop("b") == ["d"]
    queue.done("alone")
    assert queue.take() == "c"
    queue.done("c")
    assert (len(queue), queue.take()) == (0, None)


@pytest.mark.parametrize(
    ("needs", "words"),
    [({"a": ["b"]}, "b are needed and are no tasks"), ({"a": ["b"], "b": ["a"], "c": []}, "need each other: a, b")],
)
def test_what_can_never_begin_is_an_error(needs: dict[str, list[str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskQueue(needs, dict.fromkeys(needs, 1.0))


def random_graph(seed: int, n: int) -> tuple[dict[str, list[str]], dict[str, float]]:
    rng = np.random.default_rng(seed)
    names = [f"t{number}" for number in range(n)]
    needs = {
        name: [str(other) for other in rng.choice(names[:place], min(place, int(rng.integers(0, 4))), replace=False)]
        for place, name in enumerate(names)
    }
    return needs, {name: float(rng.uniform(0.1, 5)) for name in names}


@pytest.mark.parametrize(("seed", "workers"), itertools.product(range(6), (1, 2, 5)))
def test_a_schedule_respects_needs_and_leaves_no_worker_idle_while_a_task_could_run(seed: int, workers: int) -> None:
    needs, seconds = random_graph(seed, 60)
    spans = schedule(needs, seconds, workers)
    assert set(spans) == set(needs)
    for name, others in needs.items():
        assert all(spans[other][1] <= spans[name][0] for other in others)
    for moment in {start for start, _ in spans.values()}:
        assert sum(start <= moment < end for start, end in spans.values()) <= workers
    for name, (start, _) in spans.items():
        ready = max((spans[other][1] for other in needs[name]), default=0.0)
        if start > ready:  # it waited: at each moment since, all workers were busy
            for moment in [ready, *(m for m, _ in spans.values() if ready <= m < start)]:
                assert sum(begin <= moment < end for begin, end in spans.values()) == workers


def test_the_schedule_is_within_grahams_bound_and_beats_levels() -> None:
    """Three folds of three teachers and a student, as an ablation has them: levels leave workers idle between."""
    needs = {f"{fold}-teacher{k}": [] for fold in range(3) for k in range(3)}
    needs |= {f"{fold}-student": [f"{fold}-teacher{k}" for k in range(3)] for fold in range(3)}
    seconds = {name: 30.0 if "student" in name else 20.0 for name in needs}
    end = max(finish for _, finish in schedule(needs, seconds, 2).values())
    ideal = sum(seconds.values()) / 2
    levels = 5 * 20.0 + 2 * 30.0
    assert ideal <= end < levels
    assert end <= 2 * max(ideal, 50.0)


def test_a_thousand_tasks_are_handed_out_quickly() -> None:
    """Not timed: counted. Every task is taken once, whatever their number."""
    needs, seconds = random_graph(7, 1_000)
    queue, taken = TaskQueue(needs, seconds), []
    while len(queue):
        key = queue.take()
        assert key is not None
        taken.append(key)
        queue.done(key)
    assert len(taken) == len(set(taken)) == 1_000
