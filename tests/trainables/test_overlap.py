"""The leak guard: the same crystal is found in every setting, another one is left alone, doubt counts as a match."""

import gzip
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from scipy.spatial.transform import Rotation

import trainables.data.overlap as overlap_module
from trainables.crystals import Crystal, CrystalTable
from trainables.data.dataset import read_matbench
from trainables.data.folds import N_FOLDS, official_test_folds
from trainables.data.overlap import Overlap, find_overlap, key, space_group
from trainables.data.tasks import find_task
from trainables.errors import UserError


def table(*structures: Structure) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)


def same_answer(first: Overlap, second: Overlap) -> bool:
    counts = (first.n_by_key, first.n_by_structure) == (second.n_by_key, second.n_by_structure)
    return counts and np.array_equal(first.matched, second.matched)


# --- one crystal in many settings -----------------------------------------------------------------------------------


def moved(structure: Structure, rng: np.random.Generator) -> Structure:
    """Another origin."""
    return Structure(structure.lattice, structure.species, structure.frac_coords + rng.random(3))


def turned(structure: Structure, rng: np.random.Generator) -> Structure:
    """Another orientation."""
    matrix = Rotation.random(rng=rng).as_matrix()
    return Structure(Lattice(structure.lattice.matrix @ matrix), structure.species, structure.frac_coords)


def rebased(structure: Structure, rng: np.random.Generator) -> Structure:
    """Other lattice vectors of the same lattice: rows are added to each other."""
    basis = np.eye(3)
    for _ in range(4):
        first, second = rng.choice(3, 2, replace=False)
        basis[first] += rng.choice([-1, 1]) * basis[second]
    return Structure(basis @ structure.lattice.matrix, structure.species, structure.frac_coords @ np.linalg.inv(basis))


def shuffled(structure: Structure, rng: np.random.Generator) -> Structure:
    """Sites in another order."""
    return Structure.from_sites([structure[int(place)] for place in rng.permutation(len(structure))])


def doubled(structure: Structure, rng: np.random.Generator) -> Structure:
    """A supercell of two, along a diagonal."""
    return structure.copy().make_supercell([[1, 1, 0], [-1, 1, 0], [0, 0, 1]])


KEEP_SITES = (moved, turned, rebased, shuffled)


def disguised(structure: Structure, rng: np.random.Generator) -> Structure:
    for change in KEEP_SITES:
        structure = change(structure, rng)
    return structure


NAMES = ("rocksalt", "perovskite", "hcp", "triclinic", "one atom, bcc", "layer in vacuum", "outside the cell")


@pytest.mark.parametrize("change", [*KEEP_SITES, disguised])
def test_the_same_crystal_is_found_by_key_in_every_setting_of_as_many_sites(
    change: Callable[[Structure, np.random.Generator], Structure], made: dict[str, Structure]
) -> None:
    rng, originals = np.random.default_rng(0), [made[name] for name in NAMES]
    found = find_overlap(table(*(change(cell, rng) for cell in originals)), table(*originals))
    assert found.matched.all()
    assert found.n_by_key == len(NAMES)


@pytest.mark.parametrize("change", KEEP_SITES)
def test_the_same_crystal_is_found_by_structure_in_a_supercell(
    change: Callable[[Structure, np.random.Generator], Structure], made: dict[str, Structure]
) -> None:
    rng, originals = np.random.default_rng(1), [made[name] for name in NAMES]
    larger = [change(doubled(cell, rng), rng) for cell in originals]
    for auxiliary, test in ((larger, originals), (originals, larger)):
        found = find_overlap(table(*auxiliary), table(*test))
        assert found.matched.all()
        assert found.n_by_structure == len(NAMES)


def test_volumes_are_scaled_so_that_another_relaxation_is_the_same_crystal(made: dict[str, Structure]) -> None:
    cell = doubled(made["rocksalt"], np.random.default_rng(0))
    cell.scale_lattice(cell.volume * 2)  # lengths by 26 %, more than the matcher's tolerance of 20 %
    assert find_overlap(table(cell), table(made["rocksalt"])).n_by_structure == 1


# --- other crystals -------------------------------------------------------------------------------------------------

ROCKSALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ZINCBLENDE = Structure.from_spacegroup("F-43m", Lattice.cubic(6.1), ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]])
CESIUM_CHLORIDE = Structure(Lattice.cubic(3.4), ["Na", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
POLYMORPHS = (ROCKSALT, ZINCBLENDE, CESIUM_CHLORIDE)


@pytest.mark.parametrize("place", range(3))
def test_another_polymorph_of_the_formula_is_left_alone(place: int) -> None:
    found = find_overlap(table(*POLYMORPHS), table(POLYMORPHS[place]))
    assert found.matched.tolist() == [other == place for other in range(3)]
    primitive = table(*(cell.get_primitive_structure() for cell in POLYMORPHS))  # all of two sites
    assert find_overlap(primitive, table(POLYMORPHS[place])).matched.tolist() == found.matched.tolist()


def test_a_crystal_of_another_formula_is_left_alone(made: dict[str, Structure]) -> None:
    other = ROCKSALT.copy()
    other.replace_species({"Na": "K"})
    swapped = ROCKSALT.copy()
    swapped.replace_species({"Na": "Cl", "Cl": "Na"})  # rocksalt is its own antitype
    rich = made["perovskite"].copy()
    rich.replace_species({"Sr": "O", "O": "Sr"})  # the same elements, another formula
    found = find_overlap(table(other, swapped, rich), table(ROCKSALT, made["perovskite"]))
    assert found.matched.tolist() == [False, True, False]


def test_a_strained_crystal_of_the_same_key_is_found_by_key_alone(made: dict[str, Structure]) -> None:
    strained = Structure(made["hcp"].lattice.matrix * [1, 1, 1.6], made["hcp"].species, made["hcp"].frac_coords)
    assert not StructureMatcher().fit(strained, made["hcp"])
    found = find_overlap(table(strained, doubled(strained, np.random.default_rng(0))), table(made["hcp"]))
    assert found.matched.tolist() == [True, False]
    assert (found.n_by_key, found.n_by_structure) == (1, 0)


def test_no_test_rows_and_no_auxiliary_rows_are_no_overlap() -> None:
    assert find_overlap(table(ROCKSALT), table()).matched.tolist() == [False]
    assert len(find_overlap(table(), table(ROCKSALT)).matched) == 0


def test_a_key_is_formula_space_group_and_sites() -> None:
    keys = [key(Crystal.from_structure(cell)) for cell in POLYMORPHS]
    assert keys == [("ClNa", 225, 8), ("ClNa", 216, 8), ("ClNa", 221, 2)]


def test_the_answer_says_how_many_and_why() -> None:
    found = find_overlap(table(ROCKSALT, doubled(ROCKSALT, np.random.default_rng(0)), ZINCBLENDE), table(ROCKSALT))
    assert found.describe().startswith("2 of 3 auxiliary rows are crystals of the test rows (1 by formula, space group")


# --- the safe side --------------------------------------------------------------------------------------------------

NEAR = Structure(Lattice.cubic(4.0), ["Po", "Po"], np.array([[0, 0, 0], [0.01, 0, 0]]))
PAIR = Structure(Lattice.orthorhombic(3.0, 4.0, 7.0), ["Po", "Po"], np.array([[0, 0, 0], [0.1, 0.5, 0.5]]))


def test_a_crystal_without_a_space_group_agrees_with_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert space_group(Crystal.from_structure(NEAR)) == 0
    assert space_group(Crystal.from_structure(PAIR)) > 0
    assert find_overlap(table(NEAR), table(PAIR)).n_by_key == 1
    assert find_overlap(table(PAIR), table(NEAR)).n_by_key == 1
    assert find_overlap(table(NEAR), table(Structure.from_sites(NEAR[:1]))).n_by_key == 0  # another number of sites
    monkeypatch.setattr(spglib, "get_symmetry_dataset", Mock(side_effect=spglib.SpglibError))
    assert space_group(Crystal.from_structure(PAIR)) == 0


def _raise(*_: object, **__: object) -> None:
    raise ValueError("no Niggli cell")


def test_a_crystal_that_cannot_be_compared_counts_as_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    auxiliary, test = table(ZINCBLENDE, CESIUM_CHLORIDE), table(ROCKSALT)
    assert not find_overlap(auxiliary, test).matched.any()
    with monkeypatch.context() as patch:
        patch.setattr(Structure, "get_primitive_structure", _raise)
        assert find_overlap(auxiliary, test).matched.all()
    monkeypatch.setattr(StructureMatcher, "fit", _raise)
    assert find_overlap(auxiliary, test).matched.tolist() == [True, True]


def test_a_test_crystal_that_cannot_be_reduced_matches_its_formula_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_for_eight_sites(crystal: Crystal) -> Crystal | None:
        return None if len(crystal.numbers) == 8 else crystal

    other = CESIUM_CHLORIDE.copy()
    other.replace_species({"Na": "K"})
    auxiliary, test = table(CESIUM_CHLORIDE, other), table(ROCKSALT, doubled(other, np.random.default_rng(0)))
    monkeypatch.setattr(overlap_module, "_primitive", fails_for_eight_sites)
    assert find_overlap(auxiliary, test).matched.tolist() == [True, False]


# --- cache, order, processes, progress ------------------------------------------------------------------------------


@pytest.fixture
def two_tables(made: dict[str, Structure]) -> tuple[CrystalTable, CrystalTable]:
    """Auxiliary and test rows with matches by key, by structure, and none."""
    rng, cells = np.random.default_rng(3), [made[name] for name in NAMES]
    auxiliary = [*(disguised(cell, rng) for cell in cells[:4]), *(doubled(cell, rng) for cell in cells[2:])]
    return table(*auxiliary, *POLYMORPHS), table(*cells[1:6], ZINCBLENDE, doubled(ZINCBLENDE, rng))


def test_a_cached_answer_is_the_same_and_is_read_again(
    two_tables: tuple[CrystalTable, CrystalTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auxiliary, test = two_tables
    fresh = find_overlap(auxiliary, test)
    assert 0 < fresh.n_by_structure < fresh.n_by_key + fresh.n_by_structure < len(auxiliary)
    folder = tmp_path / "overlap"
    assert same_answer(find_overlap(auxiliary, test, cache=folder), fresh)
    (kept,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(overlap_module, "_compare", _raise)
        assert same_answer(find_overlap(auxiliary, test, cache=folder), fresh)
    find_overlap(auxiliary[:3], test, cache=tmp_path / "shorter")
    shorter = next((tmp_path / "shorter").iterdir()).read_bytes()
    for damaged in (kept.read_bytes()[:-1], b"", b"no array", shorter):
        kept.write_bytes(damaged)
        assert same_answer(find_overlap(auxiliary, test, cache=folder), fresh)


def test_other_crystals_and_another_rule_have_other_cached_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_overlap(table(ROCKSALT), table(ROCKSALT), cache=tmp_path)
    assert not find_overlap(table(ROCKSALT), table(ZINCBLENDE), cache=tmp_path).matched.any()
    assert not find_overlap(table(ZINCBLENDE), table(ROCKSALT), cache=tmp_path).matched.any()
    monkeypatch.setattr(overlap_module, "RULE_VERSION", -1)
    find_overlap(table(ROCKSALT), table(ROCKSALT), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        find_overlap(table(ROCKSALT), table(ROCKSALT), cache=tmp_path / "file")


def test_the_order_of_rows_does_not_matter(two_tables: tuple[CrystalTable, CrystalTable]) -> None:
    auxiliary, test = two_tables
    order = np.random.default_rng(0).permutation(len(auxiliary))
    found, turned_round = find_overlap(auxiliary, test), find_overlap(auxiliary.take(order), test[::-1])
    assert turned_round.matched.tolist() == found.matched[order].tolist()


def test_workers_find_what_one_process_finds(
    two_tables: tuple[CrystalTable, CrystalTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = find_overlap(*two_tables, workers=1)
    monkeypatch.setattr(overlap_module, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(StructureMatcher, "fit", _raise)  # only workers compare: they import the module anew
    assert same_answer(find_overlap(*two_tables, workers=2), serial)


def test_a_killed_worker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(overlap_module, "_mapped", killed)
    with pytest.raises(UserError, match="a comparing process was killed"):
        find_overlap(table(ROCKSALT), table(ROCKSALT))


class Stages:
    """Remembers how far every stage came: name, total, unit, done."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    @contextmanager
    def stage(self, name: str, total: float | None, unit: str) -> Iterator["Stages"]:
        self.seen.append([name, total, unit, 0])
        yield self

    def advance(self, amount: float, note: str = "") -> None:
        self.seen[-1][3] += amount

    def message(self, text: str) -> None:
        raise AssertionError(text)


def test_every_stage_reaches_its_total(two_tables: tuple[CrystalTable, CrystalTable]) -> None:
    stages = Stages()
    find_overlap(*two_tables, progress=stages)
    assert [name for name, *_ in stages.seen] == ["find space groups", "reduce crystals", "compare crystals"]
    assert all(total == done > 0 for _, total, _, done in stages.seen)
    assert stages.seen[-1][2] == "pairs"


# --- real crystals --------------------------------------------------------------------------------------------------


def official_keys(shared_data: Path, task: str) -> list[tuple[str, int, int]]:
    """The key of every official row, from its composition ("Al4 O6") and space group."""
    rows = pd.read_csv(shared_data / "matbench_targets" / f"{task}.csv.gz")
    keys = []
    for composition, group in zip(rows["composition"], rows["spg_num"], strict=True):
        counts = {symbol: int(count) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d+)", composition)}
        units = math.gcd(*counts.values())
        parts = [f"{symbol}{counts[symbol] // units if counts[symbol] > units else ''}" for symbol in sorted(counts)]
        keys.append(("".join(parts), int(group), sum(counts.values())))
    return keys


def test_two_thirds_of_the_test_rows_of_a_fold_stand_in_the_other_tasks_training_rows(shared_data: Path) -> None:
    energies, gaps = (official_keys(shared_data, task) for task in ("matbench_mp_e_form", "matbench_mp_gap"))
    energy_fold, gap_fold = official_test_folds(len(energies)), official_test_folds(len(gaps))
    shares, removed = [], []
    for fold in range(N_FOLDS):
        test = [row for row, its_fold in zip(energies, energy_fold, strict=True) if its_fold == fold]
        train = [row for row, its_fold in zip(gaps, gap_fold, strict=True) if its_fold != fold]
        both = set(test) & set(train)
        shares.append(np.mean([row in both for row in test]))
        removed.append(np.mean([row in both for row in train]))
    np.testing.assert_allclose(shares, [0.6659, 0.6693, 0.6646, 0.6560, 0.6661], atol=5e-4)
    np.testing.assert_allclose(removed, 0.25, atol=0.005)


def test_every_real_crystal_of_both_tasks_is_found_and_no_other(shared_data: Path) -> None:
    gap, energy = (
        read_matbench(shared_data / "matbench_partial" / f"matbench_{task}_partial.json.gz", find_task(task)).structures
        for task in ("mp_gap", "mp_e_form")
    )
    gap, energy = gap[::4], energy[::4]
    same = {crystal.frac.tobytes() + crystal.lattice.tobytes() for crystal in energy}
    identical = [crystal.frac.tobytes() + crystal.lattice.tobytes() in same for crystal in gap]
    assert 20 < sum(identical) < len(gap)
    assert find_overlap(gap, energy).matched.tolist() == identical


def test_space_groups_are_matbenchs_own(shared_data: Path) -> None:
    dataset = read_matbench(shared_data / "matbench_partial" / "matbench_mp_gap_partial.json.gz", find_task("mp_gap"))
    rows = np.arange(0, len(dataset), 5)
    assert dataset.official_row is not None
    official = official_keys(shared_data, "matbench_mp_gap")
    assert [key(dataset.structures[int(row)]) for row in rows] == [official[dataset.official_row[row]] for row in rows]


def read_pool(shared_data: Path, n_lines: int) -> dict[str, Structure]:
    """Materials Project crystals of at most 40 sites, by id."""
    with gzip.open(shared_data / "mp_pool" / "mp_pool.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, n_lines)]
    return {
        row["id"]: Structure(Lattice(row["lattice"]), row["species"], row["frac"])
        for row in rows
        if len(row["species"]) <= 40
    }


def ids_of(shared_data: Path, task: str, fold: int | None = None) -> list[str]:
    """Materials Project ids of a task's rows, or of those of one test fold."""
    rows = pd.read_csv(shared_data / "matbench_map" / f"matbench_{task}.csv.gz")
    folds = official_test_folds(find_task(task).official_rows or 0)[rows["row"]]
    return list(rows["material_id"] if fold is None else rows["material_id"][folds == fold])


def expected_match(first: Structure, others: list[Structure]) -> bool:
    """The rule spelled out with pymatgen alone, on whole cells and without shortcuts."""
    matcher = StructureMatcher()
    group = SpacegroupAnalyzer(first, symprec=0.1).get_space_group_number()
    return any(
        (len(first) == len(other) and group == SpacegroupAnalyzer(other, symprec=0.1).get_space_group_number())
        or matcher.fit(first, other)
        or matcher.fit(other, first)
        for other in others
    )


def test_real_rows_of_one_material_are_found_and_other_polymorphs_judged_by_the_rule(shared_data: Path) -> None:
    pool, rng = read_pool(shared_data, n_lines=8_000), np.random.default_rng(0)
    formula = dict(zip(pool, table(*pool.values()).reduced_formulas, strict=True))
    test = [name for name in ids_of(shared_data, "mp_e_form", fold=0) if name in pool]
    of_test = {formula[name]: [pool[other] for other in test if formula[other] == formula[name]] for name in test}
    gap = [name for name in ids_of(shared_data, "mp_gap") if name in pool]
    shared = [name for name in gap if name in set(test)][:150]
    others = [name for name in gap if name not in set(test)]
    polymorphs = [name for name in others if formula[name] in of_test][:60]
    strangers = [name for name in others if formula[name] not in of_test][:60]
    changes = itertools.cycle((disguised, doubled))
    cells = [change(pool[name], rng) for name, change in zip(shared, changes, strict=False)]
    cells += [pool[name] for name in (*polymorphs, *strangers)]
    found = find_overlap(table(*cells), table(*(pool[name] for name in test))).matched
    expected = [expected_match(pool[name], of_test[formula[name]]) for name in polymorphs]
    assert found.tolist() == [True] * 150 + expected + [False] * 60
    assert 0 < sum(expected) < len(polymorphs) // 2
