"""The parts of the page below its first screen: their order, titles and addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page: `index.html.j2` writes its heading, `template` what stands below it."""

    anchor: str  # of links to it
    title: str
    template: str


# The order of the page and of its navigation alike. A section is there where the page's value of
# the last name has content; "" for always.
_SECTIONS = (
    ("race", "The race", "race.html.j2", "race"),
    ("resized", "Resized LoRAs", "resized.html.j2", "resized"),
    ("pictures", "Images", "viewer.html.j2", "num_pictures"),
    ("reasons", "How sure is that?", "reasons.html.j2", "reasons"),
    ("settings", "Settings", "settings.html.j2", "has_settings"),
    ("people", "What people see", "people.html.j2", "people"),
    ("metrics", "Image metrics", "metrics.html.j2", "metrics"),
    ("curves", "Curves", "curves.html.j2", "charts"),
    ("pairs", "One change at a time", "pairs.html.j2", "changes"),
    ("ranking", "Speed and cost", "speed.html.j2", "has_trainings"),
    ("undone", "Not finished", "undone.html.j2", "undone"),
    ("problems", "Could not be read", "problems.html.j2", "problems"),
    ("runs", "Runs", "runs.html.j2", "has_runs"),
    ("optimizers", "Optimizers", "optimizers.html.j2", "recipes"),
    ("files", "Files and versions", "files.html.j2", ""),
)


def sections(context: Mapping[str, Any]) -> list[Section]:
    """Return the sections that have content, in the order of the page.

    Args:
        context: The values that the page's templates are given.
    """
    return [
        Section(anchor=anchor, title=title, template=template)
        for anchor, title, template, content in _SECTIONS
        if not content or context[content]
    ]
