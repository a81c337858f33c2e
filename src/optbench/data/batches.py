"""Plan an epoch's batches: order, captions and flips of the images, no pixels.

Every draw has an address, so neither the batch size nor anything else a sweep varies changes the
caption or the flip of one use of an image, nor the order of the images inside a bucket.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench import rng
from optbench.data.captions import Warmup, draw_caption
from optbench.records import Batch, CaptionedImage, Dataset, Sample, Sizes
from optbench.schema import DatasetOptions

if TYPE_CHECKING:
    from optbench.data.latent_cache import FreshLatents, LatentCache


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """Uses of images of one bucket that go through the model together."""

    samples: tuple[Sample, ...]
    bucket: tuple[int, int]  # width, height in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBudget:
    """The updates that the batches make: for tags that join while the training goes on."""

    gradient_accumulation: int
    total_steps: int


def plan_epoch(
    dataset: Dataset,
    options: DatasetOptions,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    budget: StepBudget | None = None,
) -> EpochPlan:
    """Return one epoch's batches: every image exactly `repeats` times, in a drawn order.

    A batch never mixes buckets; what is left over in a bucket is a smaller batch of its own, never
    dropped and never filled up (as kohya). A batch is worked out when it is asked for, so an epoch
    may have any number of uses.

    Args:
        dataset: The images.
        options: How captions are shuffled and dropped, and whether images are flipped.
        seed: The run's.
        epoch: Which one, counted from 1.
        batch_size: How many images a batch holds at most.
        budget: Of the run, for `token_warmup_step`; without it no tag is held back.
    """
    # Equal images share one key, so their uses are counted on: no two have the same address.
    num_before: Counter[str] = Counter()
    by_bucket: dict[tuple[int, int], list[tuple[CaptionedImage, int]]] = {}
    for image in dataset.images:
        by_bucket.setdefault(image.bucket, []).append((image, num_before[image.key]))
        num_before[image.key] += image.repeats
    buckets = [
        _BucketUses(
            bucket=bucket,
            images=tuple(by_bucket[bucket]),
            ends=tuple(itertools.accumulate(image.repeats for image, _ in by_bucket[bucket])),
            order=rng.order(
                sum(image.repeats for image, _ in by_bucket[bucket]), seed, "order", epoch, *bucket
            ),
        )
        for bucket in sorted(by_bucket)
    ]
    ends = tuple(itertools.accumulate(-(-len(uses.order) // batch_size) for uses in buckets))
    return EpochPlan(
        buckets=tuple(buckets),
        ends=ends,
        order=rng.order(ends[-1] if ends else 0, seed, "order", epoch),
        batch_size=batch_size,
        draws=_Draws(options=options, seed=seed, epoch=epoch),
        budget=budget,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _BucketUses:
    """All uses of the images of one bucket: numbered by image, and the drawn order of numbers."""

    bucket: tuple[int, int]
    images: tuple[tuple[CaptionedImage, int], ...]  # with the number of its key's earlier uses
    ends: tuple[int, ...]  # of each image's numbers
    order: Sequence[int]

    def at(self, place: int) -> ImageUse:
        number = self.order[place]
        index = bisect.bisect_right(self.ends, number)
        image, num_before = self.images[index]
        return ImageUse(image, num_before + number - (self.ends[index] - image.repeats))


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The batches of one epoch in their order, each worked out when it is asked for."""

    buckets: tuple[_BucketUses, ...]
    ends: tuple[int, ...]  # of each bucket's batches, numbered by bucket
    order: Sequence[int]
    batch_size: int
    draws: _Draws
    budget: StepBudget | None

    def __len__(self) -> int:
        """Return how many batches the epoch has."""
        return len(self.order)

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield every batch."""
        return self.since(0)

    def since(self, first: int) -> Iterator[PlannedBatch]:
        """Yield the batches from the one with index `first` on."""
        return (self[index] for index in range(first, len(self)))

    def __getitem__(self, index: int) -> PlannedBatch:
        """Return one batch, counted from 0."""
        number = self.order[index]
        which = bisect.bisect_right(self.ends, number)
        uses = self.buckets[which]
        in_bucket = number - (self.ends[which - 1] if which > 0 else 0)
        start = in_bucket * self.batch_size
        places = range(start, min(start + self.batch_size, len(uses.order)))
        warmup = _warmup(
            self.draws.options,
            self.budget,
            epoch=self.draws.epoch,
            index=index,
            num_batches=len(self),
        )
        samples = tuple(self.draws.sample(uses.at(place), warmup=warmup) for place in places)
        return PlannedBatch(samples=samples, bucket=uses.bucket)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBatches:
    """The batches of any epoch of a run, with their latents."""

    dataset: Dataset
    options: DatasetOptions
    latents: LatentCache | FreshLatents
    seed: int
    batch_size: int
    budget: StepBudget

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Return an epoch's batches, from the n-th on: the ones before it were trained already."""
        planned = plan_epoch(
            self.dataset,
            self.options,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            budget=self.budget,
        )
        return self.latents.batches(planned.since(first))


def num_batches(dataset: Dataset, *, batch_size: int) -> int:
    """Return how many batches every epoch has, without drawing any."""
    uses: Counter[tuple[int, int]] = Counter()
    for image in dataset.images:
        uses[image.bucket] += image.repeats
    return sum(-(-num_uses // batch_size) for num_uses in uses.values())


@dataclass(frozen=True, slots=True)
class ImageUse:
    """One use of an image in an epoch."""

    image: CaptionedImage
    occurrence: int


def sizes_of(image: CaptionedImage, *, flipped: bool) -> Sizes:
    """Return what SDXL is told of an image's size and crop, as kohya's trainer tells it.

    The crop is not the true one: it is where the whole image would begin if it were fitted
    inside the bucket. Mirrored, the distance from the right takes the place of that from the left.
    """
    width, height = image.bucket
    ratio = image.width / image.height
    is_wider = width / height > ratio  # the bucket, than the image
    fitted = (height * ratio, height) if is_wider else (width, width / ratio)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    if flipped:
        left = width - (left + fitted[0])
    return Sizes(
        original=(image.width, image.height), crop=(int(left), int(top)), target=image.bucket
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """What is drawn for every use of an image in one epoch."""

    options: DatasetOptions
    seed: int
    epoch: int

    def sample(self, use: ImageUse, *, warmup: Warmup | None) -> Sample:
        image, options = use.image, self.options
        place = (self.epoch, image.key, use.occurrence)
        flipped = options.flip_aug and rng.shuffler(self.seed, "flip", *place).random() < 0.5
        return Sample(
            image_key=image.key,
            epoch=self.epoch,
            occurrence=use.occurrence,
            caption=draw_caption(
                image.caption, options, seed=self.seed, place=place, warmup=warmup
            ),
            flipped=flipped,
            sizes=sizes_of(image, flipped=flipped),
            is_regularization=image.is_regularization,
        )


def _warmup(
    options: DatasetOptions, budget: StepBudget | None, *, epoch: int, index: int, num_batches: int
) -> Warmup | None:
    """Return how far the warm-up of tags is at one batch of an epoch, None when over (kohya).

    An image of the first update meets 0 finished updates; a share of all updates is rounded down.
    """
    steps = options.token_warmup_step
    if steps == 0 or budget is None:
        return None
    if steps < 1:
        steps = math.floor(steps * budget.total_steps)
    per_epoch = -(-num_batches // budget.gradient_accumulation)
    done = (epoch - 1) * per_epoch + index // budget.gradient_accumulation
    return Warmup(num_done=done, num_steps=steps) if done < steps else None
