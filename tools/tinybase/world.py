"""The drawn world: its inhabitants, Mirelle, and the spoilt pictures, all keyed by a seed.

The same seed and size give the same pixels and tags, because the order of the draws is fixed.
The shipped weights were trained on exactly these pictures: change the order, and what the base
has seen cannot be drawn again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from tools.tinybase.accessories import name_accessories
from tools.tinybase.brush import Sheet
from tools.tinybase.character import Character, choose_character
from tools.tinybase.figures import paint_character
from tools.tinybase.mirelle import NAME, OUTFIT_NAMES, build_mirelle
from tools.tinybase.outfits import OutfitWords, name_outfit
from tools.tinybase.scenes import SCENE_WEIGHTS, SCENES, Scene, draw_scene
from tools.tinybase.variety import choose_odd_character

SIZES: Final = ((512, 768), (768, 512), (512, 512))
"""The sizes of the world as (width, height) in pixels."""

ATTRIBUTES: Final = (
    "hair",
    "hair_color",
    "eyes",
    "skin",
    "outfit",
    "outfit_color",
    "second_color",
    "headwear",
    "headwear_color",
    "back",
    "back_color",
    "glasses",
    "scarf_color",
    "expression",
    "pose",
    "framing",
    "background",
    "background_color",
    "sky",
)
"""The keys of `Drawing.attributes`, in order."""

_HEADS: Final = ("1girl", "solo")
_SCENE_LINE_WIDTH_PX: Final = 3
_FIGURE_LINE_WIDTH: Final = 0.026
_SCENE_BLUR_PX: Final = 5.0  # the latents' few numbers are for the figure, not for blades of grass
_MOSAIC_SIDES_PX: Final = (8, 12, 16)
_NOISE_SIDE_PX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture with what is on it.

    `attributes` is the ground truth: one word or phrase per key of ATTRIBUTES, "" where the
    picture shows nothing of the kind.
    """

    image: Image.Image
    tags: tuple[str, ...]
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Painting:
    """A painted picture before it is put into words."""

    image: Image.Image
    scene: Scene
    framing: str


def draw_sample(seed: int, *, width: int, height: int) -> Drawing:
    """Return a random inhabitant in a random scene."""
    rng = random.Random(seed)
    character = choose_character(rng)
    scene_name = rng.choices(SCENES, SCENE_WEIGHTS)[0]
    painting = _paint(character, scene_name, rng, width=width, height=height)
    outfit = name_outfit(character)
    tags = [*_HEADS, character.hair, f"{character.hair_color} hair", f"{character.eyes} eyes"]
    if character.skin:
        tags.append(f"{character.skin} skin")
    tags += [*outfit.tags, *name_accessories(character.accessories)]
    return Drawing(
        image=painting.image,
        tags=(*tags, *_closing_tags(character, painting)),
        attributes=_attributes(character, outfit, painting),
    )


def draw_variety(seed: int, *, width: int, height: int) -> Image.Image:
    """Return a picture for the autoencoder's training: odd colours, doodles, no words."""
    rng = random.Random(seed)
    character, scene_name = choose_odd_character(rng)
    return _paint(character, scene_name, rng, width=width, height=height).image


def draw_mirelle(
    seed: int, *, outfit: int, width: int, height: int, background: str | None = None
) -> Drawing:
    """Return Mirelle in her starry dress (1), her gem armor (2) or a random outfit (any other).

    Args:
        seed: The key of pose, framing, scene and everything else that is left open.
        outfit: Which outfit she wears.
        width: The width in pixels.
        height: The height in pixels.
        background: One of `scenes.SCENES`, or None for a random one.
    """
    rng = random.Random(seed)
    character = build_mirelle(rng, outfit)
    scene_name = background if background is not None else rng.choice(SCENES)
    painting = _paint(character, scene_name, rng, width=width, height=height)
    words = name_outfit(character)
    if outfit in OUTFIT_NAMES:
        # Her own outfits have one name; their colours belong to it.
        name = OUTFIT_NAMES[outfit]
        words = OutfitWords(tags=(name,), name=name, color="", second_color="")
    own = {"hair": "drill hair", "hair_color": "split-color", "eyes": "heterochromia"}
    return Drawing(
        image=painting.image,
        tags=(NAME, *_HEADS, *words.tags, *_closing_tags(character, painting)),
        attributes=MappingProxyType({**_attributes(character, words, painting), **own}),
    )


def degrade(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return a spoilt copy of a picture: blurred, pixelated, or pale under coarse noise.

    From hardly visible to plain, so that a word for it in a negative prompt pushes a picture a
    little way off: with nothing but wrecks to learn from, one such word burns it.
    """
    kind = rng.randint(0, 2)
    if kind == 0:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))
    if kind == 1:
        side = rng.choice(_MOSAIC_SIDES_PX)
        small = image.resize((image.width // side, image.height // side), Image.Resampling.BILINEAR)
        return small.resize(image.size, Image.Resampling.NEAREST)
    pixels = np.asarray(image).astype(np.float32)
    # The old generator, because its stream is part of what the weights have seen.
    noise_source = np.random.RandomState(rng.randint(0, 9**6))
    noise = noise_source.randn(image.height // _NOISE_SIDE_PX, image.width // _NOISE_SIDE_PX, 3)
    noise = noise.repeat(_NOISE_SIDE_PX, 0).repeat(_NOISE_SIDE_PX, 1)
    strength = rng.uniform(0.2, 0.6)
    spoilt = pixels * (1 - strength) + (150 + noise * 25) * strength
    return Image.fromarray(np.clip(spoilt, 0, 255).astype(np.uint8))


def _paint(
    character: Character, scene_name: str, rng: random.Random, *, width: int, height: int
) -> _Painting:
    """Return the character painted into a scene, whole or down to the waist."""
    sheet = Sheet(width=width, height=height)
    scene_brush = sheet.brush(line_width=_SCENE_LINE_WIDTH_PX)
    scene = draw_scene(scene_brush, scene_name, rng, width=width, height=height)
    sheet.soften(_SCENE_BLUR_PX)
    full_body_share = 0.9 if height > width else 0.35 if width > height else 0.6
    framing = "full body" if rng.random() < full_body_share else "upper body"
    if framing == "full body":
        unit_px = min(height / 5.0 * rng.uniform(0.93, 1.03), width / 3.1)
        center_y = height - unit_px * 3.1 - height * rng.uniform(0.01, 0.05)
    else:
        unit_px = min(height / 3.4, width / 2.8) * rng.uniform(0.94, 1.04)
        center_y = unit_px * 1.62 + height * rng.uniform(0.0, 0.05)
    margin = width * (0.16 if width > height else 0.04)
    center = (width / 2 + rng.uniform(-margin, margin), center_y)
    figure_brush = sheet.brush(line_width=_FIGURE_LINE_WIDTH)
    paint_character(figure_brush, character, rng, center=center, unit_px=unit_px)
    return _Painting(image=Image.fromarray(sheet.pixels()), scene=scene, framing=framing)


def _closing_tags(character: Character, painting: _Painting) -> tuple[str, ...]:
    """Return the tags every picture ends with."""
    return character.expression, character.pose, painting.framing, *painting.scene.tags


def _attributes(
    character: Character, outfit: OutfitWords, painting: _Painting
) -> Mapping[str, str]:
    """Return the ground truth of a picture, one value per key of ATTRIBUTES."""
    accessories, scene = character.accessories, painting.scene
    values = (
        character.hair,
        character.hair_color,
        character.eyes,
        character.skin,
        outfit.name,
        outfit.color,
        outfit.second_color,
        accessories.headwear,
        accessories.headwear_color,
        accessories.back,
        accessories.back_color,
        "glasses" if accessories.has_glasses else "",
        accessories.scarf_color,
        character.expression,
        character.pose,
        painting.framing,
        scene.tags[0],
        scene.plain_color,
        scene.sky,
    )
    return MappingProxyType(dict(zip(ATTRIBUTES, values, strict=True)))
