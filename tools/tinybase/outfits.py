"""The eight outfits: how each is painted over the body, and the words that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tools.tinybase.body import SIDES, Figure, Sleeve, paint_arm, paint_arms, torso
from tools.tinybase.brush import Color, arc, between, curve, polygon, polyline, shade
from tools.tinybase.character import Character

_PUFF_WIDTH: Final = 0.36


@dataclass(frozen=True, slots=True, kw_only=True)
class OutfitWords:
    """The tags of an outfit, and the same as single words for the ground truth.

    `second_color` is "" where the outfit shows no second colour worth a tag.
    """

    tags: tuple[str, ...]
    name: str
    color: str
    second_color: str


def name_outfit(character: Character) -> OutfitWords:
    """Return the words for what the character wears."""
    name, color, second = character.outfit, character.outfit_color, character.second_color
    tags: tuple[str, ...]
    if name == "sailor":
        tags = ("school uniform", f"{color} skirt", f"{second} bow")
        return OutfitWords(tags=tags, name=tags[0], color=color, second_color=second)
    if name == "armor":
        # The metal is what one sees first; the outfit's colour is only that of the skirt.
        metal = "gold" if second == "yellow" else "silver"
        tags = (f"{metal} armor", f"{color} skirt")
        return OutfitWords(tags=tags, name=name, color=metal, second_color=color)
    part = _SECOND_PARTS[name]
    if not part or (name == "dress" and not character.is_two_colored):
        return OutfitWords(tags=(f"{color} {name}",), name=name, color=color, second_color="")
    tags = (f"{color} {name}", f"{second} {part}")
    return OutfitWords(tags=tags, name=name, color=color, second_color=second)


def paint_outfit(figure: Figure) -> None:
    """Paint arms and outfit over legs and neck."""
    _OUTFIT_PAINTERS[figure.character.outfit](figure)


_SECOND_PARTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dress": "skirt",
        "shirt": "skirt",
        "bikini": "",
        "swimsuit": "",
        "kimono": "sash",
        "hoodie": "shorts",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skirt:
    """The cut of a skirt: where its hem is, and half its width there, before it swings."""

    color: Color
    hem_y: float
    half_width: float
    trim: Color | None = None


def _paint_skirt(figure: Figure, skirt: _Skirt) -> None:
    """Paint a skirt with its trim and three pleats; a dancer's is wider and shorter."""
    brush = figure.brush
    hem_y = skirt.hem_y - (0.1 if figure.is_dancing else 0)
    half = skirt.half_width * (1.22 if figure.is_dancing else 1)
    shape = curve(
        (-0.3, 1.45),
        [
            (-0.45, 1.8, -half, hem_y),
            (-half * 0.5, hem_y + 0.12, 0, hem_y + 0.08),
            (half * 0.5, hem_y + 0.12, half, hem_y),
            (0.45, 1.8, 0.3, 1.45),
        ],
    )
    brush.fill(shape, skirt.color)
    if skirt.trim is not None:
        line = arc(
            (-half * 0.93, hem_y - 0.07),
            [
                (-half * 0.5, hem_y + 0.03, 0, hem_y - 0.01),
                (half * 0.5, hem_y + 0.03, half * 0.93, hem_y - 0.07),
            ],
        )
        brush.stroke(line, skirt.trim, 0.07)
    for x in (-0.35, 0.0, 0.35):
        pleat = polyline([(x * 0.6, 1.75), (x * half * 1.3, hem_y - 0.05)])
        brush.stroke(pleat, shade(skirt.color, 0.86), 0.025)


def _paint_dress(figure: Figure) -> None:
    brush, character, color = figure.brush, figure.character, figure.outfit
    own_trim = character.looks.trim
    paint_arms(figure, Sleeve(color=color, width=_PUFF_WIDTH))
    if character.is_two_colored:
        skirt_color, trim = figure.second, color
    else:
        skirt_color, trim = color, shade(color, 1.6)
    cut = _Skirt(color=skirt_color, hem_y=2.32, half_width=0.86, trim=own_trim or trim)
    _paint_skirt(figure, cut)
    bodice = curve(
        (-0.38, 0.92),
        [
            (-0.36, 1.2, -0.3, 1.48),
            (0.3, 1.48),
            (0.36, 1.2, 0.38, 0.92),
            (0, 1.05, -0.38, 0.92),
        ],
    )
    brush.fill(bodice, color)
    brush.stroke(polyline([(-0.3, 1.47), (0.3, 1.47)]), own_trim or shade(color, 0.7), 0.09)


def _paint_shirt(figure: Figure) -> None:
    color = figure.outfit
    paint_arms(figure, Sleeve(color=color, width=_PUFF_WIDTH))
    figure.brush.fill(torso(), color)
    _paint_skirt(figure, _Skirt(color=figure.second, hem_y=2.12, half_width=0.72))
    is_white = figure.character.outfit_color == "white"
    collar_color = (220, 224, 235) if is_white else shade(color, 1.5)
    figure.brush.fill(polygon([(-0.2, 0.9), (0, 1.08), (0.2, 0.9)]), collar_color)


def _paint_bikini(figure: Figure) -> None:
    brush, color = figure.brush, figure.outfit
    paint_arms(figure)
    brush.fill(torso(), figure.skin)
    for side in SIDES:
        cup = curve(
            (side * 0.02, 1.22),
            [
                (side * 0.06, 1.0, side * 0.3, 1.08),
                (side * 0.36, 1.2, side * 0.3, 1.3),
                (side * 0.15, 1.34, side * 0.02, 1.22),
            ],
        )
        brush.fill(cup, color)
        brush.stroke(polyline([(side * 0.2, 1.06), (side * 0.16, 0.9)]), color, 0.05)
    bottom = curve((-0.365, 1.66), [(0, 1.72, 0.365, 1.66), (0.36, 1.86), (0, 2.06, -0.36, 1.86)])
    brush.fill(bottom, color)
    brush.disc((0, 1.52), 0.025, shade(figure.skin, 0.75), outlined=False)


def _paint_swimsuit(figure: Figure) -> None:
    paint_arms(figure)
    figure.brush.fill(torso(), figure.skin)
    suit = curve(
        (-0.25, 0.92),
        [
            (-0.2, 1.08, 0, 1.1),
            (0.2, 1.08, 0.25, 0.92),
            (0.33, 0.95),
            (0.34, 1.3, 0.3, 1.45),
            (0.38, 1.7, 0.36, 1.84),
            (0, 2.1, -0.36, 1.84),
            (-0.38, 1.7, -0.3, 1.45),
            (-0.34, 1.3, -0.33, 0.95),
        ],
    )
    figure.brush.fill(suit, figure.outfit)
    figure.brush.stroke(polyline([(-0.31, 1.45), (0.31, 1.45)]), figure.second, 0.09)


def _paint_armor(figure: Figure) -> None:
    brush = figure.brush
    has_gold = figure.character.second_color == "yellow"
    metal: Color = (226, 186, 84) if has_gold else (186, 192, 206)
    paint_arms(figure, Sleeve(color=shade(metal, 0.9), width=0.3, forearm=0.7))
    brush.fill(torso(), metal)
    _paint_skirt(figure, _Skirt(color=figure.outfit, hem_y=2.05, half_width=0.62))
    breastplate = curve(
        (-0.4, 0.92),
        [
            (-0.4, 1.3, -0.3, 1.5),
            (0, 1.62, 0.3, 1.5),
            (0.4, 1.3, 0.4, 0.92),
            (0, 1.0, -0.4, 0.92),
        ],
    )
    brush.fill(breastplate, metal)
    brush.stroke(polyline([(0, 1.0), (0, 1.52)]), shade(metal, 0.7), 0.035)
    for side in SIDES:
        brush.oval((side * 0.44, 1.02), (0.24, 0.2), metal)


def _paint_kimono(figure: Figure) -> None:
    brush, color = figure.brush, figure.outfit
    robe = curve(
        (-0.36, 0.9),
        [
            (-0.36, 1.4, -0.52, 2.62),
            (0, 2.7, 0.52, 2.62),
            (0.36, 1.4, 0.36, 0.9),
        ],
    )
    brush.fill(robe, color)
    brush.stroke(polyline([(0.06, 1.6), (0.1, 2.64)]), shade(color, 0.75), 0.03)
    for side, arm in zip(SIDES, figure.arms, strict=True):
        paint_arm(figure, arm, Sleeve(color=color, width=0.32, forearm=0.75))
        elbow_x, elbow_y = arm[1]
        cuff_x, cuff_y = between(arm[1], arm[2], 0.75)
        hanging_sleeve = polygon(
            [
                (elbow_x - 0.14 * side, elbow_y),
                (cuff_x + 0.12 * side, cuff_y + 0.02),
                (cuff_x + 0.2 * side, cuff_y + 0.5),
                (cuff_x - 0.3 * side, cuff_y + 0.52),
            ]
        )
        brush.fill(hanging_sleeve, color)
    collar = polygon(
        [
            (-0.2, 0.86),
            (0, 1.2),
            (0.2, 0.86),
            (0.3, 0.9),
            (0.05, 1.36),
            (-0.05, 1.36),
            (-0.3, 0.9),
        ]
    )
    brush.fill(collar, (250, 250, 250))
    sash = polygon([(-0.36, 1.36), (0.36, 1.36), (0.38, 1.64), (-0.38, 1.64)])
    brush.fill(sash, figure.second)


def _paint_hoodie(figure: Figure) -> None:
    brush, color = figure.brush, figure.outfit
    for hip, knee, _ in figure.legs:
        brush.limb((hip, between(hip, knee, 0.7)), figure.second, 0.36)
    front = curve(
        (-0.42, 0.9),
        [
            (-0.5, 1.4, -0.48, 1.86),
            (0, 1.96, 0.48, 1.86),
            (0.5, 1.4, 0.42, 0.9),
        ],
    )
    brush.fill(front, color)
    paint_arms(figure, Sleeve(color=color, width=0.34, forearm=0.85))
    hood = curve((-0.4, 0.86), [(0, 1.3, 0.4, 0.86), (0.3, 0.8), (0, 1.05, -0.3, 0.8)])
    brush.fill(hood, shade(color, 0.8))
    pocket = polygon([(-0.2, 1.5), (0.2, 1.5), (0.28, 1.78), (-0.28, 1.78)])
    brush.fill(pocket, shade(color, 0.9))


def _paint_sailor(figure: Figure) -> None:
    brush, color = figure.brush, figure.outfit
    cloth: Color = (248, 248, 252)
    is_white = figure.character.outfit_color == "white"
    trim: Color = (80, 110, 200) if is_white else (250, 250, 250)
    paint_arms(figure, Sleeve(color=cloth, width=_PUFF_WIDTH))
    brush.fill(torso(), cloth)
    _paint_skirt(figure, _Skirt(color=color, hem_y=2.1, half_width=0.72, trim=trim))
    collar = polygon([(-0.4, 0.88), (0, 1.32), (0.4, 0.88), (0.42, 1.08), (0, 1.5), (-0.42, 1.08)])
    brush.fill(collar, color)
    bow = polygon([(-0.18, 1.42), (0, 1.36), (0.18, 1.42), (0.14, 1.62), (0, 1.46), (-0.14, 1.62)])
    brush.fill(bow, figure.second)


_OUTFIT_PAINTERS: Final[Mapping[str, Callable[[Figure], None]]] = MappingProxyType(
    {
        "dress": _paint_dress,
        "shirt": _paint_shirt,
        "bikini": _paint_bikini,
        "swimsuit": _paint_swimsuit,
        "armor": _paint_armor,
        "kimono": _paint_kimono,
        "hoodie": _paint_hoodie,
        "sailor": _paint_sailor,
    }
)
