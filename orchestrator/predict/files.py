"""The file that `predict` writes: its format by its name, checked before anything is predicted.

Only the standard library is used until a table is written.
"""

import gzip
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import UserError
from trainables.files import obstacle, write_atomically

if TYPE_CHECKING:
    import pandas as pd

_HEAD, _END = 2048, 65536  # bytes of a file that tell what it holds
FORMATS = (".parquet", ".csv", ".csv.gz", ".json", ".jsonl", ".xlsx")


def predictions_path(run: Path, file: Path, out: Path | None = None) -> Path:
    """Where the predictions of a file go: `out`, or predict-FILE.parquet in the run's folder.

    Raises:
        UserError: as check_predictions_path.
    """
    path = out or run / default_name(file)
    check_predictions_path(path, file, run)
    return path


def default_name(file: Path) -> str:
    """Return the name of the file with the predictions of `file`."""
    return f"predict-{file.name.removesuffix('.gz').rsplit('.', 1)[0]}.parquet"


def check_predictions_path(out: Path | None, file: Path | None = None, run: Path | None = None) -> None:
    """Refuse a place that predictions cannot be written to, or a name that says no format.

    Args:
        out: what was asked for; None is the default.
        file: the structures, which must not be overwritten.
        run: the run's folder, whose own files must not be overwritten either.

    Raises:
        UserError: with what was expected instead.
    """
    if out is None:
        return
    if out.is_dir():
        name = default_name(file) if file is not None else "predictions.csv"
        raise UserError(f"`out={out}` is a folder; name a file in it, for example {out / name}")
    if _format(out) is None:
        raise UserError(f"`out={out}`: the name must end in one of {', '.join(FORMATS)}, which chooses the format")
    if _format(out) == ".xlsx" and find_spec("openpyxl") is None:
        raise UserError(f"`out={out}`: Excel files need the package openpyxl (pip install openpyxl); or write .csv")
    if file is not None and out.exists() and file.exists() and out.samefile(file):
        raise UserError(f"`out={out}` is the file with the structures; use another name")
    if run is not None and run.resolve() in out.resolve().parents and not out.name.startswith("predict-"):
        raise UserError(
            f"`out={out}` is in the run's folder, where files are the run's own unless they are named predict-...; "
            f"for example {run / f'predict-{out.name}'}"
        )
    if out.exists() and not _holds_predictions(out):
        raise UserError(f"`out={out}` exists and does not contain earlier predictions; use another name, or remove it")
    if reason := obstacle(out):
        raise UserError(f"`out={out}` cannot be written ({reason}); use another `out`")


def _format(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix) and name != suffix), None)


def _holds_predictions(path: Path) -> bool:
    """Return whether a file is empty or was written by `predict`, as far as its head or its end tells."""
    kind = _format(path)
    try:
        if kind == ".xlsx":
            with zipfile.ZipFile(path) as book:
                return b'name="predictions"' in book.read("xl/workbook.xml")
        with gzip.open(path) if kind == ".csv.gz" else path.open("rb") as handle:
            head = handle.read(_HEAD)
            if kind == ".parquet":
                handle.seek(max(0, path.stat().st_size - _END))
                end = handle.read()
                return b"fallback" in end and b"prediction" in end and b"target" not in end
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return False
    marks = (b'"id"', b'"prediction"') if kind in (".json", ".jsonl") else (b"id,prediction,",)
    return not head.strip() or all(mark in head for mark in marks)


def write_predictions(path: Path, table: "pd.DataFrame") -> None:
    """Write a table in the format that the name asks for: ids as text, numbers in full precision (Excel: 16 digits).

    Raises:
        UserError: no such format.
        OSError: the file cannot be written.
    """
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda temporary: table.to_parquet(temporary, index=False),
        ".csv": lambda temporary: table.to_csv(temporary, index=False),
        ".csv.gz": lambda temporary: _write_gzip(temporary, table.to_csv(index=False)),
        ".json": lambda temporary: temporary.write_text(_json(_records(table), indent=2), encoding="utf-8"),
        ".jsonl": lambda temporary: temporary.write_text("".join(map(_json, _records(table))), encoding="utf-8"),
        ".xlsx": lambda temporary: _write_excel(temporary, table),
    }
    chosen = _format(path)
    if chosen is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    write_atomically(path, writers[chosen])


def _write_gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows as plain Python values; what is not finite becomes None."""
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_excel(path: Path, table: "pd.DataFrame") -> None:
    from openpyxl import Workbook  # type: ignore[import-untyped]
    from openpyxl.cell import WriteOnlyCell  # type: ignore[import-untyped]

    book = Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    sheet.append([str(name) for name in table.columns])
    for row in _records(table):
        cells = []
        for value in row.values():
            cell = WriteOnlyCell(sheet, value=value)
            if isinstance(value, str):
                cell.data_type = "s"  # an id such as =A1 is no formula
            cells.append(cell)
        sheet.append(cells)
    with path.open("wb") as handle:
        book.save(handle)
