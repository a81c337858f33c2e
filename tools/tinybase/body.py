"""The body under the clothes: where the arms and legs are, skin, shoes and sleeves.

A figure is drawn in its own units: (0, 0) is the centre of the head, one unit is a little more
than half the width of the head, y points down and the soles are at about 3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import skia

from tools.tinybase.brush import Brush, Color, Point, between, curve, polygon, shade
from tools.tinybase.character import CLOTH_COLORS, HAIR_COLORS, SKIN_COLORS, Character

SIDES: Final = (-1, 1)
"""Left and right of the picture, as the sign of x."""

_ARM_WIDTH: Final = 0.23
_LEG_WIDTH: Final = 0.3
_LEG_X: Final = 0.2
_BAREFOOT_OUTFITS: Final = ("bikini", "swimsuit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A character made ready for drawing: colours looked up and limbs placed.

    An arm runs from shoulder over elbow to hand, a leg from hip over knee to foot; left first.
    """

    brush: Brush
    character: Character
    skin: Color
    hair: Color
    outfit: Color
    second: Color
    arms: tuple[tuple[Point, ...], tuple[Point, ...]]
    legs: tuple[tuple[Point, ...], tuple[Point, ...]]

    @property
    def is_dancing(self) -> bool:
        """Return whether one leg is lifted and the skirt swings."""
        return self.character.pose == "dancing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleeve:
    """A sleeve; `forearm` is the covered share of the forearm, 0 for a short sleeve."""

    color: Color
    width: float
    forearm: float = 0.0


def build_figure(brush: Brush, character: Character, rng: random.Random) -> Figure:
    """Return the character with its colours looked up and its limbs in their pose."""
    looks = character.looks
    left, right = _place_arms(character.pose, rng)
    return Figure(
        brush=brush,
        character=character,
        skin=SKIN_COLORS[character.skin],
        hair=looks.hair or HAIR_COLORS[character.hair_color],
        outfit=looks.outfit or CLOTH_COLORS[character.outfit_color],
        second=looks.second or CLOTH_COLORS[character.second_color],
        arms=((_shoulder(-1), *left), (_shoulder(1), *right)),
        legs=_place_legs(is_dancing=character.pose == "dancing"),
    )


def torso() -> skia.Path:
    """Return the shape of the trunk from the shoulders to the hips."""
    return curve(
        (-0.36, 0.9),
        [
            (-0.34, 1.3, -0.3, 1.45),
            (-0.38, 1.75, -0.36, 1.85),
            (0.36, 1.85),
            (0.38, 1.75, 0.3, 1.45),
            (0.34, 1.3, 0.36, 0.9),
        ],
    )


def paint_legs(figure: Figure) -> None:
    """Paint legs, socks and shoes as the outfit asks for them."""
    brush, outfit = figure.brush, figure.character.outfit
    color = figure.skin
    if outfit == "armor":
        has_gold = figure.character.second_color == "yellow"
        color = figure.second if has_gold else (176, 182, 196)
    for leg in figure.legs:
        brush.limb(leg, color, _LEG_WIDTH)
    if outfit in _BAREFOOT_OUTFITS:
        return
    if outfit == "sailor":
        for leg in figure.legs:
            brush.limb(leg[1:], (246, 246, 250), _LEG_WIDTH)
    for side, leg in zip(SIDES, figure.legs, strict=True):
        foot_x, foot_y = leg[2]
        brush.oval((foot_x + side * 0.05, foot_y + 0.1), (0.24, 0.16), _shoe_color(figure))


def paint_neck(figure: Figure) -> None:
    """Paint the neck, a little darker than the face above it."""
    neck = polygon([(-0.13, 0.75), (0.13, 0.75), (0.13, 0.98), (-0.13, 0.98)])
    figure.brush.fill(neck, shade(figure.skin, 0.93), outlined=False)


def paint_arms(figure: Figure, sleeve: Sleeve | None = None) -> None:
    """Paint both arms with their hands and, when given, sleeves."""
    for arm in figure.arms:
        paint_arm(figure, arm, sleeve)


def paint_arm(figure: Figure, arm: tuple[Point, ...], sleeve: Sleeve | None) -> None:
    """Paint one arm with its hand and, when given, a sleeve."""
    figure.brush.limb(arm, figure.skin, _ARM_WIDTH)
    figure.brush.disc(arm[-1], 0.14, figure.skin)
    if sleeve is None:
        return
    shoulder, elbow, hand = arm
    if sleeve.forearm > 0:
        covered = (shoulder, elbow, between(elbow, hand, sleeve.forearm))
        figure.brush.limb(covered, sleeve.color, sleeve.width)
    else:
        figure.brush.limb((shoulder, between(shoulder, elbow, 0.6)), sleeve.color, sleeve.width)


def _shoe_color(figure: Figure) -> Color:
    """Return the colour of the shoes that belong to the outfit."""
    if figure.character.looks.shoes is not None:
        return figure.character.looks.shoes
    colors: dict[str, Color] = {
        "dress": shade(figure.outfit, 0.85),
        "shirt": (92, 60, 46),
        "armor": (150, 156, 172),
        "kimono": (120, 70, 40),
        "hoodie": (240, 240, 240),
        "sailor": (60, 48, 50),
    }
    return colors[figure.character.outfit]


def _shoulder(side: int) -> Point:
    """Return where the arm of a side begins."""
    return side * 0.34, 1.02


def _place_arms(pose: str, rng: random.Random) -> tuple[tuple[Point, Point], tuple[Point, Point]]:
    """Return elbow and hand of the left and the right arm, hands slightly at random."""

    def near(y: float) -> float:
        return y + rng.uniform(-0.05, 0.05)

    if pose == "arms up":
        return ((-0.78, 0.75), (-1.12, near(0.2))), ((0.78, 0.75), (1.12, near(0.2)))
    if pose == "dancing":
        return ((-0.82, 0.8), (-1.15, near(0.22))), ((0.82, 1.12), (1.22, near(1.2)))
    if pose == "hands on hips":
        return ((-0.86, 1.4), (-0.42, 1.72)), ((0.86, 1.4), (0.42, 1.72))
    if pose == "waving":
        return ((-0.62, 1.4), (-0.66, near(1.82))), ((0.86, 0.95), (1.14, near(0.38)))
    return ((-0.62, 1.4), (-0.7, near(1.84))), ((0.62, 1.4), (0.7, near(1.84)))


def _place_legs(*, is_dancing: bool) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Return hip, knee and foot of both legs; a dancer lifts the right one."""
    left = ((-_LEG_X, 1.75), (-_LEG_X - 0.02, 2.3), (-_LEG_X - 0.03, 2.78))
    if is_dancing:
        return left, ((_LEG_X, 1.75), (0.5, 2.2), (0.3, 2.6))
    return left, ((_LEG_X, 1.75), (_LEG_X + 0.02, 2.3), (_LEG_X + 0.03, 2.78))
