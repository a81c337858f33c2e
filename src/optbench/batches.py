"""Which pictures go through the model together in an epoch: order, captions and flips, no pixels.

Every draw has an address, so neither the batch size nor anything else a sweep varies changes the
caption or the flip of one use of a picture, nor the order of the pictures inside a bucket.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from optbench import rng
from optbench.options import DatasetOptions
from optbench.records import CaptionedImage, Dataset, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """Uses of pictures of one bucket that go through the model together."""

    samples: tuple[Sample, ...]
    bucket: tuple[int, int]  # width, height in pixels


def plan_epoch(
    dataset: Dataset, options: DatasetOptions, *, seed: int, epoch: int, batch_size: int
) -> list[PlannedBatch]:
    """Return one epoch's batches: every picture exactly `repeats` times, in a drawn order.

    A batch never mixes buckets; what is left over in a bucket is a smaller batch of its own, never
    dropped and never filled up (as kohya).

    Args:
        dataset: The pictures.
        options: How captions are shuffled and dropped, and whether pictures are flipped.
        seed: The run's.
        epoch: Which one, counted from 1.
        batch_size: How many pictures a batch holds at most.
    """
    uses: dict[tuple[int, int], list[Sample]] = {}
    # Equal pictures share one key, so their uses are counted on: no two have the same address.
    occurrences: Counter[str] = Counter()
    for image in dataset.images:
        for _ in range(image.repeats):
            occurrence = occurrences[image.key]
            occurrences[image.key] += 1
            sample = _draw_sample(image, options, seed=seed, epoch=epoch, occurrence=occurrence)
            uses.setdefault(image.bucket, []).append(sample)
    batches = []
    for bucket in sorted(uses):
        samples = uses[bucket]
        rng.shuffler(seed, "order", epoch, *bucket).shuffle(samples)
        batches += [
            PlannedBatch(samples=tuple(samples[start : start + batch_size]), bucket=bucket)
            for start in range(0, len(samples), batch_size)
        ]
    rng.shuffler(seed, "order", epoch).shuffle(batches)
    return batches


def num_batches(dataset: Dataset, *, batch_size: int) -> int:
    """Return how many batches every epoch has, without drawing any."""
    uses: Counter[tuple[int, int]] = Counter()
    for image in dataset.images:
        uses[image.bucket] += image.repeats
    return sum(-(-num_uses // batch_size) for num_uses in uses.values())


def _draw_sample(
    image: CaptionedImage, options: DatasetOptions, *, seed: int, epoch: int, occurrence: int
) -> Sample:
    place = (epoch, image.key, occurrence)
    return Sample(
        image_key=image.key,
        epoch=epoch,
        occurrence=occurrence,
        caption=_draw_caption(image.caption, options, seed, place),
        flipped=options.flip_aug and rng.shuffler(seed, "flip", *place).random() < 0.5,
    )


def _draw_caption(
    caption: str, options: DatasetOptions, seed: int, place: tuple[int, str, int]
) -> str:
    """Return the caption dropped whole, or with the tags after `keep_tokens` shuffled (kohya)."""
    draw = rng.shuffler(seed, "caption", *place)
    # Drawn even at rate 0, so that a rate changes which captions go and not how others look.
    if draw.random() < options.caption_dropout_rate:
        return ""
    if not options.shuffle_caption:
        return caption
    tags = [tag.strip() for tag in caption.split(",")]
    kept, free = tags[: options.keep_tokens], tags[options.keep_tokens :]
    draw.shuffle(free)
    return ", ".join([*kept, *free])
