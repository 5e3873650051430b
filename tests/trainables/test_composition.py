"""Least squares on atomic fractions, with known answers."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from trainables.crystals import SYMBOLS
from trainables.data.composition import CompositionModel
from trainables.data.folds import N_FOLDS, official_test_folds

NUMBER_OF = {symbol: z for z, symbol in enumerate(SYMBOLS)}


def fractions(formulas: pd.Series) -> NDArray[np.float64]:
    """(n, 119) from full formulas such as "Hf2 Si2 Te2"."""
    counts = np.zeros((len(formulas), len(SYMBOLS)))
    for row, formula in enumerate(formulas):
        for symbol, amount in re.findall(r"([A-Z][a-z]?)(\d+)", formula):
            counts[row, NUMBER_OF[symbol]] += int(amount)
    return counts / counts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("task", "target", "mae"), [("matbench_mp_e_form", "e_form", 0.4417), ("matbench_mp_gap", "gap pbe", 0.9347)]
)
def test_composition_alone_reproduces_the_known_error_on_the_official_folds(
    shared_data: Path, task: str, target: str, mae: float
) -> None:
    table = pd.read_csv(shared_data / "matbench_targets" / f"{task}.csv.gz")
    composition, targets = fractions(table["composition"]), table[target].to_numpy()
    fold = official_test_folds(len(table))
    errors = []
    for number in range(N_FOLDS):
        train, test = fold != number, fold == number
        model = CompositionModel.fit(composition[train], targets[train])
        errors.append(np.abs(model.predict(composition[test]) - targets[test]).mean())
    assert round(float(np.mean(errors)), 4) == mae


def test_exact_coefficients_are_found_and_absent_elements_carry_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros(119)
    truth[[8, 22, 38]] = [-1.5, 0.25, 3.0]
    composition = np.zeros((20, 119))
    composition[:, [8, 22, 38]] = rng.dirichlet(np.ones(3), size=20)
    model = CompositionModel.fit(composition, composition @ truth)
    np.testing.assert_allclose(model.coefficients, truth, atol=1e-12)
    np.testing.assert_allclose(model.predict(np.eye(119)[[38, 50]]), [3.0, 0.0], atol=1e-12)


def test_elements_that_never_part_share_what_they_explain() -> None:
    composition = np.zeros((3, 119))
    composition[:, [11, 17]] = 0.5
    model = CompositionModel.fit(composition, np.array([2.0, 2.0, 2.0]))
    assert model.coefficients[11] == pytest.approx(model.coefficients[17])
    np.testing.assert_allclose(model.predict(composition), 2.0)
