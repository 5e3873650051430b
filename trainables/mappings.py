"""Nested mappings by dotted key."""

from collections.abc import Mapping
from typing import Any


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values, before and now, of the dotted keys in which two nested mappings differ; None where absent."""
    first, second = flattened(before), flattened(now)
    values = {key: (first.get(key), second.get(key)) for key in first | second}
    return {key: (one, other) for key, (one, other) in values.items() if one != other}
