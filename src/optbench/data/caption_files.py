"""Read every image's caption: from a file beside it, or the class words of its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from optbench.data.layouts import Folder
from optbench.data.rules import Findings
from optbench.errors import Problem, shorten
from optbench.schema import DatasetOptions
from optbench.storage.mistaken import HEAD_BYTES, mistaken_for
from optbench.storage.text_files import read_text

_CAPTION_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")
# A face detector appends four numbers to the stem; kohya finds the caption without them.
_NUM_FACE_PARTS = 4
_BRACES = re.compile(r"\{([^{}]*+)\}")
_DRAWS_ONE = "(dataset.enable_wildcard=true draws one)"


def read_captions(
    folder: Folder, options: DatasetOptions, findings: Findings
) -> Mapping[Path, str]:
    """Return each image's caption; a wrong or missing one is a problem instead.

    With `enable_wildcard` a caption has as many lines as there are lines with words in the file.
    """
    captions: dict[Path, str] = {}
    suffix = options.caption_extension
    by_other_suffix: dict[str, list[str]] = {}
    without_caption = []
    images_of: dict[Path, list[str]] = {}
    for image in folder.images:
        if folder.captions is not None:
            text = folder.captions[image].replace("\r\n", "\n").replace("\r", "\n")
            lines = [line.strip() for line in text.split("\n")]
            captions[image] = _caption(lines, image.name, options, findings)
            continue
        file = _caption_file(image, suffix)
        if file is not None:
            images_of.setdefault(file, []).append(image.name)
            lines = _read_lines(file, options, findings.problems)
            captions[image] = _caption(lines, image.name, options, findings)
            continue
        others = [other for other in _CAPTION_SUFFIXES if _caption_file(image, other)]
        if others:
            by_other_suffix.setdefault(others[0], []).append(image.name)
        elif folder.class_words:
            captions[image] = folder.class_words
            if not folder.is_regularization:  # where it is the rule
                is_set = options.class_tokens is not None
                words = "dataset.class_tokens" if is_set else "their folder's class words"
                findings.note(f"have no caption but {words}", image.name)
        else:
            without_caption.append(image.name)
    findings.notices += [
        f"{len(names)} images share one caption file: {shorten(names)} ({file.name})"
        for file, names in images_of.items()
        if len(names) > 1
    ]
    where = str(folder.path)
    for other, names in by_other_suffix.items():
        found = f"no {suffix} but a {other} file beside {shorten(names)}"
        fix = f"write dataset.caption_extension={other}, or rename the captions"
        findings.problems.append(Problem(where, found, f"captions ending in {suffix}", fix))
    if without_caption:
        found = f"neither captions nor class words for {shorten(without_caption)}"
        expected = f"a {suffix} file beside each image, or class words in the folder's name"
        fix = f"add captions, or rename the folder to {folder.repeats}_girl, or write "
        fix += "dataset.class_tokens=girl"
        findings.problems.append(Problem(where, found, expected, fix))
    return captions


def _caption(
    lines: Sequence[str], image_name: str, options: DatasetOptions, findings: Findings
) -> str:
    """Return what of a caption's lines counts, and note what does not."""
    lines = [line for line in lines if line]
    if lines and not any(letter.isalnum() for letter in "".join(lines)):
        findings.note("have a caption without a letter or digit in it", image_name)
    if options.enable_wildcard:
        return "\n".join(lines)
    if len(lines) > 1:
        sentence = f"have captions of several lines, of which only the first counts {_DRAWS_ONE}"
        findings.note(sentence, image_name)
    if lines and any("|" in choice for choice in _BRACES.findall(lines[0])):
        sentence = f"have a choice like {{a|b}} in their caption, which stays as it is {_DRAWS_ONE}"
        findings.note(sentence, image_name)
    return lines[0] if lines else ""


def _caption_file(image: Path, suffix: str) -> Path | None:
    parts = image.stem.split("_")
    stems = [image.stem]
    if len(parts) > _NUM_FACE_PARTS:
        stems.append("_".join(parts[:-_NUM_FACE_PARTS]))
    files = (image.with_name(stem + suffix) for stem in stems)
    return next((file for file in files if file.is_file()), None)


def _read_lines(file: Path, options: DatasetOptions, problems: list[Problem]) -> list[str]:
    """Return a caption's lines, parted where kohya's trainer parts them."""
    fix = "write the caption into its first line and save it as UTF-8, or delete the file"
    try:
        lines = [line.strip() for line in read_text(file).split("\n")]
    except (OSError, ValueError) as error:
        problems.append(Problem(str(file), str(error), "a text in UTF-8", fix))
        return []
    if mistaken := mistaken_for("\n".join(lines[:3])[:HEAD_BYTES].encode()) if any(lines) else None:
        problems.append(Problem(str(file), mistaken, "a caption", fix))
        return []
    if not any(lines if options.enable_wildcard else lines[:1]):
        expected = "a caption, for an empty file would train the image on no words at all"
        problems.append(Problem(str(file), "an empty first line", expected, fix))
        return []
    return lines
