"""Choose the size each image is trained in: kohya's aspect-ratio buckets, to the rounding.

Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from optbench.data.rules import setting_problem
from optbench.errors import Problem
from optbench.schema import DatasetOptions

Size = tuple[int, int]
# The file's size -> the bucket and the size before cropping; None: no bucket has room for it.
ChooseBucket = Callable[[Size], tuple[Size, Size] | None]


def bucket_chooser(options: DatasetOptions) -> ChooseBucket:
    """Return the function that gives an image's bucket and its size before cropping, or None.

    It gives None for an image too small or too narrow for any bucket. The rule is kohya's, to
    the rounding; `options` must be free of problems.
    """
    if not options.enable_bucket and options.random_crop:
        return partial(_crop_only, bucket=options.resolution)
    if not options.enable_bucket:
        return partial(_cover_nearest, buckets=[options.resolution])
    area, step = options.resolution[0] * options.resolution[1], options.bucket_reso_steps
    if options.bucket_no_upscale:
        return partial(_shrink_to_area, area=area, step=step)
    least, most = options.min_bucket_reso, options.max_bucket_reso
    side = int(math.sqrt(area) // step) * step
    buckets = {(side, side)}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            buckets |= {(width, height), (height, width)}
    return partial(_cover_nearest, buckets=sorted(buckets))


def check_buckets(options: DatasetOptions) -> list[Problem]:
    """Return everything impossible or without effect in the settings of size."""
    problems = []
    shorter, step = min(options.resolution), options.bucket_reso_steps
    if options.enable_bucket and step > shorter:
        expected = f"1 to {shorter}, the shorter side of dataset.resolution"
        problems.append(setting_problem("bucket_reso_steps", step, expected, min(64, shorter)))
    elif options.enable_bucket and not options.bucket_no_upscale:
        least, most = options.min_bucket_reso, options.max_bucket_reso
        top = shorter // step * step
        if least not in range(step, top + 1, step):
            expected = f"a multiple of dataset.bucket_reso_steps ({step}) from {step} to {top}"
            fit = max(step, min(least // step * step, top))
            problems.append(setting_problem("min_bucket_reso", least, expected, fit))
        bottom = math.ceil(max(options.resolution) / step) * step
        if most < bottom or most % step:
            expected = f"a multiple of dataset.bucket_reso_steps ({step}), {bottom} or more"
            fit = max(bottom, math.ceil(most / step) * step)
            problems.append(setting_problem("max_bucket_reso", most, expected, fit))
    if options.bucket_no_upscale and not options.enable_bucket:
        expected = "false, for without buckets it has no effect"
        problems.append(setting_problem("bucket_no_upscale", "true", expected, "false"))
    return problems


def check_latent_size(options: DatasetOptions, pixels_per_latent: int) -> list[Problem]:
    """Return a problem if the sides of a bucket are no whole number of latents."""
    expected = f"a multiple of {pixels_per_latent}, the pixels per latent of this base"
    sides = [options.bucket_reso_steps] if options.enable_bucket else list(options.resolution)
    fits = [math.ceil(side / pixels_per_latent) * pixels_per_latent for side in sides]
    if fits == sides:
        return []
    if options.enable_bucket:
        return [setting_problem("bucket_reso_steps", sides[0], expected, fits[0])]
    return [setting_problem("resolution", sides, expected, str(fits).replace(" ", ""))]


def _cover_nearest(size: Size, *, buckets: Sequence[Size]) -> tuple[Size, Size]:
    """Return the bucket of the nearest width / height, and the size that just covers it."""
    width, height = size
    ratio = width / height
    # kohya looks for a bucket of the image's own size first; no two buckets share a ratio, so
    # that one is the nearest anyway.
    bucket = min(buckets, key=lambda size: abs(size[0] / size[1] - ratio))
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def _crop_only(size: Size, *, bucket: Size) -> tuple[Size, Size] | None:
    """Return the one bucket and the image's own size: kohya's crops, but does not resize here."""
    return (bucket, size) if size[0] >= bucket[0] and size[1] >= bucket[1] else None


def _shrink_to_area(size: Size, *, area: int, step: int) -> tuple[Size, Size] | None:
    """Return the image's own size, shrunk to `area` if larger, and its bucket inside that."""
    width, height = size
    resized = size
    if width * height > area:
        ratio = width / height
        ideal = math.sqrt(area * ratio)
        by_width, by_height = _floor(ideal, step), _floor(area / ideal, step)
        # Either side may be the one that is a multiple of `step`; the second wins a tie.
        candidates = [
            (
                (_floor(by_height * ratio, step), by_height),
                (int(by_height * ratio + 0.5), by_height),
            ),
            ((by_width, _floor(by_width / ratio, step)), (by_width, int(by_width / ratio + 0.5))),
        ]
        candidates = [(bucket, resized) for bucket, resized in candidates if min(bucket) > 0]
        if not candidates:
            return None
        _, resized = min(candidates, key=lambda pair: abs(pair[0][0] / pair[0][1] - ratio))
    bucket = (_floor(resized[0], step), _floor(resized[1], step))
    return (bucket, resized) if min(bucket) > 0 else None


def _floor(length: float, step: int) -> int:
    """Return the multiple of `step` at or below a length rounded half up."""
    return int(length + 0.5) // step * step
