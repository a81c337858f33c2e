"""A run's config -> its settings by override name. Nothing of a file is executed or believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Places on this machine, texts about a recipe, what only names the sweep, and who looks on.
_NOT_SETTINGS = ("runs_dir", "cache_dir", "sweep_name", "metric", "tracker")
_TEXT_SETTINGS = ("optimizer.package", "optimizer.paper", "optimizer.note", "prompts.prompts")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's settings by override name; a group's own key holds its option's name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            rest = dict(value)
            if "name" in rest:
                flat[str(key)] = rest.pop("name")
            flat.update(_flat(rest, f"{key}."))
        else:
            flat[str(key)] = _plain(value)
    home = str(Path.home())
    return {
        key: value.replace(home, "~", 1) if isinstance(value, str) else value
        for key, value in flat.items()
        if not key.startswith(_TEXT_SETTINGS)
    }


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple)) else value
