"""What people have: tables of any dialect and layout, structure files of any program, folders of them."""

import gzip
import json
import sqlite3  # noqa: F401 - ASE's database
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar
from small_data import rocksalts
from table_data import CUBE, OWN, refusal, saved

from trainables.crystals import Crystal
from trainables.data.own_table import TableOptions, read_table
from trainables.data.structures import BadStructure, read_crystal
from trainables.data.to_predict import read_structures
from trainables.errors import UserError

CELLS = rocksalts(6)
GAPS = [0.5, 1.25, 2.0, 3.5, 4.0, 7.75]
IDS = ("007", "NaN", "1e5", "NA", "None", "a b")  # words that readers of tables like to take for something else


def atoms_of(cell: Structure) -> Atoms:
    symbols = [site.specie.symbol for site in cell]
    return Atoms(symbols, scaled_positions=cell.frac_coords, cell=cell.lattice.matrix, pbc=True)


def poscar(cell: Structure) -> str:
    return str(Poscar(cell).get_str(significant_figures=16))


def plain_dict(cell: Structure) -> dict[str, Any]:
    """Without empty dictionaries, which Parquet cannot hold."""
    return json.loads(json.dumps(cell.as_dict()).replace(', "properties": {}', "").replace('"properties": {}, ', ""))


def jarvis(cell: Structure) -> dict[str, Any]:
    symbols = [site.specie.symbol for site in cell]
    return {
        "lattice_mat": cell.lattice.matrix.tolist(),
        "coords": cell.frac_coords.tolist(),
        "elements": symbols,
        "cartesian": False,
        "props": [""] * len(cell),
    }


def ase_dict(cell: Structure) -> dict[str, Any]:
    atoms = atoms_of(cell)
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": [True, True, True],
    }


def optimade(cell: Structure) -> dict[str, Any]:
    symbols = [site.specie.symbol for site in cell]
    kinds = [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in set(symbols)]
    return {
        "lattice_vectors": cell.lattice.matrix.tolist(),
        "cartesian_site_positions": cell.cart_coords.tolist(),
        "species_at_sites": symbols,
        "species": kinds,
        "dimension_types": [1, 1, 1],
    }


def rows(structure: Callable[[Structure], Any] = Structure.as_dict) -> list[dict[str, Any]]:
    return [
        {"id": row_id, "structure": structure(cell), "gap": gap}
        for row_id, cell, gap in zip(IDS, CELLS, GAPS, strict=True)
    ]


def require_cells(
    path: Path, *, ids: tuple[str, ...] | None = IDS, target: str = "gap", tolerance: float = 1e-6
) -> None:
    """All six crystals with their ids and targets, in their order."""
    dataset = read_table(path, "mine", target)
    assert ids is None or dataset.ids == ids
    assert dataset.targets.tolist() == GAPS
    for crystal, cell in zip(dataset.structures, CELLS, strict=True):
        require_same(crystal, cell, tolerance)


def require_same(crystal: Crystal, cell: Structure, tolerance: float = 1e-6) -> None:
    """The same crystal, whatever the order of its atoms and, beyond a tolerance of 1e-6, of its cell's axes."""
    expected = Crystal.from_structure(cell)
    if tolerance > 1e-6:
        assert crystal.to_structure().matches(cell)
        assert abs(np.linalg.det(crystal.lattice)) == pytest.approx(cell.volume, rel=1e-5)
        return
    np.testing.assert_allclose(crystal.lattice, expected.lattice, atol=tolerance)
    order, other = np.argsort(crystal.numbers), np.argsort(expected.numbers)
    assert crystal.numbers[order].tolist() == expected.numbers[other].tolist()
    apart = crystal.frac[order] - expected.frac[other]
    np.testing.assert_allclose(apart - np.round(apart), 0, atol=tolerance)


# --- one cell ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda cell: cell,
        Structure.as_dict,
        lambda cell: {"structure": cell.as_dict(), "energy": 1.0, "@class": "ComputedStructureEntry"},
        lambda cell: json.dumps(cell.as_dict()),
        lambda cell: str(cell.as_dict()),
        atoms_of,
        ase_dict,
        lambda cell: str(ase_dict(cell)),
        jarvis,
        lambda cell: str(jarvis(cell)),
        optimade,
        lambda cell: {"attributes": optimade(cell)},
        lambda cell: poscar(cell),
        lambda cell: "\ufeff" + poscar(cell).replace("\n", "\r\n"),
    ],
    ids=lambda form: getattr(form, "__name__", ""),
)
def test_a_cell_may_hold_a_crystal_in_any_form(form: Callable[[Structure], Any]) -> None:
    for cell in CELLS:
        require_same(read_crystal(form(cell), Path()), cell)


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_cif_text_may_have_any_line_ends_even_as_two_characters() -> None:
    text = CUBE.to(fmt="cif")
    for changed in (text, text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.replace("\n", "\\n")):
        require_same(read_crystal(changed, Path()), CUBE, 1e-5)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (str(CUBE), "printed structures"),
        (repr(CUBE), "printed structures"),
        (str(atoms_of(CUBE)), "printed structures"),
        ("2\n\nH 0 0 0\nH 0 0 0.7\n", "a molecule"),
        ({"species": ["H"], "sites": []}, "a molecule"),
        ({"numbers": [1], "positions": [[0, 0, 0]], "cell": [[0, 0, 0]] * 3}, "a molecule"),
        (CUBE.to(fmt="cif") + CUBE.to(fmt="cif").replace("data_Po", "data_two"), "several structures"),
        ("some words\nand more", "neither CIF, POSCAR"),
        ("a word", "neither a structure's text nor the path of a file"),
        ("missing.cif", "a structure file that does not exist"),
        ({"a": 1}, "which is no crystal's"),
        ([1, 2], "a list, not a pymatgen Structure"),
    ],
)
def test_what_is_no_crystal_is_called_by_its_name(cell: Any, told: str) -> None:
    with pytest.raises(BadStructure, match=told):
        read_crystal(cell, Path())


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_a_cif_that_says_another_formula_than_its_sites_is_refused() -> None:
    cell = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text = cell.to(fmt="cif")
    require_same(read_crystal(text, Path()), cell, 1e-5)
    wrong = text.replace("_chemical_formula_sum   'Na1 Cl1'", "_chemical_formula_sum   'Na2 Cl1'")
    assert wrong != text
    with pytest.raises(BadStructure, match="whose formula is not that of its sites"):
        read_crystal(wrong, Path())


@pytest.mark.parametrize(("height", "fits"), [(20.0, True), (6.1, True), (5.9, False)])
def test_a_layer_is_taken_where_its_images_do_not_see_each_other(height: float, fits: bool) -> None:
    layer = Structure(Lattice(np.diag([3.0, 3.0, height]), pbc=(True, True, False)), ["C"], [[0, 0, 0.5]])
    for form in (layer, layer.as_dict()):
        if fits:
            assert len(read_crystal(form, Path()).numbers) == 1
        else:
            with pytest.raises(BadStructure, match="less than 6 A of vacuum"):
                read_crystal(form, Path())


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_may_have_any_separator_and_mark(tmp_path: Path, separator: str, encoding: str) -> None:
    frame = pd.DataFrame(rows(lambda cell: json.dumps(cell.as_dict())))
    text = frame.to_csv(index=False, sep=separator, lineterminator="\r\n")
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    require_cells(tmp_path / "t.csv")


def test_a_decimal_comma_is_read_where_commas_separate_nothing(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(lambda cell: json.dumps(cell.as_dict()))).assign(
        gap=[str(g).replace(".", ",") for g in GAPS]
    )
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";")
    require_cells(tmp_path / "t.csv")
    frame.to_csv(tmp_path / "t.csv", index=False)
    message = refusal(lambda: read_table(tmp_path / "t.csv", "mine", "gap"))
    assert "6 cells that are no numbers, such as '0,5': write decimals with a point" in message


def by_columns(table: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in table] for name in table[0]}


@pytest.mark.parametrize(
    "layout",
    [
        lambda table: table,
        by_columns,
        lambda table: {"data": table},
        lambda table: {row["id"]: {"structure": row["structure"], "gap": row["gap"]} for row in table},
        lambda table: {"index": [1] * 6, "columns": list(table[0]), "data": [list(row.values()) for row in table]},
        lambda table: {name: dict(enumerate(column)) for name, column in by_columns(table).items()},
    ],
    ids=["records", "columns", "data", "by id", "split", "pandas columns"],
)
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_json_may_have_any_layout(tmp_path: Path, layout: Callable[[Any], Any], suffix: str) -> None:
    content = json.dumps(layout(rows())).encode()
    (tmp_path / f"t{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    require_cells(tmp_path / f"t{suffix}")


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json", "t.jsonl.gz"])
def test_json_lines_are_read_also_under_json_s_name(tmp_path: Path, name: str) -> None:
    content = "\n".join(map(json.dumps, rows())).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    require_cells(tmp_path / name)


@pytest.mark.parametrize("form", [plain_dict, lambda cell: json.dumps(cell.as_dict())], ids=["dict", "text"])
def test_parquet_is_read(tmp_path: Path, form: Callable[[Structure], Any]) -> None:
    pd.DataFrame(rows(form)).to_parquet(tmp_path / "t.parquet")
    require_cells(tmp_path / "t.parquet")


def test_excel_is_read_and_cells_that_it_cut_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(lambda cell: json.dumps(cell.as_dict())))
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    require_cells(tmp_path / "t.xlsx")
    frame.assign(structure="x" * 32_767).to_excel(tmp_path / "t.xlsx", index=False)
    assert "Excel cut cells of column 'structure'" in refusal(lambda: read_table(tmp_path / "t.xlsx", "mine", "gap"))


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("Material ID", "Structure"), TableOptions()),
        (("JID", "atoms"), TableOptions()),
        (("mp-id", "POSCAR"), TableOptions()),
        (("label", "geometry"), TableOptions(id="label", structure="geometry")),
    ],
)
def test_columns_are_known_by_the_names_of_the_field(
    tmp_path: Path, names: tuple[str, str], options: TableOptions
) -> None:
    renamed = [{names[0]: row["id"], names[1]: row["structure"], "gap": row["gap"]} for row in rows()]
    dataset = read_table(saved(tmp_path / "t.json", renamed), "mine", options=options)
    assert (dataset.ids, dataset.task.target) == (IDS, "gap")


def test_a_column_that_was_named_and_is_not_there_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.json", rows())
    told = refusal(lambda: read_table(path, "mine", options=TableOptions(id="ids")))
    assert "`id=ids`: " in told
    assert "no such column (did you mean 'id'?)" in told


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    table = [{"structure": row["structure"], "gap": row["gap"]} for row in rows()]
    assert read_table(saved(tmp_path / "t.json", table), "mine").ids == tuple("012345")


def test_rows_without_a_target_are_left_out_if_that_is_asked_for(tmp_path: Path) -> None:
    table = [row | {"gap": gap} for row, gap in zip(rows(), [0.5, "", "nan", "N/A", "-", 7.75], strict=True)]
    path = saved(tmp_path / "t.json", table)
    assert "missing targets (`drop_missing=True` leaves such rows out): NaN, 1e5, NA, None" in refusal(
        lambda: read_table(path, "mine", "gap")
    )
    dataset = read_table(path, "mine", "gap", options=TableOptions(drop_missing=True))
    assert (dataset.ids, dataset.targets.tolist()) == (("007", "a b"), [0.5, 7.75])


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["metal"] * 6, "such as 'metal': only numbers can be predicted"),
        (["2.7 eV"] * 6, "such as '2.7 eV': leave units out of the cells"),
        ([True, False] * 3, "true and false are a classification"),
        ([[1.0]] * 6, "such as '[1.0]'"),
    ],
)
def test_targets_that_are_no_numbers_are_told_in_their_own_words(tmp_path: Path, cells: list[Any], told: str) -> None:
    table = [row | {"gap": cell} for row, cell in zip(rows(), cells, strict=True)]
    assert told in refusal(lambda: read_table(saved(tmp_path / "t.json", table), "mine", "gap"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.pkl", b"\x80\x04.", "is a pickle, which may run any code"),
        ("t.xls", b"\xd0\xcf", "save it as .xlsx or CSV"),
        ("t.zip", b"PK", "is an archive: unpack it"),
        ("t.h5", b"\x89HDF", "holds arrays"),
        ("t.csv", b"", "is empty"),
        ("t.json", b"  \n", "is empty"),
        ("t.json", b'[{"id": 1, ', "is truncated: its JSON ends in the middle"),
        ("t.json", b'{"id" 1}', "is not JSON: Expecting ':' delimiter in line 1, column 7"),
        ("t.json", b"5", "holds a int: a list of records was expected"),
        ("t.jsonl", b'{"id": 1}\n{"id"', "line 2 is not JSON"),
        ("t.csv", bytes(range(256)), "is no text"),
        ("t.parquet", b"PAR1", "cannot be read as Parquet"),
        ("t.json.gz", gzip.compress(b"[" + b"1," * 9000)[:40], "is truncated"),
    ],
)
def test_what_cannot_be_read_is_called_by_its_name(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: read_table(tmp_path / name, "mine"))
    assert told in message
    assert str(tmp_path / name) in message
    assert "\n" not in message


# --- structure files and folders -------------------------------------------------------------------------------------


def as_cif(folder: Path, row_id: str, cell: Structure) -> None:
    (folder / f"{row_id}.cif").write_text(cell.to(fmt="cif"))


def as_poscar(folder: Path, row_id: str, cell: Structure) -> None:
    (folder / f"POSCAR-{row_id}.vasp").write_text(poscar(cell))


def as_folder(folder: Path, row_id: str, cell: Structure) -> None:
    (folder / row_id).mkdir()
    (folder / row_id / "CONTCAR").write_text(poscar(cell))


def as_xsf(folder: Path, row_id: str, cell: Structure) -> None:
    write(folder / f"{row_id}.xsf", atoms_of(cell), format="xsf")


def as_ase_json(folder: Path, row_id: str, cell: Structure) -> None:
    write(folder / f"{row_id}.json", atoms_of(cell), format="json")


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
@pytest.mark.parametrize("as_file", [as_cif, as_poscar, as_folder, as_xsf, as_ase_json])
def test_id_prop_beside_structure_files_is_a_table(
    tmp_path: Path, as_file: Callable[[Path, str, Structure], None]
) -> None:
    for row_id, cell in zip(IDS, CELLS, strict=True):
        as_file(tmp_path, row_id, cell)
    lines = [f"{row_id},{gap}" for row_id, gap in zip(IDS, GAPS, strict=True)]
    (tmp_path / "id_prop.csv").write_text("\n".join(lines))
    for path in (tmp_path, tmp_path / "id_prop.csv"):
        require_cells(path, target="target", tolerance=1e-5)
    (tmp_path / "id_prop.csv").write_text("\n".join([*lines, "absent,1.0"]))
    assert "1 ids without a structure file beside it (absent)" in refusal(lambda: read_table(tmp_path, "mine"))


def test_alignn_names_its_files_with_their_endings(tmp_path: Path) -> None:
    for row_id, cell in zip(IDS, CELLS, strict=True):
        as_poscar(tmp_path, row_id, cell)
    names = tuple(f"POSCAR-{row_id}.vasp" for row_id in IDS)
    lines = [f"{name},{gap}" for name, gap in zip(names, GAPS, strict=True)]
    (tmp_path / "id_prop.csv").write_text("\n".join(lines))
    require_cells(tmp_path, ids=names, target="target")


def test_extxyz_tells_its_own_properties(tmp_path: Path) -> None:
    frames = [atoms_of(cell) for cell in CELLS]
    for atoms, gap, row_id in zip(frames, GAPS, IDS, strict=True):
        atoms.info |= {"gap": gap, "name": f"n{row_id}"}
    write(tmp_path / "all.extxyz", frames, format="extxyz")
    require_cells(tmp_path / "all.extxyz", ids=tuple(f"n{row_id}" for row_id in IDS))
    require_cells(tmp_path, ids=None)


def test_an_ase_database_is_read(tmp_path: Path) -> None:
    with connect(tmp_path / "all.db") as database:
        for cell, gap in zip(CELLS, GAPS, strict=True):
            database.write(atoms_of(cell), gap=gap)
    require_cells(tmp_path / "all.db", ids=tuple(f"all-{number}" for number in range(1, 7)))


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_files_folders_and_patterns_are_structures_to_predict(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    as_cif(tmp_path, "a b", CELLS[0])
    as_cif(tmp_path, "ü", CELLS[1])
    as_poscar(tmp_path / "more", "x", CELLS[2])
    (tmp_path / "README.txt").write_text("no crystal")
    (tmp_path / "broken.cif").write_text("data_\n_cell_length_a 3\n")
    whole = read_structures(tmp_path, OWN)
    assert whole.ids == ("a b", "broken", "POSCAR-x", "ü")
    assert whole.problems == {1: "a CIF pymatgen cannot read"}
    assert read_structures(tmp_path / "*.cif", OWN).ids == ("a b", "broken", "ü")
    two = [tmp_path / "ü.cif", tmp_path / "more"]
    assert read_structures(two, OWN).ids == ("ü", "POSCAR-x")
    with pytest.raises(UserError, match="matches no file"):
        read_structures(tmp_path / "*.vasp2", OWN)


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for place, cell in enumerate(CELLS[:2]):
        (tmp_path / str(place)).mkdir()
        as_poscar(tmp_path / str(place), "same", cell)
    assert read_structures(tmp_path, OWN).ids == ("0/POSCAR-same.vasp", "1/POSCAR-same.vasp")


def test_one_structure_and_lists_of_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(CELLS[0].as_dict()))
    assert read_structures(tmp_path / "s.json", OWN).ids == ("s",)
    (tmp_path / "list.json").write_text(json.dumps([cell.as_dict() for cell in CELLS]))
    assert read_structures(tmp_path / "list.json", OWN).ids == tuple("012345")
