"""Joint training: whose batches come when, which head learns from them, and what is left of it afterwards."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import LeverRun, lever_run, tiny_auxiliary

from trainables.data.folds import Part
from trainables.errors import UserError
from trainables.graphs.batch import collate, training_batches
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import open_or_build
from trainables.levers import MultitaskConfig, OptimConfig
from trainables.model.chgnet import CrystalModel, configured_model
from trainables.model.heads import EnergyHead, HurdleHead, PropertyHead
from trainables.training import loop as loop_module
from trainables.training.joint import Auxiliary, add_auxiliary_heads, auxiliary_data
from trainables.training.objective import Objective, TaskData
from trainables.training.steps import epoch_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def streams_of(run: LeverRun) -> list[TaskData]:
    own = run.objective().data
    scale = torch.tensor(float(run.split.train.targets.std()))
    return [replace(own, scale=scale), *auxiliary_data(run.config, run.auxiliary, CPU)]


def objectives_of(run: LeverRun) -> list[Objective]:
    return [Objective(run.config, stream, CPU) for stream in streams_of(run)]


def joint_model(run: LeverRun) -> CrystalModel:
    model = configured_model(run.config.model, run.dataset.task)
    if model.head is not None:
        model.head.set_scale(torch.from_numpy(run.split.train.targets))
    add_auxiliary_heads(model, run.config, streams_of(run)[1:])
    return model


def plan(
    objectives: list[Objective], mixing: str = "sqrt", *, seed: int = 0, epoch: int = 0
) -> list[tuple[int, list[int]]]:
    config = MultitaskConfig.model_validate({"mixing": mixing})
    found = epoch_batches(objectives, OptimConfig(batch_size=4), config, seed=seed, epoch=epoch)
    return [(index, places.tolist()) for index, places in found]


def test_the_batches_of_one_task_are_training_batches(graphs: Path) -> None:
    objective = lever_run(graphs).objective()
    cost = objective.data.store.cost[objective.data.part.rows]
    for seed, epoch in ((0, 0), (0, 3), (5, 1)):
        expected = [(0, places.tolist()) for places in training_batches(cost, 4, seed=seed, epoch=epoch)]
        assert plan([objective], seed=seed, epoch=epoch) == expected


@pytest.mark.parametrize(("mixing", "steps"), [("proportional", 16), ("sqrt", 8), ("equal", 4)])
def test_steps_of_a_task_go_as_its_batches_to_the_power_of_its_mixing(mixing: str, steps: int, graphs: Path) -> None:
    run = lever_run(graphs, auxiliary=("property",))
    target, other = objectives_of(run)
    target = Objective(run.config, replace(target.data, part=of_rows(target.data.part, 16)), CPU)  # 4 batches of 4
    large = Objective(run.config, replace(other.data, part=of_rows(other.data.part, 64)), CPU)  # 16 batches
    for epoch in range(3):
        counted = Counter(index for index, _ in plan([target, large], mixing, epoch=epoch))
        assert counted == {0: 4, 1: steps}
    small = Objective(run.config, replace(other.data, part=of_rows(other.data.part, 1)), CPU)
    assert Counter(index for index, _ in plan([target, small], mixing))[1] >= 1


def of_rows(part: Part, n_rows: int) -> Part:
    """So many rows, again and again where there are fewer."""
    rows = np.resize(np.arange(len(part)), n_rows)
    return Part(
        tuple(f"{part.ids[row]}-{place}" for place, row in enumerate(rows)), part.rows[rows], part.targets[rows]
    )


@pytest.mark.parametrize("mixing", ["proportional", "sqrt", "equal"])
@pytest.mark.parametrize("n_rows", [3, 25, 40])
def test_auxiliary_rows_are_all_met_before_any_is_met_again(mixing: str, n_rows: int, graphs: Path) -> None:
    run = lever_run(graphs, auxiliary=("property",))
    target, other = objectives_of(run)
    other = Objective(run.config, replace(other.data, part=of_rows(other.data.part, n_rows)), CPU)
    met: Counter[int] = Counter(dict.fromkeys(range(n_rows), 0))
    for epoch in range(7):
        batches = plan([target, other], mixing, epoch=epoch)
        met.update(place for index, places in batches if index == 1 for place in places)
        assert max(met.values()) - min(met.values()) <= 1
        own = sorted(place for index, places in batches if index == 0 for place in places)
        assert own == list(range(len(target.data.part)))  # an epoch is one pass over the target's rows
    assert min(met.values()) >= 1


def test_the_plan_of_an_epoch_follows_from_its_arguments_alone(graphs: Path) -> None:
    objectives = objectives_of(lever_run(graphs, auxiliary=("property", "energy_per_atom")))
    first = plan(objectives, seed=3, epoch=2)
    plan(objectives, seed=9, epoch=7)
    np.random.default_rng(0).random(3)
    assert plan(objectives, seed=3, epoch=2) == first
    assert plan(objectives, seed=4, epoch=2) != first
    assert plan(objectives, seed=3, epoch=1) != first
    order = [index for index, _ in first]
    assert sorted(order) != order  # the tasks' steps are mixed, not one after the other


@pytest.mark.parametrize("kind", ["energy_per_atom", "energy_per_cell"])
def test_an_energy_head_starts_at_the_least_squares_reference_of_its_own_rows(kind: str, graphs: Path) -> None:
    run = lever_run(graphs, "property", auxiliary=(kind,))
    model, stream = joint_model(run), streams_of(run)[1]
    head = model.auxiliary[stream.head]
    assert isinstance(head, EnergyHead)
    with torch.no_grad():
        batch = collate(stream.store, stream.part.rows)
        found = model.outputs(model.features(batch), batch, stream.head).value.double().numpy()
    n_atoms = stream.store.counts[stream.part.rows, 0]
    residual = (stream.part.targets - found) / (n_atoms if kind == "energy_per_cell" else 1)
    composition = stream.store.composition(stream.part.rows)
    assert np.abs(composition.T @ residual).max() < 1e-3  # the normal equations


def test_heads_are_of_their_task_and_follow_from_the_seed(graphs: Path) -> None:
    run = lever_run(graphs, "gap", auxiliary=("energy_per_cell", "property"), model__head="hurdle")
    first, again = joint_model(run), joint_model(run)
    assert isinstance(first.head, HurdleHead)
    assert [type(head) for head in first.auxiliary.values()] == [EnergyHead, PropertyHead]
    assert list(first.auxiliary) == ["task_0", "task_1"]
    weights, others = first.auxiliary.state_dict(), again.auxiliary.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    stream = streams_of(run)[2]
    assert float(first.auxiliary["task_1"].mean) == pytest.approx(stream.part.targets.mean())
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    joint_model(run)
    assert torch.equal(torch.rand(2), expected)


def gradients(model: CrystalModel, objective: Objective) -> tuple[float, dict[str, torch.Tensor]]:
    weights = dict(model.named_parameters())
    chosen = objective.choose(np.arange(6), np.random.default_rng(0))
    loss = objective.loss(model, chosen, 1.0)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return float(loss.detach()), {n: g for n, g in zip(weights, found, strict=True) if g is not None}


def test_a_tasks_loss_reaches_its_own_head_and_the_shared_trunk_only(graphs: Path) -> None:
    run = lever_run(graphs, "property", auxiliary=("energy_per_atom", "property"))
    model, objectives = joint_model(run), objectives_of(run)
    own = ["head.", "auxiliary.task_0.", "auxiliary.task_1."]
    for place, objective in enumerate(objectives):
        _, found = gradients(model, objective)
        for other, prefix in enumerate(own):
            assert any(name.startswith(prefix) for name in found) == (other == place)
        assert float(found["atom_conv_layers.0.twoBody_atom.mlp_core.layers.0.weight"].abs().sum()) > 0


def test_a_tasks_weight_multiplies_its_loss(graphs: Path) -> None:
    losses = []
    for weight in (1.0, 0.25):
        run = lever_run(graphs, auxiliary=("property",), multitask__weight=weight)
        model, objectives = joint_model(run), objectives_of(run)
        losses.append([gradients(model, objective)[0] for objective in objectives])
    assert losses[1][0] == pytest.approx(losses[0][0])
    assert losses[1][1] == pytest.approx(0.25 * losses[0][1], rel=1e-6)


def test_learnt_scales_divide_their_losses_and_cost_their_logarithm(graphs: Path) -> None:
    fixed = lever_run(graphs, auxiliary=("property",))
    learnt = lever_run(graphs, auxiliary=("property",), multitask__weighting="uncertainty")
    plain, model = joint_model(fixed), joint_model(learnt)
    assert not plain.log_scale
    assert list(model.log_scale) == ["target", "task_0"]
    for place, name in enumerate(model.log_scale):
        bare = gradients(plain, objectives_of(fixed)[place])[0]
        assert gradients(model, objectives_of(learnt)[place])[0] == pytest.approx(bare, rel=1e-6)  # scales begin at 1
        with torch.no_grad():
            model.log_scale[name].fill_(0.3)
        share = 6 / learnt.config.optim.batch_size
        loss, found = gradients(model, objectives_of(learnt)[place])
        assert loss == pytest.approx(bare * np.exp(-0.3) + 0.3 * share, rel=1e-5)
        assert float(found[f"log_scale.{name}"]) == pytest.approx(-bare * np.exp(-0.3) + share, rel=1e-5)
        assert sum(name.startswith("log_scale.") for name in found) == 1


def test_perturbations_and_teachers_are_for_the_target_alone(graphs: Path) -> None:
    run = lever_run(
        graphs, auxiliary=("property",), augment__strain="free", consistency__weight=1.0, distil__weight=0.5
    )
    target, other = objectives_of(run)
    assert (target.views_per_row, other.views_per_row) == (2, 1)
    assert target.choose(np.arange(3), np.random.default_rng(0)).change is not None
    assert other.choose(np.arange(3), np.random.default_rng(0)).change is None
    assert (target.data.soft is None, other.data.soft is None) == (False, True)
    assert np.array_equal(other.costs, other.data.store.cost[other.data.part.rows])
    assert np.all(target.costs > target.data.store.cost[target.data.part.rows])


def test_the_targets_own_training_begins_where_the_joint_one_ended(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lever_run(graphs, auxiliary=("property",), multitask__epochs=1, optim__epochs=1)
    inner, kept, begun = loop_module._prepare, [], []

    def watched(*args: object) -> object:
        prepared = inner(*args)  # type: ignore[arg-type]
        begun.append({name: tensor.clone() for name, tensor in prepared[0].model.state_dict().items()})
        kept.append(prepared[0])
        return prepared

    monkeypatch.setattr(loop_module, "_prepare", watched)
    assert run.fit(tmp_path / "run").status == "finished"
    ended = kept[0].kept.state_dict()
    assert any(name.startswith("auxiliary.") for name in begun[0])
    assert begun[1].keys() == {name for name in ended if not name.startswith("auxiliary.")}
    assert all(torch.equal(begun[1][name], ended[name]) for name in begun[1])
    moved = "atom_conv_layers.0.twoBody_atom.mlp_core.layers.0.weight"
    assert not torch.equal(begun[1][moved], begun[0][moved])


def test_auxiliary_tasks_are_those_of_the_configuration(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, auxiliary=("property", "energy_per_atom"))
    for given in ((), run.auxiliary[:1], run.auxiliary[::-1]):
        with pytest.raises(ValueError, match="auxiliary="):
            run.fit(tmp_path / "run", auxiliary=given)


def test_a_task_without_a_row_that_has_a_graph_is_refused_by_name(graphs: Path, tmp_path: Path) -> None:
    run = lever_run(graphs, auxiliary=("property",))
    other = tiny_auxiliary(graphs, "property", 40)
    structures = run.dataset.structures[:2]
    bare = open_or_build(structures, Cutoffs(atom=1.0, bond=0.9), tmp_path, workers=1)  # every atom is isolated
    empty = Auxiliary(other.task, of_rows(other.part, 2), bare)
    with pytest.raises(UserError, match="aux property has no rows with a graph"):
        run.fit(tmp_path / "run", auxiliary=(empty,))
