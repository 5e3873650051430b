"""From made-up outcomes with known answers, and published predictions, to rows and sentences."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ladder_data import ABOUT, IDS, SYSTEMS, N, analysed, full_ladder, ladder, outcome, predictions, row, sentence

from orchestrator.ablation.analysis import Analysis, Outcome, analyse
from orchestrator.ablation.report import document
from trainables.crystals import chemical_system


@pytest.fixture(scope="module")
def full() -> Analysis:
    return full_ladder()


def test_scores_are_means_over_folds_and_spreads_over_folds_and_seeds(full: Analysis) -> None:
    rows = predictions(0.2, seed=3)
    by = (rows["prediction"] - rows["target"]).abs().groupby([rows["replicate"], rows["fold"]]).mean().unstack()
    found = row(full, "E3")
    assert found["mae_mean"] == pytest.approx(by.to_numpy().mean())
    assert found["mae_std"] == pytest.approx(np.std(by.mean(0)))
    assert found["mae_seed_std"] == pytest.approx(np.std(by.mean(1), ddof=1))
    assert found["per_fold"] == pytest.approx({str(fold): value for fold, value in by.mean(0).items()})
    assert (found["n_rows"], found["folds"], found["replicates"]) == (N, 5, 2)
    use = {"members": 3, "views": 1, "predictions": 3}
    assert found["cost"] == {"structures": 360_000, "seconds": 12.5, "device": "cpu", "models": 1} | use


def test_largest_errors_are_those_of_each_replicate_and_not_of_their_mean() -> None:
    rows = predictions(0, replicates=2)
    rows["prediction"] = rows["target"] + 0.1
    for replicate, size in ((0, 5.0), (1, 3.0)):  # a tenth of the rows, other ones in each replicate
        wrong = (rows["replicate"] == replicate) & rows["id"].isin(IDS[60 * replicate : 60 * replicate + 60])
        rows.loc[wrong, "prediction"] = rows["target"] + size
    found = row(analysed({"E0": outcome("E0", rows)}), "E0")
    assert found["max_error"] == pytest.approx(4.0)  # of the mean error it would be 2.55
    assert found["p95_error"] == pytest.approx(4.0)
    text = document(analysed({"E0": outcome("E0", rows)}), ABOUT).markdown()
    assert "95th percentile and largest error: of each replicate's own errors, then their mean" in text


def test_a_true_gain_is_better_and_equal_experiments_show_no_difference(full: Analysis) -> None:
    found = row(full, "E3")
    assert found["decision"] == "better"
    assert found["difference"] == pytest.approx(found["mae_mean"] - row(full, "E0")["mae_mean"])
    assert found["interval"][0] < found["difference"] < found["interval"][1] < 0
    assert found["p"] <= found["p_corrected"] < 0.05
    assert found["detectable"] < found["detectable_corrected"] < -found["difference"]
    assert found["n_systems"] == N / 4
    assert row(full, "E0")["decision"] == "baseline"
    assert row(full, "E0")["difference"] is None
    assert row(full, "E5")["decision"] == "no difference seen"
    assert row(full, "E4")["decision"] == "worse"  # than the ensemble


def test_equal_cost_is_a_family_of_its_own(full: Analysis) -> None:
    found = row(full, "E3")["control"]
    assert (found["name"], found["decision"]) == ("L3", "better")
    assert found["difference"] == pytest.approx(row(full, "E3")["mae_mean"] - row(full, "L3")["mae_mean"])
    assert row(full, "E5")["control"] is None
    alone = analysed({name: one for name, one in ladder().items() if name in ("E0", "E3", "L3")})
    # E3 and L3 against E0 are one family of two, E3 against L3 the other, of one
    assert row(alone, "E3")["control"]["p_corrected"] == row(alone, "E3")["control"]["p"]
    assert row(alone, "E3")["p_corrected"] == pytest.approx(2 * row(alone, "E3")["p"])


def test_what_is_equal_of_the_costs_is_said_and_both_costs_are_shown() -> None:
    outcomes = {name: one for name, one in ladder().items() if name in ("E0", "E3", "E4", "L3")}
    outcomes["B1"] = outcome("B1", predictions(0.05), structures=480_000)
    analysis = analysed(outcomes)
    assert {name: row(analysis, name)["control"]["equal_in"] for name in ("E3", "E4", "B1")} == {
        "E3": "training",
        "E4": "use",
        "B1": "use",
    }
    sheet = document(analysis, ABOUT).markdown().split("## Against a control of equal cost, in training or in use")[1]
    lines = [[cell.strip() for cell in line.split("|")[1:8]] for line in sheet.splitlines() if line.startswith("|")]
    assert lines[0][3:] == ["structures", "its structures", "predictions", "its predictions"]
    assert lines[2] == ["E3", "L3", "training", "360,000", "360,000", "3", "1"]
    assert lines[3] == ["E4", "E0", "use", "480,000", "120,000", "1", "1"]
    assert lines[4] == ["B1", "E0", "use", "480,000", "120,000", "1", "1"]
    changed = outcomes | {"L3": replace(outcomes["L3"], structures=200_000)}
    assert row(analysed(changed), "E3")["control"]["equal_in"] == "neither"
    changed["L3"] = replace(outcomes["L3"], structures=350_000, n_members=3)
    assert row(analysed(changed), "E3")["control"]["equal_in"] == "training and use"
    del changed["L3"]
    assert row(analysed(changed), "E3")["control"]["equal_in"] == ""


def test_comparing_reports_each_contrast_once() -> None:
    seen: list[Any] = []

    class Watched:
        @contextmanager
        def stage(self, name: str, total: float | None, unit: str) -> Iterator[Any]:
            seen.append((name, total, unit))
            yield self

        def advance(self, amount: float, note: str = "") -> None:
            seen.append((amount, note))

        def message(self, text: str) -> None:
            seen.append(text)

    outcomes = {name: one for name, one in ladder().items() if name in ("E0", "E3", "E4")}
    analysed(outcomes, progress=Watched())
    made = [(1, "E3 against E0"), (1, "E4 against E3"), (1, "E4 against E0")]  # L3, E1, E2 and E5 were not run
    assert seen == [("compare experiments", 3, "contrasts"), *made]


def test_a_failed_experiment_has_a_row_without_numbers_and_its_children_a_reason(full: Analysis) -> None:
    failed = row(full, "E1")
    assert (failed["decision"], failed["failed"], failed["mae_mean"]) == ("failed", "out of memory | at step 3", None)
    child = row(full, "E2")
    assert (child["decision"], child["reason"], child["difference"]) == ("not compared", "E1 failed", None)
    assert child["mae_mean"] > 0
    lonely = analysed({"E3": ladder()["E3"]})
    assert row(lonely, "E3")["reason"] == "E0 was not run"
    assert row(lonely, "E3")["control"]["reason"] == "L3 was not run"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rows: rows.assign(prediction=rows["prediction"].where(rows["id"] != "row-003")), "2 predictions"),
        (lambda rows: rows[1:], "do not all predict the same rows"),
        (lambda rows: pd.concat([rows, rows[:1]]), "do not all predict the same rows"),
        (lambda rows: rows.assign(fold=rows["fold"].where(rows.index > 0, 3)), "other folds"),
        (lambda rows: rows[:0], "no predictions"),
    ],
)
def test_unusable_predictions_are_a_failure_not_a_number(spoil: Any, why: str) -> None:
    outcomes = {"E0": outcome("E0", predictions(0)), "E3": outcome("E3", spoil(predictions(0.2)))}
    found = row(analysed(outcomes), "E3")
    assert why in found["failed"]
    assert (found["mae_mean"], found["decision"]) == (None, "failed")


def test_other_rows_or_targets_are_not_compared() -> None:
    base, child = outcome("E0", predictions(0)), predictions(0.2)
    fewer = analysed({"E0": base, "E3": outcome("E3", child[child["id"] != "row-003"])})
    assert row(fewer, "E3")["reason"] == "E3 and E0 were tested on different rows (599 and 600)"
    shifted = analysed({"E0": base, "E3": outcome("E3", child.assign(target=child["target"] + 1))})
    assert "other folds or targets" in row(shifted, "E3")["reason"]
    with pytest.raises(ValueError, match="share a name"):
        analyse([base, base], SYSTEMS, unit="")
    with pytest.raises(ValueError, match="no chemical system"):
        analyse([base, outcome("E3", child)], {}, unit="")


def test_a_single_fold_rests_on_the_bootstrap_and_says_so() -> None:
    rows = {name: predictions(gain, replicates=1).assign(fold=0) for name, gain in (("E0", 0.0), ("E3", 0.2))}
    analysis = analysed({name: outcome(name, table) for name, table in rows.items()})
    found = row(analysis, "E3")
    assert found["decision"] == "better"
    assert found["p"] == found["p_bootstrap"] == pytest.approx(2 / 501)
    assert (found["detectable"], found["mae_std"], found["mae_seed_std"]) == (None, None, None)
    assert found["note"].startswith("one fold")
    assert "one fold" in document(analysis, ABOUT).markdown()


def test_on_one_fold_consistency_cannot_be_judged() -> None:
    rows = {name: predictions(gain, replicates=1).assign(fold=0) for name, gain in (("E0", 0.0), ("E1", 0.2))}
    analysis = analysed({name: outcome(name, table) for name, table in rows.items()})
    assert row(analysis, "E1")["decision"] == "better"
    said = sentence(analysis, "Consistency regularisation: cannot be judged on one fold. E1 against E0: -0.0")
    assert "(one fold): better" in said


def test_an_infinite_interval_is_none() -> None:
    outcomes = [outcome("E0", predictions(0)), outcome("E3", predictions(0.2))]
    analysis = analyse(outcomes, dict.fromkeys(IDS, "Al-O"), unit="", n_resamples=50)
    found = row(analysis, "E3")
    assert (found["interval"], found["decision"]) == (None, "no difference seen")
    assert found["note"].startswith("few chemical systems (1)")
    assert "Infinity" not in json.dumps([row.content() for row in analysis.rows], allow_nan=False)
    assert document(analysis, ABOUT).html()


# the decision sentences


def test_consistency_is_confirmed_only_by_a_gain_over_the_baseline() -> None:
    gained = sentence(analysed(ladder(E1=0.15, E2=0.15)), "Consistency")
    assert gained.startswith("Consistency regularisation: confirmed. E1 against E0: -0.0")
    assert "E2 against E0: " in gained
    assert "E2 against E1: " in gained
    none = sentence(analysed(ladder()), "Consistency")
    assert none.startswith("Consistency regularisation: not confirmed. E1 against E0")
    assert "no difference seen" in none
    lost = sentence(analysed(ladder(E1=-0.2, E2=-0.2)), "Consistency")
    assert lost.startswith("Consistency regularisation: not confirmed. E1 against E0: +0.0")
    without = {name: one for name, one in ladder(E1=0.15).items() if name != "E2"}
    assert "E2 against E0: not compared (E2 was not run)" in sentence(analysed(without), "Consistency")
    del without["E0"]
    alone = sentence(analysed(without), "Consistency")
    assert alone.startswith("Consistency regularisation: cannot be judged. E1 against E0: not compared (E0 was not")


def test_a_gain_in_four_of_five_folds_confirms_nothing() -> None:
    rows = predictions(0.3)
    base = predictions(0)
    rows.loc[rows["fold"] == 2, "prediction"] = base["prediction"][rows["fold"] == 2] + 1e-6
    analysis = analysed({"E0": outcome("E0", base), "E1": outcome("E1", rows)})
    assert row(analysis, "E1")["per_fold_difference"]["2"] > 0
    assert "Consistency regularisation: not confirmed" in sentence(analysis, "Consistency")


def test_the_ensemble_is_near_the_best_published_or_not() -> None:
    outcomes = ladder()
    mae = row(analysed(outcomes), "E3")["mae_mean"]
    near = sentence(analysed(outcomes, published={"best": mae / 1.09, "dummy": 1.0}), "Ensemble")
    assert near.startswith("Ensemble: near the best, so distil it (the limit is 1.1 times). E3 has ")
    assert "1.09 times the lowest MAE published for the same test rows (best, " in near
    assert near.endswith("this is no leaderboard score.")
    comparable = sentence(analysed(outcomes, published={"best": mae / 1.09}, comparable=True), "Ensemble")
    assert "no leaderboard score" not in comparable
    far = sentence(analysed(outcomes, published={"best": mae / 1.12}), "Ensemble")
    assert far.startswith("Ensemble: not near the best, so do not distil it")
    unknown = sentence(analysed(outcomes), "Ensemble")
    assert "cannot be judged: give `published` predictions for these test rows" in unknown


def test_the_student_keeps_a_share_of_the_gain_if_there_is_one(full: Analysis) -> None:
    kept = re.search(r"E4 keeps (\d+)% of the ensemble's gain", sentence(full, "Distillation"))
    assert kept
    assert 40 <= int(kept[1]) <= 60
    same = ladder() | {"E4": outcome("E4", ladder()["E0"].predictions)}
    assert "E4 keeps nothing of" in sentence(analysed(same), "Distillation")
    gainless = sentence(analysed(ladder(E3=0.0)), "Distillation")
    assert gainless.startswith("Distillation: E3 shows no gain over E0 that a student could keep. E4 against E0: -")
    unjudged = {name: one for name, one in ladder().items() if name != "E3"}
    assert sentence(analysed(unjudged), "Distillation") == "Distillation: E4 cannot be judged: E3 was not run."


def test_multi_task_training_is_kept_or_dropped(full: Analysis) -> None:
    assert sentence(full, "Multi-task").startswith("Multi-task training: dropped. E5 against E0: ")
    assert sentence(analysed(ladder(E5=0.2)), "Multi-task").startswith("Multi-task training: kept. ")
    failed = ladder() | {"E5": outcome("E5", pd.DataFrame(), failed="no data")}
    assert "cannot be judged. E5 against E0: not compared (E5 failed)" in sentence(analysed(failed), "Multi-task")


def test_equal_cost_is_said_of_the_ensemble_and_of_the_student(full: Analysis) -> None:
    ensemble = sentence(full, "Equal cost of training, the ensemble")
    assert ensemble.endswith(": better. Prediction cost differs: 3 predictions per crystal against 1.")
    student = sentence(full, "Equal cost of use, the student")
    assert "E4 against E0: -0.0" in student
    assert student.endswith(" Training cost differs: with its teachers 4.0 times the structures.")
    none = sentence(analysed(ladder(L3=0.2)), "Equal cost of training, the ensemble")
    assert ": no difference seen." in none
    without = {name: one for name, one in ladder().items() if name != "L3"}
    assert sentence(analysed(without), "Equal cost of training").endswith(
        "E3 against L3: not compared (L3 was not run)."
    )


def test_no_lever_beats_noise_or_those_that_do_are_named(full: Analysis) -> None:
    nothing = analysed(ladder(E3=0.0, E4=0.0, E6=0.0))
    said = sentence(
        nothing,
        "No lever had an effect distinguishable from noise: none is better than its parent or than E0. The smallest ",
    )
    finest = re.search(
        r"detectable difference is (0\.\d+) eV/atom in a single comparison \((\w+) against (\w+)\)", said
    )
    assert finest
    assert finest[3] in ("E0", row(nothing, finest[2])["parent"])
    assert said.endswith("corrected for their number.")
    assert not [said for said in nothing.sentences if said.startswith("Better")]
    better = "Better than their parent: E3. Better than E0, which is not their parent: E4."
    assert sentence(full, "Better than") == better  # E4 is worse than the ensemble
    assert not [said for said in full.sentences if said.startswith("No lever")]


def test_a_gain_over_the_baseline_alone_is_not_called_noise() -> None:
    base = predictions(0, replicates=1)
    unsure = base.copy()
    fold = np.asarray(unsure["fold"])
    # E1 gains in some folds and loses in others; E2 gains a little everywhere, so that it beats E0 but not E1
    sizes = np.array([0.55, 1.3, 0.6, 1.2, 0.7])[fold]
    unsure["prediction"] = unsure["target"] + (base["prediction"] - base["target"]) * sizes
    steady = base.assign(prediction=base["target"] + (base["prediction"] - base["target"]) * 0.85)
    noisy = np.random.default_rng(5).normal(0, 1e-4, N)
    steady["prediction"] += noisy
    outcomes = {"E0": outcome("E0", base), "E1": outcome("E1", unsure), "E2": outcome("E2", steady)}
    analysis = analysed(outcomes)
    assert [row(analysis, name)["decision"] for name in ("E1", "E2")] == ["no difference seen", "no difference seen"]
    assert sentence(analysis, "Consistency").startswith("Consistency regularisation: confirmed.")
    assert sentence(analysis, "Better than") == "Better than E0, which is not their parent: E2."
    assert not [said for said in analysis.sentences if said.startswith("No lever")]
    del outcomes["E1"]  # and where the parent is missing
    assert sentence(analysed(outcomes), "Better than") == "Better than E0, which is not their parent: E2."


def test_a_control_that_is_the_baseline_counts_as_one() -> None:
    outcomes = {"E0": outcome("E0", predictions(0)), "E4": outcome("E4", predictions(0.2, seed=2))}
    outcomes["B1"] = outcome("B1", predictions(0.2, seed=3))
    said = sentence(analysed(outcomes), "Better than")
    assert said == "Better than E0, which is not their parent: E4, B1."


def test_marks_are_said_and_twins_have_sentences_of_their_own(full: Analysis) -> None:
    assert "E5 (12 auxiliary rows are test crystals and were KEPT)" in sentence(full, "Caveats")
    assert "E3-scratch against L3-scratch" in sentence(full, "scratch ladder: Equal cost of training, the ensemble")
    assert row(full, "E3-scratch")["parent"] == "E0-scratch"
    few = analysed({"E0": ladder()["E0"], "E5": ladder()["E5"]})
    assert [said.split()[0] for said in few.sentences] == ["Multi-task", "No"]


# the files


def test_published_predictions_are_told_apart_as_measured(shared_data: Path) -> None:
    name = "matbench_mp_e_form.csv.gz"
    table = pd.read_csv(shared_data / "matbench_predictions" / name)
    formulas = pd.read_csv(shared_data / "matbench_targets" / name).set_index("mbid")["composition"]
    systems = {row_id: chemical_system(formula) for row_id, formula in formulas.items()}
    rows = table.rename(columns={"mbid": "id", "e_form": "target"}).assign(replicate=0)

    def published(name: str, algorithm: str, parent: str | None) -> Outcome:
        kept = rows[["id", "fold", "replicate", "target"]].assign(prediction=rows[algorithm])
        return outcome(name, kept, parent=parent)

    outcomes = [published("A", "alignn", None), published("B", "coNGN", "A"), published("C", "coNGN", "B")]
    analysis = analyse(outcomes, systems, unit="eV/atom", n_resamples=300)
    better, same = row(analysis, "B"), row(analysis, "C")
    assert round(better["difference"], 4) == -0.0037
    assert better["decision"] == "better"
    assert round(row(analysis, "A")["mae_mean"], 4) == 0.0215
    assert round(better["detectable"], 4) == 0.0008
    assert (same["difference"], same["decision"]) == (0.0, "no difference seen")
