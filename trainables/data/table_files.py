"""A file of rows becomes a DataFrame: CSV in any dialect, JSON in any layout, JSON lines, Parquet, Excel, or their gz.

Cells stay as they were written: text stays text, so that an id "1e5" or "NaN" is what it was.
"""

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from trainables.data.columns import ID, ID_COLUMNS, STRUCTURE_COLUMNS, is_missing, matched, number_of, same_name
from trainables.data.formats import HEADERLESS
from trainables.data.formats import plain_name as _stem
from trainables.data.structure_dicts import is_structure_dict
from trainables.errors import UserError, listed

_SEPARATORS = ",;\t|"
_LONGEST_REASON = 200  # characters
_EXCEL_LONGEST = 32_767  # characters of a cell


def read_frame(path: Path) -> pd.DataFrame:
    """Read a file of rows.

    Raises:
        UserError: it cannot be read, with what it is and what to do.
    """
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".parquet": _read_parquet,
        ".xlsx": _read_excel,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
    }
    name = _stem(path)
    reader = next((reader for suffix, reader in readers.items() if name.endswith(suffix)), _read_csv)
    _reject_by_name(path, name)
    try:
        table = _with_text_names(reader(path), path)
        return _with_index_as_ids(table)
    except UserError:
        raise
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated ({error}): get it again") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory") from None
    except (ValueError, OSError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        raise UserError(f"{path} cannot be read as {_kind(name)}: {reason}") from None


def _kind(name: str) -> str:
    kinds = {".parquet": "Parquet", ".xlsx": "Excel", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON"}
    return next((kind for suffix, kind in kinds.items() if name.endswith(suffix)), "CSV")


_PICKLES = (".pkl", ".pickle", ".p")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_ARRAYS = (".h5", ".hdf5", ".npz", ".npy", ".pt", ".lmdb")


def known_elsewhere(path: Path) -> bool:
    """Return whether a file's name says that it is something which is refused."""
    return _stem(path).endswith((*_PICKLES, *_ARCHIVES, *_ARRAYS))


def _reject_by_name(path: Path, name: str) -> None:
    if name.endswith(_PICKLES):
        raise UserError(
            f"{path} is a pickle, which may run any code when it is opened, so it is not read. If you trust it, "
            f'convert it: python -c "import pandas; pandas.read_pickle({str(path)!r}).reset_index().to_json('
            f"{str(path.with_suffix('.json'))!r}, orient='records', default_handler=lambda x: x.as_dict())\""
        )
    if name.endswith(".xls"):
        raise UserError(f"{path} is in Excel's old format: save it as .xlsx or CSV")
    if name.endswith(_ARCHIVES):
        raise UserError(f"{path} is an archive: unpack it and name the folder or the file in it")
    if name.endswith(_ARRAYS):
        raise UserError(f"{path} holds arrays and no table of crystals: save one as CSV, JSON or Parquet")


def open_bytes(path: Path) -> bytes:
    """Return a file's content, unpacked where it is gzipped, whatever its name."""
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def decoded(content: bytes) -> str:
    """Return text in UTF-8 or UTF-16, by its mark, or else in the encoding of old Windows and CIF files."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _text_of(path: Path) -> str:
    content = open_bytes(path)
    if content[:4] in (b"PAR1", b"PK\x03\x04"):
        kind = "Parquet" if content[:4] == b"PAR1" else "a zip archive, such as Excel's .xlsx"
        raise UserError(f"{path} is {kind} under another name: rename it")
    if b"\x00" in content[:1000] and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is no text: a table as CSV, JSON, Parquet or Excel was expected")
    text = decoded(content)
    if not text.strip():
        raise UserError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_csv(path: Path) -> pd.DataFrame:
    text = _text_of(path)
    if text.lstrip().startswith(("[", "{")):
        return _read_json(path)
    text = _without_comments(text)
    separator = _separator(text, " " if _stem(path) in HEADERLESS else "")
    header = _first_row(text, separator)
    headerless = _stem(path) in HEADERLESS and not _is_header(header)
    doubles = [name for name, count in Counter(map(str.strip, header)).items() if count > 1 and name]
    if doubles and not headerless:  # pandas would rename them
        raise UserError(f"{path} has several columns named {listed(doubles)}: rename or drop all but one of each")
    options: Mapping[str, Any] = {"header": None} if headerless else {}
    table = pd.read_csv(
        io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True, **options
    )
    if headerless:
        values = [f"value_{place}" for place in range(1, len(table.columns))]
        table.columns = pd.Index([ID, *(["target"] if len(values) == 1 else values)])
    table.attrs["decimal_comma"] = separator != ","
    return table


def _without_comments(text: str) -> str:
    """Return a table without the lines above its names that begin with #; names themselves may."""
    lines = text.split("\n")
    first = next((place for place, line in enumerate(lines) if not line.startswith("#")), 0)
    if first and any(map(_is_known, re.split(r"[,;\t|]", lines[first - 1].lstrip("# ")))):
        return "\n".join([lines[first - 1].lstrip("# "), *lines[first:]])
    return "\n".join(lines[first:])


def _separator(text: str, others: str) -> str:
    """Return what stands between columns: the mark whose names are known, else the one that makes most columns."""

    def known(mark: str) -> tuple[int, bool, bool, int]:
        columns = _first_row(text, mark)
        whole = not any(other in columns[0] for other in ";\t|") if columns else False
        # Of rows without names, one such as "mp-1;-3,09" is split by the mark that leaves numbers.
        numbers = len(columns) > 1 and all(math.isfinite(number_of(cell, True)) for cell in columns[1:])
        return sum(map(_is_known, columns)), whole, numbers, len(columns)

    return max(_SEPARATORS + others, key=known)


def _first_row(text: str, separator: str) -> list[str]:
    limit = csv.field_size_limit(1 << 30)  # a cell may hold a large CIF
    try:
        return next((row for row in csv.reader(io.StringIO(text), delimiter=separator) if row), [])
    finally:
        csv.field_size_limit(limit)


def _is_known(name: str) -> bool:
    return same_name(name) in (*ID_COLUMNS, *STRUCTURE_COLUMNS)


def _is_header(first: list[str]) -> bool:
    """Return whether the first row of a file that mostly has none is one: names alone, one of which is usual."""
    if any(math.isfinite(number_of(cell, True)) or is_missing(cell) for cell in first[1:]):
        return False
    return any(_is_known(cell) or same_name(cell) == "target" for cell in first)


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(open_bytes(path)))


def _read_excel(path: Path) -> pd.DataFrame:
    try:
        sheets = pd.read_excel(io.BytesIO(open_bytes(path)), sheet_name=None, dtype=object, keep_default_na=False)
    except ImportError:
        raise UserError(
            f"{path}: Excel files need the package openpyxl (pip install openpyxl); or save it as CSV"
        ) from None
    table = _one_sheet(sheets, path)
    cut = [name for name in table.columns if table[name].map(lambda cell: len(str(cell)) >= _EXCEL_LONGEST).any()]
    if cut:
        raise UserError(
            f"{path}: Excel cut cells of column '{cut[0]}' at {_EXCEL_LONGEST:,} characters: export them as CSV or JSON"
        )
    return table


def _one_sheet(sheets: Mapping[str, pd.DataFrame], path: Path) -> pd.DataFrame:
    """Return the sheet that has structures, or the only one with rows.

    Raises:
        UserError: several have.
    """
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)} or dict(sheets)
    found = {name: sheet for name, sheet in filled.items() if matched(sheet.columns, STRUCTURE_COLUMNS)} or filled
    if len(found) > 1:
        raise UserError(f"{path} has {len(found)} sheets of rows ({listed(found, 5)}): save the one to use as a file")
    return next(iter(found.values()))


def _read_json_lines(path: Path) -> pd.DataFrame:
    records = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from None
    return frame_of_json(records, path)


def _read_json(path: Path) -> pd.DataFrame:
    text = _text_of(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text.strip():  # one object a line, under JSON's name
            return _read_json_lines(path)
        left = text[error.pos :].strip()
        cut = any(word.startswith(left) for word in ("true", "false", "null", "NaN"))  # the empty text, too
        if cut or error.msg.startswith("Unterminated string"):
            raise UserError(f"{path} is truncated: its JSON ends in the middle; get it again") from None
        raise UserError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    return frame_of_json(content, path)


def frame_of_json(content: Any, path: Path) -> pd.DataFrame:
    """Return the rows of a JSON value, whichever of the usual layouts it has.

    Raises:
        UserError: it has none of them.
    """
    if isinstance(content, list):
        return _of_list(content, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}: a list of records was expected")
    if isinstance(content.get("ids"), list) and "nextid" in content:
        return _of_ase_database(content, path)
    if is_structure_dict(content):
        return pd.DataFrame({ID: [_stem(path).rsplit(".", 1)[0]], "structure": [content]})
    if isinstance(content.get("data"), list):
        if "columns" in content:  # pandas' split layout, matminer's too
            index = content.get("index")
            table = pd.DataFrame(content["data"], columns=content["columns"])
            return table if index is None or matched(table.columns, ID_COLUMNS) else table.assign(**{ID: index})
        return _of_list(content["data"], path)
    inner = list(content.values())
    frames = [value for value in inner if isinstance(value, dict) and value and _are_records(list(value.values()))]
    if inner and len(frames) == len(inner):  # MPtrj: frames of a calculation, by their ids
        named = [(name, row) for each in frames for name, row in each.items()]
        return pd.DataFrame([{ID: name, **_flat(row)} for name, row in named])
    if inner and all(isinstance(value, dict) for value in inner):
        if any(is_structure_dict(value) for value in inner):
            return pd.DataFrame({ID: list(content), "structure": inner})
        if matched(inner[0], STRUCTURE_COLUMNS):
            table = pd.DataFrame(inner)
            return table if matched(table.columns, ID_COLUMNS) else table.assign(**{ID: list(content)})
    if not inner or not all(isinstance(value, list | dict) for value in inner):
        raise UserError(f"{path} holds one object with {', '.join(list(content)[:5])}: a list of records was expected")
    return pd.DataFrame(content)


def _of_ase_database(content: Mapping[str, Any], path: Path) -> pd.DataFrame:
    """Return the rows of ASE's database in JSON, with its keys and energies as columns."""
    stem, records = _stem(path).rsplit(".", 1)[0], []
    for number in content["ids"]:
        row = content[str(number)]
        told = {name: row[name] for name in ("energy", "free_energy", "magmom") if isinstance(row.get(name), float)}
        records.append({ID: f"{stem}-{number}", "structure": row, **told, **(row.get("key_value_pairs") or {})})
    return pd.DataFrame(records)


def _are_records(rows: list[Any]) -> bool:
    return all(isinstance(row, dict) and is_structure_dict(row.get("structure")) for row in rows)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the single values that lie one level deeper, in OPTIMADE's and pymatgen's entries."""
    if is_structure_dict(row):
        return row
    told: dict[str, Any] = {}
    for name in ("attributes", "data"):
        inner = row.get(name)
        if isinstance(inner, dict):
            told |= {
                key: value for key, value in inner.items() if isinstance(value, str | int | float) and key not in row
            }
    return {**row, **told}


def _of_list(rows: list[Any], path: Path) -> pd.DataFrame:
    if rows and all(isinstance(row, dict) for row in rows):
        rows = [_flat(row) for row in rows]
        if all(is_structure_dict(row) for row in rows):
            return pd.DataFrame({ID: [str(place) for place in range(len(rows))], "structure": rows})
        return pd.DataFrame(rows)
    if rows:
        raise UserError(f"{path} holds a list of {type(rows[0]).__name__}: a list of records was expected")
    return pd.DataFrame({ID: [], "structure": []})


def _with_text_names(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table whose columns have names of text, none of them twice.

    Raises:
        UserError: two columns have one name.
    """
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    doubles = [name for name, count in Counter(table.columns).items() if count > 1 and name]
    if doubles:
        raise UserError(f"{path} has several columns named {listed(doubles)}: rename or drop all but one of each")
    return table


def _with_index_as_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose index, where it says more than numbers of rows, is a column of ids."""
    plain = [str(name) for name in table.index] == [str(place) for place in range(len(table))]
    if plain or matched(table.columns, ID_COLUMNS) is not None or table.index.nlevels > 1:
        return table.reset_index(drop=True)
    return table.assign(**{ID: [str(name) for name in table.index]}).reset_index(drop=True)
