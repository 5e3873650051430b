"""Collating and batching: crystals side by side, every row once."""

import sys
from dataclasses import fields
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.data.crystals import Crystal, CrystalTable
from trainables.graphs.batch import Batch, collate, prediction_batches, training_batches
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build

# What is counted on from crystal to crystal when batches are put side by side, and the fields with two long rows.
SHIFTED_BY = {
    "atom_owner": "crystals",
    "bond_owner": "crystals",
    "bond_atoms": "atoms",
    "short_bond": "bonds",
    "angle_halves": "short halves",
}
ALONG_COLUMNS = ("bond_atoms", "angle_halves")


@pytest.fixture(scope="module")
def store(made: dict[str, Structure], tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())
    return open_or_build(table, Cutoffs(), tmp_path_factory.mktemp("stores"))


def side_by_side(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Concatenate whole batches by hand, one after the other."""
    parts: dict[str, list[torch.Tensor]] = {field.name: [] for field in fields(Batch)}
    passed = {"crystals": 0, "atoms": 0, "bonds": 0, "short halves": 0}
    for batch in batches:
        for field in fields(Batch):
            value = getattr(batch, field.name)
            shift = SHIFTED_BY.get(field.name)
            parts[field.name].append(value if shift is None else value + passed[shift])
        passed["crystals"] += len(batch)
        passed["atoms"] += len(batch.numbers)
        passed["bonds"] += batch.bond_atoms.shape[1]
        passed["short halves"] += 2 * len(batch.short_bond)
    return {name: torch.cat(values, dim=1 if name in ALONG_COLUMNS else 0) for name, values in parts.items()}


@pytest.mark.parametrize("rows", [[0], [2, 0], [14, 3, 3, 13, 1], list(range(15))])
def test_a_batch_is_its_crystals_one_after_the_other(store: GraphStore, rows: list[int]) -> None:
    whole = collate(store, np.array(rows))
    expected = side_by_side([collate(store, np.array([row])) for row in rows])
    assert len(whole) == len(rows)
    for name, value in expected.items():
        assert getattr(whole, name).dtype == value.dtype
        assert torch.equal(getattr(whole, name), value), name


def test_the_batch_of_one_crystal_is_what_the_store_holds(made: dict[str, Structure], store: GraphStore) -> None:
    place = list(made).index("perovskite")
    batch, cell = collate(store, np.array([place])), made["perovskite"]
    begin, end = store.offsets[place], store.offsets[place + 1]
    assert batch.n_atoms.tolist() == [len(cell)]
    assert batch.numbers.tolist() == [site.specie.Z for site in cell]
    np.testing.assert_array_equal(batch.frac.numpy(), cell.frac_coords)
    np.testing.assert_array_equal(batch.lattice[0].numpy(), cell.lattice.matrix)
    np.testing.assert_array_equal(batch.bond_atoms.numpy().T, store.arrays["bond_atoms"][begin[1] : end[1]])
    np.testing.assert_array_equal(batch.bond_image.numpy(), store.arrays["bond_image"][begin[1] : end[1]])
    np.testing.assert_array_equal(batch.short_bond.numpy(), store.arrays["short_bond"][begin[2] : end[2]])
    np.testing.assert_array_equal(batch.angle_halves.numpy().T, store.arrays["angle_halves"][begin[3] : end[3]])


def test_indices_of_a_batch_stay_within_their_crystal(store: GraphStore) -> None:
    batch = collate(store, np.arange(len(store))[::-1].copy())
    owner_of_end = batch.atom_owner[batch.bond_atoms]  # (2, B)
    assert (owner_of_end == batch.bond_owner).all()
    owner_of_half = batch.bond_owner[batch.short_bond].repeat_interleave(2)  # (2 S,)
    left, right = owner_of_half[batch.angle_halves]
    assert torch.equal(left, right)
    end = batch.bond_atoms[:, batch.short_bond].T.reshape(-1)[batch.angle_halves]  # (2, G) atom at the angle
    assert torch.equal(end[0], end[1])
    assert bool((batch.angle_halves[0].diff() >= 0).all())


def test_a_batch_moves_as_a_whole(store: GraphStore) -> None:
    moved = collate(store, np.array([0, 1])).to(torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in fields(Batch)} == {"meta"}


def n_python_steps(store: GraphStore, rows: Any) -> int:
    """Bytecodes that collating these rows executes, callees included: every Python-level operation counts."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        collate(store, np.array(rows))
    finally:
        sys.settrace(before)
    return steps


def test_collating_takes_as_many_operations_for_forty_crystals_as_for_two(store: GraphStore) -> None:
    collate(store, np.array([0]))  # whatever is done once only
    few = n_python_steps(store, [0, 1])
    assert few > 100  # the count counts
    assert n_python_steps(store, [0, 1, 2, 6] * 10) == few


COSTS = {
    "equal": np.ones(100),
    "usual": np.random.default_rng(0).lognormal(3, 1, 1000),
    "one giant": np.where(np.arange(100) == 42, 900.0, 1.0),
    "giants": np.where(np.arange(60) % 7 == 0, 300.0, 1.0),
    "one row": np.array([7.0]),
}


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 5000])
@pytest.mark.parametrize("kind", COSTS)
def test_an_epoch_meets_every_row_once_in_the_promised_number_of_batches(kind: str, batch_size: int) -> None:
    cost = COSTS[kind]
    for epoch in range(5):
        batches = training_batches(cost, batch_size, seed=3, epoch=epoch)
        assert len(batches) == -(-len(cost) // batch_size)
        assert min(len(batch) for batch in batches) > 0
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(cost)))


@pytest.mark.parametrize("batch_size", [2, 7, 32])
@pytest.mark.parametrize("kind", COSTS)
def test_no_training_batch_costs_more_than_its_share_and_one_crystal(kind: str, batch_size: int) -> None:
    cost = COSTS[kind]
    share = cost.sum() / -(-len(cost) // batch_size)
    for epoch in range(5):
        for batch in training_batches(cost, batch_size, seed=1, epoch=epoch):
            assert cost[batch].sum() <= share + cost[batch].max() * (1 + 1e-9)


def test_equal_crystals_make_equal_batches() -> None:
    sizes = [len(batch) for batch in training_batches(np.full(96, 0.1), 32, seed=0, epoch=0)]
    assert sizes == [32, 32, 32]


def test_training_batches_are_balanced_by_cost_not_by_number() -> None:
    cost = COSTS["usual"]
    totals = [cost[batch].sum() for batch in training_batches(cost, 32, seed=0, epoch=0)]
    by_number = [cost[begin : begin + 32].sum() for begin in range(0, 992, 32)]
    assert np.std(totals) < np.std(by_number)


def test_training_batches_depend_on_seed_and_epoch_alone() -> None:
    cost = COSTS["usual"]

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_batches(cost, 32, seed=seed, epoch=epoch)).tolist()

    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    first = order(5, 2)
    np.random.seed(1)  # noqa: NPY002
    assert order(5, 2) == first
    assert len({tuple(order(*arguments)) for arguments in ((5, 2), (5, 3), (6, 2), (2, 5))}) == 4


def test_prediction_batches_cover_all_once_within_the_cap() -> None:
    cost = COSTS["usual"]
    cap = 5 * cost.mean()
    batches = prediction_batches(cost, cap)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(cost)))
    assert min(len(batch) for batch in batches) > 0
    assert max(cost[batch].sum() - cost[batch].max() for batch in batches) <= cap * (1 + 1e-9)
    assert len(batches) < len(cost) / 2  # small crystals do share batches
    largest_first = [cost[batch].max() for batch in batches]
    assert largest_first == sorted(largest_first)


def test_prediction_batches_of_nothing_are_none() -> None:
    assert prediction_batches(np.empty(0), 100.0) == []
