"""Collating and batching: crystals side by side, every row once."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from trainables.crystals import Crystal, CrystalTable
from trainables.graphs.batch import Batch, collate, prediction_batches, training_batches
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.view import View, folded_view, full_view

# What is counted on from crystal to crystal when batches are put side by side, and the fields with two long rows.
SHIFTED_BY = {
    "atom_owner": "crystals",
    **dict.fromkeys(("receiver", "sender", "middle"), "atoms"),
    **dict.fromkeys(("bond", "short"), "bonds"),
    **dict.fromkeys(("left", "right"), "shorts"),
    **dict.fromkeys(("view.atom_owner", "view.owner"), "crystals"),
    **dict.fromkeys(("view.ends", "view.site"), "all atoms"),
    "view.bond": "vectors",
    "view.legs": "half-vectors",
}
EDGES = ("receiver", "sender", "bond", "edge_count")
ALONG_COLUMNS = ("view.ends", "view.legs")


@pytest.fixture(scope="module")
def store(made: dict[str, Structure], tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())
    return open_or_build(table, Cutoffs(), tmp_path_factory.mktemp("stores"))


def flat(gathered: Batch | View) -> dict[str, torch.Tensor]:
    """Every tensor of a batch or view under its name."""
    if isinstance(gathered, Batch):
        return {field.name: getattr(gathered, field.name) for field in fields(Batch)}
    found = flat(gathered.rows)
    if gathered.symmetry is None:  # a full view's edges are all bonds one way, then all the other: `ends` says it all
        assert torch.equal(found["receiver"], gathered.ends.flatten())
        assert torch.equal(found["sender"], gathered.ends.flip(0).flatten())
        found = {name: value for name, value in found.items() if name not in EDGES}
    for holder in (gathered, gathered.symmetry):
        for field in fields(holder) if holder is not None else ():
            if isinstance(getattr(holder, field.name), torch.Tensor):
                found[f"view.{field.name}"] = getattr(holder, field.name)
    return found


def side_by_side(batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate whole batches by hand, one after the other."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in batches[0]}
    passed = dict.fromkeys((*SHIFTED_BY.values(), "vectors"), 0)
    for batch in batches:
        for name, value in batch.items():
            shift = SHIFTED_BY.get(name)
            parts[name].append(value if shift is None else value + passed[shift])
        passed["crystals"] += len(batch["n_atoms"])
        passed["atoms"] += len(batch["numbers"])
        passed["bonds"] += len(batch.get("view.bond", batch["length"]))
        passed["shorts"] += len(batch["short"])
        if "view.owner" in batch:
            passed["all atoms"] += len(batch["view.frac"])
            passed["vectors"] += len(batch["view.owner"])
            passed["half-vectors"] += 2 * len(batch["view.owner"])
    return {name: torch.cat(values, dim=1 if name in ALONG_COLUMNS else 0) for name, values in parts.items()}


@pytest.mark.parametrize("gather", [collate, full_view])
@pytest.mark.parametrize("rows", [[0], [2, 0], [14, 3, 3, 13, 1], list(range(15))])
def test_a_batch_is_its_crystals_one_after_the_other(store: GraphStore, rows: list[int], gather: Any) -> None:
    whole = flat(gather(store, np.array(rows)))
    expected = side_by_side([flat(gather(store, np.array([row]))) for row in rows])
    assert len(whole["n_atoms"]) == len(rows)
    for name, value in expected.items():
        assert whole[name].dtype == value.dtype
        assert torch.equal(whole[name], value), name


def test_folded_views_lie_side_by_side(made: dict[str, Structure], tmp_path: Path) -> None:
    """The vectors of a folded view are bonds first, then legs, so they are compared as what is measured on them."""
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in made.values())
    store, rows = open_or_build(table, Cutoffs(skin=0.1), tmp_path), [14, 3, 3, 13, 1]
    whole, alone = folded_view(store, np.array(rows)), [folded_view(store, np.array([row])) for row in rows]
    expected = side_by_side([flat(view.batch()) for view in alone])
    for name, value in flat(whole.batch()).items():
        assert torch.equal(value, expected[name]), name
    assert whole.symmetry is not None
    moved = whole.symmetry.site.tolist()
    assert moved == side_by_side([flat(view) for view in alone])["view.site"].tolist()


def test_the_view_of_one_crystal_is_what_the_store_holds(made: dict[str, Structure], store: GraphStore) -> None:
    place = list(made).index("perovskite")
    view, cell = full_view(store, np.array([place])), made["perovskite"]
    begin, end = store.offsets[place], store.offsets[place + 1]
    assert view.rows.n_atoms.tolist() == [len(cell)]
    assert view.rows.numbers.tolist() == [site.specie.Z for site in cell]
    np.testing.assert_array_equal(view.frac.numpy(), cell.frac_coords)
    np.testing.assert_array_equal(view.lattice[0].numpy(), cell.lattice.matrix)
    np.testing.assert_array_equal(view.ends.numpy().T, store.arrays["bond_atoms"][begin[1] : end[1]])
    np.testing.assert_array_equal(view.image.numpy(), store.arrays["bond_image"][begin[1] : end[1]])
    np.testing.assert_array_equal(view.rows.short.numpy(), store.arrays["short_bond"][begin[2] : end[2]])
    left, right = store.arrays["angle_halves"][begin[3] : end[3]].T
    np.testing.assert_array_equal(view.rows.left.numpy(), left >> 1)
    np.testing.assert_array_equal(view.rows.right.numpy(), right >> 1)


def test_what_a_store_holds_in_memory_elsewhere_gathers_the_same(store: GraphStore) -> None:
    """A store that is copied to a device serves its copies, not its files."""
    elsewhere = copy.copy(store)
    elsewhere._tensors = {name: store.tensor(name).clone() for name in store.arrays}
    for name in list(elsewhere.arrays):
        elsewhere.arrays = {**elsewhere.arrays, name: None}
    for gather in (collate, full_view):
        expected = flat(gather(store, np.array([4, 1])))
        for name, value in flat(gather(elsewhere, np.array([4, 1]))).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("folded", [True, False])
def test_indices_of_a_batch_stay_within_their_crystal(store: GraphStore, folded: bool) -> None:
    rows = np.arange(len(store))[::-1].copy()
    batch = collate(store, rows) if folded else full_view(store, rows).batch()
    owner = batch.atom_owner
    assert torch.equal(owner[batch.receiver], owner[batch.sender])
    owner_of_bond = torch.full((len(batch.length),), -1).scatter(0, batch.bond, owner[batch.receiver])
    assert torch.equal(owner_of_bond[batch.bond], owner[batch.receiver])
    owner_of_short = owner_of_bond[batch.short]
    assert torch.equal(owner_of_short[batch.left], owner[batch.middle])
    assert torch.equal(owner_of_short[batch.right], owner[batch.middle])


def test_folded_rows_count_every_atom_bond_and_angle(store: GraphStore) -> None:
    rows = np.arange(len(store))
    folded, full = collate(store, rows), full_view(store, rows).batch()

    def per_crystal(owner: torch.Tensor, count: torch.Tensor) -> list[int]:
        return torch.zeros(len(rows), dtype=torch.int64).index_add(0, owner, count).tolist()

    assert per_crystal(folded.atom_owner, folded.atom_count) == full.n_atoms.tolist()
    received = folded.edge_count * folded.atom_count[folded.receiver]
    assert per_crystal(folded.atom_owner[folded.receiver], received) == (2 * store.counts[:, 1]).tolist()
    assert len(folded.receiver) < 0.5 * len(full.receiver)


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
