"""A run's own config.yaml, read as plain values: nothing in it is looked up, imported or run."""

from __future__ import annotations

from typing import Any

import yaml

from optbench.errors import DamagedFileError
from optbench.files import damaged, is_text, read_sealed_text
from optbench.rundir import RunDir


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which we never write: they let a short file hold itself or a billion lines.

    Everything else is read as `yaml.safe_load` reads it, so `${...}` stays the text it is.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which no config of ours has")
        return super().compose_node(parent, index)


def read_config(run: RunDir) -> dict[str, Any]:
    """Return a run's config as plain nested dictionaries.

    Raises:
        DamagedFileError: If the file is missing, or is not the YAML we wrote.
    """
    path = run.config_path
    text = read_sealed_text(path)
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise _damaged(run, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise _damaged(run, f"a {type(content).__name__}")
    if not is_text(content):
        raise _damaged(run, "half a character in a text")
    return content


def _damaged(run: RunDir, found: str) -> DamagedFileError:
    return damaged(run.config_path, found, "the run's config in YAML")
