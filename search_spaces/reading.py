"""A search space by its name, or a user's own by its path: YAML, or Python that defines SPACE.

This finds mistakes of form; `Space.check` finds those of content.
"""

import runpy
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from search_spaces.space import Dimension, Point, Space
from search_spaces.spaces import SPACES
from trainables.errors import UserError
from trainables.hints import closest, did_you_mean
from trainables.yaml_files import read_mapping

_YAML = (".yaml", ".yml")
_SPACE_FIELDS = tuple(item.name for item in fields(Space))
_DIMENSION_FIELDS = tuple(item.name for item in fields(Dimension) if item.name != "key")
_MAPPINGS = ("fixed", "dimensions", "points")
_SWITCHES = ("log", "integer", "zero")


def load_space(name_or_path: str) -> Space:
    """Return the search space of this name, or of this .yaml or .py file.

    Raises:
        UserError: no such space or file, or one that cannot be read: all mistakes at once.
    """
    if name_or_path in SPACES:
        return SPACES[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix in _YAML:
        return _from_yaml(path)
    if path.suffix == ".py":
        return _from_python(path)
    near = closest(name_or_path, SPACES)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(SPACES)}"
    raise UserError(f"unknown search space '{name_or_path}': {hint} (one of your own: the path of a .yaml or .py file)")


def _from_python(path: Path) -> Space:
    if not path.is_file():
        raise UserError(f"{path} is not a file; a Python file that defines SPACE was expected")
    try:
        space = runpy.run_path(str(path)).get("SPACE")
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(space, Space):
        raise UserError(f"{path} does not define SPACE: SPACE = search_spaces.space.Space(...) was expected")
    return space


def _from_yaml(path: Path) -> Space:
    content = _without_old_names(read_mapping(path, (*_SPACE_FIELDS, "says")))
    problems = list(_problems(content))
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return Space(
        name=str(content.get("name", path.stem)),
        description=str(content.get("description", "")),
        fixed=content.get("fixed") or {},
        dimensions=tuple(_dimension(key, given) for key, given in content["dimensions"].items()),
        points=tuple(Point(name, values, path.name) for name, values in (content.get("points") or {}).items()),
        runs=content.get("runs", "training"),
        auxiliary=content.get("auxiliary", "wanted"),
    )


def _without_old_names(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file with `description` where files of earlier versions have `says`."""
    dimensions = content.get("dimensions")
    for table in (content, *(dimensions.values() if isinstance(dimensions, dict) else ())):
        if isinstance(table, dict) and "says" in table:
            table["description"] = table.pop("says")
    return content


def _dimension(key: str, given: Mapping[str, Any]) -> Dimension:
    content = dict(given)
    if isinstance(content.get("choices"), list):
        content["choices"] = tuple(content["choices"])
    when = content.get("when") or {}
    content["when"] = {name: wanted if wanted == "nonzero" else _several(wanted) for name, wanted in when.items()}
    return Dimension(key, **content)


def _several(wanted: Any) -> tuple[Any, ...]:
    return tuple(wanted) if isinstance(wanted, list) else (wanted,)


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    for name in content:
        if name not in _SPACE_FIELDS:
            yield f"unknown field '{name}'{did_you_mean(name, _SPACE_FIELDS)}"
    for name in _MAPPINGS:
        if content.get(name) is not None and not _is_table(content[name]):
            yield f"{name}: a mapping of keys to values was expected"
    for name, allowed in (("runs", ("training", "prediction")), ("auxiliary", ("wanted", "optional"))):
        if content.get(name, allowed[0]) not in allowed:
            yield f"{name}={content[name]!r}: {' or '.join(allowed)} was expected"
    if not content.get("dimensions"):
        yield "dimensions are missing, for example dimensions: {optim.lr: {low: 1e-4, high: 3e-3, log: true}}"
    elif _is_table(content["dimensions"]):
        for key, given in content["dimensions"].items():
            yield from (f"{key}: {problem}" for problem in _dimension_problems(given))
    if _is_table(content.get("points")):
        for name, values in content["points"].items():
            if not _is_table(values):
                yield f"point {name}: a mapping of keys to values was expected"


def _dimension_problems(given: Any) -> Iterator[str]:
    if not _is_table(given):
        yield "a mapping such as {low: 1e-4, high: 3e-3, log: true} or {choices: [l1, huber]} was expected"
        return
    for name in given:
        if name not in _DIMENSION_FIELDS:
            yield f"unknown field '{name}'{did_you_mean(name, _DIMENSION_FIELDS)}"
    for name in _SWITCHES:
        if not isinstance(given.get(name, False), bool):
            yield f"{name}={given[name]!r}: true or false was expected"
    if not isinstance(given.get("choices", []), list | dict):
        yield f"choices={given['choices']!r}: a list, or a mapping of name to value, was expected"
    if not _is_table(given.get("when", {})):
        yield f"when={given['when']!r}: a mapping was expected, as {{loss.name: [huber]}} or {{distil.weight: nonzero}}"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
