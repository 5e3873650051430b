"""The stream reader of Matbench's layout: any order, any border, and damage told in one line."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from trainables.data import matbench_file
from trainables.data.matbench_file import is_matbench_layout, read_matbench_file
from trainables.errors import UserError

CONTENT: dict[str, Any] = {
    "index": [3, 14, 159],
    "columns": ["structure", "n"],
    "data": [[{"a": [1, 2.5, -3e-7], "text": 'Å "quoted" ] } \\'}, 1.25], [{"a": []}, -7], [None, 1e300]],
}
ORDERS = list(itertools.permutations(CONTENT))


def written(path: Path, content: Any, *, zipped: bool = False, **style: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, **style)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if zipped else text.encode())
    return path


def collected(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The order of the keys, and the whole content."""
    order: list[str] = []
    whole: dict[str, Any] = {"data": []}
    for key, value in read_matbench_file(path):
        name = "data" if key == "row" else key
        if not order or order[-1] != name:
            order.append(name)
        if key == "row":
            whole["data"].append(value)
        else:
            whole[key] = value
    return order, whole


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_matbench_file(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_keys_may_come_in_any_order(tmp_path: Path, order: tuple[str, ...], zipped: bool) -> None:
    path = written(tmp_path / "table.json", {key: CONTENT[key] for key in order}, zipped=zipped)
    assert collected(path) == (list(order), CONTENT)


@pytest.mark.parametrize("chunk", [*range(1, 12), 50])
def test_a_value_may_lie_across_any_chunk_border(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matbench_file, "_CHUNK", chunk)
    for style in ({}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}):
        path = written(tmp_path / "table.json", CONTENT, **style)
        assert collected(path)[1] == CONTENT


@pytest.mark.parametrize("number", ["12", "1.25", "-1.25e-10", "1E+3", "0.5e2"])
def test_a_bare_number_may_lie_across_any_chunk_border(
    tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'{{"version": {number} , "index": [], "columns": [], "data": [{number},{number}]}}'
    path = written(tmp_path / "table.json", text)
    for chunk in range(1, 30):
        monkeypatch.setattr(matbench_file, "_CHUNK", chunk)
        whole = collected(path)[1]
        assert (whole["version"], whole["data"]) == (float(number), [float(number)] * 2)


def test_rows_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is there before the end of the file was read: a damaged end doesn't hide it."""
    monkeypatch.setattr(matbench_file, "_CHUNK", 64)
    text = json.dumps(CONTENT | {"data": [[k, 0.5] for k in range(1000)]})
    stream = read_matbench_file(written(tmp_path / "table.json", text[:-500]))
    first = [next(stream) for _ in range(3)]
    assert first == [("index", CONTENT["index"]), ("columns", CONTENT["columns"]), ("row", [0, 0.5])]
    with pytest.raises(UserError):
        list(stream)


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    assert collected(written(tmp_path / "t.json", {"index": [], "columns": [], "data": []}))[1]["data"] == []


def test_every_truncation_of_a_plain_file_is_one_line(tmp_path: Path) -> None:
    text = json.dumps(CONTENT)
    for end in range(len(text)):
        message = refusal(written(tmp_path / "table.json", text[:end]))
        assert "is truncated or damaged" in message


def test_every_truncation_of_a_gz_file_is_one_line(tmp_path: Path) -> None:
    whole, path = gzip.compress(json.dumps(CONTENT).encode(), mtime=0), tmp_path / "table.json.gz"
    for end in range(3, len(whole)):
        path.write_bytes(whole[:end])
        assert "is truncated or damaged" in refusal(path)


def test_no_changed_byte_of_a_gz_file_goes_unnoticed(tmp_path: Path) -> None:
    whole, path = gzip.compress(json.dumps(CONTENT).encode(), mtime=0), tmp_path / "table.json.gz"
    for place in range(12, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(bytes(damaged))
        refusal(path)


def test_a_gz_file_is_checked_even_if_its_text_ends_with_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(CONTENT)
    monkeypatch.setattr(matbench_file, "_CHUNK", len(text))
    whole, path = gzip.compress(text.encode(), mtime=0), tmp_path / "table.json.gz"
    path.write_bytes(whole[:-8] + bytes(8))  # a wrong checksum
    assert "is truncated or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "is not a Matbench table: '['"),
        ('{"index": [0], "data": []}', "lacks columns"),
        ("{}", "is truncated or damaged"),
        ('{"index": {"0": 1}, "columns": [], "data": []}', "its index is not a list"),
        ('{"index": [], "columns": "n", "data": []}', "its columns is not a list"),
        ('{"index": [], "columns": [], "data": {"0": []}}', "is not a Matbench table: '{'"),
        ('{"index": [], "columns": [], "data": []} more', "there is more after"),
        ('{[1]: 2, "index": [], "columns": []}', "lacks data"),
        ("id,structure,n\na,b,1\n", "is not a Matbench table"),
    ],
)
def test_another_layout_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(written(tmp_path / "table.json", text))


def test_a_missing_file_and_one_that_is_no_text_are_one_line(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere.json.gz")
    (tmp_path / "binary.json").write_bytes(b'{"index\xff": 3}')
    assert "is not a Matbench table" in refusal(tmp_path / "binary.json")


@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
def test_the_layout_is_told_by_its_first_key(tmp_path: Path, zipped: bool) -> None:
    for order in ORDERS:
        content = {key: CONTENT[key] for key in order}
        assert is_matbench_layout(written(tmp_path / "a", content, zipped=zipped, indent=2))
    for other in ([CONTENT], {"id": [1]}, "id,structure\n", ""):
        assert not is_matbench_layout(written(tmp_path / "b", other, zipped=zipped))
    assert not is_matbench_layout(tmp_path / "nowhere")


def test_a_damaged_gz_file_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"{}" * 500)[:12])
    assert not is_matbench_layout(tmp_path / "a.gz")
