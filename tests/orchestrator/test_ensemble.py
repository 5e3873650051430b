"""Ensembles: simulated members whose best combination is known, and published predictions."""

import inspect
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_data import tiny_run
from torch import Tensor

from orchestrator.evaluation import ensemble
from orchestrator.evaluation.ensemble import (
    METHODS,
    MOST_SUBSETS,
    Combine,
    OutOfFold,
    choose_weights,
    combine,
    disagreement,
    error_curve,
    soup,
)
from orchestrator.evaluation.published import read_published
from orchestrator.evaluation.scores import score_folds
from trainables.data.tasks import Quantity, custom_task
from trainables.errors import UserError
from trainables.graphs.batch import Batch, collate
from trainables.model.chgnet import build_model

Values = NDArray[np.float64]
EVERY: tuple[Combine, ...] = ("mean", "median", "greedy", "stacked")
WEIGHTED: tuple[Combine, ...] = ("mean", "greedy", "stacked")


def members(n: int, noise: list[float], seed: int = 0) -> OutOfFold:
    """Members whose errors are an error common to all, and their own noise; two rows a formula."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n)
    common, own = 0.1 * rng.laplace(size=n), rng.laplace(size=(len(noise), n))
    prediction = target + common + np.array(noise)[:, None] * own
    return OutOfFold(prediction, target, [f"formula {row // 2}" for row in range(n)])


def weights_of(method: Combine, known: OutOfFold, seed: int = 0) -> Values:
    weights = choose_weights(method, known, seed=seed)
    assert weights is not None
    return weights


def error_of(weights: Values, rows: OutOfFold) -> float:
    return float(np.abs(weights @ rows.prediction - rows.target).mean())


def equal(m: int) -> Values:
    return np.full(m, 1 / m)


def test_the_registry_holds_every_method() -> None:
    assert tuple(METHODS) == EVERY


@pytest.mark.parametrize("method", WEIGHTED)
@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 3), (7, 2), (40, 1), (60, 5)])
def test_weights_are_a_mixture(method: Combine, n: int, m: int) -> None:
    weights = weights_of(method, members(n, [0.1] * m))
    assert weights.shape == (m,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", WEIGHTED)
def test_without_out_of_fold_rows_the_weights_are_equal(method: Combine) -> None:
    assert weights_of(method, members(0, [0.1, 0.2, 0.3])) == pytest.approx(equal(3))
    assert choose_weights("median", members(0, [0.1, 0.2])) is None


def test_the_least_mae_is_that_of_the_best_of_a_grid_of_mixtures() -> None:
    shares = np.linspace(0, 1, 2001)
    for seed in range(8):
        known = members(31, [0.1, 0.15], seed)
        best = min(error_of(np.array([share, 1 - share]), known) for share in shares)
        found = error_of(ensemble._least_mae(known), known)
        assert found <= best + 1e-12
        assert found == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_least_mae_does_not_depend_on_the_unit(unit: float) -> None:
    known = members(80, [0.1, 0.2, 0.15])
    scaled = OutOfFold(known.prediction * unit, known.target * unit, known.group)
    np.testing.assert_allclose(ensemble._least_mae(scaled), ensemble._least_mae(known), atol=1e-9)


def test_no_mixture_drawn_at_random_beats_the_least_mae() -> None:
    known = members(150, [0.1, 0.12, 0.2, 0.3, 0.11])
    drawn = np.random.default_rng(1).dirichlet(np.full(5, 0.5), 3000)
    assert error_of(ensemble._least_mae(known), known) <= min(error_of(weights, known) for weights in drawn) + 1e-12


@pytest.mark.parametrize("method", ["greedy", "stacked"])
def test_the_single_good_member_among_bad_ones_is_found(method: Combine) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=80)
    prediction = target + np.array([[2.0], [-1.5], [0.01], [2.5]]) * (1 + rng.random((4, 80)))
    prediction[1] = target + 3 + rng.random(80)  # no error of the other sign to make up for
    known = OutOfFold(prediction, target, [str(row) for row in range(80)])
    assert weights_of(method, known)[2] > 0.98


def test_greedy_is_never_worse_than_the_mean_or_the_best_member_on_its_rows() -> None:
    for seed in range(20):
        known = members(25, [0.1, 0.12, 0.14, 0.1, 0.3], seed)
        single = min(error_of(one, known) for one in np.eye(5))
        assert error_of(weights_of("greedy", known), known) <= min(error_of(equal(5), known), single) + 1e-12


def test_greedy_keeps_the_mean_where_every_prefix_is_worse() -> None:
    """From the first member on, no single addition helps; two at once would."""
    known = OutOfFold(np.array([[0.0, 3.0], [3.0, 0.0], [-3.0, 0.0]]), np.zeros(2), ["a", "b"])
    assert error_of(weights_of("greedy", known), known) == pytest.approx(0.5)


def test_greedy_takes_the_first_of_equal_members() -> None:
    known = members(30, [0.1])
    twice = OutOfFold(np.vstack([known.prediction + 5, known.prediction, known.prediction]), known.target, known.group)
    assert weights_of("greedy", twice) == pytest.approx([0, 1, 0])


def test_stacking_exchangeable_members_is_hardly_worse_than_their_mean_on_fresh_rows() -> None:
    fresh = members(4000, [0.1] * 5, seed=99)
    mean = error_of(equal(5), fresh)
    ratios: dict[str, list[float]] = {"stacked": [], "unshrunk": []}
    for seed in range(30):
        known = members(60, [0.1] * 5, seed)
        ratios["stacked"].append(error_of(weights_of("stacked", known), fresh) / mean)
        ratios["unshrunk"].append(error_of(ensemble._least_mae(known), fresh) / mean)
    assert np.mean(ratios["stacked"]) < 1.001
    assert max(ratios["stacked"]) < 1.01
    assert np.mean(ratios["unshrunk"]) > 1.02  # what the shrinkage is for


def test_stacking_recovers_a_clear_winner_on_fresh_rows() -> None:
    noise = [0.3, 0.3, 0.03, 0.3]
    fresh = members(4000, noise, seed=99)
    weights = weights_of("stacked", members(300, noise))
    assert weights[2] > 0.9
    assert error_of(weights, fresh) < 1.05 * min(error_of(one, fresh) for one in np.eye(4))
    assert error_of(weights, fresh) < 0.9 * error_of(equal(4), fresh)


def test_rows_of_too_few_formulas_are_not_stacked() -> None:
    known = members(300, [0.3, 0.01])
    few = [str(row % (2 * ensemble.GROUPS_AN_INNER_FOLD - 1)) for row in range(300)]
    assert weights_of("stacked", OutOfFold(known.prediction, known.target, few)) == pytest.approx(equal(2))
    assert weights_of("stacked", known)[1] > 0.9


def test_inner_folds_never_split_a_formula() -> None:
    group = members(200, [0.1]).group
    for seed in range(5):
        inner = ensemble._inner_folds(group, seed)
        assert set(inner.tolist()) == set(range(ensemble.MOST_INNER_FOLDS))
        assert len(set(zip(group, inner.tolist(), strict=True))) == len(set(group))


@pytest.mark.parametrize("method", WEIGHTED)
def test_weights_are_the_same_in_a_second_run(method: Combine) -> None:
    known = members(90, [0.1, 0.11, 0.12])
    assert weights_of(method, known, seed=3).tolist() == weights_of(method, known, seed=3).tolist()


def test_what_chooses_weights_is_given_out_of_fold_rows_only() -> None:
    assert list(inspect.signature(choose_weights).parameters) == ["method", "known", "seed"]
    assert "target" not in inspect.signature(combine).parameters


@pytest.mark.parametrize("method", EVERY)
def test_test_predictions_do_not_change_the_weights_or_each_other(method: Combine) -> None:
    known, test = members(90, [0.1, 0.1, 0.3]), members(50, [0.1, 0.1, 0.3], seed=1).prediction
    weights = choose_weights(method, known)
    before = None if weights is None else weights.copy()
    whole = combine(method, test, weights)
    np.testing.assert_allclose(combine(method, test[:, 10:20], weights), whole[10:20], rtol=1e-13)
    np.testing.assert_array_equal(choose_weights(method, known), before)


@pytest.mark.parametrize("method", EVERY)
def test_equal_members_predict_what_each_of_them_does(method: Combine) -> None:
    known = members(90, [0.2])
    same = OutOfFold(np.repeat(known.prediction, 4, axis=0), known.target, known.group)
    weights = choose_weights(method, same)
    np.testing.assert_allclose(combine(method, same.prediction, weights), known.prediction[0], rtol=1e-13)


@pytest.mark.parametrize("seed", range(12))
def test_rounding_does_not_tell_equal_members_apart(seed: int) -> None:
    known = members(60, [0.2], seed)
    same = np.repeat(known.prediction, 3 + seed % 5, axis=0) + 100 * (seed % 3)
    assert weights_of("stacked", OutOfFold(same, known.target, known.group)) == pytest.approx(equal(len(same)))


@pytest.mark.parametrize("method", EVERY)
def test_members_that_are_always_right_are_combined(method: Combine) -> None:
    known = members(40, [0.1, 0.1])
    right = OutOfFold(np.vstack([known.target] * 2), known.target, known.group)
    assert combine(method, right.prediction, choose_weights(method, right)) == pytest.approx(known.target, rel=1e-13)


def test_the_median_ignores_one_outlying_member_and_the_mean_does_not() -> None:
    test = members(50, [0.01] * 5)
    spoilt = test.prediction.copy()
    spoilt[3] += 1000
    assert np.abs(combine("median", spoilt) - combine("median", test.prediction)).max() < 0.2
    assert np.abs(combine("mean", spoilt) - combine("mean", test.prediction)).min() > 199


def test_the_disagreement_is_the_standard_deviation_over_members() -> None:
    assert disagreement(np.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx([1.0, 0.0])
    assert (disagreement(members(20, [0.1]).prediction) == 0).all()


def test_the_error_curve_falls_for_independent_errors_and_ends_where_it_should() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=500)
    prediction = target + rng.laplace(size=(6, 500))
    curve = error_curve(prediction, target)
    errors = [point["mae"] for point in curve]
    single = np.abs(prediction - target).mean(axis=1)
    assert [point["n_members"] for point in curve] == [1, 2, 3, 4, 5, 6]
    assert [point["n_subsets"] for point in curve] == [6, 15, 20, 15, 6, 1]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert curve[0] == pytest.approx(
        {"n_members": 1, "n_subsets": 6, "mae": single.mean(), "min": single.min(), "max": single.max()}
    )
    full = float(np.abs(prediction.mean(axis=0) - target).mean())
    assert curve[-1] == pytest.approx({"n_members": 6, "n_subsets": 1, "mae": full, "min": full, "max": full})


def test_the_error_curve_of_folds_is_the_mean_of_their_errors() -> None:
    known = members(10, [0.1, 0.3])
    fold = np.array([3] * 2 + [1] * 8)  # of unequal size
    wrong = np.abs(known.prediction.mean(axis=0) - known.target)
    expected = (wrong[:2].mean() + wrong[2:].mean()) / 2
    assert error_curve(known.prediction, known.target, fold)[-1]["mae"] == pytest.approx(expected)
    assert expected != pytest.approx(wrong.mean())


def test_many_members_are_drawn_in_different_seeded_subsets() -> None:
    known = members(20, [0.1] * 12)
    curve = error_curve(known.prediction, known.target)
    assert curve == error_curve(known.prediction, known.target)
    assert [point["n_subsets"] for point in curve] == [12, 66, *[MOST_SUBSETS] * 7, 66, 12, 1]
    assert curve[5]["min"] < curve[5]["mae"] < curve[5]["max"]


def test_what_does_not_fit_is_refused() -> None:
    known = members(6, [0.1, 0.1])
    holed = known.prediction.copy()
    holed[1, 2] = np.nan
    for make in (
        lambda: OutOfFold(holed, known.target, known.group),
        lambda: OutOfFold(known.prediction, np.full(6, np.inf), known.group),
        lambda: OutOfFold(known.prediction, known.target[1:], known.group),
        lambda: OutOfFold(known.prediction, known.target, known.group[1:]),
        lambda: OutOfFold(known.prediction[:0], known.target, known.group),
        lambda: OutOfFold(known.prediction[0], known.target, known.group),
        lambda: combine("median", holed),
        lambda: combine("median", known.prediction, equal(2)),
        lambda: combine("stacked", known.prediction),
        lambda: combine("mean", known.prediction, equal(3)),
        lambda: combine("greedy", known.prediction, np.array([1.5, -0.5])),
        lambda: combine("greedy", known.prediction, np.array([0.5, np.nan])),
        lambda: disagreement(holed),
        lambda: error_curve(known.prediction, known.target[1:]),
        lambda: error_curve(known.prediction, known.target, np.zeros(5, dtype=np.int64)),
        lambda: error_curve(known.prediction[:, :0], known.target[:0]),
    ):
        with pytest.raises(ValueError, match=r"shape|finite|groups|weights|fold numbers"):
            make()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    _, split, store, _ = tiny_run(tmp_path_factory.mktemp("soup"))
    return collate(store, split.val.rows)


def state(seed: int, quantity: Quantity = "property") -> dict[str, Tensor]:
    return dict(build_model("scratch", custom_task("tiny", "y", "eV", quantity), seed=seed).state_dict())


def predicted(weights: dict[str, Tensor], batch: Batch) -> Tensor:
    model = build_model("scratch", custom_task("tiny", "y", "eV", "property"))
    model.load_state_dict(weights)
    with torch.inference_mode():
        found: Tensor = model.eval()(batch)
        return found


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_a_soup_of_equal_models_predicts_what_each_does(batch: Batch, weights: list[float] | None) -> None:
    one = state(1)
    mixed = soup([one, one, one], weights)
    assert mixed.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(mixed[name], tensor, atol=0, rtol=0)
    torch.testing.assert_close(predicted(mixed, batch), predicted(one, batch), atol=0, rtol=0)


def test_a_soup_lies_between_its_models_and_is_neither(batch: Batch) -> None:
    first, second = state(1), state(2)
    mixed = soup([first, second], [0.25, 0.75])
    for name, tensor in mixed.items():
        assert tensor.dtype == first[name].dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * second[name], atol=1e-7, rtol=1e-6)
            assert (tensor >= torch.minimum(first[name], second[name])).all()
            assert (tensor <= torch.maximum(first[name], second[name])).all()
    for other in (first, second):
        assert (predicted(mixed, batch) - predicted(other, batch)).abs().max() > 1e-4


def test_a_soup_leaves_its_models_alone_and_can_be_all_one_of_them(batch: Batch) -> None:
    first, second = state(1), state(2)
    mixed = soup([first, second], np.array([0.0, 1.0]))
    torch.testing.assert_close(predicted(mixed, batch), predicted(second, batch), atol=0, rtol=0)
    for tensor in mixed.values():
        tensor.zero_()
    torch.testing.assert_close(predicted(second, batch), predicted(state(2), batch), atol=0, rtol=0)


def test_integers_of_a_soup_are_the_first_models() -> None:
    first = {"steps": torch.tensor(3), "scale": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    second = {"steps": torch.tensor(8), "scale": torch.tensor([2.0, 4.0], dtype=torch.float16)}
    mixed = soup([first, second])
    assert int(mixed["steps"]) == 3
    torch.testing.assert_close(mixed["scale"], torch.tensor([1.5, 3.0], dtype=torch.float16))


def test_models_of_different_kinds_make_no_soup() -> None:
    one = state(1)
    with pytest.raises(UserError, match=r"model 1 .* only one of them has head\."):
        soup([one, state(1, "energy_per_atom")])
    other = one | {"mlp.layers.0.bias": torch.zeros(2)}
    assert "mlp.layers.0.bias" in one
    with pytest.raises(UserError, match=r"model 2 .* other shapes in mlp\.layers\.0\.bias \(2,\)"):
        soup([one, one, other])
    with pytest.raises(UserError, match="at least one"):
        soup([])
    with pytest.raises(ValueError, match="weights"):
        soup([one, one], [0.5, 0.6])


@pytest.mark.parametrize(
    ("task", "method", "algorithms", "mae"),
    [
        ("mp_e_form", "mean", ["coNGN", "alignn"], 0.01734),
        ("mp_gap", "median", ["coNGN", "DeeperGATGNN", "alignn"], 0.1466),
    ],
)
def test_combined_published_predictions_have_the_error_measured_before(
    shared_data: Path, task: str, method: Combine, algorithms: list[str], mae: float
) -> None:
    table = read_published(shared_data / "matbench_predictions" / f"matbench_{task}.csv.gz")
    prediction = table[algorithms].to_numpy(float).T
    target, fold = table.iloc[:, 2].to_numpy(float), table["fold"].to_numpy()
    rows = table[["fold"]].assign(target=target, prediction=combine(method, prediction))
    scores = score_folds(rows).model_dump()
    assert scores["mean"]["mae"] == pytest.approx(mae, abs=0.5 * 10.0 ** -len(str(mae).split(".")[1]))
    if method == "mean":
        assert error_curve(prediction, target, fold)[-1]["mae"] == pytest.approx(scores["mean"]["mae"], rel=1e-12)
