"""Known answers by hand, a simulated coverage, and two published predictors on real rows."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from orchestrator.evaluation import statistics
from orchestrator.evaluation.statistics import (
    Bootstrap,
    Contrast,
    cluster_bootstrap,
    compare,
    holm,
    nadeau_bengio,
    with_holm,
)
from trainables.crystals import chemical_system


def width(bootstrap: Bootstrap) -> float:
    return bootstrap.high - bootstrap.low


def table(n: int = 200, seed: int = 0) -> pd.DataFrame:
    """Rows in five folds with made-up errors."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"id": [f"row-{i:03d}" for i in range(n)], "fold": np.arange(n) % 5, "error": rng.random(n)})


def systems(rows: pd.DataFrame, size: int = 4) -> dict[str, str]:
    return {row: f"system {place // size}" for place, row in enumerate(rows["id"])}


def contrast(p_bootstrap: float, folds: NDArray[np.float64] | None) -> Contrast:
    corrected = None if folds is None else nadeau_bengio(folds)
    return Contrast(0.0, {}, Bootstrap(0.0, -1.0, 1.0, p_bootstrap, 9), corrected)


# the corrected t-test


def test_nadeau_bengio_gives_the_answer_worked_out_by_hand() -> None:
    found = nadeau_bengio(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found is not None
    assert (found.mean, found.df) == (3.0, 4)
    assert found.se == pytest.approx(math.sqrt((1 / 5 + 1 / 4) * 2.5))  # 1.06066
    assert found.t == pytest.approx(math.sqrt(8))  # 3 / sqrt(1.125)
    # Student's distribution with 4 degrees of freedom, in closed form at t^2 = 8
    tail = 1 / 2 - 3 / 8 * math.sqrt(8) / math.sqrt(1 + 8 / 4) * (1 - (8 / (1 + 8 / 4)) / 12)
    assert found.p == pytest.approx(2 * tail)  # 0.0474
    assert found.detectable == pytest.approx(2.7764451 * 1.0606602)  # the tables' t of 0.975 and 4
    mirrored = nadeau_bengio(np.array([-5.0, -4.0, -3.0, -2.0, -1.0]))
    assert mirrored is not None
    assert (mirrored.t, mirrored.p) == pytest.approx((-found.t, found.p))


def test_a_difference_just_at_the_detectable_one_has_p_of_a_twentieth() -> None:
    spread = np.array([-0.2, 0.1, 0.3, -0.1, -0.1])
    found = nadeau_bengio(spread)
    assert found is not None
    shifted = nadeau_bengio(spread - spread.mean() + found.detectable)
    assert shifted is not None
    assert shifted.p == pytest.approx(0.05)


@pytest.mark.parametrize(("difference", "p"), [(0.0, 1.0), (0.1, 0.0), (-0.1, 0.0)])
def test_equal_differences_in_every_fold_are_certain_or_nothing(difference: float, p: float) -> None:
    found = nadeau_bengio(np.full(3, difference))  # three times 0.1 has a variance of 1e-34 if left to rounding
    assert found is not None
    assert (found.p, found.se, found.detectable) == (p, 0.0, 0.0)
    assert math.copysign(1, found.t) == math.copysign(1, difference)


def test_fewer_than_two_folds_have_no_t_test() -> None:
    assert nadeau_bengio(np.array([0.3])) is None
    assert nadeau_bengio(np.array([])) is None


@pytest.mark.parametrize(("differences", "share"), [([0.1, np.nan], 0.25), ([0.1, 0.2], 0.0), ([0.1, 0.2], np.nan)])
def test_nadeau_bengio_refuses_what_it_cannot_use(differences: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        nadeau_bengio(np.array(differences), share)


# the bootstrap


def test_bootstrap_agrees_with_the_normal_interval_of_many_independent_rows() -> None:
    difference = np.random.default_rng(1).normal(0.1, 1.0, 2000)
    found = cluster_bootstrap(difference, np.zeros(2000, int), range(2000))
    se = difference.std() / math.sqrt(2000)
    assert found.mean == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * se, found.mean + 1.96 * se), abs=0.1 * se)
    assert found.n_clusters == 2000


def test_bootstrap_statistic_is_the_mean_over_folds_not_over_rows() -> None:
    fold = np.array([0, 0, 0, 1])
    found = cluster_bootstrap(np.array([1.0, 1.0, 1.0, 5.0]), fold, ["a", "b", "c", "d"])
    assert found.mean == 3.0
    # d is drawn not at all with probability (3/4)^4 = 0.32, and then fold 0 alone counts; or only d, 1/256
    assert (found.low, found.high) == (1.0, 3.0)


def test_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(2)
    fold, cluster = np.arange(300) % 5, np.arange(300) // 5
    covered, naive = 0, 0
    for _ in range(300):
        difference = rng.normal(0, 1, 60)[cluster] + rng.normal(0, 1, 300)
        found = cluster_bootstrap(difference, fold, cluster.tolist(), n_resamples=400)
        covered += found.low <= 0 <= found.high
        found = cluster_bootstrap(difference, fold, range(300), n_resamples=400)
        naive += found.low <= 0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98
    assert naive / 300 < 0.85  # what it would be if rows were taken for independent


def test_equal_rows_in_a_cluster_widen_the_interval_by_the_root_of_their_number() -> None:
    difference = np.repeat(np.random.default_rng(3).normal(size=300), 4)
    fold = np.zeros(1200, int)
    clustered = cluster_bootstrap(difference, fold, np.repeat(np.arange(300), 4).tolist())
    naive = cluster_bootstrap(difference, fold, range(1200))
    assert width(clustered) / width(naive) == pytest.approx(2, rel=0.06)
    assert (clustered.n_clusters, naive.n_clusters) == (300, 1200)


def test_p_is_small_for_a_clear_difference_and_one_for_none() -> None:
    fold, cluster = np.arange(100) % 5, range(100)
    noise = np.random.default_rng(4).normal(size=100)
    noise -= np.array([noise[fold == k].mean() for k in range(5)])[fold]
    clear = cluster_bootstrap(noise - 1.0, fold, cluster, n_resamples=999)
    assert clear.high < 0
    assert clear.p == pytest.approx(2 / 1000)  # the smallest that 999 resamples can show, never 0
    assert cluster_bootstrap(noise, fold, cluster).p > 0.9
    assert cluster_bootstrap(np.zeros(100), fold, cluster).p == 1.0


def test_bootstrap_p_is_that_of_a_normal_mean() -> None:
    noise = np.random.default_rng(5).normal(size=1000)
    se = noise.std() / math.sqrt(1000)
    found = cluster_bootstrap(noise - noise.mean() + 1.96 * se, np.zeros(1000, int), range(1000))
    assert found.p == pytest.approx(0.05, abs=0.012)


def test_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    rows = table()
    given = (rows["error"].to_numpy() - 0.5, rows["fold"].to_numpy(), list(systems(rows).values()))
    assert cluster_bootstrap(*given, seed=7) == cluster_bootstrap(*given, seed=7)
    assert cluster_bootstrap(*given, seed=7).low != cluster_bootstrap(*given, seed=8).low


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table()
    given = (rows["error"].to_numpy() - 0.5, rows["fold"].to_numpy(), list(systems(rows).values()))
    whole = cluster_bootstrap(*given, n_resamples=100)
    monkeypatch.setattr(statistics, "_CELLS_PER_CHUNK", 350)  # seven of the fifty clusters' weights at a time
    chunked = cluster_bootstrap(*given, n_resamples=100)
    assert (chunked.low, chunked.high, chunked.p) == pytest.approx((whole.low, whole.high, whole.p))


def test_clusters_may_be_tuples_and_one_alone_tells_nothing() -> None:
    difference, fold = np.array([1.0, 2.0, 3.0]), np.zeros(3, int)
    assert cluster_bootstrap(difference, fold, [("Al", "O"), ("Al", "O"), ("Al", "S")]).n_clusters == 2
    alone = cluster_bootstrap(difference, fold, ["Al-O"] * 3)
    assert alone == Bootstrap(2.0, -math.inf, math.inf, 1.0, 1)


def test_bootstrap_refuses_what_it_cannot_use() -> None:
    fold = np.zeros(2, int)
    with pytest.raises(ValueError, match="as many folds and clusters as rows"):
        cluster_bootstrap(np.ones(2), fold, ["a"])
    with pytest.raises(ValueError, match="as many folds and clusters as rows"):
        cluster_bootstrap(np.array([]), np.array([], int), [])
    with pytest.raises(ValueError, match="1 differences are not finite"):
        cluster_bootstrap(np.array([1.0, np.nan]), fold, ["a", "b"])
    with pytest.raises(ValueError, match="1 rows have no cluster"):
        cluster_bootstrap(np.ones(2), fold, ["a", None])


# Holm


def test_holm_gives_the_textbook_answer() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_capped_and_leaves_none_out_of_the_count() -> None:
    assert holm([0.02, None, 0.6, 0.7]) == [pytest.approx(0.06), None, 1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []
    for wrong in (1.2, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, wrong])


def test_a_family_takes_the_p_over_folds_where_there_is_one() -> None:
    folds = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # p 0.0474
    found = with_holm({"several": contrast(0.9, folds), "single": contrast(0.02, None)})
    assert found == {"several": pytest.approx(0.0474207, rel=1e-4), "single": pytest.approx(0.04)}


# comparing two tables


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    parent = table()
    noise = np.random.default_rng(6).normal(0, 1e-3, len(parent))
    child = parent.assign(error=parent["error"] - 0.01 + noise)
    straight = compare(child, parent, systems(parent))
    shuffled = compare(child.sample(frac=1, random_state=1), parent.sample(frac=1, random_state=2), systems(parent))
    assert shuffled == straight
    assert straight.difference == pytest.approx(-0.01, abs=2e-4)
    # pairing takes the spread of the errors themselves (0.3) out
    assert width(straight.bootstrap) < 5e-4
    assert compare(child, parent, pd.Series(systems(parent))) == straight


def test_contrast_holds_each_folds_difference_and_the_test_over_them() -> None:
    child, parent = table(seed=1), table(seed=2)
    found = compare(child, parent, systems(parent))
    by_fold = child.groupby("fold")["error"].mean() - parent.groupby("fold")["error"].mean()
    assert found.per_fold == pytest.approx(by_fold.to_dict())
    assert found.difference == pytest.approx(by_fold.mean())
    assert found.bootstrap.mean == pytest.approx(found.difference)
    assert found.bootstrap.n_clusters == 50
    assert found.corrected_t == nadeau_bengio(np.array(list(found.per_fold.values())))
    assert found.corrected_t is not None
    assert found.p == found.corrected_t.p
    harsher = compare(child, parent, systems(parent), test_share=1.0)
    assert harsher.corrected_t is not None
    assert harsher.corrected_t.se / found.corrected_t.se == pytest.approx(math.sqrt(1.2 / 0.45))


def test_single_fold_is_compared_by_the_bootstrap_alone() -> None:
    parent = table().assign(fold=3)
    found = compare(parent.assign(error=parent["error"] * 0.9), parent, systems(parent), n_resamples=999)
    assert found.corrected_t is None
    assert found.p == found.bootstrap.p == 2 / 1000
    assert found.per_fold == {3: pytest.approx(-0.1 * parent["error"].mean())}


def test_tables_that_do_not_match_are_refused_with_what_differs() -> None:
    rows = table()
    known = systems(rows)
    with pytest.raises(ValueError, match="the child lacks 1 ids: row-007"):
        compare(rows[rows["id"] != "row-007"], rows, known)
    with pytest.raises(ValueError, match="the parent lacks 2 ids: row-198, row-199"):
        compare(rows, rows[:-2], known)
    with pytest.raises(ValueError, match="1 ids are in another fold at the parent: row-002"):
        compare(rows, rows.assign(fold=rows["fold"].where(rows["id"] != "row-002", 0)), known)
    with pytest.raises(ValueError, match="the parent lists ids more than once: row-000"):
        compare(rows, pd.concat([rows, rows[:1]]), known)
    with pytest.raises(ValueError, match="the child has 1 errors that are not finite"):
        compare(rows.assign(error=rows["error"].where(rows["id"] != "row-002")), rows, known)
    with pytest.raises(ValueError, match="the child lacks the columns error"):
        compare(rows[["id", "fold"]], rows, known)
    del known["row-004"]
    with pytest.raises(ValueError, match="no chemical system is given for row-004"):
        compare(rows, rows, known)


# chemical systems


@pytest.mark.parametrize(
    ("formula", "system"),
    [("Al2O3", "Al-O"), ("K4 Mn4 O8", "K-Mn-O"), ("O8 Mn4 K4", "K-Mn-O"), ("Cu", "Cu"), ("NaN", "N-Na"), ("CO", "C-O")],
)
def test_chemical_system_reads_reduced_formulas_and_whole_cells(formula: str, system: str) -> None:
    assert chemical_system(formula) == system


@pytest.mark.parametrize("wrong", ["", "12", "al2o3", "Al-O", "Xx2", "mb-mp-gap-000001"])
def test_what_is_no_formula_has_no_chemical_system(wrong: str) -> None:
    with pytest.raises(ValueError, match="not a chemical formula"):
        chemical_system(wrong)


# real rows


def naive_width(errors: NDArray[np.float64], fold: NDArray[np.int64]) -> float:
    """Width of the 95 % interval if rows were independent."""
    folds = [errors[fold == k] for k in np.unique(fold)]
    return float(2 * 1.96 * math.sqrt(sum(part.var() / len(part) for part in folds)) / len(folds))


def test_published_formation_energies_differ_as_measured(shared_data: Path) -> None:
    name = "matbench_mp_e_form.csv.gz"
    published = pd.read_csv(shared_data / "matbench_predictions" / name)
    targets = pd.read_csv(shared_data / "matbench_targets" / name)
    rows = published[["mbid", "fold"]].rename(columns={"mbid": "id"})
    child, parent = (rows.assign(error=(published[who] - published["e_form"]).abs()) for who in ("coNGN", "alignn"))
    by_id = dict(zip(targets["mbid"], map(chemical_system, targets["composition"]), strict=True))
    found = compare(child, parent, by_id, n_resamples=2000)
    assert round(found.difference, 4) == -0.0037
    assert found.corrected_t is not None
    assert found.corrected_t.se == pytest.approx(0.00028, rel=0.05)
    assert found.corrected_t.detectable == pytest.approx(0.0008, rel=0.05)
    assert found.corrected_t.p < 0.001
    assert found.bootstrap.n_clusters == 45_611
    # by linearisation 1.13: two good models err on the same systems, and pairing takes most of that out ...
    fold = rows["fold"].to_numpy()
    difference = (child["error"] - parent["error"]).to_numpy()
    assert 1.05 < width(found.bootstrap) / naive_width(difference, fold) < 1.22
    # ... while the error of one model alone clusters strongly: 2.40
    alone = compare(child, child.assign(error=0.0), by_id, n_resamples=2000)
    assert alone.difference == pytest.approx(0.0178, abs=5e-5)
    assert 2.25 < width(alone.bootstrap) / naive_width(child["error"].to_numpy(), fold) < 2.55
