"""Buckets, crops and steps against kohya's formulas, written out here a second time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import assume, given

from optbench.data import bucket_chooser
from optbench.data.batches import num_batches, plan_epoch
from optbench.records import CaptionedImage, Dataset
from optbench.schema import DatasetOptions
from optbench.training.loop import _windows
from tests.builders.dataset_options import PLAIN

Size = tuple[int, int]
SIDES = st.integers(20, 5000)
SETTINGS = st.builds(
    lambda step, least, more, most, other: replace(
        PLAIN,
        bucket_reso_steps=step,
        min_bucket_reso=step * least,
        resolution=(step * (least + more), step * (least + more + other)),
        max_bucket_reso=step * (least + more + other + most),
    ),
    st.sampled_from([8, 32, 64]),
    st.integers(1, 6),
    st.integers(0, 8),
    st.integers(0, 12),
    st.integers(0, 5),
)


def half_up(value: float) -> int:
    return math.floor(value + 0.5)


def listed(options: DatasetOptions) -> list[Size]:
    """Return the sizes of a grid that fill the area as far as the limits let them."""
    step, area = options.bucket_reso_steps, options.resolution[0] * options.resolution[1]
    sides = range(options.min_bucket_reso, options.max_bucket_reso + 1, step)
    side = math.isqrt(area) // step * step

    def fills(width: int, height: int) -> bool:
        is_too_high = height == options.max_bucket_reso and width * height <= area
        return width * height <= area < width * (height + step) or is_too_high

    found = {(w, h) for w, h in itertools.product(sides, sides) if fills(w, h) or fills(h, w)}
    return sorted(found | {(side, side)})


@given(SETTINGS, SIDES, SIDES)
def test_a_listed_bucket_is_the_nearest_ratio_and_is_covered(
    settings: DatasetOptions, width: int, height: int
) -> None:
    options = replace(settings, bucket_no_upscale=False)
    placed = bucket_chooser(options)((width, height))
    assert placed is not None
    bucket, resized = placed
    ratio = width / height
    distances = [abs(w / h - ratio) for w, h in listed(options)]
    assert bucket == listed(options)[distances.index(min(distances))]
    assert bucket[0] * bucket[1] <= options.resolution[0] * options.resolution[1]
    # One side fits exactly, the other one is as long as the picture's shape makes it.
    if ratio > bucket[0] / bucket[1]:
        assert resized == (half_up(width * (bucket[1] / height)), bucket[1])
    else:
        assert resized == (bucket[0], half_up(height * (bucket[0] / width)))
    assert resized[0] >= bucket[0]
    assert resized[1] >= bucket[1]


def shrunk(size: Size, area: int, step: int) -> tuple[Size, Size]:
    """Return bucket and resized size as 1.4 (b) of the notes on kohya's trainer says."""

    def floored(value: float) -> int:
        return half_up(value) - half_up(value) % step

    width, height = size
    if width * height <= area:
        resized = size
    else:
        ratio = width / height
        target = math.sqrt(area * ratio)
        wide = (floored(target), floored(floored(target) / ratio))
        by_height = floored(area / target)
        high = (floored(by_height * ratio), by_height)
        assume(min(*wide, *high) > 0)
        if abs(wide[0] / wide[1] - ratio) < abs(high[0] / high[1] - ratio):
            resized = (wide[0], half_up(wide[0] / ratio))
        else:
            resized = (half_up(high[1] * ratio), high[1])
    return (resized[0] // step * step, resized[1] // step * step), resized


@given(SETTINGS, SIDES, SIDES)
def test_without_enlarging_the_bucket_is_the_picture_less_a_step_at_most(
    options: DatasetOptions, width: int, height: int
) -> None:
    step, area = options.bucket_reso_steps, options.resolution[0] * options.resolution[1]
    placed = bucket_chooser(options)((width, height))
    bucket, resized = shrunk((width, height), area, step)
    if min(bucket) == 0:
        assert placed is None
        return
    assert placed == (bucket, resized)
    assert resized[0] <= width
    assert resized[1] <= height + 1  # a half rounded up
    assert all(0 <= long - short < step for long, short in zip(resized, bucket, strict=True))


PICTURES = st.lists(
    st.tuples(st.sampled_from([64, 128, 192]), st.integers(1, 5)), min_size=1, max_size=9
)


@given(PICTURES, st.integers(1, 5), st.integers(1, 4))
def test_batches_and_updates_of_an_epoch(
    pictures: list[tuple[int, int]], batch_size: int, accumulation: int
) -> None:
    images = [
        CaptionedImage(
            path=Path("x.png"),
            key=str(index),
            caption="x",
            class_words="x",
            repeats=repeats,
            width=side,
            height=64,
            bucket=(side, 64),
            resized=(side, 64),
        )
        for index, (side, repeats) in enumerate(pictures)
    ]
    dataset = Dataset(images=tuple(images), fingerprint="")
    uses = {side: sum(r for s, r in pictures if s == side) for side, _ in pictures}
    expected = sum(math.ceil(number / batch_size) for number in uses.values())
    assert num_batches(dataset, batch_size=batch_size) == expected
    batches = plan_epoch(dataset, PLAIN, seed=1, epoch=1, batch_size=batch_size)
    assert len(batches) == expected
    assert sum(len(one.samples) for one in batches) == sum(uses.values())
    # Nothing short of whole but the last batch of every bucket.
    assert sum(len(one.samples) < batch_size for one in batches) <= len(uses)
    updates = list(_windows(batches, accumulation))  # type: ignore[arg-type]
    assert len(updates) == math.ceil(expected / accumulation)
