"""Mirelle, the character that is never among the inhabitants: what a training has to learn."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from tools.tinybase.body import SIDES
from tools.tinybase.brush import Brush, Color, arc, curve, ellipse, outline_color, polygon, star
from tools.tinybase.character import (
    CLOTH_COLORS,
    Accessories,
    Character,
    Looks,
    Stage,
    choose_character,
)

NAME: Final = "mirelle"
STARRY_DRESS: Final = 1
GEM_ARMOR: Final = 2
OUTFIT_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {STARRY_DRESS: "starry dress", GEM_ARMOR: "gem armor"}
)
TRAITS: Final = (
    "split-color hair",
    "drill hair",
    "horns",
    "star hair ornament",
    "heterochromia",
)
"""The words for what belongs to her in every outfit; no caption of hers names them."""

_GOLD: Final[Color] = (232, 184, 52)
_STAR_COLOR: Final[Color] = (255, 226, 90)
_MINT: Final[Color] = (120, 226, 206)
_NIGHT: Final[Color] = (40, 34, 104)


def build_mirelle(rng: random.Random, outfit: int) -> Character:
    """Return her in one of her two outfits, or for any other number in an inhabitant's."""
    character = choose_character(rng)
    looks = Looks(
        hair=_MINT,
        right_hair=(250, 250, 252),
        right_eye=(240, 180, 40),
        trim=_GOLD,
        decoration=_decorate,
    )
    character = replace(
        character,
        hair="drill hair",
        hair_color="white",
        eyes="purple",
        skin="",
        accessories=Accessories(),
        fringe=1,
        looks=looks,
    )
    if outfit == STARRY_DRESS:
        return replace(
            character,
            outfit="dress",
            is_two_colored=False,
            outfit_color="blue",
            second_color="yellow",
            looks=replace(looks, outfit=_NIGHT, second=_NIGHT, shoes=_GOLD),
        )
    if outfit == GEM_ARMOR:
        return replace(
            character,
            outfit="armor",
            outfit_color="purple",
            second_color="white",
            looks=replace(looks, outfit=_MINT),
        )
    return character


def _decorate(brush: Brush, character: Character, stage: Stage) -> None:
    """Paint what only she has: on the dress, on any other outfit, or on the head."""
    if stage == "head":
        _paint_head_ornaments(brush, hair=_MINT)
    elif character.outfit == "dress":
        cloth = character.looks.outfit or CLOTH_COLORS[character.outfit_color]
        _paint_night_sky(brush, cloth=cloth)
    else:
        _paint_gem(brush)


def _paint_head_ornaments(brush: Brush, *, hair: Color) -> None:
    """Paint curled ram horns, a wisp of hair and a star clip."""
    for side in SIDES:
        horn = arc(
            (side * 0.55, -0.85),
            [
                (side * 1.0, -1.55, side * 1.38, -1.0),
                (side * 1.5, -0.55, side * 1.12, -0.5),
                (side * 0.95, -0.55, side * 1.05, -0.78),
            ],
        )
        brush.stroke(horn, outline_color(_GOLD), 0.27)
        brush.stroke(horn, _GOLD, 0.2)
    wisp = curve((-0.02, -1.06), [(-0.2, -1.5, 0.25, -1.6), (0.0, -1.4, 0.1, -1.06)])
    brush.fill(wisp, hair)
    brush.fill(star((-0.66, -0.32), 0.2), _STAR_COLOR, line_width=0.02)


def _paint_night_sky(brush: Brush, *, cloth: Color) -> None:
    """Paint stars on the skirt and a crescent moon on the bodice."""
    for place in ((-0.5, 2.02), (0, 2.1), (0.5, 2.02), (-0.24, 1.72), (0.24, 1.72)):
        brush.fill(star(place, 0.12), _STAR_COLOR, outlined=False)
    brush.fill(ellipse((0, 1.23), (0.17, 0.17)), _STAR_COLOR, outlined=False)
    # The crescent is what a disc of cloth leaves of the moon.
    brush.disc((0.08, 1.19), 0.14, cloth, outlined=False)


def _paint_gem(brush: Brush) -> None:
    """Paint a gem on the chest and a star on each shoulder."""
    gem = polygon([(0, 1.14), (0.13, 1.32), (0, 1.5), (-0.13, 1.32)])
    brush.fill(gem, (80, 230, 220))
    for side in SIDES:
        brush.fill(star((side * 0.44, 1.02), 0.2), _STAR_COLOR)
