"""Rows and crystals as a script has them: looked at before training, tested on, predicted, given to ASE."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure
from said import Said
from small_data import rocksalts
from table_data import refusal

import crystaltune as ct

CELLS = rocksalts(24)
SMALL: dict[str, Any] = {"optim.epochs": 1, "model.start": "scratch", "model.width": 8}


def frame(cells: list[Structure]) -> pd.DataFrame:
    return pd.DataFrame(
        {"structure": cells, "gap": [cell.volume / len(cell) / 20 for cell in cells]},
        index=[f"c{place}" for place in range(len(cells))],
    )


# --- looking ----------------------------------------------------------------------------------------------------------


def test_check_tells_facts_and_findings() -> None:
    table = frame([*CELLS, CELLS[0]]).assign(gap=[*range(24), 3.0])
    found = ct.check(table, target="gap", unit="eV", progress=False)
    assert found.ok
    assert found.facts["rows"].startswith("25, of 24 formulas")
    twice = next(each for each in found.findings if "several labels" in each.text)
    assert (twice.level, twice.ids) == ("warning", ("c0", "c24"))
    assert found.table["level"].tolist() == [each.level for each in found.findings]
    assert "1 crystal has several labels" in repr(found)
    assert "<table" in found._repr_html_()


def test_check_says_what_has_to_be_corrected_first(tmp_path: Path) -> None:
    table = frame(CELLS)
    table.loc["c3", "gap"] = np.nan
    found = ct.check(table, target="gap", progress=False)
    assert not found.ok
    assert [(each.level, each.ids) for each in found.findings] == [("error", ("c3",))]
    assert found.facts == {}
    assert "did you mean 'gap'?" in refusal(lambda: ct.check(table, target="gab", progress=False))
    with pytest.raises(TypeError, match="did you mean 'target'"):
        ct.check(table, targte="gap")  # type: ignore[call-arg]


# --- testing and predicting -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ct.Run:
    """Trained on 20 crystals, tested on four that are a DataFrame."""
    out = tmp_path_factory.mktemp("run") / "out"
    return ct.train(
        frame(CELLS[:20]), target="gap", test=frame(CELLS[20:]).rename(index=lambda name: f"test-{name}"),
        settings=SMALL, out=out, device="cpu", progress=False,
    )  # fmt: skip


@pytest.mark.trains
def test_rows_to_test_on_may_be_a_table_in_memory(run: ct.Run) -> None:
    tested = pd.read_parquet(run.folder / "predictions.parquet")
    assert sorted(tested["id"]) == [f"test-c{place}" for place in range(4)]
    turned = CELLS[0].get_reduced_structure(reduction_algo="LLL") * (1, 1, 2)
    leak = frame([turned])
    assert "crystals that are trained on" in refusal(
        lambda: ct.train(
            frame(CELLS[:20]),
            target="gap",
            test=leak.rename(index=str.upper),
            out=run.folder.with_name("no"),
            progress=False,
        )
    )


@pytest.mark.trains
def test_a_model_takes_crystals_in_every_form(run: ct.Run, tmp_path: Path) -> None:
    model, cells = ct.load(run.folder, "cpu"), CELLS[:3]
    wanted = model.predict(cells)
    assert wanted.shape == (3,)
    table = frame(cells)
    table.assign(structure=[json.dumps(cell.as_dict()) for cell in cells]).to_csv(tmp_path / "t.csv")
    atoms = [
        Atoms([s.symbol for s in c.species], scaled_positions=c.frac_coords, cell=c.lattice.matrix, pbc=True)
        for c in cells
    ]
    for place, cell in enumerate(cells):
        cell.to(filename=str(tmp_path / f"{place}.vasp"), fmt="poscar")
    files = sorted(tmp_path.glob("*.vasp"))
    dictionaries = [cell.as_dict() for cell in cells]
    named = (tmp_path / "t.csv", str(tmp_path / "t.csv"), files, tmp_path / "*.vasp")
    for given in (table, *named, iter(cells), tuple(atoms), dictionaries):
        found = model.predict(given)
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=str(type(given)))
    for one in (cells[0], atoms[0], cells[0].as_dict(), files[0], files[0].read_text()):
        np.testing.assert_allclose(model.predict(one), wanted[:1], atol=1e-5, err_msg=str(type(one)))
        assert len(run.predict(one, device="cpu", progress=False)) == 1
    assert "`data` of type int" in refusal(lambda: model.predict(5))


@pytest.mark.trains
def test_predictions_that_are_guesses_are_told(run: ct.Run) -> None:
    said = Said()
    lattice = Lattice.cubic(5.0)
    cells = [
        Structure(lattice, ["Xe", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(lattice, ["Li", "O"], [[0, 0, 0], [0.13, 0, 0]]),
        CELLS[0],
    ]
    found = run.predict(cells, device="cpu", progress=said)
    assert found["in_training"].tolist() == [False, False, True]
    assert any("the run has no row with" in line and "Xe" in line and "(0)" in line for line in said.lines)
    assert any("atoms closer than half the sum" in line and "(1)" in line for line in said.lines)
    assert any("no intervals: the run has 4 test rows" in line for line in said.lines)
    assert found["low"].isna().all()


@pytest.mark.trains
def test_ase_is_told_in_one_line_what_the_models_cannot_take(tmp_path: Path) -> None:
    run = ct.train("sample", limit=20, folds=[0], settings=SMALL | {"model.start": "0.3.0", "model.width": 64},
                   out=tmp_path / "out", device="cpu", progress=False)  # fmt: skip
    calculator = ct.load(run.folder, "cpu").calculator()
    salt = Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[4, 4, 4], pbc=True)
    salt.calc = calculator
    assert np.isfinite(salt.get_potential_energy())
    for changes, words in (
        ({"pbc": False}, "set atoms.pbc = True"),
        ({"pbc": (True, True, False)}, "less than 6 A of vacuum"),
        ({"cell": [0, 0, 0]}, "no lattice"),
        ({"numbers": [99, 17]}, "elements CHGNet does not know"),
        ({"scaled_positions": [[0, 0, 0], [0.05, 0, 0]]}, "overlapping atoms"),
        ({"cell": [40, 40, 40]}, "CHGNet cannot evaluate these atoms"),
    ):
        given: dict[str, Any] = {
            "numbers": [11, 17],
            "scaled_positions": [[0, 0, 0], [0.5] * 3],
            "cell": [4, 4, 4],
            "pbc": True,
        }
        atoms = (
            Atoms(**given | changes)
            if "cell" not in changes
            else Atoms([11, 17], positions=[[0, 0, 0], [9, 9, 9]], pbc=True, cell=changes["cell"])
        )
        atoms.calc = calculator
        assert words in refusal(atoms.get_potential_energy)
