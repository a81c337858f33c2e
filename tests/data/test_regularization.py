"""Regularization images: balanced as kohya's trainer does it, marked, and out of the way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from PIL import Image

from optbench.data import read_dataset
from optbench.data.batches import num_batches, plan_epoch
from optbench.data.folder import balanced, fingerprint_of
from optbench.errors import DatasetError
from optbench.records import CaptionedImage, Dataset
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN


def class_image(index: int, repeats: int) -> CaptionedImage:
    return CaptionedImage(
        path=Path(f"{index}.png"),
        key=str(index),
        caption="girl",
        class_words="girl",
        repeats=repeats,
        width=64,
        height=64,
        bucket=(64, 64),
        resized=(64, 64),
    )


def counted_one_by_one(repeats: list[int], num_uses: int) -> dict[int, int]:
    """Return index -> repeats, giving out one use after the other until there are enough."""
    given_out: dict[int, int] = {}
    total = 0
    while total < num_uses:
        for index, own in enumerate(repeats):
            more = 1 if index in given_out else own
            given_out[index] = given_out.get(index, 0) + more
            total += more
            if total >= num_uses:
                break
    return given_out


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 60))
def test_repeats_are_what_giving_them_out_one_by_one_gives(
    repeats: list[int], num_uses: int
) -> None:
    images = [class_image(index, own) for index, own in enumerate(repeats)]
    found = {int(image.key): image.repeats for image in balanced(images, num_uses=num_uses)}
    assert found == counted_one_by_one(repeats, num_uses)
    assert num_uses <= sum(found.values()) < num_uses + max(repeats)


def test_the_balance_that_kohyas_trainer_was_seen_to_make() -> None:
    found = balanced([class_image(index, 1) for index in range(4)], num_uses=21)
    assert [image.repeats for image in found] == [6, 5, 5, 5]


@pytest.fixture
def options(tmp_path: Path) -> DatasetOptions:
    """Return two images with 3 repeats, and three class images, one with a caption file."""
    for name, num_images in (("data/3_mirelle", 2), ("reg/1_girl", 3)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for index in range(num_images):
            color = (40 * index, len(name), 0)
            Image.new("RGB", (128, 128), color).save(folder / f"{index}.png")
    (tmp_path / "reg/1_girl/1.txt").write_text("a girl, park")
    return replace(PLAIN, dir=str(tmp_path / "data"), reg_dir=str(tmp_path / "reg"))


def read(options: DatasetOptions) -> Dataset:
    return read_dataset(options, pixels_per_latent=8)


def test_class_images_follow_marked_with_their_own_captions(options: DatasetOptions) -> None:
    images = read(options).images
    assert [image.is_regularization for image in images] == [False, False, True, True, True]
    assert [image.caption for image in images[2:]] == ["girl", "a girl, park", "girl"]
    assert [image.repeats for image in images] == [3, 3, 2, 2, 2]
    assert [(one.name, one.repeats, one.num_images) for one in read(options).folders] == [
        ("3_mirelle", 3, 2),
        ("1_girl", 1, 3),
    ]


def test_the_tail_of_too_many_class_images_is_left_out_and_that_is_said(
    options: DatasetOptions,
) -> None:
    assert options.reg_dir is not None
    for index in range(3, 9):
        color = (0, 0, 20 * index)
        Image.new("RGB", (128, 128), color).save(Path(options.reg_dir) / "1_girl" / f"{index}.png")
    dataset = read(options)
    assert [image.path.name for image in dataset.images[2:]] == [f"{i}.png" for i in range(6)]
    (_, sentence) = dataset.notices
    assert sentence.startswith("3 of 9 regularization images are not used")


def test_without_class_images_the_fingerprint_is_the_one_of_before(
    options: DatasetOptions,
) -> None:
    alone = read(replace(options, reg_dir=None))
    content = [(i.key, i.caption, i.repeats, i.bucket, i.resized) for i in alone.images]
    assert alone.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_the_fingerprint_knows_class_images_and_that_they_are_such(
    options: DatasetOptions, tmp_path: Path
) -> None:
    both = read(options).fingerprint
    assert both != read(replace(options, reg_dir=None)).fingerprint
    (tmp_path / "reg/1_girl/1.txt").write_text("another girl")
    assert read(options).fingerprint != both
    (tmp_path / "reg/1_girl/1.txt").write_text("a girl, park")
    images = read(options).images
    unmarked = [replace(image, is_regularization=False) for image in images]
    assert fingerprint_of(images) == both
    assert fingerprint_of(unmarked) != both


def test_uses_of_training_images_do_not_notice_class_images(options: DatasetOptions) -> None:
    shuffled = replace(options, shuffle_caption=True, flip_aug=True, caption_dropout_rate=0.5)

    def uses(dataset: Dataset) -> set[object]:
        batches = plan_epoch(dataset, shuffled, seed=3, epoch=2, batch_size=2)
        assert len(batches) == num_batches(dataset, batch_size=2)
        samples = [one for batch in batches for one in batch.samples]
        assert len(samples) == sum(image.repeats for image in dataset.images)
        return {one for one in samples if not one.is_regularization}

    with_class = read(options)
    alone = uses(read(replace(options, reg_dir=None)))
    assert alone == uses(with_class)
    planned = plan_epoch(with_class, shuffled, seed=3, epoch=2, batch_size=2)
    assert sum(one.is_regularization for batch in planned for one in batch.samples) == 6


def test_one_image_may_be_in_both_folders_and_keeps_its_own_addresses(
    options: DatasetOptions, tmp_path: Path
) -> None:
    (tmp_path / "reg/1_girl/3.png").write_bytes((tmp_path / "data/3_mirelle/0.png").read_bytes())
    batches = plan_epoch(read(options), options, seed=3, epoch=1, batch_size=4)
    places = [(one.image_key, one.occurrence) for batch in batches for one in batch.samples]
    assert len(set(places)) == len(places)


def test_one_folder_cannot_be_both(options: DatasetOptions) -> None:
    with pytest.raises(DatasetError) as caught:
        read(replace(options, reg_dir=options.dir))
    (problem,) = caught.value.problems
    assert problem.where == "dataset.reg_dir"


def test_what_is_wrong_in_both_folders_is_told_together(
    options: DatasetOptions, tmp_path: Path
) -> None:
    (tmp_path / "data/3_mirelle/0.txt").write_text("")
    (tmp_path / "reg/1_girl").rename(tmp_path / "reg/girl")
    with pytest.raises(DatasetError) as caught:
        read(options)
    second, first = caught.value.problems
    assert first.where == str(tmp_path / "reg")
    assert "rename girl/ to 10_girl/" in first.fix
    assert second.where.endswith("0.txt")
    with pytest.raises(DatasetError) as caught:
        read(replace(options, reg_dir=str(tmp_path / "nowhere")))
    assert "write dataset.reg_dir=FOLDER" in str(caught.value)
