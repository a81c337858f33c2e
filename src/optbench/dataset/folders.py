"""Which folders take part, how often each comes, and the pictures in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optbench.dataset.wording import file_problem, named
from optbench.errors import Problem

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"}
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
                found=f"{root}, which is no folder",
                expected="a folder that holds folders named <repeats>_<class words>",
                where=setting,
                fix=f"write {setting}=FOLDER, relative to {Path.cwd()} or absolute",
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
    found = [f"the folders {named(others)}"] if others else []
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
