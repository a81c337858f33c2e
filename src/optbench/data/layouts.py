"""Find the images of a data set and how often each is used per epoch, in three layouts.

kohya's: DIR/<repeats>_<class words>/image.png. Hugging Face's `imagefolder`: DIR/metadata.jsonl
beside its images. Or images right in DIR, with `dataset.num_repeats`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from optbench.data.rules import IMAGE_SUFFIXES, Findings, setting_problem
from optbench.errors import Problem, shorten
from optbench.storage.text_files import read_text

METADATA_NAME = "metadata.jsonl"

_DIR = "dataset.dir"
_FOLDER_NAME = re.compile(r"(-?[0-9]+)_(.*)", re.DOTALL)
# 10 girl, 10-girl, 10x girl, 10x_girl
_NEARLY_FOLDER_NAME = re.compile(r"([1-9][0-9]*)[ .x\u00d7_-]+(?=[^/])")
_MAX_REPEATS = 9_999  # above it, a date or another number that was not meant
_YEARS = range(1900, 2100)
# Images to a person, and to none of the readers that kohya's trainer has.
_UNREAD_SUFFIXES = {".heic", ".heif", ".gif", ".tif", ".tiff", ".tga", ".jfif", ".psd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Images used equally often; kohya's folder names say how often, and what they show."""

    path: Path
    repeats: int
    class_words: str
    images: tuple[Path, ...]
    captions: Mapping[Path, str] | None = None  # of metadata.jsonl; None: files beside the images
    is_regularization: bool = False


def find_images(
    root: Path, setting: str, num_repeats: int | None, findings: Findings
) -> list[Folder]:
    """Return the images of a data set, grouped by how often they are used.

    Args:
        root: The folder that `setting` names.
        setting: dataset.dir or dataset.reg_dir.
        num_repeats: For images that no folder's name and no line of metadata.jsonl gives any.
        findings: Collects problems, and notices on files that are left alone.
    """
    problems = findings.problems
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
    folders = _find_kohya_folders(root, problems)
    has_metadata = (root / METADATA_NAME).is_file()
    if folders and has_metadata:
        found = f"a {METADATA_NAME} beside folders named <repeats>_<class words>"
        fix = f"move {METADATA_NAME} or these folders away"
        problems.append(Problem(str(root), found, "one of both, for either says it all", fix))
    if folders:
        findings.notices += _left_alone(root, folders)
        if num_repeats is not None and setting == _DIR:
            expected = "null, for the folders' names say how often"
            problems.append(setting_problem("num_repeats", num_repeats, expected, "null"))
        return folders
    if has_metadata:
        folders = _read_metadata(root, num_repeats=num_repeats or 1, problems=problems)
        named = {path for folder in folders for path in folder.images}
        if nested := [path for path in _nested_images(root) if path not in named]:
            names = shorten([str(path.relative_to(root)) for path in nested])
            findings.notices.append(f"left alone, for {METADATA_NAME} does not name them: {names}")
        return folders
    images = images_in(root)
    if num_repeats is not None and images:
        folders = [Folder(path=root, repeats=num_repeats, class_words="", images=images)]
        findings.notices += _left_alone(root, folders)
        return folders
    problems.append(_no_images(root, setting, images))
    return []


def images_in(folder: Path) -> tuple[Path, ...]:
    """Return the image files right in a folder, sorted, without hidden ones."""
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
    )


def _find_kohya_folders(root: Path, problems: list[Problem]) -> list[Folder]:
    """Return the folders named <repeats>_<class words>, sorted by name."""
    folders = []
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        match = _FOLDER_NAME.fullmatch(path.name)
        if match is None:
            continue
        repeats, images = int(match[1]), images_in(path)
        folders.append(Folder(path=path, repeats=repeats, class_words=match[2], images=images))
        if repeats > _MAX_REPEATS:
            problems.append(
                Problem(
                    str(path),
                    f"{repeats:,} uses of each of its images in every epoch, for its name begins "
                    f"with {match[1]}_",
                    f"the number of repeats, at most {_MAX_REPEATS:,}, then what the images show",
                    f"if the number is a date or an index, rename it to 10_{path.name}; if so many "
                    "uses are meant, give fewer repeats and more train.epochs",
                )
            )
        if repeats < 1:
            fix = f"rename it to 1_{match[2]}, or move it away"
            problems.append(Problem(str(path), f"{repeats} repeats", "1 or more repeats", fix))
        if not images:
            expected = f"images ({' '.join(sorted(IMAGE_SUFFIXES))}) right in it"
            problems.append(Problem(str(path), "no image", expected, "add some or remove it"))
    return folders


def _no_images(root: Path, setting: str, images: Sequence[Path]) -> Problem:
    """Return the problem of a folder in none of the layouts, with the shortest way to one."""
    others = sorted(f"{path.name}/" for path in root.iterdir() if path.is_dir())
    parts = [f"the folders {shorten(others)}"] if others else []
    parts += [f"{len(images)} images outside of folders"] if images else []
    fix = "make a folder 10_girl in it (10 repeats of class girl) and put images and captions in"
    metadata = sorted(path.parent for path in root.glob(f"*/{METADATA_NAME}"))
    if _FOLDER_NAME.fullmatch(root.name) and images:
        fix = f"write {setting}={root.parent}, the folder around it"
    elif metadata:
        fix = f"write {setting}={metadata[0]}, which holds a {METADATA_NAME}"
    elif images and not others:
        fix = f"write dataset.num_repeats=10 to take them from {root} itself, or {fix}"
    elif others:
        name = _suggested_name(others[0])
        repeats = name.partition("_")[0]
        fix = f"rename {others[0]} to {name} ({repeats} repeats; the rest are the class words)"
    expected = "folders named <repeats>_<class words>, for instance 10_girl"
    return Problem(str(root), " and ".join(parts) or "nothing", expected, fix)


def _suggested_name(name: str) -> str:
    """Return a folder's name as <repeats>_<class words>, with the repeats that it seems to mean."""
    number = _NEARLY_FOLDER_NAME.match(name)
    return f"{number[1]}_{name[number.end() :]}" if number else f"10_{name}"


def _left_alone(root: Path, folders: Sequence[Folder]) -> Iterator[str]:
    """Yield a sentence on each kind of thing that looks like training data and is not read."""
    taken = {folder.path for folder in folders}
    others = sorted(path for path in root.iterdir() if path.is_dir() and path not in taken)
    if names := [f"{path.name}/" for path in others if images_in(path)]:
        sentence = f"left alone, for their names do not begin with <repeats>_: {shorten(names)}"
        nearly = next((name for name in names if _NEARLY_FOLDER_NAME.match(name)), None)
        if nearly is not None:
            sentence += f" (to train {nearly}, rename it to {_suggested_name(nearly)})"
        yield sentence
    if root not in taken and (loose := [path.name for path in images_in(root)]):
        yield f"left alone, for they lie outside of the folders <repeats>_...: {shorten(loose)}"
    nested = [
        str(path.relative_to(root))
        for folder in sorted(taken)
        for path in _nested_images(folder)
        if folder != root or path.parent not in others
    ]
    if nested:
        yield (
            "left alone, for they lie in folders inside of the one that is taken: "
            f"{shorten(nested)} (move them up to train them)"
        )
    unread = [
        path.name
        for folder in sorted(taken)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _UNREAD_SUFFIXES
    ]
    if unread:
        yield f"left alone, for their format is not read (save as .png): {shorten(unread)}"
    years = [folder.path.name for folder in folders if folder.repeats in _YEARS]
    if years and root not in taken:
        yield (
            f"used as often in every epoch as the year in their name: {shorten(years)} (if no "
            f"repeats are meant, rename {years[0]} to 10_{years[0]})"
        )
    mixed = [
        path.name
        for folder in folders
        for path in folder.images
        if path.suffix not in (path.suffix.lower(), path.suffix.upper())
    ]
    if mixed:
        yield (
            f"trained here and passed over by kohya's trainer, for their endings mix capital and "
            f"small letters: {shorten(mixed)}"
        )


def _nested_images(folder: Path) -> Iterator[Path]:
    """Yield the images in folders inside of a folder, hidden ones left out."""
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if Path(parent) != folder:
            yield from (
                Path(parent, name)
                for name in sorted(files)
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            )


# --- metadata.jsonl: one image a line, {"file_name": "a.png", "text": "its caption"} ---

_NAME, _TEXT = "file_name", "text"
_REPEATS = "num_repeats"  # our own addition, for what the names of kohya's folders say


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    path: Path
    caption: str
    repeats: int


def _read_metadata(root: Path, *, num_repeats: int, problems: list[Problem]) -> list[Folder]:
    """Return the images that metadata.jsonl names, as one folder per number of repeats."""
    lines: dict[Path, _Line] = {}
    file = root / METADATA_NAME
    num_before = len(problems)
    for number, text in _numbered_lines(file, problems):
        where = f"{file} line {number}"
        line = _parse_line(text, root, num_repeats, where, problems)
        if line is None:
            continue
        if line.path in lines:
            problems.append(_line_problem(where, f"{line.path.name} again", "each image once"))
        lines[line.path] = line
    unnamed = [path.name for path in images_in(root) if path not in lines]
    if unnamed and len(problems) == num_before:
        problems.append(
            Problem(
                str(file),
                f"no line for {shorten(unnamed)}",
                "a line for every image beside it",
                f"add lines, or move these images away, or move {METADATA_NAME} away",
            )
        )
    if not lines and len(problems) == num_before:
        problems.append(_line_problem(str(file), "no line", "one line for every image"))
    by_repeats: dict[int, list[_Line]] = {}
    for line in lines.values():
        by_repeats.setdefault(line.repeats, []).append(line)
    return [
        Folder(
            path=root,
            repeats=repeats,
            class_words="",
            images=tuple(sorted(line.path for line in group)),
            captions={line.path: line.caption for line in group},
        )
        for repeats, group in sorted(by_repeats.items())
    ]


def _numbered_lines(file: Path, problems: list[Problem]) -> Iterator[tuple[int, str]]:
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        problems.append(_line_problem(str(file), str(error), "a text in UTF-8"))
        return
    # Not splitlines: a caption may hold other ends of lines that JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse_line(
    text: str, root: Path, num_repeats: int, where: str, problems: list[Problem]
) -> _Line | None:
    """Return one line's image, or None after adding what is wrong with it."""
    try:
        row: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(_line_problem(where, f"no JSON ({error})", "one JSON object per line"))
        return None
    keys = f"the keys {', '.join(map(str, row)) or 'none'}" if isinstance(row, dict) else ""
    name = row.get(_NAME) if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        problems.append(_line_problem(where, keys or f"{row!r}"[:60], f"a key {_NAME}"))
        return None
    path = root / name
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not path.is_file():
        found = f"{name!r}, where there is no image"
        problems.append(_line_problem(where, found, f"a file in {root}"))
        return None
    caption, repeats = row.get(_TEXT), row.get(_REPEATS, num_repeats)
    if not isinstance(caption, str) or not caption.strip():
        found = keys if caption is None else f"{_TEXT} {caption!r}"
        problems.append(_line_problem(where, found, f"a key {_TEXT} with the caption"))
        return None
    if type(repeats) is not int or repeats < 1:
        found = f"{_REPEATS} {repeats!r}"
        problems.append(_line_problem(where, found, "a whole number from 1"))
        return None
    return _Line(path=path, caption=caption, repeats=repeats)


def _line_problem(where: str, found: str, expected: str) -> Problem:
    fix = 'write lines like {"file_name": "a.png", "text": "its caption"}'
    return Problem(where, found, expected, fix)
