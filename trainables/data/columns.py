"""Which columns of a table are ids, structures and the target, by the names that the field uses."""

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from trainables.errors import UserError, listed
from trainables.hints import closest

ID, STRUCTURE = "id", "structure"
ID_COLUMNS = (
    "id", "material_id", "mbid", "mp_id", "mpid", "jid", "oqmd_id", "auid", "task_id", "entry_id", "structure_id",
    "crystal_id", "cif_id", "uid", "name", "filename", "file_name", "file",
)  # fmt: skip
STRUCTURE_COLUMNS = (
    "structure", "structures", "final_structure", "crystal", "atoms", "cif", "cifs", "poscar", "contcar", "cif_path",
    "structure_path", "structure_file", "path", "file_path", "filepath", "file", "filename", "file_name", "attributes",
)  # fmt: skip
_LONGEST_NAME = 100  # characters of a column's name
_INDEX = ("unnamed: 0", "index", "")  # what pandas and spreadsheets leave of an index
_MISSING = {"", "nan", "na", "n/a", "n.a.", "none", "null", "-", "--", "?", "<na>"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?", re.ASCII)
_WITH_UNIT = re.compile(r"[+-]?\d[\d.,]*([eE][+-]?\d+)?\s*[A-Za-zµμ%°/^]+.*")


def same_name(name: object) -> str:
    """Return a column's name without what does not matter in it: capitals, blanks, dashes."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def matched(columns: Iterable[Any], names: Iterable[str]) -> str | None:
    """Return the column that has the first of these names, whatever its capitals, or None."""
    there = list(columns)
    for name in names:
        if name in there:
            return name
    by_name = {same_name(column): column for column in reversed(there)}
    return next((str(by_name[name]) for name in names if name in by_name), None)


def id_column(table: pd.DataFrame, asked: str | None, source: str) -> str | None:
    """Return the column of ids, or None where there is none: rows are then numbered.

    Raises:
        UserError: the column that was asked for is not there.
    """
    if asked is not None:
        return _asked(table, asked, "id", source)
    found = matched(table.columns, ID_COLUMNS)
    return found or next((str(column) for column in table.columns if same_name(column) in _INDEX), None)


def structure_column(table: pd.DataFrame, asked: str | None, source: str) -> str:
    """Return the column of structures.

    Raises:
        UserError: there is none, or not the one that was asked for.
    """
    if asked is not None:
        return _asked(table, asked, "structure", source)
    found = matched(table.columns, STRUCTURE_COLUMNS)
    if found is None:
        odd = any(len(str(name)) > _LONGEST_NAME or math.isfinite(number_of(name)) for name in table.columns)
        there = (
            "its first line does not look like names" if odd else f"its columns: {listed(table.columns, 12) or 'none'}"
        )
        raise UserError(
            f"{source}: there is no column of structures ({there}): call it structure, or name it with `structure`"
        )
    return found


def _asked(table: pd.DataFrame, name: str, keyword: str, source: str) -> str:
    if name in table.columns:
        return name
    near = closest(name, [str(column) for column in table.columns])
    hint = f" (did you mean '{near}'?)" if near else f"; it has {listed(table.columns, 12)}"
    raise UserError(f"`{keyword}={name}`: {source} has no such column{hint}")


def target_column(table: pd.DataFrame, target: str | None, taken: set[str], source: str) -> str:
    """Return the column to predict: the one that was asked for, `target`, or the only one with numbers.

    Raises:
        UserError: it is not there, or holds no numbers, or there are several.
    """
    if target is not None:
        if target not in table.columns:
            near = closest(target, [str(column) for column in table.columns])
            hint = f" (did you mean '{near}'?)" if near else ""
            raise UserError(f"{source}: there is no column '{target}'{hint}, but {listed(table.columns, 30)}")
        if target in taken:
            raise UserError(
                f"{source}: column '{target}' cannot be the target: it has the ids, the structures or what folds are "
                "made by"
            )
        _require_numbers(table, target, source)
        return target
    left = [str(column) for column in table.columns if column not in taken and same_name(column) not in _INDEX]
    if "target" in left:
        return "target"
    comma = bool(table.attrs.get("decimal_comma"))
    numeric = [name for name in left if any(math.isfinite(number_of(cell, comma)) for cell in table[name])]
    if not numeric:
        raise UserError(
            f"{source}: there is no column of numbers to predict (its columns: {listed(table.columns, 12)}): a target "
            "for every structure was expected"
        )
    if len(numeric) > 1:
        raise UserError(
            f"{source}: {len(numeric)} columns have numbers ({listed(numeric, 30)}); choose one with `target`"
        )
    return numeric[0]


def _require_numbers(table: pd.DataFrame, target: str, source: str) -> None:
    """Say what a column holds that is no number, in its own words.

    Raises:
        UserError: with an example and the cure.
    """
    comma = bool(table.attrs.get("decimal_comma"))
    told = [cell for cell in table[target] if not is_missing(cell)]
    odd = [cell for cell in told if math.isnan(number_of(cell, comma))]
    if 2 * len(odd) <= len(told):  # rows that are listed one by one, if there are any
        return
    first = str(odd[0])[:40]
    if _DECIMAL_COMMA.fullmatch(first.strip()):
        cure = "write decimals with a point, or separate columns by semicolons"
    elif _WITH_UNIT.fullmatch(first.strip()):
        cure = "leave units out of the cells"
    elif first.lower() in ("true", "false"):
        cure = "true and false are a classification; write 1 and 0 to fit them as numbers"
    elif isinstance(odd[0], list | dict | tuple):
        cure = "a list or a dictionary cannot be predicted"
    else:
        cure = "only numbers can be predicted; choose another `target`"
    raise UserError(
        f"{source}: column '{target}' has {len(odd):,} cells that are no numbers, such as '{first}': {cure}"
    )


def is_missing(cell: Any) -> bool:
    """Return whether a cell says that there is no value: empty, NaN, None, N/A, -."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return True
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return isinstance(cell, float) and math.isnan(cell)


def numbers_of(cells: Iterable[Any], decimal_comma: bool = False) -> list[float]:
    """Return each cell's number, as `number_of`.

    Text is read as pandas reads a column of a CSV, to the last bit: what runs of older tables have hashed.
    """
    there = list(cells)
    numbers = [number_of(cell, decimal_comma) for cell in there]
    texts = [place for place, cell in enumerate(there) if isinstance(cell, str) and math.isfinite(numbers[place])]
    plain = [_plain(there[place], decimal_comma) for place in texts]
    for place, value in zip(texts, pd.to_numeric(pd.Series(plain, dtype=object)), strict=True):
        numbers[place] = float(value)
    return numbers


def _plain(text: str, decimal_comma: bool) -> str:
    """Return a number's text with a point and an e."""
    text = text.strip()
    text = text.replace(",", ".") if decimal_comma else text
    return text.replace("D", "e").replace("d", "e")


def number_of(cell: Any, decimal_comma: bool = False) -> float:
    """Return a cell's number, or NaN where it is none.

    Args:
        decimal_comma: text such as 2,70 is a number as well.
    """
    if isinstance(cell, str):
        text = _plain(cell, decimal_comma and bool(_DECIMAL_COMMA.fullmatch(cell.strip())))
        if _NUMBER.fullmatch(text):
            return float(text)
        return float(text) if text.lower().lstrip("+-") in ("inf", "infinity") else math.nan
    if isinstance(cell, list | dict | tuple | set):
        return math.nan
    if isinstance(cell, bool | np.bool_):
        return math.nan
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
