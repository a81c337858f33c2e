"""The caption of every picture: a file beside it, or the class words of its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from optbench.data.layouts import Folder
from optbench.data.rules import Findings, file_problem
from optbench.errors import Problem, shorten
from optbench.schema import DatasetOptions

_CAPTION_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")
# A face detector appends four numbers to the stem; kohya finds the caption without them.
_NUM_FACE_PARTS = 4
_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}")
_OF_FOLDER = "their folder's class words"
_DRAWS_ONE = "(dataset.enable_wildcard=true draws one)"


def read_captions(
    folder: Folder, options: DatasetOptions, findings: Findings
) -> Mapping[Path, str]:
    """Return each picture's caption; a wrong or missing one is a problem instead.

    With `enable_wildcard` it has as many lines as there are lines with words in the file.
    """
    captions: dict[Path, str] = {}
    suffix = options.caption_extension
    elsewhere: dict[str, list[str]] = {}
    absent = []
    for picture in folder.pictures:
        if folder.texts is not None:
            lines = [line.strip() for line in folder.texts[picture].splitlines()]
            captions[picture] = _caption(lines, picture.name, options, findings)
            continue
        file = _caption_file(picture, suffix)
        if file is not None:
            lines = _read_lines(file, options, findings.problems)
            captions[picture] = _caption(lines, picture.name, options, findings)
            continue
        others = [other for other in _CAPTION_SUFFIXES if _caption_file(picture, other)]
        if others:
            elsewhere.setdefault(others[0], []).append(picture.name)
        elif folder.class_words:
            captions[picture] = folder.class_words
            if not folder.is_regularization:  # where it is the rule
                words = "dataset.class_tokens" if options.class_tokens else _OF_FOLDER
                findings.note(f"have no caption but {words}", picture.name)
        else:
            absent.append(picture.name)
    for other, names in elsewhere.items():
        found = f"no {suffix} but a {other} file beside {shorten(names)}"
        fix = f"write dataset.caption_extension={other}, or rename the captions"
        wanted = f"captions ending in {suffix}"
        findings.problems.append(file_problem(folder.path, found, wanted, fix))
    if absent:
        found = f"neither captions nor class words for {shorten(absent)}"
        expected = f"a {suffix} file beside each picture, or class words in the folder's name"
        fix = f"add captions, or rename the folder to {folder.repeats}_girl, or write "
        fix += "dataset.class_tokens=girl"
        findings.problems.append(file_problem(folder.path, found, expected, fix))
    return captions


def _caption(lines: list[str], picture: str, options: DatasetOptions, findings: Findings) -> str:
    """Return what of a caption's lines counts, and note what does not."""
    lines = [line for line in lines if line]
    if options.enable_wildcard:
        return "\n".join(lines)
    if len(lines) > 1:
        findings.note(
            f"have captions of several lines, of which only the first counts {_DRAWS_ONE}", picture
        )
    if lines and _CHOICE.search(lines[0]):
        findings.note(
            f"have a choice like {{a|b}} in their caption, which stays as it is {_DRAWS_ONE}",
            picture,
        )
    return lines[0] if lines else ""


def _caption_file(picture: Path, suffix: str) -> Path | None:
    parts = picture.stem.split("_")
    stems = [picture.stem]
    if len(parts) > _NUM_FACE_PARTS:
        stems.append("_".join(parts[:-_NUM_FACE_PARTS]))
    files = (picture.with_name(stem + suffix) for stem in stems)
    return next((file for file in files if file.is_file()), None)


def _read_lines(file: Path, options: DatasetOptions, problems: list[Problem]) -> list[str]:
    """Return a caption's lines; Windows' editors put a byte order mark before the first."""
    fix = "write the caption into its first line and save it as UTF-8, or delete the file"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(file), str(error), "a text in UTF-8", fix))
        return []
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines if options.enable_wildcard else lines[:1]):
        expected = "a caption, for an empty file would train the picture on no words at all"
        problems.append(Problem(str(file), "an empty first line", expected, fix))
        return []
    return lines
