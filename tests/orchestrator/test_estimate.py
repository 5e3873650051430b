"""What a plan would take on a fleet, and how that is said."""

import shlex

import pytest

from orchestrator.ablation.plan import Planned
from orchestrator.cli.ablate import _without_plan
from orchestrator.execution.estimate import fleet_estimate

NEEDS: dict[str, list[str]] = {"a": [], "b": [], "student": ["a", "b"], "long": []}
SECONDS = {"a": 10.0, "b": 20.0, "student": 30.0, "long": 40.0}


@pytest.mark.parametrize(("workers", "seconds"), [(1, 100.0), (2, 50.0), (3, 50.0), (100, 50.0)])
def test_a_fleet_is_as_fast_as_its_workers_and_its_longest_chain_allow(workers: int, seconds: float) -> None:
    found = fleet_estimate(NEEDS, SECONDS, workers, 5.0)
    assert (found.seconds, found.longest, found.work) == (seconds, 50.0, 100.0)
    assert found.busy == pytest.approx(100.0 / (workers * seconds))


def test_nothing_left_takes_no_time() -> None:
    found = fleet_estimate({}, {}, 8, 5.0)
    assert (found.seconds, found.longest, found.busy) == (0.0, 0.0, 0.0)


def test_the_plan_says_hours_and_where_its_speed_is_from() -> None:
    fleet = fleet_estimate(NEEDS, {key: 3600 * seconds for key, seconds in SECONDS.items()}, 2, 5.0)
    planned = Planned([], 4, 0, 1, 1.0, fleet, 2, "measured here, on cpu")
    told = " ".join(planned.fleet_sentences)
    assert "On 2 GPUs: about" in told
    assert "100 GPU hours" in told
    assert "measured here, on cpu; give a GPU's own with `structures_per_second`" in told
    assert "(as given)" in " ".join(Planned([], 4, 0, 1, 1.0, fleet, 2).fleet_sentences)
    assert Planned([], 4, 0, 1, 1.0).fleet_sentences == []


def test_the_command_that_runs_a_plan_is_without_the_plans_own_options() -> None:
    words = shlex.split("ablate x --plan --gpus 8 --seeds 2 --structures-per-second=9 --gpus=3 --out 'a b'")
    assert _without_plan(words) == ["ablate", "x", "--seeds", "2", "--out", "a b"]
