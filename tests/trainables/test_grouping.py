"""Folds that fit the rows: by formula where there are enough, by crystal, by system, by a column, or as given."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from said import Said
from small_data import rocksalts, tiny_dataset
from table_data import refusal, saved

from orchestrator.inputs.datasets import load_dataset
from orchestrator.inputs.source import Source, check_source, folds_to_run
from trainables.crystals import Crystal, CrystalTable
from trainables.data.dataset import Dataset
from trainables.data.folds import fold_of_rows, make_split
from trainables.data.grouping import crystal_keys, group_names, grouped
from trainables.data.own_table import TableOptions, read_table
from trainables.errors import UserError


def snapshots(n: int, formulas: tuple[str, ...] = ("Li",)) -> Dataset:
    """Shaken cells of a few formulas."""
    rng, rows = np.random.default_rng(0), []
    for place in range(n):
        cell = Structure(Lattice.cubic(4.1), [formulas[place % len(formulas)], "F"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        cell.translate_sites([1], rng.normal(size=3) * 0.01)
        rows.append(cell)
    dataset = tiny_dataset(n)
    return replace(dataset, structures=CrystalTable.pack(map(Crystal.from_structure, rows)))


@pytest.mark.parametrize("formulas", [("Li",), ("Li", "Na"), ("Li", "Na", "K", "Rb")])
def test_a_few_compounds_are_split_by_crystal_and_it_is_said(formulas: tuple[str, ...]) -> None:
    dataset, told = grouped(snapshots(60, formulas))
    assert told.startswith(f"{len(formulas)} formula")
    assert "test rows have siblings of their own formula in training" in told
    assert sorted(Counter(fold_of_rows(dataset).tolist()).values()) == [12] * 5
    for fold in range(5):
        split = make_split(dataset, fold, val_share=0.2, seed=0)
        assert split.test is not None
        assert not {*split.train.rows, *split.val.rows} & {*split.test.rows}


def test_many_formulas_keep_the_folds_and_the_hash_that_they_always_had() -> None:
    dataset = tiny_dataset(24)
    same, told = grouped(dataset)
    assert (same, told) == (dataset, "")
    assert grouped(dataset, "formula")[0].digest == dataset.digest
    assert grouped(dataset, "random")[0].digest != dataset.digest


def test_equal_crystals_stay_together_and_others_do_not() -> None:
    dataset = snapshots(30)
    twice = replace(dataset.take(np.repeat(np.arange(30), 2)), ids=tuple(f"r{place}" for place in range(60)))
    folds = fold_of_rows(grouped(twice)[0])
    assert (folds[::2] == folds[1::2]).all()
    assert len(set(group_names(twice.structures, "random"))) == 29  # two are each other's mirror image, to 0.002 A


def test_the_same_crystal_has_one_key_however_it_is_written() -> None:
    cell = Structure(Lattice.cubic(4.1), ["Li", "F"], [[0, 0, 0.25], [0.5, 0.5, 0.5]])
    written = [
        cell,
        Structure(cell.lattice, ["F", "Li"], [[0.5, 0.5, 0.5], [0, 0, 0.25]]),
        Structure(cell.lattice, ["Li", "F"], [[1, -1, 1.25], [-0.5, 1.5, 0.5]]),
        Structure(Lattice(cell.lattice.matrix * 1.0 - 0.0), ["Li", "F"], [[-1e-9, 1 - 1e-9, 0.25], [0.5, 0.5, 0.5]]),
    ]
    keys = crystal_keys(CrystalTable.pack(map(Crystal.from_structure, written)))
    assert len(set(keys)) == 1
    moved = Structure(cell.lattice, ["Li", "F"], [[0, 0, 0.25], [0.5, 0.5, 0.53]])
    assert crystal_keys(CrystalTable.pack([Crystal.from_structure(moved)]))[0] != keys[0]


@pytest.mark.parametrize(("by", "n_groups"), [("formula", 24), ("chemical-system", 24), ("composition", 24)])
def test_rows_of_a_group_share_a_fold(by: str, n_groups: int) -> None:
    dataset = grouped(tiny_dataset(48), by)[0]
    folds = fold_of_rows(dataset)
    names = dataset.group_names
    assert len({*zip(names, folds.tolist(), strict=True)}) == len(set(names)) <= n_groups + 8


def test_one_large_formula_among_some_leaves_folds_of_the_same_size() -> None:
    names = ["a"] * 20 + [f"f{place % 9}" for place in range(40)]
    dataset = replace(tiny_dataset(60), groups=tuple(names))
    sizes = np.bincount(fold_of_rows(dataset), minlength=5)
    assert sizes.max() == 20
    assert sizes.min() >= 8


def table(tmp_path: Path, **columns: Any) -> Path:
    cells = rocksalts(20)
    rows = [{"id": f"r{place}", "structure": cell.as_dict(), "y": float(place)} for place, cell in enumerate(cells)]
    for name, values in columns.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    return saved(tmp_path / "t.json", rows)


def test_a_column_may_say_what_stays_together(tmp_path: Path) -> None:
    path = table(tmp_path, batch=[place // 2 for place in range(20)])
    dataset = load_dataset(Source("mine", path, "y", folds_by="batch"), Said())
    folds = fold_of_rows(dataset)
    assert (folds[::2] == folds[1::2]).all()
    told = refusal(lambda: load_dataset(Source("mine", path, "y", folds_by="bach"), Said()))
    assert "there is no column 'bach' (did you mean 'batch'?)" in told


def test_a_column_may_say_the_folds_themselves(tmp_path: Path) -> None:
    path = table(tmp_path, fold=[place % 3 if place < 18 else "" for place in range(20)])
    dataset = read_table(path, "mine", "y", options=TableOptions(fold="fold"))
    assert fold_of_rows(dataset).tolist() == [0, 1, 2] * 6 + [-1, -1]
    split = make_split(dataset, 1, val_share=0.2, seed=0)
    assert split.test is not None
    assert split.test.rows.tolist() == list(range(1, 18, 3))
    assert {18, 19} <= {*split.train.rows.tolist(), *split.val.rows.tolist()}
    bad = table(tmp_path, fold=[7] * 20)
    assert "has to hold the test fold of each row, 0 to 4" in refusal(
        lambda: read_table(bad, "mine", "y", options=TableOptions(fold="fold"))
    )


@pytest.mark.parametrize("how", ["fold_column", "folds_by"])
def test_folds_of_ones_own_that_part_equal_crystals_are_refused(tmp_path: Path, how: str) -> None:
    path = table(tmp_path, part=[place % 5 for place in range(20)])
    source = Source("mine", path, "y", **{how: "part"})
    load_dataset(source, Said())
    rows = json.loads(path.read_text())
    rows[7]["structure"] = rows[0]["structure"]  # of part 2, and of part 0
    saved(path, rows)
    told = refusal(lambda: load_dataset(source, Said()))
    assert "equal crystals are in different folds, so that test rows are trained on: r0, r7" in told


def test_a_file_may_be_the_test_set_and_shares_nothing_with_training(tmp_path: Path) -> None:
    whole = table(tmp_path)
    (tmp_path / "b").mkdir()
    rows = [{"id": f"new{k}", "structure": cell.as_dict(), "y": 0.5} for k, cell in enumerate(rocksalts(26)[20:])]
    test = saved(tmp_path / "b" / "test.json", rows)
    source = Source("mine", whole, "y", test=test)
    check_source(source)
    assert folds_to_run(source, (0, 1, 2, 3, 4)) == (0,)
    dataset = load_dataset(source, Said())
    split = make_split(dataset, 0, val_share=0.2, seed=0)
    assert split.test is not None
    assert split.test.ids == tuple(f"new{k}" for k in range(6))
    assert len(split.train) + len(split.val) == 20
    renamed = saved(tmp_path / "b" / "same.json", [rows[0] | {"structure": rocksalts(1)[0].as_dict()}])
    assert "has crystals that are trained on, too: new0" in refusal(
        lambda: load_dataset(Source("mine", whole, "y", test=renamed), Said())
    )
    assert "has ids that the training rows have, too: r0" in refusal(
        lambda: load_dataset(Source("mine", whole, "y", test=whole), Said())
    )


def test_only_one_of_them_may_say_it(tmp_path: Path) -> None:
    path = table(tmp_path)
    assert "both say which rows are tested" in refusal(
        lambda: check_source(Source("mine", path, "y", folds_by="formula", fold_column="f"))
    )
    with pytest.raises(UserError, match="`folds_by=random`"):
        check_source(Source("jdft2d", folds_by="random"))


def test_energies_of_whole_cells_are_refused_or_divided(tmp_path: Path) -> None:
    cells = [cell * (1, 1, 1 + place % 4) for place, cell in enumerate(rocksalts(20))]
    rows = [
        {"id": f"r{place}", "structure": cell.as_dict(), "e": -3.0 * len(cell) + 0.01 * place}
        for place, cell in enumerate(cells)
    ]
    path = saved(tmp_path / "t.json", rows)
    told = refusal(lambda: load_dataset(Source("mine", path, "e", energy=True), Said()))
    assert "'e' grows with the number of atoms (r = -1.00)" in told
    assert "use `total_energy=True`, which divides them" in told
    dataset = load_dataset(Source("mine", path, "e", unit="eV", total_energy=True), Said())
    assert dataset.task.is_energy
    np.testing.assert_allclose(dataset.targets, -3.0, atol=0.11)
    load_dataset(Source("mine", path, "e"), Said())  # a property may grow
    far = saved(tmp_path / "far.json", [row | {"e": -800.0} for row in rows])
    assert "has a median size of 800 eV/atom" in refusal(
        lambda: load_dataset(Source("mine", far, "e", energy=True), Said())
    )
