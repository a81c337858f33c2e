"""Near-copies of training images, by a perceptual hash: 64 bits that survive small changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.storage.images import opened

_SIDE_PX = 32
_KEPT = 8  # frequencies in each direction


class NearCopy:
    """The nearest training picture by perceptual hash, as it is or mirrored."""

    reference: Reference = "training"
    meanings: Mapping[str, Meaning] = ours("copy_distance")
    settings: Mapping[str, object] = {"schema": 1, "bits": _KEPT**2}
    bases: tuple[str, ...] = ()

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the share of bits that differ from the nearest one, and its file's name.

        Unrelated pictures differ in about half of the bits; which one is nearest then says
        nothing. Cut or shifted pictures are not found.
        """
        if not others:
            return {}
        bits = picture_bits(picture.path)
        distances = [
            (
                min(
                    float((bits != picture_bits(other.path, is_mirrored=flip)).mean())
                    for flip in (0, 1)
                ),
                other,
            )
            for other in others
        ]
        distance, nearest = min(distances, key=lambda pair: pair[0])
        return {"copy_distance": Measured(value=distance, detail=nearest.path.name)}


@lru_cache(maxsize=4096)
def picture_bits(path: Path, *, is_mirrored: int = 0) -> NDArray[np.bool_]:
    """Return 64 bits of a picture: which low frequencies are above their median.

    The usual perceptual hash: luma at 32x32, type-II discrete cosine transform, the 8x8 lowest
    frequencies; the first of them, the brightness, only takes part in no median.
    """
    with opened(path) as image:
        small = image.convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    luma = np.asarray(small, dtype=np.float64)
    if is_mirrored:
        luma = luma[:, ::-1]
    basis = _cosines()
    frequencies = (basis @ luma @ basis.T)[:_KEPT, :_KEPT].ravel()
    bits: NDArray[np.bool_] = frequencies > np.median(frequencies[1:])
    return bits


def forget_bits() -> None:
    """Forget kept hashes: files may be others under the same names by now."""
    picture_bits.cache_clear()


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    place = np.arange(_SIDE_PX)
    matrix: NDArray[np.float64] = np.cos(np.pi / _SIDE_PX * np.outer(place, place + 0.5))
    return matrix
