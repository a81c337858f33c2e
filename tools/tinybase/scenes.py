"""The places of the world: a sky where there is one, the ground, and the tags that name them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from tools.tinybase.brush import (
    WHITE,
    Brush,
    Color,
    curve,
    paint_cloud,
    paint_flower,
    polygon,
    shade,
    star,
)

SCENES: Final = ("flower field", "beach", "night city", "forest", "room", "snow", "simple")
SKIES: Final = ("blue sky", "sunset", "night sky")

# How often each scene is drawn, in the order of SCENES.
SCENE_WEIGHTS: Final = (0.2, 0.17, 0.12, 0.13, 0.12, 0.1, 0.16)

_SKY_WEIGHTS: Final = (0.7, 0.15, 0.15)
_SKY_COLORS: Final[dict[str, tuple[Color, Color]]] = {
    "blue sky": ((96, 168, 240), (196, 228, 252)),
    "sunset": ((120, 80, 160), (255, 168, 92)),
    "night sky": ((18, 22, 60), (56, 60, 120)),
}
_DAYLIGHT: Final = {"blue sky": 1.0, "sunset": 0.88, "night sky": 0.55}
_PETAL_COLORS: Final[tuple[Color, ...]] = (
    (240, 90, 110),
    (250, 250, 250),
    (250, 200, 70),
    (180, 110, 220),
    (250, 150, 190),
)
_WALL_COLORS: Final[tuple[Color, ...]] = (
    (250, 226, 200),
    (214, 226, 244),
    (244, 214, 224),
    (220, 238, 214),
)
_PLAIN_COLORS: Final[tuple[tuple[str, Color], ...]] = (
    ("white", (250, 250, 250)),
    ("pink", (252, 206, 220)),
    ("blue", (178, 212, 246)),
    ("yellow", (252, 236, 170)),
    ("grey", (200, 202, 208)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was painted behind the figure; `sky` and `plain_color` are "" where there is none."""

    name: str
    sky: str
    plain_color: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Easel:
    """The sheet being painted and the stream of its draws; lengths in pixels."""

    brush: Brush
    width: int
    height: int
    horizon: float
    rng: random.Random


def draw_scene(brush: Brush, name: str, rng: random.Random, *, width: int, height: int) -> Scene:
    """Paint a scene over the whole sheet and return what can be said about it.

    Raises:
        ValueError: If the name is not one of SCENES.
    """
    if name not in SCENES:
        raise ValueError(f"unknown scene {name!r}; expected one of {', '.join(SCENES)}")
    # The horizon is drawn for every scene, also for those without one, so that the draws that
    # follow keep their place in the stream.
    horizon = height * rng.uniform(0.5, 0.66)
    easel = _Easel(brush=brush, width=width, height=height, horizon=horizon, rng=rng)
    if name == "night city":
        tags = [name, "outdoors", "night sky", *_paint_city(easel)]
        return Scene(name=name, sky="night sky", plain_color="", tags=tuple(tags))
    if name == "room":
        tags = [name, "indoors", *_paint_room(easel)]
        return Scene(name=name, sky="", plain_color="", tags=tuple(tags))
    if name == "simple":
        return _paint_plain(easel)
    return _paint_landscape(easel, name)


def _paint_landscape(easel: _Easel, name: str) -> Scene:
    """Paint one of the four outdoor scenes with a horizon and return it."""
    sky = easel.rng.choices(SKIES, _SKY_WEIGHTS)[0]
    easel.brush.area((0, 0), (easel.width, easel.height), _SKY_COLORS[sky][1])
    tags = [name, "outdoors", sky, *_paint_sky(easel, sky, easel.horizon)]
    daylight = _DAYLIGHT[sky]
    if name == "flower field":
        _paint_flower_field(easel, daylight)
    elif name == "beach":
        tags += _paint_beach(easel, daylight)
    elif name == "forest":
        _paint_forest(easel, daylight)
    else:
        _paint_snow(easel, daylight)
    return Scene(name=name, sky=sky, plain_color="", tags=tuple(tags))


def _paint_sky(easel: _Easel, sky: str, bottom: float) -> list[str]:
    """Paint the sky down to a height and return the tags of what stands in it."""
    brush, rng, width = easel.brush, easel.rng, easel.width
    brush.sweep_down((0, 0), (width, bottom), _SKY_COLORS[sky])
    tags = []
    if sky == "blue sky":
        if rng.random() < 0.5:
            tags.append("sun")
            sun = (width * rng.choice((0.14, 0.86)), bottom * rng.uniform(0.16, 0.3))
            brush.disc(sun, 46, (255, 236, 130), outlined=False)
        if rng.random() < 0.7:
            tags.append("cloud")
            for _ in range(rng.randint(2, 3)):
                cloud = (width * rng.random(), bottom * rng.uniform(0.1, 0.7))
                paint_cloud(brush, cloud, rng.uniform(28, 46))
    elif sky == "sunset":
        sun = (width * rng.uniform(0.15, 0.85), bottom * 0.82)
        brush.disc(sun, 56, (255, 226, 140), outlined=False)
    else:
        if rng.random() < 0.6:
            tags.append("moon")
            moon = (width * rng.choice((0.15, 0.85)), bottom * 0.2)
            brush.disc(moon, 42, (252, 244, 200), outlined=False)
        if rng.random() < 0.6:
            tags.append("stars")
            for _ in range(14):
                center = (width * rng.random(), bottom * rng.random() * 0.8)
                shape = star(center, rng.uniform(7, 12), num_points=4, inner_share=0.35)
                brush.fill(shape, (255, 250, 210), outlined=False)
    return tags


def _paint_flower_field(easel: _Easel, daylight: float) -> None:
    """Paint a hill with flowers that grow towards the viewer."""
    brush, rng, horizon = easel.brush, easel.rng, easel.horizon
    width, height = easel.width, easel.height
    hill = curve(
        (0, horizon),
        [
            (width * 0.3, horizon - 40, width * 0.6, horizon + 5),
            (width * 0.85, horizon + 25, width, horizon - 10),
            (width, height),
            (0, height),
        ],
    )
    brush.fill(hill, shade((112, 192, 92), daylight), outlined=False)
    colors = rng.sample(_PETAL_COLORS, 2)
    depth = height - horizon
    num_flowers = int(width * depth / 5200)
    places = [
        (rng.random() * width, horizon + 18 + rng.random() * depth) for _ in range(num_flowers)
    ]
    for x, y in sorted(places, key=lambda place: place[1]):
        radius = 12 + 14 * (y - horizon) / depth
        color = shade(rng.choice(colors), daylight)
        paint_flower(brush, (x, y), radius, color, heart=shade((250, 220, 80), daylight))


def _paint_beach(easel: _Easel, daylight: float) -> list[str]:
    """Paint sea, foam and sand, sometimes a palm, and return the tag of the palm."""
    brush, rng = easel.brush, easel.rng
    width, height = easel.width, easel.height
    brush.area((0, easel.horizon), (width, height), shade((58, 150, 214), daylight))
    shore = easel.horizon + (height - easel.horizon) * 0.38
    for offset, color in ((0, WHITE), (14, (244, 220, 164))):
        y = shore + offset
        land = curve(
            (0, y),
            [
                (width * 0.25, y - 26, width * 0.5, y),
                (width * 0.75, y + 26, width, y),
                (width, height),
                (0, height),
            ],
        )
        brush.fill(land, shade(color, daylight), outlined=False)
    if rng.random() >= 0.45:
        return []
    x, y = width * rng.choice((0.08, 0.92)), shore + 14 + 30
    crown_x = x + (20 if x < width / 2 else -20)
    trunk = [(x, y), (x + 8, y - 150), (crown_x, y - 260)]
    brush.limb(trunk, shade((150, 108, 70), daylight), 20)
    for degrees in range(-160, 30, 32):
        _paint_palm_leaf(brush, (crown_x, y - 262), math.radians(degrees), daylight)
    return ["palm tree"]


def _paint_palm_leaf(
    brush: Brush, crown: tuple[float, float], angle: float, daylight: float
) -> None:
    """Paint one leaf that leaves the crown at an angle (radians) and hangs at its end."""
    x, y = crown
    cos, sin = math.cos(angle), math.sin(angle)
    leaf = curve(
        crown,
        [
            (x + 70 * cos, y + 70 * sin - 26, x + 105 * cos, y + 105 * sin + 30),
            (x + 50 * cos, y + 50 * sin + 6, x, y),
        ],
    )
    brush.fill(leaf, shade((70, 160, 80), daylight), outlined=False)


def _paint_forest(easel: _Easel, daylight: float) -> None:
    """Paint two rows of firs, a meadow and a path through it."""
    brush, rng = easel.brush, easel.rng
    width, height, horizon = easel.width, easel.height, easel.horizon
    greens: tuple[Color, ...] = ((96, 160, 104), (62, 128, 78))
    for row_index, green in enumerate(greens):
        num_gaps = int(width / 95)
        for fir_index in range(num_gaps + 1):
            place = fir_index + rng.uniform(-0.2, 0.2) + 0.5 * row_index
            x, y = place * width / num_gaps, horizon + 20 + 28 * row_index
            tallness = rng.uniform(190, 270)
            trunk = polygon([(x - 10, y), (x - 10, y - 60), (x + 10, y - 60), (x + 10, y)])
            brush.fill(trunk, shade((116, 80, 52), daylight), outlined=False)
            for tier in range(3):
                foot, half_width = y - 40 - tier * tallness * 0.25, 62 - tier * 14
                tip = (x, foot - tallness * 0.42)
                branch = polygon([(x - half_width, foot), tip, (x + half_width, foot)])
                color = shade(shade(green, 1 - 0.05 * tier), daylight)
                brush.fill(branch, color, outlined=False)
    brush.area((0, horizon + 30), (width, height), shade((104, 160, 84), daylight))
    path = curve(
        (width * 0.3, height),
        [
            (width * 0.45, horizon + 80, width * 0.44, horizon + 30),
            (width * 0.56, horizon + 30),
            (width * 0.6, horizon + 90, width * 0.75, height),
        ],
    )
    brush.fill(path, shade((206, 176, 128), daylight), outlined=False)


def _paint_snow(easel: _Easel, daylight: float) -> None:
    """Paint a white slope, a few firs and falling snow."""
    brush, rng = easel.brush, easel.rng
    width, height, horizon = easel.width, easel.height, easel.horizon
    slope = curve(
        (0, horizon),
        [
            (width * 0.25, horizon - 60, width * 0.5, horizon),
            (width * 0.8, horizon + 30, width, horizon - 30),
            (width, height),
            (0, height),
        ],
    )
    # Snow stays brighter at night than everything else.
    snow_light = daylight if daylight > 0.6 else 0.7
    brush.fill(slope, shade((238, 244, 252), snow_light), outlined=False)
    for _ in range(rng.randint(2, 4)):
        x, y = width * rng.random(), horizon + rng.uniform(0, 30)
        for tier in range(3):
            half_width, foot = 46 - tier * 11, y - tier * 38
            tip = (x, y - 62 - tier * 38)
            branch = polygon([(x - half_width, foot), tip, (x + half_width, foot)])
            brush.fill(branch, shade((70, 120, 110), daylight), outlined=False)
    for _ in range(22):
        flake = (width * rng.random(), height * rng.random())
        brush.disc(flake, rng.uniform(5, 9), WHITE, outlined=False)


def _paint_city(easel: _Easel) -> list[str]:
    """Paint a night sky, two rows of houses and a street, and return the tags of the sky."""
    brush, rng, width, height = easel.brush, easel.rng, easel.width, easel.height
    tags = _paint_sky(easel, "night sky", height * 0.8)
    for row_index, color in enumerate(((58, 56, 104), (36, 34, 70))):
        x = -20.0
        while x < width:
            house_width = rng.uniform(80, 130)
            top = height * rng.uniform(0.28, 0.5) + row_index * height * 0.14
            brush.area((x, top), (x + house_width, height * 0.9), color)
            if row_index == 1:
                _paint_lit_windows(easel, x, top, house_width)
            x += house_width + 6
    brush.area((0, height * 0.86), (width, height), (72, 70, 92))
    return tags


def _paint_lit_windows(easel: _Easel, left: float, top: float, house_width: float) -> None:
    """Paint a grid of windows on one house; three of five are lit."""
    for y in range(int(top) + 18, int(easel.height * 0.86), 44):
        for x in range(int(left) + 14, int(left + house_width) - 22, 36):
            if easel.rng.random() < 0.6:
                easel.brush.box((x, y), (18, 24), (252, 220, 120))


def _paint_room(easel: _Easel) -> list[str]:
    """Paint wall, floor and skirting board, sometimes a window, and return the window's tag."""
    brush, rng, width, height = easel.brush, easel.rng, easel.width, easel.height
    wall = rng.choice(_WALL_COLORS)
    floor = height * rng.uniform(0.68, 0.76)
    brush.area((0, 0), (width, floor), wall)
    brush.area((0, floor), (width, height), (188, 138, 92))
    brush.area((0, floor - 12), (width, floor + 4), (250, 246, 238))
    if rng.random() >= 0.6:
        return []
    x, y = width * rng.choice((0.06, 0.64)), height * 0.12
    pane_width, pane_height = width * 0.3, height * 0.3
    frame: Color = (250, 250, 250)
    brush.box((x - 8, y - 8), (pane_width + 16, pane_height + 16), frame)
    brush.box((x, y), (pane_width, pane_height), (150, 204, 248))
    brush.box((x + pane_width / 2 - 4, y), (8, pane_height), frame)
    brush.box((x, y + pane_height / 2 - 4), (pane_width, 8), frame)
    return ["window"]


def _paint_plain(easel: _Easel) -> Scene:
    """Paint one light colour over everything and return the scene that names it."""
    name, color = easel.rng.choice(_PLAIN_COLORS)
    easel.brush.area((0, 0), (easel.width, easel.height), color)
    tags = ("simple background", f"{name} background")
    return Scene(name="simple", sky="", plain_color=name, tags=tags)
