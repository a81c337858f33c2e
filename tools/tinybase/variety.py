"""Variety for the autoencoder: inhabitants in colours and with shapes that no one in the world has.

An autoencoder that has seen only the world's palette would smear a new character; the odd
colours and the doodles keep it general.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tools.tinybase.brush import Brush, Color, polygon, star
from tools.tinybase.character import Character, Looks, Stage, choose_character
from tools.tinybase.scenes import SCENE_WEIGHTS, SCENES

_TRIM_COLOR: Color = (230, 200, 80)


def choose_odd_character(rng: random.Random) -> tuple[Character, str]:
    """Return an inhabitant, often in odd colours or covered with doodles, and a scene's name."""
    character = choose_character(rng)
    looks = Looks(trim=_TRIM_COLOR)
    if rng.random() < 0.35:
        hair, outfit, second = (_choose_color(rng, 20) for _ in range(3))
        looks = replace(looks, hair=hair, outfit=outfit, second=second)
        if rng.random() < 0.5:
            looks = replace(looks, right_hair=_choose_color(rng, 20))
    scene = rng.choices(SCENES, SCENE_WEIGHTS)[0]
    if rng.random() < 0.25:

        def scribble(brush: Brush, character: Character, stage: Stage) -> None:
            for _ in range(rng.randint(2, 6)):
                _paint_doodle(brush, rng)

        looks = replace(looks, decoration=scribble)
    return replace(character, looks=looks), scene


def _paint_doodle(brush: Brush, rng: random.Random) -> None:
    """Paint a random star, disc, polygon or line near the figure, in its units."""
    x, y = rng.uniform(-1.3, 1.3), rng.uniform(-1.4, 2.4)
    color = _choose_color(rng, 10)
    kind = rng.randint(0, 3)
    radius = rng.uniform(0.1, 0.4)
    if kind == 0:
        shape = star((x, y), radius, num_points=rng.randint(4, 7))
        brush.fill(shape, color, outlined=rng.random() < 0.5)
    elif kind == 1:
        brush.disc((x, y), radius, color, outlined=rng.random() < 0.5)
    else:
        reach = 1.5 if kind == 2 else 2
        num_points = rng.randint(3, 5) if kind == 2 else 3
        points = []
        for _ in range(num_points):
            point_x = x + rng.uniform(-radius, radius) * reach
            points.append((point_x, y + rng.uniform(-radius, radius) * reach))
        if kind == 2:
            brush.fill(polygon(points), color)
        else:
            brush.limb(points, color, rng.uniform(0.05, 0.25))


def _choose_color(rng: random.Random, darkest: int) -> Color:
    """Return a random colour without channels below `darkest` or above 250."""
    return rng.randint(darkest, 250), rng.randint(darkest, 250), rng.randint(darkest, 250)
