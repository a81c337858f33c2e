"""Random crops and colours: kohya's distributions, at addresses of their own."""

from __future__ import annotations

import colorsys
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from optbench.contracts import BaseModel
from optbench.data import bucket_chooser, read_dataset
from optbench.data.augmentation import draw_colors, draw_corner, rotate_hue
from optbench.data.batches import plan_epoch
from optbench.data.latent_cache import FreshLatents, LatentCache, latents_of, load_pixels
from optbench.errors import DatasetError
from optbench.records import Batch
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN
from tests.data.test_latent_cache import FakeBase, noise


@given(st.integers(0, 3), st.integers(0, 3))
def test_crops_begin_evenly_from_edge_to_edge(width: int, height: int) -> None:
    draw = random.Random(1)
    counts = Counter(draw_corner((width, height), draw) for _ in range(1600))
    assert set(counts) == {(x, y) for x in range(width + 1) for y in range(height + 1)}
    assert min(counts.values()) > 1600 / len(counts) * 0.5


@given(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)), st.floats(-16, 16))
def test_a_hue_is_turned_and_nothing_else(color: tuple[int, int, int], degrees: float) -> None:
    pixels = np.array([[color]], dtype=np.uint8)
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value)
    assert np.abs(rotate_hue(pixels, degrees)[0, 0] - np.array(expected) * 255).max() <= 0.51


def test_a_third_of_uses_is_coloured_half_by_hue_half_by_gamma() -> None:
    grey = np.full((2, 2, 3), 200, dtype=np.uint8)
    red = np.broadcast_to(np.array([200, 50, 50], dtype=np.uint8), (2, 2, 3))
    kinds: Counter[str] = Counter()
    tones = []
    for seed in range(3000):
        found = draw_colors(grey, random.Random(seed))
        if not np.array_equal(found, grey):
            kinds["gamma"] += 1
            tones.append(int(found[0, 0, 0]))
        elif not np.array_equal(draw_colors(red, random.Random(seed)), red):
            kinds["hue"] += 1
    # 3000 x 0.165 = 495, standard deviation 20
    assert all(495 - 100 < kinds[kind] < 495 + 100 for kind in ("gamma", "hue"))
    assert (min(tones), max(tones)) == (153, 255)  # 200^0.95 = 153.6, and 200^1.05 is above 255


@pytest.fixture
def options(tmp_path: Path) -> DatasetOptions:
    """Return one picture of 40x30 in a bucket of 32x16, with 6 uses, half of them mirrored."""
    folder = tmp_path / "data" / "6_girl"
    folder.mkdir(parents=True)
    Image.fromarray(noise((40, 30), 1)).save(folder / "a.png")
    return replace(
        PLAIN,
        dir=str(tmp_path / "data"),
        resolution=(64, 64),
        bucket_reso_steps=16,
        min_bucket_reso=16,
        max_bucket_reso=64,
        flip_aug=True,
    )


def batches(
    options: DatasetOptions, tmp_path: Path, *, seed: int = 3, batch_size: int = 2
) -> Iterator[Batch]:
    dataset = read_dataset(options, pixels_per_latent=8)
    base = cast(BaseModel, FakeBase())
    latents = latents_of(dataset, base, options, seed=seed, cache_dir=tmp_path)
    is_fresh = options.random_crop or options.color_aug
    assert isinstance(latents, FreshLatents if is_fresh else LatentCache)
    planned = plan_epoch(dataset, options, seed=seed, epoch=1, batch_size=batch_size)
    yield from latents.batches(planned)


def by_use(found: Iterator[Batch]) -> dict[int, Tensor]:
    return {
        sample.occurrence: latents
        for batch in found
        for sample, latents in zip(batch.samples, batch.latents_BCHW, strict=True)
    }


@pytest.mark.parametrize("changes", [{"random_crop": True}, {"color_aug": True}])
def test_every_use_has_pixels_of_its_own_whatever_the_batch(
    options: DatasetOptions, tmp_path: Path, changes: dict[str, Any]
) -> None:
    fresh = replace(options, **changes)
    found = by_use(batches(fresh, tmp_path))
    assert len({tuple(latents.flatten().tolist()) for latents in found.values()}) == 6
    again = by_use(batches(fresh, tmp_path, batch_size=5))
    assert all(torch.equal(found[key], again[key]) for key in found)
    ahead = by_use(batches(replace(fresh, num_workers=3), tmp_path))
    assert all(torch.equal(found[key], ahead[key]) for key in found)
    other = by_use(batches(fresh, tmp_path, seed=4))
    assert not torch.equal(found[0], other[0])
    # Order, flips and captions are those of a run without.
    plain = list(batches(options, tmp_path))
    for one, batch in zip(plain, batches(fresh, tmp_path), strict=True):
        assert one.samples == batch.samples


class Exact(FakeBase):
    """A base whose latents are means of pixels and nothing drawn."""

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels_BCHW, 8)


@pytest.mark.parametrize(
    ("changes", "least"), [({"random_crop": True}, 5), ({"color_aug": True}, 3)]
)
def test_pixels_themselves_differ_between_uses(
    options: DatasetOptions, tmp_path: Path, changes: dict[str, Any], least: int
) -> None:
    (tmp_path / "data/6_girl").rename(tmp_path / "data/30_girl")
    fresh = replace(options, flip_aug=False, **changes)
    dataset = read_dataset(fresh, pixels_per_latent=8)
    source = latents_of(dataset, cast(BaseModel, Exact()), fresh, seed=3, cache_dir=tmp_path)
    planned = plan_epoch(dataset, fresh, seed=3, epoch=1, batch_size=30)
    (batch,) = source.batches(planned)
    assert len({tuple(one.flatten().tolist()) for one in batch.latents_BCHW}) >= least


def test_a_crop_is_a_window_of_the_picture(options: DatasetOptions) -> None:
    (image,) = read_dataset(options, pixels_per_latent=8).images
    whole: NDArray[np.uint8] = noise((40, 30), 1)
    assert (image.resized, image.bucket) == ((40, 30), (32, 16))
    pixels = load_pixels(image, corner=(3, 14))
    assert np.array_equal(pixels, whole[14:30, 3:35])
    assert np.array_equal(load_pixels(image, corner=(0, 0)), whole[:16, :32])


def test_random_crop_without_excess_is_refused(options: DatasetOptions, tmp_path: Path) -> None:
    Image.fromarray(noise((32, 16), 1)).save(tmp_path / "data/6_girl/a.png")
    with pytest.raises(DatasetError) as caught:
        read_dataset(replace(options, random_crop=True), pixels_per_latent=8)
    (problem,) = caught.value.problems
    assert problem.where == "dataset.random_crop"


def test_without_buckets_a_crop_is_of_the_picture_as_it_is() -> None:
    options = replace(
        PLAIN, enable_bucket=False, bucket_no_upscale=False, resolution=(32, 16), random_crop=True
    )
    place = bucket_chooser(options)
    assert place((40, 30)) == ((32, 16), (40, 30))
    assert place((40, 15)) is None
