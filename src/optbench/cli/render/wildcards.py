"""Replace `__name__` in a prompt by a text of a list, in order along an axis or drawn by seed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench import rng
from optbench.errors import Problem
from optbench.storage.text_files import read_text

# A name is that of a file, with its folders: words of any script, and nothing that parts tags or
# weighs them. It ends at the next two underscores, and neither begins nor ends with a space.
_MARK = re.compile(r"""__(?![_\s])((?:(?!__)[^\n,;<>()\[\]{}|:*?"@^])++)(?<!\s)__""")
_MAX_DEPTH = 8

Lists = Mapping[str, tuple[str, ...]]


def read_lists(
    given: Any, folder: str | None, problems: list[Problem]
) -> dict[str, tuple[str, ...]]:
    """Return the values of every wildcard, from the settings and from a folder of NAME.txt.

    A file in a folder of that folder has the name FOLDER/NAME.
    """
    lists: dict[str, tuple[str, ...]] = {}
    if folder is not None and not Path(folder).is_dir():
        problems.append(
            _problem("wildcards_dir", f"{folder}, which does not exist", "a folder of NAME.txt")
        )
    elif folder is not None:
        for file in sorted(Path(folder).rglob("*.txt")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            try:
                lines = read_text(file).split("\n")
            except (OSError, ValueError) as error:
                problems.append(_problem(str(file), f"{error}", "a text file in UTF-8"))
                continue
            values = [line.strip() for line in lines if not line.lstrip().startswith("#")]
            lists[_composed(name)] = tuple(value for value in values if value)
    for name, values in (given or {}).items():
        is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
        lists[_composed(str(name))] = tuple(values) if is_list else ()
    return lists


def named_in(text: str, lists: Lists) -> set[str]:
    """Return the wildcards of a text, those in their values included; unknown ones too."""
    names: set[str] = set()
    todo = _names(text)
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            todo += [inner for value in lists.get(name, ()) for inner in _names(value)]
    return names


def check_lists(where: str, text: str, lists: Lists) -> list[Problem]:
    """Return a problem for every wildcard of a text that has no values, or contains itself."""
    problems = []
    for name in sorted(named_in(text, lists)):
        if not lists.get(name):
            known = ", ".join(sorted(lists)) or "none"
            found = f"__{name}__, a wildcard without values"
            problems.append(_problem(where, found, f"one of those given: {known}"))
        elif any(name in named_in(value, lists) for value in lists[name]):
            problems.append(_problem(where, f"__{name}__, which contains itself", "other values"))
    return problems


def put_in(text: str, chosen: Mapping[str, str]) -> str:
    """Return a text with the value of every wildcard that stands along a side."""
    return _MARK.sub(lambda mark: chosen.get(_composed(mark[1]), mark[0]), text)


def drawn(text: str, lists: Lists, *, seed: int) -> str:
    """Return a text with a value for every wildcard; its image's seed alone decides which.

    Every place of a text draws by itself, so a name that stands twice may give two values.
    """
    for depth in range(_MAX_DEPTH):
        places = iter(range(len(text)))

        def value_of(mark: re.Match[str], depth: int = depth, places: Any = places) -> str:
            name = _composed(mark[1])
            draw = rng.shuffler(seed, "render", "wildcard", name, depth, next(places))
            return draw.choice(lists[name])

        text = _MARK.sub(value_of, text)
    return text


def _names(text: str) -> list[str]:
    return [_composed(name) for name in _MARK.findall(text)]


def _composed(name: str) -> str:
    """Return a name with its accents and syllables composed; macOS writes files' names apart."""
    return unicodedata.normalize("NFC", name)


def _problem(where: str, found: str, expected: str) -> Problem:
    fix = (
        "write '+wildcards.colour=[red,blue]' with __colour__ in a prompt, or wildcards_dir=FOLDER"
    )
    return Problem(where, found, expected, fix)
