"""Seeds train on all but their own sixth of a data set, and nothing else of it changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from optbench.data import hold_out, holdout_notice
from optbench.data.folder import balanced, fingerprint_of
from optbench.records import CaptionedImage, Dataset, ImageFolder


def image(key: str, *, folder: str = "3_girl", is_regularization: bool = False) -> CaptionedImage:
    return CaptionedImage(
        path=Path("data", folder, f"{key}.png"),
        key=key,
        caption=key,
        class_words="girl",
        repeats=int(folder[0]),
        width=64,
        height=64,
        bucket=(64, 64),
        resized=(64, 64),
        is_regularization=is_regularization,
    )


def dataset(num_images: int, *, num_class_images: int = 0) -> Dataset:
    images = [
        image(f"{index:02d}", folder="5_boy" if index % 3 == 0 else "3_girl")
        for index in range(num_images)
    ]
    class_images = [
        image(f"c{index}", folder="1_girl", is_regularization=True)
        for index in range(num_class_images)
    ]
    images += balanced(class_images, num_uses=sum(one.repeats for one in images))
    counts = Counter(one.path.parent.name for one in images)
    return Dataset(
        images=tuple(images),
        fingerprint=fingerprint_of(images),
        folders=tuple(
            ImageFolder(
                name=name,
                repeats=int(name[0]),
                num_images=count,
                is_regularization=name == "1_girl",
            )
            for name, count in counts.items()
        ),
        class_images=tuple(class_images),
    )


def keys(images: tuple[CaptionedImage, ...]) -> set[str]:
    return {one.key for one in images}


@pytest.mark.parametrize("num_images", [12, 13, 30])
def test_six_seeds_in_a_row_leave_out_every_image_once(num_images: int) -> None:
    whole = dataset(num_images)
    left_out: list[str] = []
    for seed in range(1234, 1240):
        trained, held_out = hold_out(whole, seed=seed)
        assert held_out is not None
        assert keys(trained.images) | keys(held_out.images) == keys(whole.images)
        assert not keys(trained.images) & keys(held_out.images)
        assert len(held_out.images) in (num_images // 6, num_images // 6 + 1)
        assert trained.fingerprint != whole.fingerprint == held_out.fingerprint
        assert sum(folder.num_images for folder in trained.folders) == len(trained.images)
        left_out += keys(held_out.images)
    assert Counter(left_out) == Counter(keys(whole.images))


def test_a_fold_takes_from_every_folder() -> None:
    _, held_out = hold_out(dataset(36), seed=3)
    assert held_out is not None
    assert Counter(one.path.parent.name for one in held_out.images) == {"5_boy": 2, "3_girl": 4}


def test_equal_images_are_left_out_together() -> None:
    whole = dataset(12)
    twice = Dataset(images=(*whole.images, *whole.images), fingerprint="")
    trained, held_out = hold_out(twice, seed=1)
    assert held_out is not None
    assert not keys(trained.images) & keys(held_out.images)


def test_of_few_images_none_is_left_out_and_that_is_said() -> None:
    whole = dataset(11)
    trained, held_out = hold_out(whole, seed=1)
    assert (trained, held_out) == (whole, None)
    assert "all 11 images are trained on" in holdout_notice(trained, held_out)


def test_the_notice_says_how_many_which_and_what_to_type() -> None:
    trained, held_out = hold_out(dataset(30), seed=8)
    sentence = holdout_notice(trained, held_out)
    assert sentence.startswith("5 of 30 images are not trained on")
    assert "fold 3 of 6" in sentence
    assert "validate.holdout=none" in sentence


def test_class_images_all_stay_and_are_balanced_anew() -> None:
    whole = dataset(12, num_class_images=5)
    trained, held_out = hold_out(whole, seed=0)
    assert held_out is not None
    own = sum(one.repeats for one in trained.images if not one.is_regularization)
    of_class = [one for one in trained.images if one.is_regularization]
    assert of_class == balanced(whole.class_images, num_uses=own)
    assert not any(one.is_regularization for one in held_out.images)
