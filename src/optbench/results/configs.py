"""A run's config -> its settings by override name. Nothing of a file is executed or believed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from optbench.errors import DamagedFileError, Problem
from optbench.rundir import RunDir

# Places on this machine, texts about a recipe, what only names the sweep, and who looks on.
_NOT_SETTINGS = ("runs_dir", "cache_dir", "sweep_name", "metric", "tracker")
_TEXT_SETTINGS = ("optimizer.package", "optimizer.paper", "optimizer.note", "prompts.prompts")


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which we never write: they let a short file hold itself or a billion lines.

    Everything else is read as `yaml.safe_load` reads it.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which no config of ours has")
        return super().compose_node(parent, index)


def read_config(run: RunDir) -> dict[str, Any]:
    """Return a run's config as plain nested dictionaries.

    Raises:
        DamagedFileError: If the file is missing or is not the YAML we wrote.
    """
    path = run.config_path
    try:
        # A safe loader: it builds plain values only.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"a {type(content).__name__}")
    return content


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


def _damaged(path: Path, found: str) -> DamagedFileError:
    return DamagedFileError(
        Problem(
            found=found,
            expected="the run's config in YAML",
            where=str(path),
            fix="delete the run's folder and make the run again with the same command",
        )
    )
