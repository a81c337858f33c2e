"""Who is drawn: the palettes of the world, one character as a value, and a random inhabitant."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tools.tinybase.brush import Brush, Color

HAIR_COLORS: Final[dict[str, Color]] = {
    "blonde": (246, 214, 110),
    "brown": (138, 88, 54),
    "black": (52, 48, 60),
    "red": (204, 58, 52),
    "blue": (70, 120, 220),
    "pink": (246, 150, 190),
    "green": (84, 170, 96),
    "purple": (150, 98, 206),
    "white": (236, 236, 244),
    "orange": (240, 140, 60),
}
EYE_COLORS: Final[dict[str, Color]] = {
    "blue": (50, 120, 230),
    "green": (50, 170, 90),
    "red": (220, 50, 60),
    "brown": (130, 80, 40),
    "purple": (150, 80, 210),
    "yellow": (235, 190, 40),
}
CLOTH_COLORS: Final[dict[str, Color]] = {
    "red": (214, 48, 52),
    "blue": (52, 96, 208),
    "green": (62, 152, 84),
    "yellow": (246, 206, 64),
    "white": (246, 246, 250),
    "black": (46, 44, 54),
    "pink": (248, 150, 186),
    "purple": (142, 84, 196),
    "orange": (244, 136, 48),
}
SKIN_COLORS: Final[dict[str, Color]] = {
    "": (255, 226, 205),
    "tan": (222, 170, 128),
    "dark": (142, 94, 66),
}
HAIRS: Final = (
    "long hair",
    "short hair",
    "twintails",
    "ponytail",
    "hair buns",
    "spiky hair",
    "wavy hair",
    "braid",
)
OUTFITS: Final = ("dress", "shirt", "bikini", "swimsuit", "armor", "kimono", "hoodie", "sailor")
POSES: Final = ("standing", "arms up", "dancing", "hands on hips", "waving")
EXPRESSIONS: Final = ("smile", "open mouth", "closed mouth", "closed eyes")

_SKIN_WEIGHTS: Final = (0.74, 0.15, 0.11)
_OUTFIT_WEIGHTS: Final = (0.24, 0.16, 0.14, 0.08, 0.1, 0.1, 0.1, 0.08)
_POSE_WEIGHTS: Final = (0.28, 0.16, 0.26, 0.15, 0.15)
_EXPRESSION_WEIGHTS: Final = (0.45, 0.22, 0.18, 0.15)
_HATS: Final = ("witch hat", "straw hat", "beret")
_HAIR_FLOWER_COLORS: Final = ("red", "pink", "white", "yellow", "purple")
_OUTFITS_WITH_SCARF: Final = ("hoodie", "shirt", "dress")

Stage = Literal["body", "head"]
"""When a decoration is painted: over the finished body, or over the finished head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accessories:
    """What is worn besides the outfit; "" or false where there is nothing.

    `headwear` is a hat, "ribbon", "cat ears" or "hair flower"; `back` is "wings" or "cape".
    """

    headwear: str = ""
    headwear_color: str = ""
    back: str = ""
    back_color: str = ""
    has_glasses: bool = False
    scarf_color: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Colours and details no inhabitant has by name; None keeps what the names say.

    The right side is the right of the picture. `decoration` paints last in its stage, in the
    units of the figure.
    """

    hair: Color | None = None
    right_hair: Color | None = None
    right_eye: Color | None = None
    outfit: Color | None = None
    second: Color | None = None
    shoes: Color | None = None
    trim: Color | None = None
    decoration: Callable[[Brush, Character, Stage], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """One figure: all names are words of the palettes above.

    `fringe` is the cut of the front hair (0 to 2), `tilt` the lean of a dancer in degrees.
    """

    hair: str
    hair_color: str
    eyes: str
    skin: str
    outfit: str
    outfit_color: str
    second_color: str
    is_two_colored: bool
    pose: str
    expression: str
    fringe: int
    tilt: float
    accessories: Accessories
    looks: Looks


def choose_character(rng: random.Random) -> Character:
    """Return a random inhabitant; the order of the draws decides which, so it must stay."""
    hair = rng.choice(HAIRS)
    hair_color = rng.choice(tuple(HAIR_COLORS))
    eyes = rng.choice(tuple(EYE_COLORS))
    skin = rng.choices(tuple(SKIN_COLORS), _SKIN_WEIGHTS)[0]
    outfit = rng.choices(OUTFITS, _OUTFIT_WEIGHTS)[0]
    outfit_color, second_color = _choose_cloth(rng), _choose_cloth(rng)
    is_two_colored = rng.random() < 0.6
    pose = rng.choices(POSES, _POSE_WEIGHTS)[0]
    expression = rng.choices(EXPRESSIONS, _EXPRESSION_WEIGHTS)[0]
    fringe = rng.randint(0, 2)
    tilt = rng.uniform(-8, -4)
    while second_color == outfit_color:
        second_color = _choose_cloth(rng)
    return Character(
        hair=hair,
        hair_color=hair_color,
        eyes=eyes,
        skin=skin,
        outfit=outfit,
        outfit_color=outfit_color,
        second_color=second_color,
        is_two_colored=is_two_colored,
        pose=pose,
        expression=expression,
        fringe=fringe,
        tilt=tilt,
        accessories=_choose_accessories(rng, outfit),
        looks=Looks(),
    )


def _choose_accessories(rng: random.Random, outfit: str) -> Accessories:
    """Return random accessories that go with an outfit."""
    headwear, headwear_color = _choose_headwear(rng)
    back, back_color = "", ""
    if rng.random() < 0.12:
        back, back_color = "wings", rng.choice(("white", "black"))
    elif rng.random() < 0.08:
        back, back_color = "cape", _choose_cloth(rng)
    has_glasses = rng.random() < 0.1
    scarf_color = ""
    if rng.random() < 0.06 and outfit in _OUTFITS_WITH_SCARF:
        scarf_color = _choose_cloth(rng)
    return Accessories(
        headwear=headwear,
        headwear_color=headwear_color,
        back=back,
        back_color=back_color,
        has_glasses=has_glasses,
        scarf_color=scarf_color,
    )


def _choose_headwear(rng: random.Random) -> tuple[str, str]:
    """Return a random headwear and its colour, both "" for a bare head."""
    chance = rng.random()
    if chance < 0.12:
        return rng.choice(_HATS), _choose_cloth(rng)
    if chance < 0.24:
        return "ribbon", _choose_cloth(rng)
    if chance < 0.34:
        return "cat ears", ""
    if chance < 0.42:
        return "hair flower", rng.choice(_HAIR_FLOWER_COLORS)
    return "", ""


def _choose_cloth(rng: random.Random) -> str:
    """Return the name of a random cloth colour."""
    return rng.choice(tuple(CLOTH_COLORS))
