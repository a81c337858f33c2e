"""A folder of pictures with a metadata.jsonl, as Hugging Face's `imagefolder` lays it out.

Each line is one picture: {"file_name": "a.png", "text": "its caption", "num_repeats": 10}, the
last of them our own addition for what the names of kohya's folders say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from optbench.data.rules import PICTURE_SUFFIXES, Findings, file_problem, setting_problem
from optbench.errors import Problem, shorten

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
                str(file),
                f"no line for {shorten(unnamed)}",
                "a line for every picture beside it",
                f"add lines, or move these pictures away, or move {METADATA_NAME} away",
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
    return Problem(where, found, expected, f"write lines like {fix}")


_NEARLY = re.compile(r"([1-9][0-9]*)[ .x-]+(?=[^/])")  # 10 girl, 10-girl, 10x girl
_FOLDER_NAME = re.compile(r"(-?[0-9]+)_(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Pictures that come equally often; kohya's folders say how often, and what they show."""

    path: Path
    repeats: int
    class_words: str
    pictures: tuple[Path, ...]
    texts: Mapping[Path, str] | None = None  # captions that no file beside the picture holds
    is_regularization: bool = False


def find_folders(root: Path, setting: str, problems: list[Problem]) -> list[Folder]:
    """Return the folders named <repeats>_<class words>, sorted by name; others are left alone.

    None is a problem unless there are loose pictures, about which the caller decides.

    Args:
        root: The folder that `setting` names.
        setting: Its key, for instance dataset.dir.
        problems: Where everything wrong is added.
    """
    if not root.is_dir():
        problems.append(
            Problem(
                setting,
                f"{root}, which is no folder",
                "a folder that holds folders named <repeats>_<class words>",
                f"write {setting}=FOLDER, relative to {Path.cwd()} or absolute",
            )
        )
        return []
    folders = []
    for path in sorted(one for one in root.iterdir() if one.is_dir()):
        matched = _FOLDER_NAME.fullmatch(path.name)
        if matched is None:
            continue
        repeats, pictures = int(matched[1]), pictures_in(path)
        folders.append(
            Folder(path=path, repeats=repeats, class_words=matched[2], pictures=pictures)
        )
        if repeats < 1:
            expected, fix = "1 or more repeats", f"rename it to 1_{matched[2]}, or move it away"
            problems.append(file_problem(path, f"{repeats} repeats", expected, fix))
        if not pictures:
            expected = f"pictures ({' '.join(sorted(PICTURE_SUFFIXES))}) right in it"
            problems.append(file_problem(path, "no picture", expected, "add some or remove it"))
    return folders


def no_folders(root: Path, setting: str) -> Problem:
    """Return the problem of a folder that holds none, with the nearest way to one that does."""
    pictures = pictures_in(root)
    others = sorted(f"{one.name}/" for one in root.iterdir() if one.is_dir())
    found = [f"the folders {shorten(others)}"] if others else []
    found += [f"{len(pictures)} pictures outside of folders"] if pictures else []
    fix = "make a folder 10_girl in it (10 repeats of class girl) and put pictures and captions in"
    metadata = sorted(one.parent for one in root.glob("*/metadata.jsonl"))
    if _FOLDER_NAME.fullmatch(root.name) and pictures:
        fix = f"write {setting}={root.parent}, the folder around it"
    elif metadata:
        fix = f"write {setting}={metadata[0]}, which holds a metadata.jsonl"
    elif pictures and not others:
        fix = f"write dataset.num_repeats=10 to take them from {root} itself, or {fix}"
    elif others:
        name = _NEARLY.sub("", others[0])
        number = _NEARLY.match(others[0])
        repeats = number[1] if number else "10"
        fix = f"rename {others[0]} to {repeats}_{name} ({repeats} repeats; the rest are the class "
        fix += "words)"
    expected = "folders named <repeats>_<class words>, for instance 10_girl"
    return file_problem(root, " and ".join(found) or "nothing", expected, fix)


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """Return the pictures right in a folder, sorted; hidden ones are none."""
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    )


_DIR = "dataset.dir"
# Pictures to a person, and to none of the readers that kohya's trainer has.
_OTHER_SUFFIXES = {".heic", ".heif", ".gif", ".tif", ".tiff", ".tga", ".jfif", ".psd"}


def find_pictures(
    root: Path, setting: str, num_repeats: int | None, findings: Findings
) -> list[Folder]:
    """Return the pictures of a folder by how often they come.

    Args:
        root: The folder that `setting` names.
        setting: dataset.dir or dataset.reg_dir.
        num_repeats: Of pictures that no folder's name and no line of metadata.jsonl gives any.
        findings: Where everything wrong is added, and files that are left alone.
    """
    problems = findings.problems
    num_before = len(problems)
    folders = find_folders(root, setting, problems)
    if len(problems) > num_before and not folders:
        return []
    has_metadata = (root / METADATA_NAME).is_file()
    if folders and has_metadata:
        found = f"a {METADATA_NAME} beside folders named <repeats>_<class words>"
        fix = f"move {METADATA_NAME} or these folders away"
        problems.append(file_problem(root, found, "one of both, for either says it all", fix))
    if folders:
        findings.remarks += _left_alone(root, folders)
        if num_repeats is not None and setting == _DIR:
            expected = "null, for the folders' names say how often"
            problems.append(setting_problem("num_repeats", num_repeats, expected, "null"))
        return folders
    if has_metadata:
        return read_imagefolder(root, num_repeats=num_repeats or 1, problems=problems)
    pictures = pictures_in(root)
    if num_repeats is not None and pictures:
        folders = [Folder(path=root, repeats=num_repeats, class_words="", pictures=pictures)]
        findings.remarks += _left_alone(root, folders)
        return folders
    problems.append(no_folders(root, setting))
    return []


def _left_alone(root: Path, folders: Sequence[Folder]) -> Iterator[str]:
    """Yield a sentence on each kind of thing that looks like training data and is not read."""
    taken = {folder.path for folder in folders}
    others = sorted(one for one in root.iterdir() if one.is_dir() and one not in taken)
    if names := [f"{one.name}/" for one in others if pictures_in(one)]:
        yield f"left alone, for their names do not begin with <repeats>_: {shorten(names)}"
    if root not in taken and (loose := [one.name for one in pictures_in(root)]):
        yield f"left alone, for they lie outside of the folders <repeats>_...: {shorten(loose)}"
    unread = [
        one.name
        for folder in sorted(taken)
        for one in sorted(folder.iterdir())
        if one.suffix.lower() in _OTHER_SUFFIXES
    ]
    if unread:
        yield f"left alone, for their format is not read (save as .png): {shorten(unread)}"
