"""Metrics of pixels alone: nothing is downloaded, and nothing needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.metrics.ssim import structural_similarity
from optbench.storage.images import opened

# Raise it when equal pictures begin to give other numbers.
_SETTINGS: Mapping[str, object] = {"schema": 1}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_FLAT_RANGE = 4  # of 255 in every channel, as optbench.render.run_images counts flat pictures
_CLIP_MARGIN = 2  # of 255
_WINDOW_PX = 8
_SMALL_PX = 64  # the longer side of the pictures that diversity compares
_SSIM_SHRINK = 2
_SAME_DIFFERENCE = 1 / 255  # files of one picture differ by rounding at most


class Surface:
    """Whether anything was drawn, and whether it is burnt: flat, clipped, saturation, contrast."""

    reference: Reference = "none"
    meanings: Mapping[str, Meaning] = ours("flat", "clipped", "saturation", "local_contrast")
    settings: Mapping[str, object] = _SETTINGS
    bases: tuple[str, ...] = ()

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the numbers of one picture; saturation is (max - min) / max of the channels."""
        del others
        pixels = read_pixels(picture.path)
        high = pixels.max(2).astype(np.float32)
        low = pixels.min(2).astype(np.float32)
        ranges = np.ptp(pixels.reshape(-1, 3), axis=0)
        clipped = (pixels <= _CLIP_MARGIN) | (pixels >= 255 - _CLIP_MARGIN)
        return {
            "flat": Measured(value=float(ranges.max() <= _FLAT_RANGE)),
            "clipped": Measured(value=float(clipped.mean())),
            "saturation": Measured(value=float(((high - low) / np.maximum(high, 1)).mean())),
            "local_contrast": Measured(value=_local_contrast(pixels)),
        }


class FromBase:
    """How far a picture went from the base's at the same prompt and seed."""

    reference: Reference = "base"
    meanings: Mapping[str, Meaning] = ours("change_from_base", "ssim_with_base")
    settings: Mapping[str, object] = _SETTINGS
    bases: tuple[str, ...] = ()

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return difference and structure, or nothing where sizes differ or there is no base's."""
        if not others or not _has_one_size(picture, others[0]):
            return {}
        halves = [
            _reduced_luma(read_pixels(image.path), _SSIM_SHRINK) for image in (picture, others[0])
        ]
        return {
            "change_from_base": Measured(value=_difference(picture, others[0])),
            "ssim_with_base": Measured(value=structural_similarity(halves[0], halves[1])),
        }


class FromPrevious:
    """How far a picture went since the epoch before."""

    reference: Reference = "previous"
    meanings: Mapping[str, Meaning] = ours("change_from_previous")
    settings: Mapping[str, object] = _SETTINGS
    bases: tuple[str, ...] = ()

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the mean absolute difference, or nothing where there is no picture before."""
        if not others or not _has_one_size(picture, others[0]):
            return {}
        return {"change_from_previous": Measured(value=_difference(picture, others[0]))}


class AcrossSeeds:
    """Whether seeds still matter: identical pictures, and how far they are apart."""

    reference: Reference = "seeds"
    meanings: Mapping[str, Meaning] = ours("identical_seeds", "diversity")
    settings: Mapping[str, object] = _SETTINGS
    bases: tuple[str, ...] = ()

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return both numbers over the other seeds of one size, or nothing where there is none."""
        alike = [other for other in others if _has_one_size(picture, other)]
        if not alike:
            return {}
        small = _small(picture.path)
        distances = [float(np.abs(small - _small(other.path)).mean()) for other in alike]
        # Small ones first: files that differ there need no second look.
        same = [
            distance <= _SAME_DIFFERENCE and _difference(picture, other) <= _SAME_DIFFERENCE
            for distance, other in zip(distances, alike, strict=True)
        ]
        return {
            "identical_seeds": Measured(value=sum(same) / len(same)),
            "diversity": Measured(value=sum(distances) / len(distances)),
        }


@lru_cache(maxsize=32)
def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Return a picture file's values (height, width, 3), 0 to 255; those just read are kept."""
    with opened(path) as image:
        return np.asarray(image.convert("RGB"))


def forget_pixels() -> None:
    """Forget kept pictures: their files may be others under the same names by now."""
    read_pixels.cache_clear()
    _small.cache_clear()


def _local_contrast(pixels: NDArray[np.uint8]) -> float:
    """Return the mean standard deviation of luma, 0 to 1, within squares of 8 pixels."""
    luma = (pixels @ _LUMA) / 255
    height, width = (side // _WINDOW_PX * _WINDOW_PX for side in luma.shape)
    if not height or not width:
        return float(luma.std())
    shape = (height // _WINDOW_PX, _WINDOW_PX, width // _WINDOW_PX, _WINDOW_PX)
    return float(luma[:height, :width].reshape(shape).std(axis=(1, 3)).mean())


def _difference(first: Picture, second: Picture) -> float:
    """Return the mean absolute difference of all values, 0 to 1."""
    pixels = read_pixels(first.path).astype(np.int16)
    return float(np.abs(pixels - read_pixels(second.path)).mean() / 255)


def _has_one_size(first: Picture, second: Picture) -> bool:
    return read_pixels(first.path).shape == read_pixels(second.path).shape


def _reduced_luma(pixels: NDArray[np.uint8], factor: int) -> NDArray[Any]:
    reduced = Image.fromarray(pixels).convert("L").reduce(factor)
    return np.asarray(reduced, dtype=np.float64) / 255


@lru_cache(maxsize=256)
def _small(path: Path) -> NDArray[np.float32]:
    """Return a picture's values (height, width, 3), 0 to 1, the longer side 64 pixels."""
    pixels = read_pixels(path)
    factor = max(1, max(pixels.shape) // _SMALL_PX)
    values = np.asarray(Image.fromarray(pixels).reduce(factor), dtype=np.float32)
    return values / np.float32(255)
