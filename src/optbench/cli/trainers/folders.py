"""Bring folders of images, as other trainers list them, into the one folder that is read here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

_COUNTED = re.compile(r"0*([1-9]\d*)_(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of images as another trainer lists it."""

    path: str
    repeats: int = 1
    class_words: str = ""
    is_regularization: bool = False


@dataclass(slots=True)
class Placed:
    """The settings of the folders, and what to type before so that they lie as ours have to."""

    settings: dict[str, str | int | None] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def place(folders: Sequence[ImageFolder], *, beside: str = "data") -> Placed:
    """Return how to train on these folders.

    One folder is named as it is. Folders that are named <repeats>_<class words> already and share
    a parent are named by it, unless repeats or words differ from their names. All others need a
    folder of links, which the commands make.

    Args:
        folders: The folders; without regularization ones `dataset.reg_dir` stays as it is.
        beside: The name of the folder of links.
    """
    placed = Placed()
    training = [folder for folder in folders if not folder.is_regularization]
    regularization = [folder for folder in folders if folder.is_regularization]
    if len(training) == 1 and not _is_kohya(training[0]):
        placed.settings["dataset.dir"] = training[0].path
        placed.settings["dataset.num_repeats"] = training[0].repeats
        if training[0].class_words:
            placed.settings["dataset.class_tokens"] = training[0].class_words
    elif training:
        placed.settings["dataset.dir"] = _shared(training, beside, placed.commands)
    if regularization:
        placed.settings["dataset.reg_dir"] = _shared(
            regularization, f"{beside}-reg", placed.commands
        )
    return placed


def words_of_links(commands: Sequence[str]) -> str:
    """Return a sentence on the commands that make a folder of links."""
    return "several folders of images are one here, a folder of links; type first: " + " && ".join(
        commands
    )


def _shared(folders: Sequence[ImageFolder], links: str, commands: list[str]) -> str:
    parents = {str(_pure(folder.path).parent) for folder in folders}
    if len(parents) == 1 and all(map(_is_kohya, folders)):
        return parents.pop()
    commands.append(f"mkdir -p {shlex.quote(links)}")
    taken: set[str] = set()
    for folder in folders:
        words = folder.class_words or _words(folder.path)
        name, number = f"{folder.repeats}_{words}", 1
        while name in taken:
            number += 1
            name = f"{folder.repeats}_{words} {number}"
        taken.add(name)
        target = folder.path
        if not _pure(target).is_absolute():
            target = str(Path(target).absolute())
        commands.append(f"ln -s {shlex.quote(target)} {shlex.quote(f'{links}/{name}')}")
    return links


def _is_kohya(folder: ImageFolder) -> bool:
    """Return whether a folder's name says its repeats and class words already."""
    match = _COUNTED.fullmatch(_pure(folder.path).name)
    return bool(match and int(match[1]) == folder.repeats and folder.class_words in ("", match[2]))


def _words(path: str) -> str:
    match = _COUNTED.fullmatch(name := _pure(path).name)
    return match[2] if match else name


def _pure(path: str) -> PurePosixPath | PureWindowsPath:
    return PureWindowsPath(path) if re.match(r"[A-Za-z]:[\\/]|\\\\", path) else PurePosixPath(path)
