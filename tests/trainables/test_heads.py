"""Predictions that depend on the crystal alone: not on its cell, orientation, order of atoms or batch mates."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from trainables.crystals import Crystal, CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.batch import Batch, collate
from trainables.graphs.store import open_or_build
from trainables.model.chgnet import CrystalModel, build_model
from trainables.model.heads import ATTENTION_HEADS, PropertyHead, attention_pool, crystal_sum, mean_pool

KINDS = ("energy", "mean", "attention")
CELLS = ("rocksalt", "perovskite", "hcp", "triclinic", "layer in vacuum", "one atom, bcc", "one isolated atom")


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> CrystalModel:
    if kind == "energy":
        return build_model("0.3.0", TASKS["matbench_mp_e_form"]).to(dtype)
    return build_model("0.3.0", TASKS["matbench_mp_gap"], pooling=kind, seed=2).to(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def batch_of(structures: Sequence[Structure], folder: Path, model: CrystalModel) -> Batch:
    table = CrystalTable.pack(Crystal.from_structure(structure) for structure in structures)
    return collate(open_or_build(table, model.cutoffs, folder), np.arange(len(table)))


def predictions(model: CrystalModel, structures: Sequence[Structure], folder: Path) -> NDArray[np.float64]:
    with torch.no_grad():
        return model(batch_of(structures, folder, model)).double().numpy()


@pytest.fixture
def cells(made: dict[str, Structure]) -> list[Structure]:
    return [made[name] for name in CELLS]


def turned(structure: Structure, seed: int) -> Structure:
    rotation = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    mirror = np.diag([1.0, 1.0, -1.0])
    lattice = Lattice(structure.lattice.matrix @ rotation.T @ mirror)
    return Structure(lattice, structure.species, structure.frac_coords)


def shuffled(structure: Structure, seed: int) -> Structure:
    order = np.random.default_rng(seed).permutation(len(structure))
    return Structure.from_sites([structure[int(place)] for place in order])


SAME_CRYSTAL = {
    "doubled cell": lambda cell: cell * (2, 1, 1),
    "eightfold cell": lambda cell: cell * (2, 2, 2),
    "rotated and mirrored": lambda cell: turned(cell, 6),
    "other order of atoms": lambda cell: shuffled(cell, 6),
    "moved origin": lambda cell: Structure(cell.lattice, cell.species, cell.frac_coords + np.array([0.31, -0.2, 1.7])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", SAME_CRYSTAL)
def test_every_view_of_a_crystal_gets_the_same_prediction(
    kind: str, view: str, cells: list[Structure], folder: Path
) -> None:
    model = model_of(kind)
    plain = predictions(model, cells, folder)
    other = predictions(model, [SAME_CRYSTAL[view](cell) for cell in cells], folder)
    assert np.std(plain) > 1e-3  # the prediction does depend on the crystal
    np.testing.assert_allclose(other, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_does_not_depend_on_batch_mates(kind: str, made: dict[str, Structure], folder: Path) -> None:
    model, everything = model_of(kind), list(made.values())
    alone = np.concatenate([predictions(model, [cell], folder) for cell in everything])
    np.testing.assert_allclose(predictions(model, everything, folder), alone, atol=1e-10, rtol=0)
    np.testing.assert_allclose(predictions(model, everything[::-1], folder)[::-1], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_change_no_more_than_rounding_in_single_precision(
    kind: str, made: dict[str, Structure], folder: Path
) -> None:
    model, everything = model_of(kind, torch.float32), list(made.values())
    alone = np.concatenate([predictions(model, [cell], folder) for cell in everything])
    np.testing.assert_allclose(predictions(model, everything, folder), alone, atol=2e-5, rtol=0)


def hand_made_batch(n_atoms: list[int]) -> Batch:
    """A batch of which only the atoms' owners matter."""
    counts, none = torch.tensor(n_atoms), torch.empty(0, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    rows = {field.name: none for field in fields(Batch)}
    return Batch(**rows | {"n_atoms": counts, "atom_owner": owner, "atom_count": torch.ones_like(owner)})


def test_mean_pooling_is_the_mean_of_each_crystals_atoms() -> None:
    features = torch.arange(12.0).reshape(6, 2)
    pooled = mean_pool(features, hand_made_batch([1, 3, 2]))
    assert pooled.tolist() == [[0, 1], [4, 5], [9, 10]]
    assert crystal_sum(features, hand_made_batch([1, 3, 2])).tolist() == [[0, 1], [12, 15], [18, 20]]


def test_attention_pooling_is_a_softmax_over_each_crystals_atoms() -> None:
    torch.manual_seed(0)
    counts = [1, 4, 3]
    features, scores = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    pooled = attention_pool(features, scores, hand_made_batch(counts))
    for row, feature, score in zip(pooled, features.split(counts), scores.split(counts), strict=True):
        expected = torch.cat([score.softmax(dim=0)[:, head] @ feature for head in range(3)])
        np.testing.assert_allclose(row.numpy(), expected.numpy(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_counted_row_pools_as_that_many_equal_atoms(pool: str) -> None:
    torch.manual_seed(0)
    features, scores, counts = torch.randn(3, 5), torch.randn(3, 2), torch.tensor([2, 1, 4])
    every = torch.repeat_interleave(torch.arange(3), counts)
    folded = replace(hand_made_batch([3, 4]), atom_owner=torch.tensor([0, 0, 1]), atom_count=counts)
    full = hand_made_batch([3, 4])
    if pool == "mean":
        found, expected = mean_pool(features, folded), mean_pool(features[every], full)
    else:
        found, expected = attention_pool(features, scores, folded), attention_pool(features[every], scores[every], full)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)


def test_attention_weights_add_up_to_one_however_many_atoms_and_however_large_the_scores() -> None:
    batch = hand_made_batch([1, 50])
    for size in (1.0, 1e4):
        scores = size * torch.linspace(-1, 1, 51 * 2).reshape(51, 2)
        pooled = attention_pool(torch.ones(51, 4), scores, batch)
        np.testing.assert_allclose(pooled.numpy(), np.ones((2, 8)), rtol=1e-6)


def test_gradients_through_attention_are_those_of_a_softmax() -> None:
    torch.manual_seed(0)
    counts, features = [2, 3], torch.randn(5, 4, dtype=torch.float64)
    mixing = torch.randn(2, 4 * 2, dtype=torch.float64)
    found, expected = (torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    found.requires_grad_()
    expected.requires_grad_()
    (attention_pool(features, found, hand_made_batch(counts)) * mixing).sum().backward()
    rows = [
        torch.cat([score.softmax(dim=0)[:, head] @ feature for head in range(2)])
        for feature, score in zip(features.split(counts), expected.split(counts), strict=True)
    ]
    (torch.stack(rows) * mixing).sum().backward()
    np.testing.assert_allclose(found.grad.numpy(), expected.grad.numpy(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_head_standardises_by_the_targets_it_was_given(pooling: str) -> None:
    head = PropertyHead(8, pooling=pooling)
    features, batch = torch.randn(5, 8), hand_made_batch([2, 3])
    plain = head(features, batch).detach()
    targets = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    head.set_scale(targets)
    assert float(head.mean) == pytest.approx(4.0)
    assert float(head.std) == pytest.approx(float(targets.std(correction=0)))
    assert head(features, batch).tolist() == pytest.approx((plain * head.std + head.mean).tolist())


def test_the_scale_travels_with_the_weights() -> None:
    first, second = PropertyHead(8), PropertyHead(8)
    first.set_scale(torch.tensor([10.0, 30.0]))
    second.load_state_dict(first.state_dict())
    assert (float(second.mean), float(second.std)) == (20.0, 10.0)


@pytest.mark.parametrize("targets", [[3.0], [2.0, 2.0, 2.0]])
def test_one_target_or_equal_ones_give_a_finite_scale(targets: list[float]) -> None:
    head = PropertyHead(8)
    head.set_scale(torch.tensor(targets))
    assert float(head.mean) == targets[0]
    assert 0 < float(head.std) < 1e-6
    assert bool(torch.isfinite(head(torch.randn(2, 8), hand_made_batch([2]))).all())


def test_attention_has_its_own_scores_and_mean_pooling_none() -> None:
    mean, attention = PropertyHead(8, pooling="mean"), PropertyHead(8, pooling="attention")
    assert not [name for name, _ in mean.named_parameters() if name.startswith("score")]
    assert attention.score(torch.randn(4, 8)).shape == (4, ATTENTION_HEADS)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_are_those_of_float64(kind: str, real_bulk: list[Structure], folder: Path) -> None:
    """Relative L2 over all parameters; stock's own float32 gradient is 2e-6 from its float64 one."""
    found = []
    for dtype in (torch.float32, torch.float64):
        model = model_of(kind, dtype)
        prediction = model(batch_of(real_bulk[1::16], folder, model))
        gradient = torch.autograd.grad((prediction * torch.linspace(-1, 1, len(prediction))).sum(), [
            weight for name, weight in model.named_parameters() if not name.startswith("composition_model")
        ], allow_unused=True)  # fmt: skip
        found.append(torch.cat([value.double().flatten() for value in gradient if value is not None]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) <= 1e-5
