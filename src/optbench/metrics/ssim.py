"""SSIM and mean difference of two images, from their files alone; no downloads, no model.

Two plain measures, which see different things: the mean absolute difference sees colours and
places, SSIM sees edges and structure. Neither is what a person sees; both fall together as a
resized LoRA leaves its original.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.storage.images import opened

_WINDOW = 8  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # the paper's constants for values from 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Two pictures of one size, compared."""

    mean_abs_difference: float  # of all channels, 0 to 1; 0 for equal pictures
    ssim: float  # of luma, 1 for equal pictures


def compare_pictures(first: Path, second: Path) -> Likeness | None:
    """Return how alike two picture files are, or None where their sizes differ."""
    one, other = _pixels(first), _pixels(second)
    if one.shape != other.shape:
        return None
    luma = [pixels @ np.array([0.299, 0.587, 0.114]) for pixels in (one, other)]
    return Likeness(
        mean_abs_difference=float(np.abs(one - other).mean()),
        ssim=structural_similarity(luma[0], luma[1]),
    )


def _pixels(path: Path) -> NDArray[np.float64]:
    with opened(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def structural_similarity(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the mean structural similarity over all square windows (Wang et al., 2004).

    Windows are 8x8 with equal weights, the paper's first form; it is fast and needs no filter.
    """
    mean_1, mean_2 = _means(one), _means(other)
    variance_1 = np.maximum(_means(one * one) - mean_1**2, 0)
    variance_2 = np.maximum(_means(other * other) - mean_2**2, 0)
    covariance = _means(one * other) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + _C1) * (2 * covariance + _C2)
    below = (mean_1**2 + mean_2**2 + _C1) * (variance_1 + variance_2 + _C2)
    return float((above / below).mean())


def _means(values: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of every window, from sums of all values above and left of a place."""
    size = min(_WINDOW, *values.shape)
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    total = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    means: NDArray[Any] = total / size**2
    return means
