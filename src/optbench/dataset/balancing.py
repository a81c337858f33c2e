"""How often regularization pictures come: as often as the training pictures, all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optbench.records import CaptionedImage


def balanced(images: Sequence[CaptionedImage], *, num_uses: int) -> list[CaptionedImage]:
    """Return regularization pictures with repeats that add up to `num_uses`, as kohya's trainer.

    They are taken in order: first each with its folder's repeats, then round after round with one
    repeat more, until at least `num_uses` are reached. So too few are repeated, and of too many the
    last are left out. The sum is above `num_uses` by less than one picture's repeats.
    """
    repeats: list[int] = []
    missing = num_uses
    for image in images:
        if missing <= 0:
            break
        repeats.append(image.repeats)
        missing -= image.repeats
    if repeats and missing > 0:
        rounds, rest = divmod(missing, len(repeats))
        repeats = [own + rounds + (index < rest) for index, own in enumerate(repeats)]
    return [replace(image, repeats=count) for image, count in zip(images, repeats, strict=False)]
