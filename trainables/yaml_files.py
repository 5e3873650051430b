"""The one YAML reader: settings files, search spaces and `--set` values.

It reads 1e-4 as a number (YAML 1.1 wants a dot), refuses a key that is given twice, and tells every mistake in one
line with its place.
"""

import re
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml

from trainables.errors import UserError
from trainables.hints import closest

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """SafeLoader with numbers such as 1e-4, and without keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in getattr(node, "value", []):
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # PyYAML flattens a node in place and may see it again through an alias: what was merged stands first then,
        # so that the node's own keys would look like keys that are given twice.
        merged = any(key.tag == _MERGE for key, _ in node.value)
        super().flatten_mapping(node)
        if merged:
            last = {
                (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key): (key, value)
                for key, value in node.value
            }
            node.value = list(last.values())


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_value(text: str) -> Any:
    """Read one YAML value, such as what follows `--set KEY=`.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"'{text}' is not a YAML value: {_told(error)}") from None


def read_mapping(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read a YAML file of keys and values; an empty one has none.

    Top-level keys that only hold what is used elsewhere are left out: names that begin with `x-` or `.`, and names
    that are not known (and are no misspelt known one) whose value is an anchor that an alias refers to.

    Args:
        known: the top-level keys that mean something here.

    Raises:
        UserError: the file cannot be read, or holds no mapping with texts as keys.
    """
    if path.exists() and not path.is_file():  # a device never ends, and a pipe may never begin
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; a YAML file was expected")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a YAML file was expected") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; a YAML file was expected") from None
    try:
        content = yaml.load(text, _Loader)
        shared = _shared(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_told(error)}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply, or an anchor contains itself") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise UserError(f"{path} contains {kind}; keys with values were expected, for example optim: {{lr: 1e-3}}")
    wrong = next((key for key in content if not isinstance(key, str)), None)
    if wrong is not None:
        raise UserError(f"{path}: key {wrong!r} is not text; write it in quotes if it is meant as a name")
    return {key: value for key, value in content.items() if not _only_holds(key, shared, known)}


def _only_holds(key: str, shared: set[str], known: Collection[str]) -> bool:
    if key.startswith(("x-", ".")):
        return True
    section = key.split(".")[0]
    return key in shared and section not in known and closest(section, known, cutoff=0.8) is None


def _shared(text: str) -> set[str]:
    """Top-level keys whose value is an anchor that is used."""
    anchors: dict[str, str] = {}  # by anchor: the top-level key
    used, depth, key, at_key = set(), 0, "", True
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            used.add(event.anchor)
        if depth == 1 and isinstance(event, yaml.NodeEvent):
            if at_key:
                key = getattr(event, "value", "")
            elif event.anchor is not None and not isinstance(event, yaml.AliasEvent):
                anchors[event.anchor] = key
            at_key = not at_key
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
    return {key for anchor, key in anchors.items() if anchor in used}


def _told(error: yaml.YAMLError) -> str:
    """Return what is wrong and in which line, in a few words."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    if "'\\t'" in what:
        what = "a tab was found; YAML is indented with spaces"
    if "found another document" in what:
        what = "a second document begins; one was expected"
    where = "" if mark is None else f"line {mark.line + 1}: "
    return where + " ".join(str(what).split())[:160]
