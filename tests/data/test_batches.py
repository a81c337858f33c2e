"""What an epoch consists of: every use once, in a drawn order, with draws that have an address."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from optbench import rng
from optbench.data.batches import PlannedBatch, num_batches, plan_epoch, sizes_of
from optbench.records import CaptionedImage, Dataset, Sample
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN

OPTIONS = replace(PLAIN, shuffle_caption=True, keep_tokens=2)
TAGS = "x, 1girl, a, b, c, d, e, f, g"


def picture(key: str, *, repeats: int = 1, is_tall: bool = False) -> CaptionedImage:
    bucket = (448, 576) if is_tall else (512, 512)
    return CaptionedImage(
        path=Path(f"{key}.png"),
        key=key,
        caption=TAGS,
        class_words="girl",
        repeats=repeats,
        width=bucket[0],
        height=bucket[1],
        bucket=bucket,
        resized=bucket,
    )


PICTURES = Dataset(
    images=(
        *(picture(f"wide{index}", repeats=3) for index in range(5)),
        *(picture(f"tall{index}", repeats=2, is_tall=True) for index in range(4)),
    ),
    fingerprint="",
)


def plan(
    dataset: Dataset = PICTURES,
    options: DatasetOptions = OPTIONS,
    *,
    seed: int = 7,
    epoch: int = 1,
    batch_size: int = 4,
) -> list[PlannedBatch]:
    return list(plan_epoch(dataset, options, seed=seed, epoch=epoch, batch_size=batch_size))


def samples_of(batches: list[PlannedBatch]) -> list[Sample]:
    return [sample for batch in batches for sample in batch.samples]


def by_address(batches: list[PlannedBatch]) -> dict[tuple[str, int, int], Sample]:
    return {(one.image_key, one.epoch, one.occurrence): one for one in samples_of(batches)}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 100])
def test_every_picture_comes_exactly_repeats_times(batch_size: int) -> None:
    batches = plan(batch_size=batch_size)
    counts = Counter(sample.image_key for sample in samples_of(batches))
    assert counts == {image.key: image.repeats for image in PICTURES.images}
    assert len(by_address(batches)) == sum(image.repeats for image in PICTURES.images)
    assert len(batches) == num_batches(PICTURES, batch_size=batch_size)


def test_batches_are_of_one_bucket_and_the_last_is_smaller() -> None:
    batches = plan(batch_size=4)
    buckets = {image.key: image.bucket for image in PICTURES.images}
    for batch in batches:
        assert {buckets[one.image_key] for one in batch.samples} == {batch.bucket}
    sizes = sorted((batch.bucket, len(batch.samples)) for batch in batches)
    wide, tall = (512, 512), (448, 576)
    assert sizes == [(tall, 4), (tall, 4), (wide, 3), (wide, 4), (wide, 4), (wide, 4)]


def test_the_batch_size_changes_no_draw_and_no_order_inside_a_bucket() -> None:
    options = replace(OPTIONS, flip_aug=True, caption_dropout_rate=0.3)
    small, large = plan(options=options, batch_size=1), plan(options=options, batch_size=100)
    assert by_address(small) == by_address(large)
    assert [batch.bucket for batch in large] in ([(448, 576), (512, 512)], [(512, 512), (448, 576)])


def test_equal_seeds_give_equal_epochs_and_other_seeds_and_epochs_do_not() -> None:
    def order(batches: list[PlannedBatch]) -> list[str]:
        return [sample.image_key for sample in samples_of(batches)]

    assert plan() == plan()
    assert order(plan(epoch=2)) != order(plan(epoch=1))
    assert order(plan(seed=8)) != order(plan(seed=7))
    assert plan(epoch=3)[0].samples[0].epoch == 3


def test_which_pictures_share_a_batch_changes_from_epoch_to_epoch() -> None:
    def company(batches: list[PlannedBatch]) -> set[tuple[str, ...]]:
        return {tuple(sorted(one.image_key for one in batch.samples)) for batch in batches}

    assert company(plan(epoch=1)) != company(plan(epoch=2))


def test_buckets_are_mixed_and_not_trained_one_after_the_other() -> None:
    def num_changes(batches: list[PlannedBatch]) -> int:
        return sum(one.bucket != two.bucket for one, two in zip(batches, batches[1:], strict=False))

    changes = [num_changes(plan(epoch=epoch, batch_size=2)) for epoch in range(1, 6)]
    assert max(changes) > 1


def test_equal_pictures_are_counted_on_so_that_no_two_uses_share_an_address() -> None:
    twins = Dataset(images=(picture("same", repeats=2), picture("same", repeats=3)), fingerprint="")
    samples = samples_of(plan(twins))
    assert sorted(sample.occurrence for sample in samples) == [0, 1, 2, 3, 4]


def test_kept_tags_stay_in_front_and_the_others_are_shuffled() -> None:
    captions = [sample.caption for sample in samples_of(plan())]
    assert len(set(captions)) > 10
    for caption in captions:
        assert caption.startswith("x, 1girl, ")
        assert sorted(caption.split(", ")) == sorted(TAGS.split(", "))


def test_without_shuffling_a_caption_is_left_as_it_was_written() -> None:
    dataset = Dataset(images=(replace(picture("k"), caption="b ,a,,  c"),), fingerprint="")
    options = replace(OPTIONS, shuffle_caption=False, keep_tokens=0)
    assert samples_of(plan(dataset, options))[0].caption == "b ,a,,  c"
    shuffled = samples_of(plan(dataset, replace(OPTIONS, keep_tokens=9)))[0].caption
    assert shuffled == "b, a, , c"  # tags stripped and joined again, empty ones kept, as kohya


def test_captions_are_dropped_whole_and_at_the_rate_asked_for() -> None:
    many = Dataset(images=(picture("k", repeats=2000),), fingerprint="")
    dropped = samples_of(plan(many, replace(OPTIONS, caption_dropout_rate=0.25)))
    kept = {one.occurrence: one.caption for one in samples_of(plan(many))}
    assert 430 < sum(one.caption == "" for one in dropped) < 570  # 500 +- 3.6 deviations
    # A rate changes which captions go, and not how the others look.
    assert all(one.caption in ("", kept[one.occurrence]) for one in dropped)
    every = samples_of(plan(many, replace(OPTIONS, caption_dropout_rate=1.0)))
    assert {one.caption for one in every} == {""}


def test_flips_are_half_of_all_uses_and_none_without_flip_aug() -> None:
    many = Dataset(images=(picture("k", repeats=2000),), fingerprint="")
    flipped = [one.flipped for one in samples_of(plan(many, replace(OPTIONS, flip_aug=True)))]
    assert 920 < sum(flipped) < 1080
    assert not any(one.flipped for one in samples_of(plan(many)))


def test_an_added_picture_leaves_the_draws_of_the_others_alone() -> None:
    more = Dataset(images=(picture("new"), *PICTURES.images), fingerprint="")
    options = replace(OPTIONS, flip_aug=True, caption_dropout_rate=0.3)
    assert by_address(plan(options=options)).items() <= by_address(plan(more, options)).items()


# --- what SDXL is told ---


@pytest.mark.parametrize(
    ("size", "bucket", "crop", "mirrored"),
    [
        # Wider than its bucket: fitted inside it is 512x384, 64 pixels below the top.
        ((800, 600), (512, 512), (0, 64), (0, 64)),
        # Narrower: 384x512, 64 pixels from the left, and as many from the right.
        ((600, 800), (512, 512), (64, 0), (64, 0)),
        # 512 * 700 / 900 = 398.2 wide: floor(56.9) from the left, 512 - 56 - 398.2 = 57.8 mirrored.
        ((700, 900), (512, 512), (56, 0), (57, 0)),
        ((512, 768), (512, 768), (0, 0), (0, 0)),
        # 512 / (1000 / 700) = 358.4 high: floor(12.8).
        ((1000, 700), (512, 384), (0, 12), (0, 12)),
    ],
)
def test_sizes_are_told_as_kohyas_trainer_tells_them(
    size: tuple[int, int],
    bucket: tuple[int, int],
    crop: tuple[int, int],
    mirrored: tuple[int, int],
) -> None:
    image = replace(picture("k"), width=size[0], height=size[1], bucket=bucket)
    for flipped, expected in ((False, crop), (True, mirrored)):
        found = sizes_of(image, flipped=flipped)
        assert (found.original, found.crop, found.target) == (size, expected, bucket)


def test_an_epoch_of_twenty_million_uses_is_not_planned_whole() -> None:
    dataset = replace(PICTURES, images=(picture("a", repeats=20_240_131), picture("b", repeats=3)))
    tracemalloc.start()
    epoch = plan_epoch(dataset, OPTIONS, seed=7, epoch=1, batch_size=2)
    first = next(epoch.since(9_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(epoch) == num_batches(dataset, batch_size=2)
    assert first == epoch[9_000_000]
    assert len(epoch[0].samples) == 2


def test_an_epoch_can_be_entered_anywhere() -> None:
    epoch = plan_epoch(PICTURES, OPTIONS, seed=7, epoch=1, batch_size=4)
    assert list(epoch)[3:] == list(epoch.since(3))
    assert list(epoch.since(len(epoch))) == []


@pytest.mark.parametrize("count", [0, 1, 2, 100_000, 100_001, 131_073])
def test_an_order_holds_every_number_once(count: int) -> None:
    order = rng.order(count, 3, "order", 1)
    numbers = list(order)
    assert sorted(numbers) == list(range(count))
    assert len(order) == count
    if count > 2:
        assert numbers != list(rng.order(count, 4, "order", 1))
        # As often up as down from one to the next: no run of neighbours stays together.
        ups = sum(left < right for left, right in itertools.pairwise(numbers))
        assert abs(ups / count - 0.5) < 0.01
        assert sum(abs(left - right) == 1 for left, right in itertools.pairwise(numbers)) < 20
