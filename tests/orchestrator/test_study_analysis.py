"""What a study's trials are said to mean."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from study_report_data import ABOUT, BASE, FULL, Maker, changes_of, checked, curve, distributions, manifest, searched

from orchestrator.study.journal import Trial
from orchestrator.study.report.analysis import Analysis, analyse, best_config, failures_of, pareto_front
from orchestrator.study.report.importances import importances
from orchestrator.study.report.verdict import Checked, paired_margin
from trainables.config import RunConfig
from trainables.errors import UserError


def analysed(made: Maker, **changed: Any) -> Analysis:
    return analyse(manifest(**changed), made.trials(), distributions)


def of_seeds(*maes: float, first: int = 1) -> Checked:
    return Checked(1, maes, wanted=len(maes), seeds=tuple(range(first, first + len(maes))))


def test_the_margin_is_students_paired_by_seed() -> None:
    margin = paired_margin(of_seeds(43.0, 43.2, 42.8), of_seeds(44.0, 44.5, 43.5))
    # by hand: differences 1.0, 1.3, 0.7; SD 0.3, SE 0.3 / sqrt(3); t of 2 degrees of freedom is 4.30265
    assert margin is not None
    assert margin.difference == pytest.approx(1.0)
    assert margin.noise == pytest.approx(0.3)
    assert margin.se == pytest.approx(0.173205, abs=1e-6)
    assert (margin.low, margin.high) == (pytest.approx(1 - 0.745241, abs=1e-4), pytest.approx(1 + 0.745241, abs=1e-4))
    assert margin.beyond_noise
    tie = paired_margin(of_seeds(43.4, 44.4, 42.2), of_seeds(44.0, 44.5, 43.5))
    assert tie is not None
    assert not tie.beyond_noise


def test_only_seeds_that_both_have_are_compared() -> None:
    margin = paired_margin(of_seeds(1.0, 2.0, 3.0), of_seeds(2.5, 4.0, 9.0, first=2))
    assert margin is not None
    assert margin.difference == pytest.approx(0.75)  # seeds 2 and 3
    assert paired_margin(of_seeds(1.0), of_seeds(2.0, first=2)) is None


def test_one_seed_each_says_nothing_of_noise() -> None:
    margin = paired_margin(of_seeds(43.0), of_seeds(44.0))
    assert margin is not None
    assert (margin.difference, margin.noise, margin.low) == (1.0, None, None)
    assert not margin.beyond_noise


def test_seeds_that_change_nothing_say_nothing_of_noise(tmp_path: Path) -> None:
    """A first epoch of one whole batch from pretrained weights: every seed gives the same number."""
    verdict = analysed(checked(tmp_path, {"0": (44.0, 44.0, 44.0), "3": (43.0, 43.0, 43.0)})).verdict
    assert verdict is not None
    assert verdict.margin is not None
    assert (verdict.margin.difference, verdict.margin.noise, verdict.margin.low) == (1.0, 0.0, None)
    assert not verdict.beyond_noise
    assert "margin 1.00 meV/atom, the same with every seed, which says nothing about the seed noise" in verdict.sentence
    assert verdict.sentence.endswith("Treat it as a tie with E0.")


def test_the_winner_has_the_lowest_mean_of_its_checks_not_of_the_search(tmp_path: Path) -> None:
    maes = FULL | {"7": (43.4, 43.9, 43.2), "3": (43.0, 43.2, 42.8)}
    analysis = analysed(checked(tmp_path, maes))
    verdict = analysis.verdict
    assert verdict is not None
    assert min(analysis.searched.values(), key=lambda t: t.values[0] if t.values else 99).number == 7
    assert (verdict.winner, verdict.search_value, verdict.changes) == (3, 42.9, changes_of(3))
    assert verdict.check is not None
    assert verdict.check.maes == (43.0, 43.2, 42.8)
    assert (verdict.check.mean, verdict.check.sd) == (pytest.approx(43.0), pytest.approx(0.2))
    assert verdict.e0 is not None
    assert (verdict.e0.mean, verdict.e0.sd) == (44.0, 0.5)
    assert verdict.beyond_noise
    assert verdict.second is not None
    assert verdict.second_margin is not None
    assert (verdict.second.number, verdict.second_margin.difference) == (7, pytest.approx(0.5))
    assert analysis.sentences[:2] == [
        "Verdict: trial 3 has a validation MAE of 43.00 +- 0.20 against E0's 44.00 +- 0.50 meV/atom over 3 fresh "
        "seeds: margin 1.00 meV/atom (95 % interval 0.25 to 1.75), which is beyond the seed noise (SD of the "
        "differences 0.30).",
        "Second: trial 7 with 43.50 +- 0.36 meV/atom, 0.50 behind, beyond the seed noise.",
    ]
    assert "`crystaltune train` with best.yaml gives the score on test rows" in analysis.sentences[2]


def test_a_margin_within_the_noise_is_called_a_tie(tmp_path: Path) -> None:
    analysis = analysed(checked(tmp_path, {"E0": FULL["E0"], "7": (43.4, 44.4, 42.2)}))
    assert analysis.verdict is not None
    assert not analysis.verdict.beyond_noise
    assert "which is not beyond the seed noise" in analysis.sentences[0]
    assert analysis.sentences[0].endswith("Treat it as a tie with E0.")


def test_the_baseline_can_win(tmp_path: Path) -> None:
    analysis = analysed(checked(tmp_path, FULL | {"E0": (42.0, 42.1, 42.2)}))
    verdict = analysis.verdict
    assert verdict is not None
    assert (verdict.winner, verdict.margin, verdict.beyond_noise) == (0, None, False)
    assert verdict.second is not None
    assert verdict.second.number == 7
    assert analysis.sentences[0].startswith("Verdict: nothing beats the baseline. E0 has a validation MAE of 42.10")
    assert analysis.best == BASE.changed({"seed": 1})  # the first of its checks


def test_a_trial_with_a_failed_check_is_no_candidate_and_is_named(tmp_path: Path) -> None:
    made = checked(tmp_path, {"E0": FULL["E0"], "3": FULL["3"]})
    made.check(30, 7, 1, 40.0)
    made.check(31, 7, 2, 40.0)
    made.check(32, 7, 3, None, "the loss was nan")
    analysis = analysed(made)
    assert analysis.verdict is not None
    assert analysis.verdict.winner == 3
    assert any("trial 7 (2 of 3 seeds finished, 1 failed)" in sentence for sentence in analysis.sentences)
    assert [failure.numbers for failure in analysis.failures if failure.reason == "the loss was nan"] == [[32]]


@pytest.mark.parametrize("only_e0", [True, False])
def test_without_finished_checks_one_seed_chose_and_that_is_said(tmp_path: Path, only_e0: bool) -> None:
    made = checked(tmp_path, {"E0": FULL["E0"]}) if only_e0 else searched(tmp_path)
    changed = {} if only_e0 else {"checks": {"top": 0, "seeds": []}}
    analysis = analysed(made, **changed)
    assert analysis.verdict is not None
    assert (analysis.verdict.winner, analysis.verdict.search_value, analysis.verdict.check) == (7, 42.7, None)
    assert not analysis.verdict.beyond_noise
    why = "the checks are not finished" if only_e0 else "nothing was checked"
    assert f"42.70 meV/atom (E0: 44.20); this is based on one seed, and {why}" in analysis.sentences[0]


def test_a_study_of_failures_has_no_best(tmp_path: Path) -> None:
    made = Maker(tmp_path / "journal.jsonl")
    for number in range(3):
        made.trial(number, [math.nan], "FAIL", f"CUDA out of memory: {number}.5 GiB at 0x7f{number}a")
    analysis = analysed(made)
    assert (analysis.verdict, analysis.best, analysis.front) == (None, None, [])
    assert analysis.states == {"FAIL": 3}
    assert [(one.reason, one.numbers) for one in analysis.failures] == [("CUDA out of memory: N GiB at N", [0, 1, 2])]
    assert "no trial completed" in analysis.sentences[0]
    assert all(math.isnan(rung.best) and rung.reached == 0 for rung in analysis.rungs)


def test_reasons_group_where_only_numbers_differ_and_names_keep_theirs(tmp_path: Path) -> None:
    failures = failures_of(searched(tmp_path).trials().values())
    assert [(one.reason, one.numbers) for one in failures] == [
        ("the loss was nan at step N (lr=N)", [5, 11]),
        ("worker killed (out of memory)", [13]),
    ]
    assert failures[0].example == "the loss was nan at step 15 (lr=1e-05)"
    single = Trial(0, {}, {}, state="FAIL", reason="float32 overflow at step 3")
    assert failures_of([single])[0].reason == "float32 overflow at step 3"
    assert failures_of([single, replace(single, number=1, reason="float32 overflow at step 4")])[0].reason == (
        "float32 overflow at step N"
    )


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = {0: (44.0, 100.0), 1: (43.0, 200.0), 2: (43.5, 300.0), 3: (42.0, 300.0), 4: (44.0, 90.0), 5: (43.0, 200.0)}
    assert pareto_front(points) == [4, 1, 5, 3]
    assert pareto_front({}) == []


def test_rungs_count_who_came_and_who_went_no_further(tmp_path: Path) -> None:
    first, second, end = analysed(searched(tmp_path)).rungs
    assert (first.step, first.reached, first.stopped) == (4, 15, 3)
    assert (second.step, second.reached, second.stopped) == (12, 11, 2)
    assert (end.step, end.reached, end.stopped, end.best) == (36, 9, 0, 42.7)
    assert first.best == pytest.approx(curve(42.7, 4)[-1])


def test_saving_compares_with_all_trials_at_full_length(tmp_path: Path) -> None:
    saving = analysed(searched(tmp_path)).saving
    assert saving is not None
    # 9 complete of 3,600 structures, 3 stopped at step 4 and 2 at step 12 of 36, 100 structures a step
    assert (saving.structures, saving.full) == (9 * 3600 + 3 * 400 + 2 * 1200, 14 * 3600)
    assert saving.share == pytest.approx(1 - 36000 / 50400)


def test_the_best_configuration_is_the_base_with_its_changes_and_the_seed_that_is_repeated() -> None:
    trial = Trial(1, {"optim.lr": 3e-4, "multitask.tasks": []}, {}, seed=77)
    expected = RunConfig.model_validate(ABOUT["base"]).changed({"optim.lr": 3e-4, "seed": 5})
    assert best_config(manifest(), trial, 5) == expected
    with pytest.raises(UserError, match=r"optim\.lrr"):
        best_config(manifest(), replace(trial, changes={"optim.lrr": 1.0}), 5)


def made_points(n: int) -> list[tuple[Trial, float]]:
    """x decides everything, y is noise; z is only there in half of the trials; log is the same in all."""
    found = []
    for i in range(n):
        x, y = (i * 0.618) % 1, (i * 0.414) % 1
        z = {"z": 10 ** (-4 + 2 * ((i * 0.73) % 1))} if i % 2 else {}
        found.append((Trial(i, {}, {"x": x, "y": y, "which": "ab"[i % 2], "same": 1e-3, **z}), 10 * (x - 0.3) ** 2))
    return found


def made_distributions(trial: Trial) -> dict[str, optuna.distributions.BaseDistribution]:
    everything = {
        "x": FloatDistribution(0, 1),
        "y": FloatDistribution(0, 1),
        "z": FloatDistribution(1e-4, 1e-2, log=True),
        "which": CategoricalDistribution(["a", "b"]),
        "same": FloatDistribution(1e-4, 1e-2, log=True),
    }
    return {name: everything[name] for name in trial.params}


def test_importances_find_the_parameter_that_decides_with_conditional_ones_there() -> None:
    found = importances("MAE", made_points(40), made_distributions)
    assert not found.reasons
    for shares in (found.fanova, found.ped_anova):
        assert next(iter(shares)) == "x"
        assert set(shares) == {"x", "y", "z", "which"}
        assert sum(shares.values()) == pytest.approx(1)
    assert found.fanova["x"] > 0.6


def test_importances_leave_optunas_own_words_alone() -> None:
    before = optuna.logging.get_verbosity()
    importances("MAE", made_points(9), made_distributions)
    assert optuna.logging.get_verbosity() == before


def test_importances_that_make_no_sense_come_with_the_reason() -> None:
    few = importances("MAE", made_points(7), made_distributions)
    assert (few.fanova, few.reasons) == ({}, ["7 trials are too few for importances: 8 are needed"])
    flat = importances("MAE", [(trial, 1.0) for trial, _ in made_points(12)], made_distributions)
    assert flat.reasons == ["all 12 trials have the same value"]
    alike = [(replace(trial, params={"x": 0.5}), value) for trial, value in made_points(12)]
    assert importances("MAE", alike, made_distributions).reasons == ["no parameter differs between the trials"]
    outside = [(replace(trial, params={"x": 5.0 + value}), value) for trial, value in made_points(12)]
    wrong = importances("MAE", outside, made_distributions)
    assert (wrong.fanova, len(wrong.reasons)) == ({}, 2)


def test_stopped_trials_count_for_importances_only_at_the_first_rung(tmp_path: Path) -> None:
    ended, first = analysed(searched(tmp_path)).importances
    assert (ended.what, ended.n_trials) == ("MAE of the complete trials", 9)
    assert (first.what, first.n_trials) == ("MAE at step 4, stopped trials included", 14)
    assert first.fanova
