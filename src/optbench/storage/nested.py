"""Walk nested settings and records: one group, dotted keys, every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def section(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the group at a path of keys; an empty one where a stored config has no such group."""
    for name in names:
        group = tree.get(name)
        if not isinstance(group, Mapping):
            return {}
        tree = group
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys, as they are written on the command line.

    Lists are values, not groups; a group without keys leaves nothing.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def map_values(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested mappings and sequences with `change` applied to every key and every value.

    Keys are given to `change` as text; sequences become lists, as JSON has them.
    """
    if isinstance(tree, Mapping):
        return {change(str(key)): map_values(value, change) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, (str, bytes)):
        return [map_values(value, change) for value in tree]
    return change(tree)
