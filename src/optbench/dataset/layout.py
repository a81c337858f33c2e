"""Which layout a folder has: kohya's folders, a metadata.jsonl, or pictures right in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from optbench.dataset.findings import Findings
from optbench.dataset.folders import Folder, find_folders, no_folders, pictures_in
from optbench.dataset.imagefolder import METADATA_NAME, read_imagefolder
from optbench.dataset.wording import file_problem, named, setting_problem

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
        yield f"left alone, for their names do not begin with <repeats>_: {named(names)}"
    if root not in taken and (loose := [one.name for one in pictures_in(root)]):
        yield f"left alone, for they lie outside of the folders <repeats>_...: {named(loose)}"
    unread = [
        one.name
        for folder in sorted(taken)
        for one in sorted(folder.iterdir())
        if one.suffix.lower() in _OTHER_SUFFIXES
    ]
    if unread:
        yield f"left alone, for they are of a kind that is not read (save as .png): {named(unread)}"
