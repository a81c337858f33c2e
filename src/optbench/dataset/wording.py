"""How the data set's problems are worded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optbench.errors import Problem

_MAX_NAMED = 5


def setting_problem(name: str, found: object, expected: str, value: object) -> Problem:
    """Return the problem of one setting, and a value that works."""
    where = f"dataset.{name}"
    return Problem(found=str(found), expected=expected, where=where, fix=f"write {where}={value}")


def file_problem(path: Path, found: str, expected: str, fix: str) -> Problem:
    """Return the problem of one file or folder."""
    return Problem(found=found, expected=expected, where=str(path), fix=fix)


def named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
