"""The table of tasks against matbench's own metadata, and what a mistyped name is told."""

import gzip
from pathlib import Path

import pytest
from said import refusal

from trainables.data.tasks import NOT_REGRESSION, SAMPLE_TASK, TASKS, custom_task, find_task, full_name


@pytest.mark.parametrize("name", TASKS)
def test_size_target_and_unit_are_matbenchs_own(name: str) -> None:
    from matbench.metadata import mbv01_metadata

    task, official = TASKS[name], mbv01_metadata[name]
    assert (task.name, task.official_rows, task.target) == (name, official.n_samples, official.target)
    assert task.unit == (official.unit or "unitless")
    assert (official.input_type, official.task_type) == ("structure", "regression")


def test_every_matbench_task_is_either_known_or_refused_with_its_reason() -> None:
    from matbench.metadata import mbv01_metadata

    assert {*TASKS, *NOT_REGRESSION} == set(mbv01_metadata)
    assert not {*TASKS} & {*NOT_REGRESSION}
    for name, reason in NOT_REGRESSION.items():
        kind = mbv01_metadata[name]["task_type" if "classification" in reason else "input_type"]
        assert str(kind) in reason


@pytest.mark.parametrize("name", ["mp_e_form", "mp_gap", "log_gvrh", "log_kvrh", "dielectric", "jdft2d"])
def test_mbids_are_the_official_ones(name: str, shared_data: Path) -> None:
    task = TASKS[f"matbench_{name}"]
    with gzip.open(shared_data / "matbench_targets" / f"{task.name}.csv.gz", "rt") as lines:
        official = [line.partition(",")[0] for line in lines][1:]
    assert [task.mbid(row) for row in range(task.official_rows or 0)] == official


def test_only_a_matbench_task_has_mbids() -> None:
    assert not SAMPLE_TASK.is_matbench
    with pytest.raises(ValueError, match="is not a Matbench task"):
        SAMPLE_TASK.mbid(0)


def test_energies_use_chgnets_own_head_and_all_else_a_fresh_one() -> None:
    energies = {name: task.quantity for name, task in TASKS.items() if task.is_energy}
    assert energies == {"matbench_mp_e_form": "energy_per_atom", "matbench_perovskites": "energy_per_cell"}


def test_a_run_from_scratch_has_the_tier_scratch_whatever_the_task() -> None:
    for task in (*TASKS.values(), SAMPLE_TASK):
        assert task.tier(False) == "scratch"
        assert task.tier(True) == task.overlap != "scratch"
    assert TASKS["matbench_mp_e_form"].overlap == "pretrained-label-overlap"
    assert TASKS["matbench_jdft2d"].overlap == "pretrained-disjoint"


def test_a_table_of_ones_own_has_an_unknown_overlap_and_no_official_rows() -> None:
    task = custom_task("mine", "y", "eV", "property")
    assert (task.name, task.target, task.unit, task.is_matbench) == ("mine", "y", "eV", False)
    assert task.tier(True) == "pretrained-overlap-unknown"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_found_by_its_full_and_its_short_name(name: str) -> None:
    assert find_task(name) is TASKS[name]
    assert find_task(name.removeprefix("matbench_")) is TASKS[name]


def test_the_sample_has_two_names() -> None:
    assert find_task("sample") is find_task("synthetic_sample") is SAMPLE_TASK
    assert SAMPLE_TASK.synthetic


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mp_gpa", "matbench_mp_gap"),
        ("matbench_mp_e_from", "matbench_mp_e_form"),
        ("jdft", "matbench_jdft2d"),
        ("perovskite", "matbench_perovskites"),
        ("E_FORM", "matbench_mp_e_form"),
        ("log_gvhr", "matbench_log_gvrh"),
        ("synthetic_sampel", "synthetic_sample"),
    ],
)
def test_a_near_miss_is_told_the_right_name(typed: str, meant: str) -> None:
    message = refusal(find_task, typed)
    assert f"unknown task '{typed}'" in message
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize("typed", ["zzzz", "foo", "matbench_zzzz"])
def test_a_name_near_nothing_is_told_all_names(typed: str) -> None:
    message = refusal(find_task, typed)
    assert "did you mean" not in message
    assert all(name in message for name in (*TASKS, SAMPLE_TASK.name))


@pytest.mark.parametrize("name", [*NOT_REGRESSION, "mp_is_metal"])
def test_a_matbench_task_that_is_no_structure_regression_is_told_why(name: str) -> None:
    full = name if name in NOT_REGRESSION else f"matbench_{name}"
    assert f"{full} is {NOT_REGRESSION[full]}" in refusal(find_task, name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("JDFT2D", "matbench_jdft2d"),
        ("Matbench_JDFT2D", "matbench_jdft2d"),
        ("MP-E-Form", "matbench_mp_e_form"),
        ("matbench-log-gvrh", "matbench_log_gvrh"),
        ("Sample", "synthetic_sample"),
        ("SYNTHETIC-SAMPLE", "synthetic_sample"),
    ],
)
def test_capitals_and_dashes_are_accepted(typed: str, meant: str) -> None:
    assert find_task(typed).name == full_name(typed) == meant


def test_other_names_are_left_as_they_are() -> None:
    assert full_name("My-Gaps") == "My-Gaps"
    assert full_name("matbench_zzz") == "matbench_zzz"
