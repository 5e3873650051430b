"""The packed graph store: what goes in comes out, once, whoever asks."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.errors import UserError
from trainables.graphs import quotient as quotient_module
from trainables.graphs import store as store_module
from trainables.graphs.convert import ConversionError, Cutoffs, Graph, convert
from trainables.graphs.store import ANGLE_COST, GraphStore, open_or_build, store_address
from trainables.model.chgnet import Start
from trainables.model.folding import fold_check

GRAPH_ARRAYS = {"bond_atoms": 1, "bond_image": 1, "short_bond": 2, "angle_halves": 3}  # name: column of counts


@pytest.fixture(scope="module")
def table(made: dict[str, Structure]) -> CrystalTable:
    return CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A switch that makes every conversion from then on an error."""

    def refuse(crystal: Crystal, cutoffs: Cutoffs) -> Graph:
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(store_module, "convert", refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_read_back_equals_what_convert_gives(table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(), tmp_path)
    assert len(store) == len(table)
    for place, crystal in enumerate(table):
        graph = convert(crystal, Cutoffs())
        for name, column in GRAPH_ARRAYS.items():
            begin, end = store.offsets[place : place + 2, column]
            np.testing.assert_array_equal(store.arrays[name][begin:end], getattr(graph, name))
        begin, end = store.offsets[place : place + 2, 0]
        np.testing.assert_array_equal(store.arrays["numbers"][begin:end], crystal.numbers)
        np.testing.assert_array_equal(store.arrays["frac"][begin:end], crystal.frac)
        np.testing.assert_array_equal(store.arrays["lattice"][place], crystal.lattice)
        sizes = [len(crystal.numbers), len(graph.bond_atoms), len(graph.short_bond), len(graph.angle_halves)]
        assert store.counts[place, :4].tolist() == sizes
        assert store.full_cost[place] == pytest.approx(1 + 2 * sizes[1] + ANGLE_COST * sizes[3])
        assert store.n_isolated[place] == graph.n_isolated
    assert not store.failed.any()


def test_real_crystals_fit_the_stores_integers(real_bulk: list[Structure], tmp_path: Path) -> None:
    crystals = CrystalTable.pack(Crystal.from_structure(structure) for structure in real_bulk[::7])
    store = open_or_build(crystals, Cutoffs(), tmp_path)
    for place, crystal in enumerate(crystals):
        graph = convert(crystal, Cutoffs())
        for name, column in GRAPH_ARRAYS.items():
            begin, end = store.offsets[place : place + 2, column]
            np.testing.assert_array_equal(store.arrays[name][begin:end], getattr(graph, name))


def test_arrays_are_memory_mapped_and_read_only(table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(), tmp_path)
    assert len(store.arrays) == len(store_module._ARRAYS)
    for name, array in store.arrays.items():
        if name in ("site", "motion", "strain_projector"):
            assert len(array) == 0  # symmetries are a skinned store's
            continue
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert store.n_bytes == sum(path.stat().st_size for path in store.folder.glob("*.bin"))


def test_composition_is_the_tables_own(table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(), tmp_path)
    rows = np.array([3, 0, 3, 7])
    np.testing.assert_allclose(store.composition(rows), table.composition[rows], rtol=1e-15)


def test_a_second_opening_converts_nothing(table: CrystalTable, tmp_path: Path, no_conversion: Any) -> None:
    first = open_or_build(table, Cutoffs(), tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    no_conversion()
    second = open_or_build(CrystalTable.pack(table), Cutoffs(), tmp_path)
    assert second.folder == first.folder
    assert {path.name: path.stat().st_mtime_ns for path in second.folder.iterdir()} == stamps


def test_every_difference_gives_another_address(table: CrystalTable, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = replace(table, frac=table.frac + np.eye(len(table.frac), 3) * 1e-12)
    other_element = replace(table, numbers=np.where(np.arange(len(table.numbers)) == 0, 12, table.numbers).astype("u1"))
    strained = replace(table, lattices=table.lattices * (1 + 1e-12))
    addresses = [store_address(variant, Cutoffs()) for variant in (table, moved, other_element, strained, table[:-1])]
    addresses += [store_address(table, cutoffs) for cutoffs in (Cutoffs(5.0), Cutoffs(bond=2.5), Cutoffs(skin=0.1))]
    monkeypatch.setattr(store_module, "CONVERTER_VERSION", store_module.CONVERTER_VERSION + 1)
    addresses.append(store_address(table, Cutoffs()))
    assert len(set(addresses)) == len(addresses)


def test_cutoffs_come_back_and_have_stores_of_their_own(table: CrystalTable, tmp_path: Path) -> None:
    wide, narrow = (open_or_build(table, Cutoffs(atom), tmp_path) for atom in (6.0, 5.0))
    assert (wide.cutoffs, narrow.cutoffs) == (Cutoffs(6.0), Cutoffs(5.0))
    assert narrow.counts[:, 1].sum() < wide.counts[:, 1].sum()


@pytest.mark.parametrize("damage", ["truncated array", "missing array", "truncated manifest", "no manifest"])
def test_a_damaged_store_is_rebuilt(table: CrystalTable, tmp_path: Path, damage: str) -> None:
    folder = open_or_build(table, Cutoffs(), tmp_path).folder
    whole = contents(folder)
    victim = folder / ("bond_atoms.bin" if "array" in damage else "meta.json")
    if "truncated" in damage:
        victim.write_bytes(whole[victim.name][:-7])
    else:
        victim.unlink()
    again = open_or_build(table, Cutoffs(), tmp_path)
    assert again.folder == folder
    assert contents(folder) == whole


def test_workers_build_the_same_bytes_as_one_process(
    table: CrystalTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = CrystalTable.pack([*table] * 5)  # more than one chunk, so that order could go wrong
    assert len(many) > store_module._CHUNK
    serial = open_or_build(many, Cutoffs(), tmp_path / "serial", workers=1)
    monkeypatch.setattr(store_module, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(store_module, "convert", None)  # only workers convert: they import the module anew
    parallel = open_or_build(many, Cutoffs(), tmp_path / "parallel", workers=2)
    assert contents(parallel.folder) == contents(serial.folder)


def test_a_crystal_that_cannot_be_converted_is_flagged_and_the_others_kept(
    table: CrystalTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = table[1]

    def fails_once(crystal: Crystal, cutoffs: Cutoffs) -> Graph:
        if np.array_equal(crystal.frac, bad.frac):
            raise ConversionError("a bond was found from one of its ends only")
        return convert(crystal, cutoffs)

    monkeypatch.setattr(store_module, "convert", fails_once)
    store = open_or_build(table[:3], Cutoffs(), tmp_path)
    assert store.failed.tolist() == [False, True, False]
    assert store.counts[1, :4].tolist() == [len(bad.numbers), 0, 0, 0]
    assert store.n_isolated[1] == len(bad.numbers)
    assert (store.counts[[0, 2], 1] > 0).all()


def test_a_cell_whose_images_do_not_fit_a_byte_is_flagged(tmp_path: Path) -> None:
    needle = Crystal(np.diag([0.04, 10.0, 10.0]), np.array([1], dtype=np.uint8), np.zeros((1, 3)))
    good = Crystal(np.diag([3.0, 3.0, 3.0]), np.array([84], dtype=np.uint8), np.zeros((1, 3)))
    store = open_or_build(CrystalTable.pack([needle, good]), Cutoffs(), tmp_path)
    assert store.failed.tolist() == [True, False]
    assert store.counts[1, 1] > 0


def test_isolated_atoms_are_counted_crystal_by_crystal(made: dict[str, Structure], tmp_path: Path) -> None:
    names = ("rocksalt", "one isolated atom", "no bonds at all")
    cells = CrystalTable.pack(Crystal.from_structure(made[name]) for name in names)
    store = open_or_build(cells, Cutoffs(), tmp_path)
    assert store.n_isolated.tolist() == [0, 1, 1]
    assert not store.failed.any()


def test_crystals_without_any_bond_make_a_store(made: dict[str, Structure], tmp_path: Path) -> None:
    lonely = CrystalTable.pack([Crystal.from_structure(made["no bonds at all"])] * 2)
    store = open_or_build(lonely, Cutoffs(), tmp_path)
    assert store.counts.tolist() == [[1, 0, 0, 0, 1, 0, 0, 0, 0]] * 2
    assert store.arrays["bond_image"].shape == (0, 3)


def test_a_folder_that_cannot_be_written_is_one_line(
    table: CrystalTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_json", full)
    with pytest.raises(UserError, match=r"No space left on device.*CRYSTALTUNE_CACHE") as refusal:
        open_or_build(table, Cutoffs(), tmp_path)
    assert "\n" not in str(refusal.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]  # nothing half-made is left


def _open_and_count(root: str, start: Any, told: Any) -> None:
    """In another process: ask for the store at the same moment as the other, count own conversions."""
    cells = [Crystal(np.eye(3) * (3 + k / 100), np.array([84], dtype=np.uint8), np.zeros((1, 3))) for k in range(40)]
    n_converted = 0

    def counting(crystal: Crystal, cutoffs: Cutoffs) -> Graph:
        nonlocal n_converted
        n_converted += 1
        return convert(crystal, cutoffs)

    store_module.convert = counting
    start.wait()
    store = open_or_build(CrystalTable.pack(cells), Cutoffs(), Path(root), workers=1)
    told.put((n_converted, len(store), {path.name: path.stat().st_size for path in store.folder.iterdir()}))


def test_two_processes_that_ask_at_once_both_get_the_one_whole_store(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, told = spawn.Barrier(2), spawn.Queue()
    asking = [spawn.Process(target=_open_and_count, args=(str(tmp_path), start, told)) for _ in range(2)]
    for process in asking:
        process.start()
    answers = [told.get(timeout=120) for _ in asking]
    for process in asking:
        process.join()
    assert sorted(n_converted for n_converted, _, _ in answers) == [0, 40]
    assert [length for _, length, _ in answers] == [40, 40]
    assert answers[0][2] == answers[1][2]


def test_the_manifest_says_what_the_arrays_hold(table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(5.0, skin=0.25), tmp_path)
    meta = json.loads((store.folder / "meta.json").read_text())
    assert meta["cutoffs"] == {"atom": 5.0, "bond": 3.0, "skin": 0.25}
    assert meta["rows"]["frac"] == len(table.frac)
    assert len(GraphStore(store.folder)) == len(table)


def test_folds_that_fail_the_check_are_built_again_with_smaller_gaps_and_at_last_not_at_all(
    table: CrystalTable, tmp_path: Path
) -> None:
    gaps: list[float] = []

    def check(store: GraphStore) -> float:
        gaps.append(json.loads((store.folder / "meta.json").read_text())["gap"])
        return 1e-3 if len(gaps) == 1 else float("nan")

    store = open_or_build(table, Cutoffs(), tmp_path, check=check)
    assert gaps == [store_module.GAP, store_module.GAP / 10]
    np.testing.assert_array_equal(store.counts[:, 4], store.counts[:, 0])  # every atom a row of its own
    np.testing.assert_array_equal(store.counts[:, 8], store.counts[:, 3])
    assert not list(tmp_path.glob("*.tmp"))


def test_folds_that_pass_the_check_are_kept_with_what_was_found(table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(), tmp_path, check=fold_check("0.3.0"))
    meta = json.loads((store.folder / "meta.json").read_text())
    assert 0 <= meta["fold_error_ev_per_atom"] <= store_module.FOLD_BOUND
    assert meta["gap"] == store_module.GAP
    assert store.cost.sum() < 0.6 * store.full_cost.sum()


def test_a_fold_that_is_wrong_is_noticed(table: CrystalTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotient_module, "WIDEST_CLASS", 10.0)
    monkeypatch.setattr(store_module, "GAP", 0.05)
    store = open_or_build(table, Cutoffs(), tmp_path)
    assert fold_check("0.3.0")(store) > store_module.FOLD_BOUND


class _Told(str):
    """A tensor that only says where it is."""

    def to(self, device: torch.device) -> str:
        return f"{self} on {device}"


def test_a_store_moves_to_a_gpu_that_has_room_and_stays_where_there_is_none(
    table: CrystalTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision only; what is gathered there is compared in test_batch."""
    store, gpu = open_or_build(table, Cutoffs(), tmp_path), torch.device("cuda:0")
    assert store.near(torch.device("cpu")) is store
    monkeypatch.setattr(store_module, "_share_of_free_memory", lambda _: store.n_bytes - 1)
    assert store.near(gpu) is store
    monkeypatch.setattr(store_module, "_share_of_free_memory", lambda _: store.n_bytes)
    monkeypatch.setattr(store, "_tensors", {name: _Told(name) for name in store.arrays})
    resident = store.near(gpu)
    assert resident.device == gpu
    monkeypatch.setattr(store_module, "_share_of_free_memory", lambda _: 0)  # its own arrays fill the memory now
    assert store.near(gpu) is resident
    assert resident.near(gpu) is resident
    assert resident.near(torch.device("cpu")) is store
    assert str(resident.tensor("frac")) == "frac on cuda:0"
    assert store.device == torch.device("cpu")


@pytest.mark.parametrize("start", ["0.3.0", "scratch"])
def test_a_skinned_stores_check_moves_its_crystals(start: Start, table: CrystalTable, tmp_path: Path) -> None:
    store = open_or_build(table, Cutoffs(skin=0.2), tmp_path)
    assert 0 <= fold_check(start)(store) <= store_module.FOLD_BOUND
