"""Draw crops and colours anew at every use of an image: kohya's `random_crop` and `color_aug`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANCE = 0.33
_HUE_DEGREES = 16.0  # 8 of OpenCV's 180
_GAMMA = 0.05


def draw_corner(excess: tuple[int, int], draw: random.Random) -> tuple[int, int]:
    """Return the left and upper edge of a crop, each evenly from 0 to the excess, both included."""
    return draw.randint(0, excess[0]), draw.randint(0, excess[1])


def draw_colors(pixels: NDArray[np.uint8], draw: random.Random) -> NDArray[np.uint8]:
    """Return uint8 pixels (height, width, RGB) with another hue or gamma, one time in three.

    Half of those times all hues rotate by up to 16 degrees. The other half every byte b becomes
    b^g, g from 0.95 to 1.05: of the byte itself and not of a share of 255, so 255 becomes 193 at
    g = 0.95 (kohya's formula, which makes a gamma a change of brightness).
    """
    if draw.random() > _CHANCE:
        return pixels
    if draw.random() > 0.5:
        return rotate_hue(pixels, draw.uniform(-_HUE_DEGREES, _HUE_DEGREES))
    gamma = draw.uniform(1 - _GAMMA, 1 + _GAMMA)
    powers: NDArray[np.float32] = pixels.astype(np.float32) ** np.float32(gamma)
    return powers.clip(0, 255).astype(np.uint8)


def rotate_hue(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Return the pixels with every hue rotated, saturation and value (of HSV) as they were.

    In float, where kohya's goes through whole steps of 2 degrees.
    """
    colors = pixels.astype(np.float32)
    value = colors.max(axis=2)
    chroma = value - colors.min(axis=2)
    sextant = _sextants(colors, value, chroma) + degrees / 60
    # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H / 60) mod 6, for n = 5, 3, 1
    rotated = np.empty_like(colors)
    for channel, offset in enumerate((5, 3, 1)):
        k = (offset + sextant) % 6
        rotated[..., channel] = value - chroma * np.minimum(k, 4 - k).clip(0, 1)
    return np.rint(rotated).clip(0, 255).astype(np.uint8)


def _sextants(
    colors: NDArray[np.float32], value: NDArray[Any], chroma: NDArray[Any]
) -> NDArray[Any]:
    """Return every pixel's hue in sixths of a turn; grey has hue 0."""
    red, green, blue = (colors[..., channel] for channel in range(3))
    safe = np.where(chroma == 0, 1, chroma)
    sextants = np.select(
        [value == red, value == green],
        [(green - blue) / safe, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return np.where(chroma == 0, 0, sextants)
