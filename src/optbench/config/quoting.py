"""Quote what a person typed as Hydra's grammar and a shell want it."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
import typing
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from optbench.schema import (
    PlotOptions,
    RegularizeOptions,
    ResizeOptions,
    RunConfig,
    is_place,
    key_of,
)

_KEY = re.compile(r"[+~]*[A-Za-z_][\w.@/-]*")


def quoted(text: str) -> str:
    """Return a text in quotes for Hydra's grammar, in which only quotes need a backslash."""
    # Backslashes in front of a quote or of the end would take it along; others stay as they are.
    escaped = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", text)
    escaped = re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped)
    return f"'{escaped}'"


def for_shell(word: str) -> str:
    """Return a word as it is typed in a shell, in the quotes that are easiest to read."""
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)


def key_of_override(line: str) -> str | None:
    """Return the key of an override, whether or not Hydra can read its value."""
    key, equals, _ = line.partition("=")
    return key.lstrip("+~") if equals and _KEY.fullmatch(key) else None


def with_quoted_places(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with file names quoted that Hydra cannot read, or takes for a number.

    A name may hold any character; only a comma is left alone, for it may part several names.
    """
    return [_with_quoted_place(argument) for argument in arguments]


def _with_quoted_place(argument: str) -> str:
    key, _, value = argument.partition("=")
    if key_of_override(argument) not in place_keys() or not value or "," in value:
        return argument
    try:
        read = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        read = 0
    is_text = read is None or not isinstance(read, (bool, int, float))
    return argument if is_text else f"{key}={quoted(value)}"


@functools.cache
def place_keys() -> frozenset[str]:
    """Return the keys of all settings that name a file or folder."""
    keys = set()
    for kind in (RunConfig, ResizeOptions, RegularizeOptions, PlotOptions):
        for key, hint in _hints(kind).items():
            groups = _hints(hint) if dataclasses.is_dataclass(hint) else {}
            keys |= {f"{key}.{name}" for name, part in groups.items() if is_place(part)}
            keys |= {key} if is_place(hint) else set()
    return frozenset(keys)


def _hints(kind: Any) -> dict[str, Any]:
    return {
        key_of(name): hint
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if name in {field.name for field in dataclasses.fields(kind)}
    }
