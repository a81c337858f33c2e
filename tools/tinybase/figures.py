"""The figure as a whole: in which order its parts are painted."""

from __future__ import annotations

import random

from tools.tinybase.accessories import paint_behind, paint_glasses, paint_headwear, paint_scarf
from tools.tinybase.body import build_figure, paint_legs, paint_neck
from tools.tinybase.brush import Brush, Point
from tools.tinybase.character import Character
from tools.tinybase.faces import paint_face
from tools.tinybase.hair import paint_back_hair, paint_front_hair
from tools.tinybase.outfits import paint_outfit


def paint_character(
    brush: Brush, character: Character, rng: random.Random, *, center: Point, unit_px: float
) -> None:
    """Paint a character whose head is centred at a point of the sheet.

    Args:
        brush: A brush whose outlines are given in units of the figure.
        character: Who is painted.
        rng: The stream of the small differences between two figures in one pose.
        center: Where the centre of the head goes, in pixels.
        unit_px: The length of one unit of the figure, in pixels.
    """
    degrees = character.tilt if character.pose == "dancing" else 0.0
    decoration = character.looks.decoration
    with brush.moved(center, scale=unit_px, degrees=degrees):
        figure = build_figure(brush, character, rng)
        paint_behind(figure)
        paint_back_hair(figure)
        paint_legs(figure)
        paint_neck(figure)
        paint_outfit(figure)
        if decoration is not None:
            decoration(brush, character, "body")
        paint_scarf(figure)
        paint_face(figure)
        paint_glasses(figure)
        paint_front_hair(figure)
        paint_headwear(figure)
        if decoration is not None:
            decoration(brush, character, "head")
