"""What people have: tables of any dialect and layout, structure files of any program, folders of them."""

import gzip
import json
import sqlite3  # noqa: F401 - ASE's database
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ase.db import connect
from ase.io import write
from format_data import (
    CELLS,
    GAPS,
    IDS,
    atoms_of,
    plain_dict,
    poscar,
    require_cells,
    rows,
)
from pymatgen.core import Structure
from table_data import OWN, refusal, saved

from trainables.data.own_table import TableOptions, read_table
from trainables.data.to_predict import read_structures
from trainables.errors import UserError

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
        ("notes.txt", b"hello\nworld\n", "is neither a table nor a structure file that pymatgen or ASE can read"),
        ("bytes.dat", b"\x80\xff" * 50, "is neither a table nor a structure file"),
        ("t.json.gz", gzip.compress(b"[" + b"1," * 9000, mtime=0)[:40], "is truncated"),
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
