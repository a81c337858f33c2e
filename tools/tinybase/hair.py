"""Hair: what falls behind the body, and the cap with its fringe in front of the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tools.tinybase.body import SIDES, Figure
from tools.tinybase.brush import WHITE, Color, Segment, arc, curve, polygon, shade
from tools.tinybase.character import CLOTH_COLORS

_FAR: Final = 3.0
"""A length beyond everything that is drawn, in units of the figure."""

_SUM_OF_A_LIGHT_COLOR: Final = 690


def paint_back_hair(figure: Figure) -> None:
    """Paint what the haircut shows behind the body and beside the head."""
    _BACK_HAIR[figure.character.hair](figure)


def paint_front_hair(figure: Figure) -> None:
    """Paint the hair over the forehead, in two colours where the looks ask for it."""
    _paint_cap(figure, figure.hair)
    right_hair = figure.character.looks.right_hair
    if right_hair is not None:
        with figure.brush.clipped((0, -_FAR), (_FAR, _FAR)):
            _paint_cap(figure, right_hair)
    if figure.character.hair == "spiky hair":
        for x in (-0.5, 0.0, 0.5):
            spike = polygon([(x - 0.26, -0.86), (x * 1.3, -1.42), (x + 0.26, -0.86)])
            figure.brush.fill(spike, figure.hair, outlined=False)


def _paint_cap(figure: Figure, color: Color) -> None:
    """Paint the hair on top of the head with its fringe and a band of light."""
    cap = curve(
        (-0.9, 0.42),
        [
            (-1.12, -0.3, -0.86, -0.66),
            (-0.5, -1.12, 0, -1.1),
            (0.5, -1.12, 0.86, -0.66),
            (1.12, -0.3, 0.9, 0.42),
            (0.84, 0.1, 0.8, -0.25),
            *_FRINGES[figure.character.fringe],
            (-0.84, 0.1, -0.9, 0.42),
        ],
    )
    figure.brush.fill(cap, color)
    light = shade(color, 1.55) if sum(color) < _SUM_OF_A_LIGHT_COLOR else WHITE
    figure.brush.stroke(arc((-0.5, -0.72), [(0, -0.9, 0.5, -0.72)]), light, 0.1)


# From the right temple (0.8, -0.25) to the left one; the last is swept to one side.
_FRINGES: Final[tuple[tuple[Segment, ...], ...]] = (
    (
        (0.62, -0.05, 0.5, 0.1),
        (0.38, -0.1, 0.3, -0.28),
        (0.1, -0.1, 0, 0.02),
        (-0.1, -0.1, -0.3, -0.28),
        (-0.38, -0.1, -0.5, 0.1),
        (-0.62, -0.05, -0.8, -0.25),
    ),
    ((0.3, -0.02, 0, -0.08), (-0.3, -0.02, -0.8, -0.25)),
    ((0.2, -0.1, -0.1, -0.6), (-0.5, -0.2, -0.8, -0.05)),
)


def _paint_long(figure: Figure) -> None:
    shape = curve(
        (-0.95, -0.2),
        [
            (-1.22, 0.9, -1.0, 1.85),
            (-0.5, 2.0, 0, 1.88),
            (0.5, 2.0, 1.0, 1.85),
            (1.22, 0.9, 0.95, -0.2),
        ],
    )
    figure.brush.fill(shape, _shadow(figure))


def _paint_wavy(figure: Figure) -> None:
    shape = curve(
        (-0.95, -0.2),
        [
            (-1.3, 0.2, -1.08, 0.55),
            (-1.4, 0.9, -1.1, 1.2),
            (-1.35, 1.6, -0.85, 1.75),
            (0, 1.5, 0.85, 1.75),
            (1.35, 1.6, 1.1, 1.2),
            (1.4, 0.9, 1.08, 0.55),
            (1.3, 0.2, 0.95, -0.2),
        ],
    )
    figure.brush.fill(shape, _shadow(figure))


def _paint_short(figure: Figure) -> None:
    shape = curve(
        (-0.98, -0.2),
        [(-1.16, 0.6, -0.86, 0.86), (0, 1.0, 0.86, 0.86), (1.16, 0.6, 0.98, -0.2)],
    )
    figure.brush.fill(shape, _shadow(figure))


def _paint_twintails(figure: Figure) -> None:
    for side in SIDES:
        tail = curve(
            (side * 0.8, -0.45),
            [
                (side * 1.65, -0.5, side * 1.5, 0.6),
                (side * 1.5, 1.3, side * 1.2, 1.75),
                (side * 1.1, 1.0, side * 1.05, 0.6),
                (side * 1.0, 0.1, side * 0.8, -0.1),
            ],
        )
        figure.brush.fill(tail, figure.hair)


def _paint_ponytail(figure: Figure) -> None:
    tail = curve(
        (0.1, -0.8),
        [
            (1.3, -1.25, 1.45, -0.1),
            (1.6, 0.9, 1.15, 1.5),
            (1.05, 0.8, 0.95, 0.3),
            (0.8, -0.3, 0.3, -0.4),
        ],
    )
    figure.brush.fill(tail, figure.hair)


def _paint_buns(figure: Figure) -> None:
    for side in SIDES:
        figure.brush.disc((side * 0.72, -0.82), 0.36, figure.hair)


def _paint_spikes(figure: Figure) -> None:
    points = []
    for index in range(15):
        angle = math.radians(160 + index * 220 / 14)
        reach = 1.42 if index % 2 else 1.0
        points.append((reach * math.cos(angle), reach * math.sin(angle) * 0.98 - 0.02))
    figure.brush.fill(polygon(points), figure.hair)


def _paint_braid(figure: Figure) -> None:
    for index in range(5):
        knot = (0.92 + 0.04 * index, 0.35 + 0.3 * index)
        figure.brush.disc(knot, 0.2 - 0.012 * index, figure.hair)
    figure.brush.disc((1.08, 1.72), 0.11, CLOTH_COLORS["red"])


def _paint_drills(figure: Figure) -> None:
    right_hair = figure.character.looks.right_hair or figure.hair
    for side, color in zip(SIDES, (figure.hair, right_hair), strict=True):
        for index in range(5):
            turn = (side * (1.08 + 0.02 * index), 0.15 + 0.3 * index)
            figure.brush.oval(turn, (0.34 - 0.045 * index, 0.2), color)


def _shadow(figure: Figure) -> Color:
    """Return the colour of hair that lies behind the body."""
    return shade(figure.hair, 0.8)


_BACK_HAIR: Final[Mapping[str, Callable[[Figure], None]]] = MappingProxyType(
    {
        "long hair": _paint_long,
        "short hair": _paint_short,
        "twintails": _paint_twintails,
        "ponytail": _paint_ponytail,
        "hair buns": _paint_buns,
        "spiky hair": _paint_spikes,
        "wavy hair": _paint_wavy,
        "braid": _paint_braid,
        "drill hair": _paint_drills,
    }
)
