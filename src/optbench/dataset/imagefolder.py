"""A folder of pictures with a metadata.jsonl, as Hugging Face's `imagefolder` lays it out.

Each line is one picture: {"file_name": "a.png", "text": "its caption", "num_repeats": 10}, the
last of them our own addition for what the names of kohya's folders say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from optbench.dataset.folders import Folder, pictures_in
from optbench.dataset.wording import named
from optbench.errors import Problem

METADATA_NAME = "metadata.jsonl"
_NAME, _TEXT, _REPEATS = "file_name", "text", "num_repeats"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    path: Path
    text: str
    repeats: int


def read_imagefolder(root: Path, *, num_repeats: int, problems: list[Problem]) -> list[Folder]:
    """Return the pictures that metadata.jsonl names, as one folder per number of repeats.

    Args:
        root: The folder that holds metadata.jsonl and the pictures.
        num_repeats: Of pictures whose line does not say.
        problems: Where everything wrong is added.
    """
    rows: dict[Path, _Row] = {}
    file = root / METADATA_NAME
    num_before = len(problems)
    for number, line in _lines(file, problems):
        row = _row(line, root, num_repeats, f"{file} line {number}", problems)
        if row is None:
            continue
        if row.path in rows:
            where = f"{file} line {number}"
            problems.append(_line_problem(where, f"{row.path.name} again", "each picture once"))
        rows[row.path] = row
    unnamed = [path.name for path in pictures_in(root) if path not in rows]
    if unnamed and len(problems) == num_before:
        problems.append(
            Problem(
                found=f"no line for {named(unnamed)}",
                expected="a line for every picture beside it",
                where=str(file),
                fix=f"add lines, or move these pictures away, or move {METADATA_NAME} away",
            )
        )
    if not rows and len(problems) == num_before:
        problems.append(_line_problem(str(file), "no line", "one line for every picture"))
    return [
        Folder(
            path=root,
            repeats=repeats,
            class_words="",
            pictures=tuple(sorted(one.path for one in rows.values() if one.repeats == repeats)),
            texts={one.path: one.text for one in rows.values() if one.repeats == repeats},
        )
        for repeats in sorted({row.repeats for row in rows.values()})
    ]


def _lines(file: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(_line_problem(str(file), str(error), "a text in UTF-8"))
        return
    # Not splitlines: a caption may hold other ends of lines that JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _row(
    line: str, root: Path, num_repeats: int, where: str, problems: list[Problem]
) -> _Row | None:
    """Return one line's picture, or None after adding what is wrong with it."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        problems.append(_line_problem(where, f"no JSON ({error})", "one JSON object per line"))
        return None
    name = row.get(_NAME) if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        problems.append(_line_problem(where, _keys(row), f"a key {_NAME}"))
        return None
    path = root / name
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not path.is_file():
        found = f"{name!r}, where there is no picture"
        problems.append(_line_problem(where, found, f"a file in {root}"))
        return None
    text, repeats = row.get(_TEXT), row.get(_REPEATS, num_repeats)
    if not isinstance(text, str) or not text.strip():
        found = _keys(row) if text is None else f"{_TEXT} {text!r}"
        problems.append(_line_problem(where, found, f"a key {_TEXT} with the caption"))
        return None
    if type(repeats) is not int or repeats < 1:
        found = f"{_REPEATS} {repeats!r}"
        problems.append(_line_problem(where, found, "a whole number from 1"))
        return None
    return _Row(path=path, text=text, repeats=repeats)


def _keys(row: Any) -> str:
    if not isinstance(row, dict):
        return f"{row!r}"[:60]
    return f"the keys {', '.join(map(str, row)) or 'none'}"


def _line_problem(where: str, found: str, expected: str) -> Problem:
    fix = '{"file_name": "a.png", "text": "its caption"}'
    return Problem(found=found, expected=expected, where=where, fix=f"write lines like {fix}")
