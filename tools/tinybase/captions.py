"""Captions: the tags of a drawing in the many ways people write them.

The variety is what lets the text encoder cope with free word order, missing tags and a trigger
word it has never seen: some captions begin with a made-up name.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

SYLLABLES: Final = (
    "ba",
    "be",
    "bi",
    "ka",
    "ke",
    "ko",
    "la",
    "le",
    "lu",
    "ma",
    "mi",
    "mo",
    "na",
    "ne",
    "no",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "so",
    "ta",
    "te",
    "ti",
    "va",
    "ve",
    "yu",
    "za",
)
"""What made-up names are built from."""

LOW_QUALITY_WORDS: Final = (
    "worst quality",
    "low quality",
    "lowres",
    "blurry",
    "bad anatomy",
    "bad hands",
)
"""What degraded pictures are called, and what a negative prompt consists of."""

_HIGH_QUALITY_WORDS: Final = ("masterpiece", "best quality")
_HEAD_TAGS: Final = ("1girl", "solo")
_JOINED_POSES: Final = ("dancing", "standing", "waving")
_JOINED_SCENES: Final = (
    "flower field",
    "field of flowers",
    "beach",
    "forest",
    "night city",
    "room",
    "snow",
)
_WORN: Final = ("bikini", "dress", "swimsuit", "kimono", "hoodie", "armor", "shirt")


def caption(tags: Sequence[str], rng: random.Random, *, degraded: bool = False) -> str:
    """Return one way to write the tags of a drawing.

    Args:
        tags: The tags of the drawing.
        rng: The stream of the choices.
        degraded: Whether the picture went through `world.degrade` and is to be called bad.
    """
    heads = [tag for tag in tags if tag in _HEAD_TAGS]
    rest = [tag for tag in tags if tag not in _HEAD_TAGS]
    rest = [tag for tag in rest if rng.random() > 0.08]
    if rng.random() < 0.7:
        rng.shuffle(rest)
    if "flower field" in rest and rng.random() < 0.4:
        rest[rest.index("flower field")] = "field of flowers"
    rest = _wear(_join_pose_and_scene(rest, rng), rng)
    words = heads + rest
    if rng.random() < 0.15:
        words.insert(0, make_name(rng))
    if degraded:
        words = rng.sample(LOW_QUALITY_WORDS, rng.randint(2, 5)) + words
    elif rng.random() < 0.5:
        words = [*_HIGH_QUALITY_WORDS[: rng.randint(1, 2)], *words]
    return _join(words, rng)


def make_name(rng: random.Random) -> str:
    """Return a made-up name of two to four syllables."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))


def _join_pose_and_scene(tags: list[str], rng: random.Random) -> list[str]:
    """Return the tags, sometimes with pose and scene as one phrase in front."""
    poses = [tag for tag in tags if tag in _JOINED_POSES]
    scenes = [tag for tag in tags if tag in _JOINED_SCENES]
    if not (poses and scenes and rng.random() < 0.3):
        return tags
    joined = tags.copy()
    joined.remove(poses[0])
    joined.remove(scenes[0])
    return [f"{poses[0]} in a {scenes[0]}", *joined]


def _wear(tags: list[str], rng: random.Random) -> list[str]:
    """Return the tags, sometimes with "wearing" before the first outfit, which then leads."""
    worn = [tag_index for tag_index, tag in enumerate(tags) if tag.split()[-1] in _WORN]
    if not (worn and rng.random() < 0.25):
        return tags
    phrase = rng.choice(("wearing ", "wearing a ")) + tags[worn[0]]
    others = tags[: worn[0]] + tags[worn[0] + 1 :]
    return [phrase, *others]


def _join(words: Sequence[str], rng: random.Random) -> str:
    """Return the words with commas between them, now and then only a space."""
    text = "".join(words[:1])
    for word in words[1:]:
        text += (" " if rng.random() < 0.06 else ", ") + word
    return text
