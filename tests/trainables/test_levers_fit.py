"""Every lever through fit: it learns, repeats, resumes, leaks nothing, and leaves a model that stands alone."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import LeverRun, lever_run

from trainables.data.folds import make_split
from trainables.errors import UserError
from trainables.graphs.batch import collate
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.training import loop as loop_module
from trainables.training.augment import gathered, moved
from trainables.training.frozen import FrozenEnergies
from trainables.training.objective import BatchSelection, Objective
from trainables.training.predict import load_model, predict
from trainables.training.result import FitResult

pytestmark = pytest.mark.trains

TRUNK = "atom_conv_layers.0.twoBody_atom.mlp_core.layers.0.weight"
MOVES = {"augment__strain": "symmetry", "augment__displacement": "symmetry"}
MIXED = {"augment__strain": "symmetry", "augment__displacement": "free", "augment__probability": 0.5}
LEVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "augmentation that keeps the symmetry": ("energy_per_atom", MOVES),
    "augmentation, mixed, of half the crystals": ("property", MIXED),
    "corrected labels": ("energy_per_cell", {"augment__strain": "free", "augment__labels": "corrected"}),
    "consistency, two-sided and supervised": (
        "energy_per_atom",
        MIXED
        | {"consistency__weight": 0.5, "consistency__target": "two_sided", "consistency__supervised": True}
        | {"augment__labels": "corrected", "augment__distribution": "uniform"},
    ),
    "averaged by swa": ("energy_per_atom", {"optim__averaging": "swa", "optim__swa_from": 0.4}),
    "distilled": ("energy_per_atom", {"distil__weight": 0.5, "distil__weighting": "noise", "distil__features": 0.1}),
    "distilled into a narrow student": (
        "property",
        {"distil__weight": 1.0, "distil__weighting": "hardness", "distil__features": 0.1, "data__refit": True}
        | {"model__start": "scratch", "model__width": 16},
    ),
    "joint, fixed weights, refitted": (
        "energy_per_atom",
        {"auxiliary": ("property",), "multitask__mixing": "proportional", "multitask__weight": 0.5}
        | {"data__refit": True},
    ),
    "joint, learnt weights": (
        "gap",
        {"auxiliary": ("energy_per_cell", "property"), "multitask__mixing": "equal", "n_auxiliary": 16}
        | {"multitask__weighting": "uncertainty", "model__head": "hurdle", "optim__averaging": "none"},
    ),
    "joint, all levers": (
        "energy_per_cell",
        MOVES
        | {
            "auxiliary": ("energy_per_atom",),
            "n_auxiliary": 16,
            "multitask__weighting": "uncertainty",
            "consistency__weight": 0.2,
        }
        | {"distil__weight": 0.3, "distil__features": 0.1, "augment__labels": "corrected"},
    ),
    "hurdle and floor": ("gap", {"model__head": "hurdle", "model__floor": 0.0, "model__pooling": "attention"}),
    "hurdle, augmented and distilled": (
        "gap",
        MOVES | {"model__head": "hurdle", "distil__weight": 0.5, "consistency__weight": 0.2, "loss__name": "huber"},
    ),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def run_of(lever: str, graphs: Path, **changes: Any) -> LeverRun:
    kind, own = LEVERS[lever]
    base = {"multitask__epochs": 2, "optim__epochs": 3, "optim__batch_size": 4, "optim__lr": 1e-3}
    return lever_run(graphs, kind, **base | own | changes)


def numbers(result: FitResult) -> list[tuple[float, float]]:
    """Losses and validation errors; nan is no number that equals itself, so it is left out."""
    return [(e.train_loss, e.val_mae if e.val_mae == e.val_mae else 0.0) for e in result.before + result.history]


@dataclass(frozen=True, eq=False)
class Trained:
    run: LeverRun
    result: FitResult


def interrupted(run: LeverRun, folder: Path, after_steps: int, monkeypatch: pytest.MonkeyPatch) -> FitResult:
    """The result of a run that is stopped in the middle of an epoch, and resumed."""
    steps, inner = 0, loop_module.take_step

    def dies(*args: Any, **kwargs: Any) -> float:
        nonlocal steps
        steps += 1
        if steps > after_steps:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    monkeypatch.setattr(loop_module, "take_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run.fit(folder)
    monkeypatch.setattr(loop_module, "take_step", inner)
    return run.fit(folder)


@pytest.fixture(scope="module", params=list(LEVERS))
def trained(request: pytest.FixtureRequest, graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = run_of(request.param, graphs)
    return Trained(run, run.fit(tmp_path_factory.mktemp("whole")))


def test_a_run_learns(trained: Trained) -> None:
    result, run = trained.result, trained.run
    assert result.status == "finished"
    assert len(result.before) == (2 if run.auxiliary else 0)
    assert result.refit_epochs == (result.best_epoch + 1 if run.config.data.refit else 0)
    for history in (result.before, result.history[:3]):
        losses = [epoch.train_loss for epoch in history]
        assert not losses or losses[-1] < losses[0]


def test_its_model_stands_alone(trained: Trained) -> None:
    result, run = trained.result, trained.run
    assert result.model is not None
    model, config, task = load_model(result.model)
    assert (config, task) == (run.config, run.dataset.task)
    plain = configured_model(run.config.model, task)
    assert list(model.state_dict()) == list(plain.state_dict())  # no auxiliary heads, scales of losses or matching
    assert not torch.equal(model.state_dict()[TRUNK], plain.state_dict()[TRUNK])
    if not run.config.data.refit:
        error = np.abs(predict(model, run.store, run.split.val.rows) - run.split.val.targets).mean()
        assert error == pytest.approx(result.best_val_mae, rel=1e-6)


def test_neither_an_interruption_nor_test_targets_change_a_loss_or_a_weight(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained.result
    # 4 steps an epoch of the target's own training: in its third, or in the joint training.
    resumed = interrupted(with_other_test_targets(trained.run), tmp_path / "cut", 9, monkeypatch)
    assert numbers(resumed) == numbers(whole)
    assert whole.model is not None
    assert resumed.model is not None
    weights, others = (load_model(path)[0].state_dict() for path in (whole.model, resumed.model))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def with_other_test_targets(run: LeverRun) -> LeverRun:
    dataset, share = run.dataset, run.config.data.val_share
    test = make_split(dataset, 0, val_share=share, seed=0).test
    assert test is not None
    targets = dataset.targets.copy()
    targets[test.rows] += 1000.0
    poisoned, soft = replace(dataset, targets=targets), run.soft
    if soft is not None:
        mean = soft.mean.copy()
        mean[[soft.ids.index(row) for row in test.ids]] += 1000.0
        soft = replace(soft, mean=mean)
    split = make_split(poisoned, 0, val_share=share, seed=0).without_test()
    return replace(run, split=split, dataset=poisoned, soft=soft)


def test_a_perturbation_of_size_zero_is_exactly_the_plain_run(graphs: Path, tmp_path: Path) -> None:
    plain = lever_run(graphs, optim__epochs=2).fit(tmp_path / "plain")
    run = lever_run(
        graphs, optim__epochs=2, augment__strain="free", augment__strain_size=0, augment__displacement="none"
    )
    assert run.skinned is None
    assert numbers(run.fit(tmp_path / "zero")) == numbers(plain)


def test_a_consistency_of_weight_zero_is_exactly_the_augmented_run(graphs: Path, tmp_path: Path) -> None:
    plain = lever_run(graphs, optim__epochs=2, **MOVES).fit(tmp_path / "augmented")
    run = lever_run(graphs, optim__epochs=2, consistency__supervised=True, consistency__target="two_sided", **MOVES)
    assert numbers(run.fit(tmp_path / "zero")) == numbers(plain)
    assert plain.history[0].structures == len(run.split.train)
    both = lever_run(graphs, optim__epochs=1, consistency__weight=0.1, **MOVES).fit(tmp_path / "both")
    assert both.history[0].structures == 2 * len(run.split.train)


def test_augmentation_changes_a_run_and_its_seed_the_draws(graphs: Path, tmp_path: Path) -> None:
    runs = [lever_run(graphs, optim__epochs=1, seed=seed, **MOVES) for seed in (0, 1)]
    plain = lever_run(graphs, optim__epochs=1).fit(tmp_path / "plain")
    found = [run.fit(tmp_path / str(run.config.seed)) for run in runs]
    assert len({result.history[0].train_loss for result in (plain, *found)}) == 3


def test_each_step_draws_anew(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inner = lever_run(graphs, optim__epochs=2, **MOVES), loop_module.take_step
    strains, ramps = [], []

    def watched(run: Any, objective: Objective, chosen: BatchSelection, *, rate: float, ramp: float) -> float:
        assert chosen.change is not None
        assert chosen.change.strain is not None
        strains.extend(chosen.change.strain[:, 0, 0].tolist())
        ramps.append(ramp)
        return inner(run, objective, chosen, rate=rate, ramp=ramp)

    monkeypatch.setattr(loop_module, "take_step", watched)
    run.fit(tmp_path / "run")
    assert len(set(strains)) == len(strains) == 2 * len(run.split.train)


@pytest.mark.parametrize(("ramp", "first", "whole_from"), [(0.5, 0.25, 0.5), (0.0, 1.0, 0.0), (1.0, 0.125, 1.0)])
def test_the_consistency_weight_rises_over_its_share_of_the_steps(
    ramp: float, first: float, whole_from: float, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = lever_run(graphs, optim__epochs=2, consistency__weight=1.0, consistency__ramp=ramp, **MOVES), []

    def recorded(run: Any, objective: Objective, chosen: BatchSelection, *, rate: float, ramp: float) -> float:
        seen.append(ramp)
        return 0.0

    monkeypatch.setattr(loop_module, "take_step", recorded)
    run.fit(tmp_path / "run")
    assert seen[0] <= first
    assert seen == sorted(seen)
    done = (np.arange(len(seen)) + 0.5) / len(seen)
    np.testing.assert_allclose(seen, np.minimum(1.0, done / ramp) if ramp else np.ones(len(seen)))
    assert all(value == 1.0 for value, share in zip(seen, done, strict=True) if share >= whole_from)


def flat(gradients: tuple[torch.Tensor | None, ...], weights: list[torch.Tensor]) -> torch.Tensor:
    every = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
    return torch.cat([gradient.flatten() for gradient in every])


def loss_and_gradient(
    objective: Objective, model: CrystalModel, ramp: float, chosen: BatchSelection | None = None
) -> tuple[float, torch.Tensor]:
    weights = list(model.parameters())
    chosen = chosen or choose(objective)
    loss = objective.loss(model, chosen, ramp)
    return float(loss.detach()), flat(torch.autograd.grad(loss, weights, allow_unused=True), weights)


def choose(objective: Objective) -> BatchSelection:
    return objective.choose(np.arange(len(objective.data.part)), np.random.default_rng(0))


def views_of(run: LeverRun, objective: Objective, model: CrystalModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of the clean and of the perturbed crystals, by hand."""
    config, rows, change = run.config.augment, run.split.train.rows, choose(objective).change
    assert run.skinned is not None
    assert change is not None
    clean = model(collate(run.store, rows))
    return clean, model(moved(config, run.skinned, rows, gathered(config, run.skinned, rows), change).batch())


@pytest.mark.parametrize("labels", ["kept", "corrected"])
@pytest.mark.parametrize("target", ["stop_gradient", "two_sided"])
def test_consistency_moves_the_perturbed_prediction_alone_or_both(target: str, labels: str, graphs: Path) -> None:
    moves = MOVES | {"augment__strain_size": 0.005, "augment__displacement_size": 0.02, "augment__labels": labels}
    run = lever_run(graphs, consistency__weight=0.7, consistency__target=target, **moves)
    model = configured_model(run.config.model, run.dataset.task).double()
    frozen, rows = None, run.split.train.rows
    if labels == "corrected":
        frozen = FrozenEnergies("0.3.0", run.dataset.task, torch.device("cpu"))
        frozen.know(run.store, rows)
        torch.nn.init.normal_(model.mlp.layers[-1].weight, generator=torch.Generator().manual_seed(0))
    objective = run.objective(frozen=frozen)
    (before, without), (after, whole) = (loss_and_gradient(objective, model, ramp) for ramp in (0.0, 1.0))
    clean, perturbed = views_of(run, objective, model)
    gain = torch.zeros(len(rows))
    if frozen is not None:
        config, change = run.config.augment, choose(objective).change
        assert run.skinned is not None
        assert change is not None
        gain = frozen.difference(
            moved(config, run.skinned, rows, gathered(config, run.skinned, rows), change).batch(), rows
        )
        assert float(gain.abs().min()) > 1e-5
    wanted = clean.detach() if target == "stop_gradient" else clean
    expected = 0.7 * (perturbed - wanted - gain).abs().sum() / run.config.optim.batch_size
    weights = list(model.parameters())
    gradient = flat(torch.autograd.grad(expected, weights, allow_unused=True), weights)
    assert after - before == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float((whole - without - gradient).norm()) <= 1e-6 * float(gradient.norm())


def test_the_labels_are_for_the_clean_crystal_or_for_both(graphs: Path) -> None:
    plain = lever_run(graphs)
    augmented = lever_run(graphs, **MOVES)
    model = configured_model(plain.config.model, plain.dataset.task).double()
    clean, perturbed = (loss_and_gradient(run.objective(), model, 1.0) for run in (plain, augmented))
    assert clean[0] != perturbed[0]
    for supervised in (False, True):
        run = lever_run(graphs, consistency__weight=1.0, consistency__supervised=supervised, **MOVES)
        loss, gradient = loss_and_gradient(run.objective(), model, 0.0)
        expected = (clean[0] + perturbed[0]) / 2 if supervised else clean[0]
        assert loss == pytest.approx(expected, rel=1e-9)
        direction = (clean[1] + perturbed[1]) / 2 if supervised else clean[1]
        torch.testing.assert_close(gradient, direction, atol=1e-9, rtol=1e-7)


def test_a_crystal_that_has_not_moved_has_nothing_to_be_consistent_with(graphs: Path) -> None:
    """Both predictions differ by rounding, whose sign would be the gradient of an absolute difference."""
    for probability, least, most in ((1e-9, 0.0, 1e-6), (1.0, 0.1, 10.0)):
        run = lever_run(graphs, augment__strain="free", augment__probability=probability, consistency__weight=1.0)
        objective, model = run.objective(), configured_model(run.config.model, run.dataset.task)
        without, whole = (loss_and_gradient(objective, model, ramp)[1] for ramp in (0.0, 1.0))
        assert least <= float((whole - without).norm() / without.norm()) <= most


@pytest.mark.parametrize("lever", ["corrected labels", "consistency, two-sided and supervised", "distilled"])
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole(lever: str, graphs: Path) -> None:
    run = run_of(lever, graphs)
    model = configured_model(run.config.model, run.dataset.task).double()
    frozen = None
    if run.config.augment.active:
        frozen = FrozenEnergies("0.3.0", run.dataset.task, torch.device("cpu"))
        frozen.know(run.store, run.split.train.rows)
    objective = run.objective(frozen=frozen)
    chosen = choose(objective)
    loss, gradient = loss_and_gradient(objective, model, 1.0, chosen)
    cuts = [0, 1, 5, len(chosen.places)]
    parts = [loss_and_gradient(objective, model, 1.0, chosen.part(begin, end)) for begin, end in pairwise(cuts)]
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-6)
    summed = torch.stack([part[1] for part in parts]).sum(dim=0)
    assert float((summed - gradient).norm()) <= 2e-5 * float(gradient.norm())  # the frozen model is in float32


def test_threads_change_no_loss(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("joint, all levers", graphs, optim__epochs=1, auxiliary=(), n_auxiliary=0)
    monkeypatch.setitem(loop_module.GRADIENT_COST, "cpu", 2_000.0)  # several parts a batch
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(numbers(run.fit(tmp_path / str(number))))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_corrected_labels_are_the_labels_and_the_frozen_difference(graphs: Path) -> None:
    """Of an untouched model, corrected labels leave the perturbed crystals with the errors of the clean ones."""
    moves = {"augment__strain": "free", "augment__strain_size": 0.01}
    plain = lever_run(graphs, "energy_per_cell")
    corrected = lever_run(graphs, "energy_per_cell", **moves, augment__labels="corrected")
    model = configured_model(plain.config.model, plain.dataset.task)
    frozen = FrozenEnergies("0.3.0", plain.dataset.task, torch.device("cpu"))
    frozen.know(plain.store, plain.split.train.rows)
    clean = loss_and_gradient(plain.objective(), model, 1.0)[0]
    found = loss_and_gradient(corrected.objective(frozen=frozen), model, 1.0)[0]
    kept = loss_and_gradient(corrected.objective(), model, 1.0)[0]
    assert found == pytest.approx(clean, rel=1e-4)
    assert abs(kept - clean) > 1e-3 * clean


@pytest.mark.parametrize(
    ("kind", "changes", "wanted"),
    [
        ("property", MOVES | {"augment__labels": "corrected"}, "cannot be corrected by CHGNet"),
        ("energy_per_atom", {"model__head": "hurdle"}, "often exactly zero"),
    ],
)
def test_levers_that_a_task_cannot_have_are_refused_with_the_reason(
    kind: str, changes: dict[str, Any], wanted: str, graphs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=wanted) as problem:
        lever_run(graphs, kind, **changes).fit(tmp_path / "run")
    assert "\n" not in str(problem.value)


def test_augmentation_without_a_skin_is_refused(graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="skinned="):
        lever_run(graphs, **MOVES).fit(tmp_path / "run", skinned=None)


def test_a_row_without_a_graph_to_perturb_is_left_out(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, optim__epochs=1, **MOVES)
    assert run.skinned is not None
    lost = run.split.train.rows[2]
    failed = run.skinned.failed.copy()
    failed[lost] = True
    run.skinned.failed = failed
    result = run.fit(tmp_path / "run")
    assert (result.n_train, result.n_left_out) == (len(run.split.train) - 1, 1)
    assert result.history[0].structures == len(run.split.train) - 1
