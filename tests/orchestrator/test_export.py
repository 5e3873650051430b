"""The model goes home: chgnet's own CHGNet loads it and says the same, and ASE gets energy, forces and stress."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from chgnet.model import CHGNet
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from table_data import refusal

import crystaltune as ct
from orchestrator.predict.export import export_run

pytestmark = pytest.mark.trains
CELL = Structure(
    Lattice([[4.1, 0.1, 0], [0, 4.3, 0.2], [0.1, 0, 4.0]]), ["Na", "Cl"], [[0.02, 0, 0.01], [0.5, 0.47, 0.52]]
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ct.Run:
    """Two folds of two seeds."""
    out = tmp_path_factory.mktemp("run") / "out"
    settings = {"optim.epochs": 1, "ensemble.members": 2}
    return ct.train("sample", limit=40, folds=[0, 1], settings=settings, out=out, device="cpu", progress=False)


@pytest.fixture(scope="module")
def cells() -> list[Structure]:
    return [cell.to_structure() for cell in ct.load_dataset("sample", limit=12, progress=False).structures]


def test_chgnet_loads_every_model_and_predicts_the_same(run: ct.Run, cells: list[Structure], tmp_path: Path) -> None:
    files = export_run(run.folder, tmp_path / "new")
    assert len(files) == 4
    ours = ct.load(run.folder, "cpu").predict(cells)
    theirs = [
        [float(CHGNet.from_file(str(file)).predict_structure(cell, task="e")["e"]) for cell in cells] for file in files
    ]
    np.testing.assert_allclose(np.mean(theirs, axis=0), ours, atol=2e-5)
    assert np.ptp(ours) > 0.1


def test_a_script_predicts_one_crystal_or_many_and_hears_of_bad_ones(run: ct.Run, cells: list[Structure]) -> None:
    model = ct.load(run.folder, "cpu")
    assert model.unit == "eV/atom"
    one = model.predict(cells[0])
    several = model.predict(cells[:3])
    assert one.shape == (1,)
    np.testing.assert_allclose(one, several[:1], atol=1e-6)
    atoms = AseAtomsAdaptor.get_atoms(cells[0])
    np.testing.assert_allclose(model.predict(atoms), one, atol=1e-5)
    table = model.table([cells[0], "not a crystal"])
    assert table["problem"].tolist()[1] == "neither a structure's text nor the path of a file"
    assert np.isnan(table["prediction"][1])


def test_forces_and_stress_are_derivatives_of_the_energy(run: ct.Run) -> None:
    calculator = ct.load(run.folder, "cpu").calculator()
    atoms = AseAtomsAdaptor.get_atoms(CELL)
    atoms.calc = calculator
    per_atom = ct.load(run.folder, "cpu").predict(CELL)[0]
    assert atoms.get_potential_energy() == pytest.approx(2 * per_atom, abs=1e-4)

    def energy(moved: Atoms) -> float:
        moved.calc = calculator
        return float(moved.get_potential_energy())

    forces, step = atoms.get_forces(), 0.01
    for atom, axis in ((0, 0), (1, 2)):
        found = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            found.append(energy(moved))
        assert forces[atom, axis] == pytest.approx(-(found[0] - found[1]) / (2 * step), abs=0.02)
    stress, found = atoms.get_stress(voigt=False), []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.set_cell(moved.cell.array @ (np.eye(3) + sign * 0.003 * np.diag([1, 0, 0])), scale_atoms=True)
        found.append(energy(moved))
    assert stress[0, 0] == pytest.approx((found[0] - found[1]) / (0.006 * atoms.get_volume()), abs=2e-3)


def test_what_chgnet_cannot_express_is_refused(tmp_path: Path, cells: list[Structure]) -> None:
    frame = pd.DataFrame({"structure": cells, "gap": np.linspace(0, 3, len(cells))})
    run = ct.train(
        frame, target="gap", folds=[0], settings={"optim.epochs": 1}, out=tmp_path / "out", device="cpu", progress=False
    )
    assert "only models of energies can go into CHGNet" in refusal(lambda: export_run(run.folder))
    assert not (run.folder / "chgnet").exists()


def test_a_model_of_all_rows_is_made_for_use_beside_the_folds(
    run: ct.Run, cells: list[Structure], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(run.folder, out)
    before = ct.load(out, "cpu").predict(cells)
    settings = {"optim.epochs": 1, "ensemble.members": 2}
    again = ct.train(
        "sample", limit=40, folds=[0, 1], settings=settings, out=out, device="cpu", progress=False, deploy=True
    )
    assert again.scores.mean == run.scores.mean  # the folds measure as before
    used = ct.load(out, "cpu")
    assert used.predict(cells).tolist() != before.tolist()
    assert len(export_run(out)) == 2
    assert sorted(file.name.split("-")[0] for file in (out / "chgnet").iterdir()) == ["all", "all"]
    table = used.table(cells)
    assert table["in_training"].any()
    assert ((table["low"] < table["prediction"]) & (table["prediction"] < table["high"])).all()
    width = table["high"] - table["low"]
    assert width.max() < 3 * width.min()  # of models that agree
    made = (out / "all" / "fold_0").stat().st_mtime_ns
    ct.train("sample", limit=40, folds=[0, 1], settings=settings, out=out, device="cpu", progress=False, deploy=True)
    assert (out / "all" / "fold_0").stat().st_mtime_ns >= made
    folds = [len(pd.read_parquet(file)) for file in out.glob("fold_*/predictions.parquet")]
    assert sum(folds) == len(pd.read_parquet(out / "predictions.parquet"))


def test_an_ensemble_and_its_student_may_be_of_all_rows_as_well(tmp_path: Path, cells: list[Structure]) -> None:
    settings = {"optim.epochs": 1, "distil.inner_folds": 2, "distil.seeds": 1}
    run = ct.ensemble(
        "sample",
        limit=40,
        folds=[0],
        seeds=2,
        distil=True,
        deploy=True,
        settings=settings,
        out=tmp_path / "out",
        device="cpu",
        progress=False,
    )
    assert run.student is not None
    assert [file.name[:3] for file in export_run(run.folder)] == ["all", "all"]
    assert [file.name for file in export_run(run.student.folder)] == ["all.pth.tar"]
    assert np.isfinite(ct.load(run.student.folder, "cpu").predict(cells)).all()
