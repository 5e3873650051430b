"""Matbench tables, whole and partial, and what a Dataset of one can do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure
from table_data import CUBE, JDFT2D, OWN, assert_holds, refusal, saved, table_of

from trainables.data.dataset import Dataset, read_matbench
from trainables.data.tasks import TASKS

# --- Matbench's own tables ------------------------------------------------------------------------------------------


def test_a_part_of_a_matbench_task_has_official_ids_and_rows(tmp_path: Path, cells: list[Structure]) -> None:
    dataset = read_matbench(saved(tmp_path / "t.json.gz", table_of(cells)), JDFT2D)
    assert dataset.ids == tuple(f"mb-jdft2d-{row + 1:03d}" for row in (4, 0, 635, 7, 100))
    assert dataset.official_row is not None
    assert dataset.official_row.tolist() == [4, 0, 635, 7, 100]
    assert dataset.targets.tolist() == [0, 10.5, 21, 31.5, 42]
    assert dataset.partial
    assert_holds(dataset, cells)


def test_the_order_of_the_keys_and_of_the_columns_does_not_matter(tmp_path: Path, cells: list[Structure]) -> None:
    content = table_of(cells)
    expected = read_matbench(saved(tmp_path / "t.json", content), JDFT2D).digest
    data_first = {key: content[key] for key in ("data", "columns", "index")}
    assert read_matbench(saved(tmp_path / "t.json", data_first), JDFT2D).digest == expected
    between = {key: content[key] for key in ("index", "data", "columns")}
    assert read_matbench(saved(tmp_path / "t.json", between), JDFT2D).digest == expected
    turned = content | {"columns": content["columns"][::-1], "data": [row[::-1] for row in content["data"]]}
    assert read_matbench(saved(tmp_path / "t.json", turned), JDFT2D).digest == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"index": [0, 1, 2, 3, 636]}, "index entry 636 is not an official row of matbench_jdft2d (0 to 635)"),
        ({"index": [0, 1, -1, 3, 4]}, "index entry -1 is not an official row"),
        ({"index": [0, 1, "2", 3, 4]}, "index entry '2' is not an official row"),
        ({"index": [0, 1, 2]}, "index entry None is not an official row"),
        ({"index": [0, 1, 2, 3, 4, 5]}, "has 6 index entries but 5 rows"),
        ({"index": [0, 1, 2, 1, 4]}, "duplicate ids: mb-jdft2d-002"),
        ({"columns": ["structure", "gap"]}, "columns structure, gap; matbench_jdft2d requires 'structure' and 'exfol"),
        ({"columns": ["cell", "exfoliation_en"]}, "columns cell, exfoliation_en"),
        ({"data": [[None, 1.0]] * 5}, "no structure: mb-jdft2d-005, mb-jdft2d-001"),
        ({"data": [5] * 5}, "row 0 is not a list of structure and target"),
        ({"data": [[CUBE.as_dict()]] * 5}, "row 0 is not a list of structure and target"),
        ({"data": [], "index": []}, "has no rows"),
    ],
)
def test_a_matbench_table_that_does_not_fit_its_task_is_one_line(
    tmp_path: Path, cells: list[Structure], changes: dict[str, Any], told: str
) -> None:
    path = saved(tmp_path / "t.json", table_of(cells, **changes))
    assert told in refusal(lambda: read_matbench(path, JDFT2D))


def test_nan_targets_of_a_matbench_table_are_listed(tmp_path: Path, cells: list[Structure]) -> None:
    content = table_of(cells)
    content["data"][1][1], content["data"][3][1] = float("nan"), None
    message = refusal(lambda: read_matbench(saved(tmp_path / "t.json", content), JDFT2D))
    assert message.endswith("missing or non-finite targets: mb-jdft2d-001, mb-jdft2d-008")


def test_a_truncated_matbench_table_is_one_line(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json.gz", table_of(cells))
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is truncated or damaged" in refusal(lambda: read_matbench(path, JDFT2D))


def test_a_whole_task_is_not_partial_and_equals_the_official_targets(shared_data: Path) -> None:
    dataset = read_matbench(shared_data / "matbench_full" / "matbench_jdft2d.json.gz", JDFT2D)
    official = pd.read_csv(shared_data / "matbench_targets" / "matbench_jdft2d.csv.gz")
    assert not dataset.partial
    assert dataset.ids == tuple(official["mbid"])
    np.testing.assert_allclose(dataset.targets, official["exfoliation_en"], atol=1e-9)
    assert float(np.abs(dataset.targets - dataset.targets.mean()).mean()) == pytest.approx(67.2020, abs=1e-4)


def test_a_real_part_of_a_task_is_partial_and_keeps_official_ids(shared_data: Path) -> None:
    path = shared_data / "matbench_partial" / "matbench_mp_e_form_partial.json.gz"
    dataset = read_matbench(path, TASKS["matbench_mp_e_form"])
    official = pd.read_csv(shared_data / "matbench_targets" / "matbench_mp_e_form.csv.gz", index_col="mbid")
    assert dataset.partial
    assert len(dataset) == 871
    np.testing.assert_allclose(dataset.targets, official.loc[list(dataset.ids), "e_form"], atol=1e-9)


# --- the dataset itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path, cells: list[Structure]) -> Dataset:
    return read_matbench(saved(tmp_path / "t.json", table_of(cells)), JDFT2D)


def test_taking_rows_takes_ids_structures_and_targets_together(dataset: Dataset, cells: list[Structure]) -> None:
    taken = dataset.take(np.array([3, 0]))
    assert taken.ids == ("mb-jdft2d-008", "mb-jdft2d-005")
    assert taken.targets.tolist() == [31.5, 0]
    assert taken.official_row is not None
    assert taken.official_row.tolist() == [7, 4]
    assert_holds(taken, [cells[3], cells[0]])


def test_a_limit_is_a_seeded_choice_in_table_order(dataset: Dataset) -> None:
    few = dataset.limit(3, seed=1)
    places = [dataset.ids.index(row_id) for row_id in few.ids]
    assert len(places) == 3
    assert places == sorted(places)
    assert dataset.limit(3, seed=1).ids == few.ids
    assert len({dataset.limit(3, seed=seed).ids for seed in range(20)}) > 3
    assert dataset.limit(None) is dataset
    assert dataset.limit(5) is dataset


def test_the_digest_sees_ids_structures_targets_and_task(dataset: Dataset) -> None:
    parts = (dataset.ids, dataset.structures, dataset.targets, dataset.task, dataset.official_row)
    variants = [
        dataset,
        Dataset(("x", *dataset.ids[1:]), *parts[1:]),
        Dataset(dataset.ids, dataset.structures.take(np.array([1, 0, 2, 3, 4])), *parts[2:]),
        Dataset(*parts[:2], dataset.targets + 1e-12, *parts[3:]),
        Dataset(*parts[:3], OWN, None),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert dataset.take(np.arange(5)).digest == dataset.digest
