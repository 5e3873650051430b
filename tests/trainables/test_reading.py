"""Tables and files with what goes wrong in them when people bring their own: read rightly, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write
from format_data import CELLS, GAPS, IDS, atoms_of, optimade, poscar, require_cells, require_same, rows
from pymatgen.core import Lattice, Species, Structure
from said import Said
from table_data import refusal, saved

from trainables.crystals import Crystal
from trainables.data.bad_structures import BadStructure
from trainables.data.findings import findings
from trainables.data.own_table import dataset_of_frame, read_table
from trainables.data.structures import read_crystal
from trainables.data.to_predict import read_structures
from trainables.errors import UserError

CIFS = [cell.to(fmt="cif") for cell in CELLS]


def as_csv(**changes: Any) -> str:
    return pd.DataFrame({"id": IDS, "cif": CIFS, "gap": GAPS} | changes).to_csv(index=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_line_ends_of_old_computers_are_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(as_csv().replace("\n", "\r").encode())
    require_cells(tmp_path / "t.csv", tolerance=1e-3)


@pytest.mark.parametrize("name", ["POSCAR.csv", "poscars.csv", "Contcar_table.csv", "outcar.csv", "xdatcar.csv"])
def test_a_table_may_be_called_as_files_of_vasp_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(as_csv())
    require_cells(tmp_path / name, tolerance=1e-3)


def test_json_under_the_name_of_a_csv_is_json(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(json.dumps(rows()))
    require_cells(tmp_path / "t.csv")


@pytest.mark.parametrize("head", ["# written by hand\n# in eV\n", "#"])
def test_lines_above_the_names_may_begin_with_a_hash(tmp_path: Path, head: str) -> None:
    (tmp_path / "t.csv").write_text(head + as_csv())
    require_cells(tmp_path / "t.csv", tolerance=1e-3)


@pytest.mark.parametrize("second", ["gap", "gap "])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    (tmp_path / "t.csv").write_text(as_csv().replace("id,cif,gap", f"id,{second},gap"))
    assert "several columns named gap" in refusal(lambda: read_table(tmp_path / "t.csv", "mine", "gap"))


def test_it_is_said_which_of_several_structures_are_taken(tmp_path: Path) -> None:
    table, said = saved(tmp_path / "t.json", [row | {"cif": "?"} for row in rows()]), Said()
    assert len(read_table(table, "mine", "gap", progress=said)) == len(CELLS)
    assert "structures are those of column 'structure', not of cif" in said.lines


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_ids_may_be_the_index_of_a_table(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"cif": CIFS, "gap": GAPS}, index=IDS)
    path = tmp_path / f"t{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_json(path)
    require_cells(path, tolerance=1e-3)


def test_the_sheet_with_structures_is_read_and_two_of_them_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": IDS, "cif": CIFS, "gap": GAPS})
    for name, sheets in {"one": {"About": frame[["id"]], "Rows": frame}, "two": {"A": frame, "B": frame}}.items():
        with pd.ExcelWriter(tmp_path / f"{name}.xlsx") as book:
            for sheet, content in sheets.items():
                content.to_excel(book, sheet_name=sheet, index=False)
    require_cells(tmp_path / "one.xlsx", tolerance=1e-3)
    assert "2 sheets of rows (A, B)" in refusal(lambda: read_table(tmp_path / "two.xlsx", "mine", "gap"))


@pytest.mark.parametrize(
    "layout",
    [
        {"data": [{"id": i, "attributes": optimade(c) | {"gap": g}} for i, c, g in zip(IDS, CELLS, GAPS, strict=True)]},
        [
            {"entry_id": i, "structure": c.as_dict(), "energy": 1.0, "data": {"gap": g}}
            for i, c, g in zip(IDS, CELLS, GAPS, strict=True)
        ],
        {"mp-1": {i: {"structure": c.as_dict(), "gap": g} for i, c, g in zip(IDS, CELLS, GAPS, strict=True)}},
    ],
    ids=["OPTIMADE", "pymatgen's entries", "MPtrj"],
)
def test_values_one_level_deeper_are_found(tmp_path: Path, layout: Any) -> None:
    require_cells(saved(tmp_path / "t.json", layout))


def test_ase_s_database_in_json_is_a_table(tmp_path: Path) -> None:
    with connect(str(tmp_path / "t.json")) as book:
        for cell, gap in zip(CELLS, GAPS, strict=True):
            book.write(atoms_of(cell), gap=gap)
    dataset = read_table(tmp_path / "t.json", "mine", "gap")
    assert dataset.targets.tolist() == GAPS
    for crystal, cell in zip(dataset.structures, CELLS, strict=True):
        require_same(crystal, cell)


def test_cifs_as_bytes_are_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": IDS, "cif": [text.encode() for text in CIFS], "gap": GAPS})
    frame.to_parquet(tmp_path / "t.parquet")
    require_cells(tmp_path / "t.parquet", tolerance=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", b"PAR1" + b"\x00" * 40, "is Parquet under another name: rename it"),
        ("t.json", b'[{"id": 1,]', "is not JSON"),
        ("t.json", b'[{"id": 1, "ok": tr', "is truncated"),
        ("t.json", b"[]", "has no rows"),
        ("t.json", json.dumps([{"id": "\ud800", "structure": {}, "y": 1}]).encode(), "ids with broken characters"),
        ("t.json", json.dumps([{"id": "a", "structure": {}, "y": int("9" * 400)}]).encode(), "int too large"),
        ("t.csv", (f"1,2.5,{CIFS[0]!r}\n" * 3).encode(), "its first line"),
    ],
)
def test_it_is_called_by_its_name(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert told in refusal(lambda: read_table(tmp_path / name, "mine"))


@pytest.mark.parametrize("digits", ["٣.٥", "３.5"])
def test_digits_of_other_scripts_are_refused(tmp_path: Path, digits: str) -> None:
    (tmp_path / "t.csv").write_text(as_csv(gap=[digits] * len(IDS)))
    assert "cells that are no numbers" in refusal(lambda: read_table(tmp_path / "t.csv", "mine", "gap"))


# --- tables beside structure files ------------------------------------------------------------------------------------


def beside(folder: Path, text: str, name: str = "id_prop.csv") -> Path:
    for row_id, cif in zip(IDS, CIFS, strict=True):
        (folder / f"{row_id}.cif").write_text(cif)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("mark", [",", ";", "\t", " "])
@pytest.mark.parametrize("between", ["", "LiF"])
def test_id_prop_has_no_line_of_names(tmp_path: Path, mark: str, between: str) -> None:
    rows = [[i, *([between] if between else []), str(g)] for i, g in zip(IDS, GAPS, strict=True)]
    rows = rows[:5] if mark == " " else rows  # the last id has a blank
    dataset = read_table(beside(tmp_path, "\n".join(map(mark.join, rows))), "mine")
    assert dataset.ids == IDS[: len(rows)]
    assert dataset.targets.tolist() == GAPS[: len(rows)]
    for crystal, cell in zip(dataset.structures, CELLS, strict=False):
        require_same(crystal, cell, 1e-3)


@pytest.mark.parametrize("missing", ["", "n/a", "nan"])
def test_a_missing_first_value_is_no_name(tmp_path: Path, missing: str) -> None:
    lines = [f"{i},{missing if i == IDS[0] else g}" for i, g in zip(IDS, GAPS, strict=True)]
    told = refusal(lambda: read_table(beside(tmp_path, "\n".join(lines)), "mine"))
    assert "missing targets" in told
    assert IDS[0] in told


def test_a_line_of_names_is_known(tmp_path: Path) -> None:
    lines = ["id,gap", *(f"{i},{g}" for i, g in zip(IDS, GAPS, strict=True))]
    require_cells(beside(tmp_path, "\n".join(lines)), tolerance=1e-3)


def test_a_table_whose_ids_name_files_beside_it_needs_no_structures(tmp_path: Path) -> None:
    lines = ["id,gap", *(f"{i},{g}" for i, g in zip(IDS, GAPS, strict=True))]
    require_cells(beside(tmp_path, "\n".join(lines), "gaps.csv") / "gaps.csv", tolerance=1e-3)


def test_files_that_no_row_names_are_told(tmp_path: Path) -> None:
    said = Said()
    folder = beside(tmp_path, "\n".join(f"{i},{g}" for i, g in zip(IDS[1:], GAPS[1:], strict=True)))
    assert len(read_table(folder, "mine", progress=said)) == len(IDS) - 1
    assert f"1 structure files are not named in id_prop.csv: {folder / f'{IDS[0]}.cif'}" in said.lines


def test_one_file_of_each_folder_that_vasp_ran_in_is_read(tmp_path: Path) -> None:
    for row_id, cell in zip(IDS, CELLS, strict=True):
        (tmp_path / row_id).mkdir()
        (tmp_path / row_id / "POSCAR").write_text(poscar(cell.copy().scale_lattice(cell.volume * 1.2)))
        (tmp_path / row_id / "CONTCAR").write_text(poscar(cell))
    said = Said()
    found = read_structures(tmp_path, read_table_task(), progress=said)
    assert sorted(found.ids) == sorted(IDS)
    for row_id, crystal in zip(found.ids, found.dataset.structures, strict=True):
        require_same(crystal, CELLS[IDS.index(row_id)])
    assert f"{len(IDS)} files of VASP are left out" in said.lines[0]


def read_table_task() -> Any:
    from trainables.data.tasks import custom_task

    return custom_task("mine", "gap", "eV", "property")


# --- one crystal ------------------------------------------------------------------------------------------------------

VASP4 = "{}\n1.0\n4 0 0\n0 4 0\n0 0 4\n{}\nDirect\n0 0 0\n.5 .5 .5\n"


@pytest.mark.parametrize("title", ["Na Cl", "NaCl", "Na  Cl "])
def test_a_poscar_of_vasp_4_names_its_elements_in_its_title(title: str) -> None:
    assert read_crystal(VASP4.format(title, "1 1"), Path()).numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("title", "counts"),
    [
        ("POSCAR", "1 1"), ("CONTCAR", "1 1"), ("FCC", "1 1"), ("BCC", "2"), ("PBE", "1 1"), ("SCAN", "1 1"),
        ("In house Cs Cl", "1 1"), ("Na K Cl", "1 1"), ("my cell from 1998", "1 1"), ("Na", "1 1"), ("", "1 1"),
        ("Na Na", "1 1"), ("Xx Cl", "1 1"),
    ],
)  # fmt: skip
def test_elements_are_not_made_up_from_a_title(title: str, counts: str) -> None:
    with pytest.raises(BadStructure, match="a POSCAR without a line of elements"):
        read_crystal(VASP4.format(title, counts), Path())


def test_several_frames_in_a_cell_are_not_its_last(tmp_path: Path) -> None:
    write(tmp_path / "t.extxyz", [atoms_of(cell) for cell in CELLS[:2]])
    with pytest.raises(BadStructure, match="text of several structures"):
        read_crystal((tmp_path / "t.extxyz").read_text(), Path())


def test_a_cif_without_line_ends_is_called_so() -> None:
    with pytest.raises(BadStructure, match="a CIF whose line ends were lost"):
        read_crystal(" ".join(CIFS[0].split("\n")), Path())


def test_a_cif_of_an_unknown_space_group_is_not_read_as_p1() -> None:
    lines = [
        line.replace("'P 1'", "'Q 77'").replace("_Int_Tables_number   1", "_Int_Tables_number   999")
        for line in CIFS[0].split("\n")
    ]
    start = next(place for place, line in enumerate(lines) if "_symmetry_equiv_pos_site_id" in line)
    end = next(place for place, line in enumerate(lines) if "_atom_site_type_symbol" in line)
    with pytest.raises(BadStructure, match="a space group that pymatgen does not know"):
        read_crystal("\n".join(lines[: start - 1] + lines[end - 1 :]), Path())


def test_paths_may_be_written_from_here_or_with_backslashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifs").mkdir()
    (tmp_path / "cifs" / "a.cif").write_text(CIFS[0])
    require_same(read_crystal("cifs\\a.cif", tmp_path), CELLS[0], 1e-3)
    monkeypatch.chdir(tmp_path)
    require_same(read_crystal("cifs/a.cif", tmp_path / "cifs"), CELLS[0], 1e-3)


# --- what a crystal does not hold -------------------------------------------------------------------------------------

SALT = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def charged() -> Structure:
    return SALT.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})


def magnetic() -> Structure:
    cell = Structure(SALT.lattice, ["Fe", "O"], SALT.frac_coords)
    cell.add_site_property("magmom", [2.3, 0.0])
    return cell


def spinning() -> Structure:
    return Structure(SALT.lattice, [Species("Fe", 2, spin=4), Species("O", -2)], SALT.frac_coords)


def heavy() -> Structure:
    return Structure(SALT.lattice, ["Li", "D"], SALT.frac_coords)


def with_d(cell: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(cell).replace('"element": "H"', '"element": "D"'))


def ase_of(charges: bool = False, moments: bool = False, pbc: bool = True) -> Atoms:
    atoms = Atoms("NaCl", scaled_positions=SALT.frac_coords, cell=[4, 4, 4], pbc=pbc)
    if charges:
        atoms.set_initial_charges([1, -1])
    if moments:
        atoms.set_initial_magnetic_moments([1, 0])
    return atoms


@pytest.mark.parametrize(
    ("cell", "left_out"),
    [
        (SALT, set()), (SALT.as_dict(), set()), (ase_of(), set()),
        (charged(), {"charges"}), (charged().as_dict(), {"charges"}), (charged().to(fmt="cif"), {"charges"}),
        (ase_of(charges=True), {"charges"}), (magnetic(), {"magnetic moments"}),
        (magnetic().as_dict(), {"magnetic moments"}), (spinning(), {"charges", "magnetic moments"}),
        (spinning().as_dict(), {"charges", "magnetic moments"}), (ase_of(moments=True), {"magnetic moments"}),
        (heavy(), {"isotopes"}), (with_d(heavy().as_dict()), {"isotopes"}),
        (heavy().to(fmt="cif").replace("H", "D"), {"isotopes"}),
        (heavy().to(fmt="poscar").replace("H", "D"), {"isotopes"}), (ase_of(pbc=False), {"not periodic"}),
    ],
)  # fmt: skip
def test_what_a_source_says_beside_the_crystal_is_known(cell: Any, left_out: set[str]) -> None:
    crystal = read_crystal(cell, Path())
    assert crystal.left_out == left_out
    assert len(crystal.numbers) == 2


def test_check_says_what_is_done_with_each() -> None:
    cells = [charged(), magnetic(), heavy(), ase_of(pbc=False), *(SALT.copy().perturb(0.1) for _ in range(8))]
    frame = pd.DataFrame({"structure": pd.Series(cells, dtype=object), "y": np.arange(12.0)})
    dataset = dataset_of_frame(frame, "mine", "y")
    told = {finding.text: finding.ids for finding in findings(dataset)}
    for words, ids in (
        ("oxidation states and charges are left out", ("0",)), ("magnetic moments are left out", ("1",)),
        ("deuterium and tritium are read as hydrogen", ("2",)), ("are read as periodic", ("3",)),
    ):  # fmt: skip
        assert [found for text, found in told.items() if words in text] == [ids]
    assert dataset.take(np.arange(1, 3)).left_out == {"magnetic moments": ("1",), "isotopes": ("2",)}
    assert (
        dataset.digest
        == dataset_of_frame(
            frame.assign(structure=[Crystal.to_structure(crystal) for crystal in dataset.structures]), "mine", "y"
        ).digest
    )


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "others", "said"),
    [
        ([-999.0, -999.0], [0.1, 1.3, 2.2, 0.7], "2 targets are -999"),
        ([99999.0], [0.0] * 8, "1 target is 99999"),
        ([-9999.0, 1e30], [3.0, 4.0, 5.0], "2 targets are -9999, 1e+30"),
        ([999.0], [150.0, 900.0, 1200.0, 700.0], None),
        ([1000.0], [1.0, 2000.0, 300.0], None),
    ],
)
def test_marks_of_missing_values_are_told(marks: list[float], others: list[float], said: str | None) -> None:
    rng = np.random.default_rng(0)
    cells = [SALT.copy().perturb(float(rng.uniform(0.05, 0.2))) for _ in [*marks, *others]]
    frame = pd.DataFrame({"structure": pd.Series(cells, dtype=object), "y": [*marks, *others]})
    told = [each.text for each in findings(dataset_of_frame(frame, "mine", "y"))]
    marked = [text.removesuffix(", which looks like a mark of missing values") for text in told if "a mark of" in text]
    assert marked == ([said] if said else [])


def test_a_unit_in_the_column_s_name_is_compared_with_the_one_that_is_given() -> None:
    cells = [SALT.copy().perturb(0.1) for _ in range(4)]
    frame = pd.DataFrame({"structure": pd.Series(cells, dtype=object), "gap (meV)": [1.0, 2.0, 3.0, 4.0]})
    for unit, n in (("eV", 1), ("meV", 0), ("", 0)):
        told = findings(dataset_of_frame(frame, "mine", "gap (meV)", unit=unit))
        assert sum("but the unit is given as" in each.text for each in told) == n


def test_folds_of_one_s_own_name_at_least_one_fold(tmp_path: Path) -> None:
    from trainables.data.own_table import TableOptions

    path = saved(tmp_path / "t.json", [row | {"fold": None} for row in rows()])
    with pytest.raises(UserError, match="column 'fold' names no fold"):
        read_table(path, "mine", "gap", options=TableOptions(fold="fold"))
