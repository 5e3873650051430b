"""The user's own tables: everything usable is read exactly, everything else is named and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from table_data import BAD_STRUCTURES, CUBE, OWN, assert_holds, records, refusal, saved

from trainables.crystals import Crystal, CrystalTable
from trainables.data.own_table import read_table
from trainables.data.structures import BadStructure, read_crystal
from trainables.data.to_predict import read_structures

# --- one structure -------------------------------------------------------------------------------------------------


def test_a_pymatgen_dictionary_is_read_as_pymatgen_reads_it(made: dict[str, Structure]) -> None:
    for structure in made.values():
        content = json.loads(json.dumps(structure.as_dict()))
        expected = Crystal.from_structure(Structure.from_dict(content))
        for mine, theirs in zip(read_crystal(content, Path()), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_oxidation_states_and_site_properties_do_not_matter() -> None:
    rich = CUBE.copy().add_oxidation_state_by_element({"Po": -2}).add_site_property("magmom", [1.5])
    for value in (rich, rich.as_dict(), json.dumps(rich.as_dict())):
        assert read_crystal(value, Path()).numbers.tolist() == [84]


@pytest.mark.parametrize("kind", BAD_STRUCTURES)
def test_a_structure_that_cannot_be_used_is_refused_by_its_kind(kind: str, tmp_path: Path) -> None:
    value, reason = BAD_STRUCTURES[kind]
    with pytest.raises(BadStructure, match=reason):
        read_crystal(value, tmp_path)


def test_atoms_just_beyond_half_an_angstrom_are_accepted() -> None:
    for x, fits in ((0.501 / 4, True), (0.499 / 4, False)):
        pair = Structure(Lattice.cubic(4.0), ["H", "H"], [[0, 0, 0], [x, 0, 0]])
        if fits:
            assert len(read_crystal(pair, Path()).numbers) == 2
        else:
            with pytest.raises(BadStructure, match="overlapping"):
                read_crystal(pair, Path())


def test_plutonium_is_the_last_element_and_hydrogen_the_first() -> None:
    for symbol, z in (("H", 1), ("Pu", 94)):
        assert read_crystal(Structure(Lattice.cubic(4.0), [symbol], [[0, 0, 0]]), Path()).numbers.tolist() == [z]


# --- tables of one's own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table.json", "table.json.gz"])
def test_json_with_pymatgen_dictionaries_is_read_exactly(tmp_path: Path, cells: list[Structure], name: str) -> None:
    dataset = read_table(saved(tmp_path / name, records(cells)), "mine", unit="eV")
    assert_holds(dataset, cells)
    assert dataset.ids == tuple(f"row-{place}" for place in range(5))
    assert dataset.targets.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert (dataset.task.name, dataset.task.target, dataset.task.unit) == ("mine", "y", "eV")
    assert dataset.task.quantity == "property"
    assert dataset.official_row is None
    assert not dataset.partial


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_csv_with_cif_text_is_read(tmp_path: Path, cells: list[Structure], name: str) -> None:
    texts = [cell.to(fmt="cif") for cell in cells]
    frame = pd.DataFrame({"material_id": [7, 8, 9, 10, 11], "cif": texts, "gap": [0.5, 1, 2, 3, 4]})
    frame.to_csv(tmp_path / name, index=False)
    dataset = read_table(tmp_path / name, "mine")
    for crystal, text in zip(dataset.structures, texts, strict=True):
        expected = Crystal.from_structure(Structure.from_str(text, fmt="cif"))
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(crystal, expected, strict=True))
    assert dataset.ids == ("7", "8", "9", "10", "11")
    assert dataset.task.target == "gap"


def test_csv_with_cif_paths_beside_it_is_read(
    tmp_path: Path, cells: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data_of_mine").mkdir()
    for place, cell in enumerate(cells):
        cell.to(filename=str(tmp_path / "data_of_mine" / f"{place}.cif"))
    names = [f"data_of_mine/{place}.cif" for place in range(4)] + [str(tmp_path / "data_of_mine" / "4.cif")]
    pd.DataFrame({"name": list("abcde"), "path": names, "y": range(5)}).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path.parent)  # relative paths belong to the table, not to the shell
    dataset = read_table(tmp_path / "t.csv", "mine")
    assert dataset.structures.n_atoms.tolist() == [len(cell) for cell in cells]
    assert dataset.structures.reduced_formulas == CrystalTable.pack(map(Crystal.from_structure, cells)).reduced_formulas


def test_csv_with_structures_as_json_text_is_read_exactly(tmp_path: Path, cells: list[Structure]) -> None:
    texts = [json.dumps(cell.as_dict()) for cell in cells]
    pd.DataFrame({"id": list("abcde"), "structure": texts, "y": range(5)}).to_csv(tmp_path / "t.csv", index=False)
    assert_holds(read_table(tmp_path / "t.csv", "mine"), cells)


def test_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["007", "07"], "structure": [json.dumps(CUBE.as_dict())] * 2, "y": [1, 2]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert read_table(tmp_path / "t.csv", "mine").ids == ("007", "07")


def test_a_named_target_is_taken_among_several(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json", records(cells, bulk=[9.0, 8.0, 7.0, 6.0, 5.0], comment=list("abcde")))
    dataset = read_table(path, "mine", "bulk", energy=True)
    assert dataset.targets.tolist() == [9, 8, 7, 6, 5]
    assert (dataset.task.target, dataset.task.quantity) == ("bulk", "energy_per_atom")


def test_a_column_called_target_goes_before_other_numbers(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json", records(cells, target=[9.0, 8.0, 7.0, 6.0, 5.0]))
    assert read_table(path, "mine").task.target == "target"


def test_the_only_numeric_column_is_the_target(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json", records(cells, comment=list("abcde"), tags=[["a"]] * 5, more=[{"k": 1}] * 5))
    assert read_table(path, "mine").task.target == "y"


def test_two_numeric_columns_want_a_name(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json", records(cells, bulk=[9.0] * 5))
    message = refusal(lambda: read_table(path, "mine"))
    assert "2 columns have numbers (y, bulk); choose one with `target`" in message


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (
            "structure",
            "there is no column of structures (its columns: id, y): call it structure, or name it with `structure`",
        ),
        ("y", "there is no column of numbers to predict"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, cells: list[Structure], missing: str, told: str) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in records(cells)]
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))
    assert told in message
    assert str(tmp_path / "t.json") in message


def test_a_target_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, cells: list[Structure]) -> None:
    path = saved(tmp_path / "t.json", records(cells))
    message = refusal(lambda: read_table(path, "mine", "gap"))
    assert "there is no column 'gap', but id, structure, y" in message


@pytest.mark.parametrize("kind", BAD_STRUCTURES)
def test_rows_with_unusable_structures_are_listed(tmp_path: Path, cells: list[Structure], kind: str) -> None:
    value, reason = BAD_STRUCTURES[kind]
    rows = records(cells)
    rows[1]["structure"] = rows[3]["structure"] = value
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))
    assert reason in message
    assert message.endswith(": row-1, row-3")
    assert str(tmp_path / "t.json") in message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "missing targets (`drop_missing=True` leaves such rows out)"),
        (float("nan"), "missing targets (`drop_missing=True` leaves such rows out)"),
        ("N/A", "missing targets (`drop_missing=True` leaves such rows out)"),
        (float("inf"), "infinite targets"),
        ("unknown", "targets that are no numbers"),
        (1e300, "targets beyond 3e+38"),
    ],
)
def test_rows_without_a_finite_target_are_listed(tmp_path: Path, cells: list[Structure], value: Any, told: str) -> None:
    rows = records(cells)
    rows[0]["y"] = rows[4]["y"] = value
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine", "y"))
    assert message.endswith(f"{told}: row-0, row-4")


def test_duplicate_ids_are_listed_once_each(tmp_path: Path, cells: list[Structure]) -> None:
    rows = records(cells, id=["a", "b", "a", "c", "b"])
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))
    assert message.endswith("duplicate ids: a, b")


def test_a_number_and_its_text_are_the_same_id(tmp_path: Path, cells: list[Structure]) -> None:
    rows = records(cells, id=["1", "b", 1, "c", "d"])
    assert "duplicate ids: 1" in refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))


def test_rows_without_an_id_are_told_by_their_place(tmp_path: Path, cells: list[Structure]) -> None:
    rows = records(cells, id=["a", None, "c", None, "e"])
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))
    assert "no id in rows 1, 3" in message
    frame = pd.DataFrame({"id": ["a", None], "structure": [json.dumps(CUBE.as_dict())] * 2, "y": [1, 2]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert "no id in rows 1 " in refusal(lambda: read_table(tmp_path / "t.csv", "mine"))


def test_all_kinds_of_trouble_are_told_at_once_and_long_lists_are_cut(tmp_path: Path) -> None:
    rows = records([CUBE] * 80)
    rows[79]["structure"] = None
    for row in rows[:62]:
        row["y"] = None
    message = refusal(lambda: read_table(saved(tmp_path / "t.json", rows), "mine"))
    assert "row-9 (+52 more)" in message
    assert "row-50" not in message
    assert message.endswith("no structure: row-79")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,structure,y\n")
    assert "has no rows" in refusal(lambda: read_table(tmp_path / "t.csv", "mine", "y"))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.json.gz"])
def test_a_truncated_or_damaged_gz_table_is_one_line(tmp_path: Path, name: str) -> None:
    rows = records([CUBE] * 40)
    for row in rows:
        row["structure"] = json.dumps(row["structure"])
    path = tmp_path / name
    if ".csv" in name:
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        saved(path, rows)
    whole = path.read_bytes()
    assert len(read_table(path, "mine")) == 40
    flipped = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in range(60, len(whole), 9)]
    for damaged in [whole[: len(whole) // 2], whole[:-5], *flipped]:
        path.write_bytes(damaged)
        message = refusal(lambda: read_table(path, "mine"))
        assert str(path) in message
        assert "truncated" in message or damaged in flipped


@pytest.mark.parametrize("content", [b"", b"[", b'"text"', b"5", bytes(range(256)), b'{"a": 1}'])
@pytest.mark.parametrize("name", ["t.csv", "t.json"])
def test_what_is_no_table_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refusal(lambda: read_table(tmp_path / name, "mine"))


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: read_table(tmp_path / "nowhere.csv", "mine"))
    assert "has no structure files" in refusal(lambda: read_table(tmp_path, "mine"))


# --- structures to predict ------------------------------------------------------------------------------------------


def test_structures_to_predict_need_no_targets(tmp_path: Path, cells: list[Structure]) -> None:
    rows = [{key: value for key, value in row.items() if key != "y"} for row in records(cells)]
    dataset = read_structures(saved(tmp_path / "t.json", rows), OWN).dataset
    assert_holds(dataset, cells)
    assert np.isnan(dataset.targets).all()
    assert dataset.task is OWN


@pytest.mark.parametrize("name", ["cell.cif", "data_1.cif", "My Cell.CIF"])
def test_one_cif_file_is_one_structure_to_predict(tmp_path: Path, made: dict[str, Structure], name: str) -> None:
    (tmp_path / name).write_text(made["perovskite"].to(fmt="cif"))
    dataset = read_structures(tmp_path / name, OWN).dataset
    assert dataset.ids == (Path(name).stem,)
    assert_holds(dataset, [made["perovskite"]], tolerance=1e-6)


def test_bad_structures_to_predict_keep_their_places_with_the_reason(tmp_path: Path, cells: list[Structure]) -> None:
    rows = records(cells)
    rows[2]["structure"] = BAD_STRUCTURES["overlap"][0]
    found = read_structures(saved(tmp_path / "t.json", rows), OWN)
    assert found.ids == tuple(row["id"] for row in rows)
    assert found.problems == {2: "overlapping atoms (closer than 0.5 A)"}
    assert found.places.tolist() == [0, 1, 3, 4]
    assert_holds(found.dataset, [cell for place, cell in enumerate(cells) if place != 2])
    (tmp_path / "x.cif").write_text("no CIF")
    problem = read_structures(tmp_path / "x.cif", OWN).problems[0]
    assert problem == "text that is neither CIF, POSCAR, extended XYZ nor a dictionary"
    assert refusal(lambda: read_structures(tmp_path / "absent.cif", OWN)).endswith("absent.cif does not exist")
