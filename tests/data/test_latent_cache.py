"""Pixels as kohya makes them, and a cache that encodes once and never gives anything stale."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from optbench.contracts import BaseModel
from optbench.data import read_dataset
from optbench.data.batches import plan_epoch
from optbench.data.latent_cache import LatentCache, cache_key, encode_dataset, load_pixels, shrink
from optbench.errors import BaseError, DatasetError
from optbench.records import CaptionedImage, Dataset
from optbench.schema import DatasetOptions
from tests.builders.dataset_options import PLAIN


class FakeBase:
    """A base whose latents are means of 8x8 pixels plus a little noise from the generators."""

    name = "fake"
    pixels_per_latent = 8
    device = torch.device("cpu")

    def __init__(self, vae_fingerprint: str = "v1", *, gain: float = 1.0, pool: int = 8) -> None:
        self.vae_fingerprint = vae_fingerprint
        self.gain = gain
        self.pool = pool
        self.num_calls = 0

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        self.num_calls += 1
        assert pixels_BCHW.dtype == torch.float32
        assert pixels_BCHW.abs().max() <= 1
        means = torch.nn.functional.avg_pool2d(pixels_BCHW, self.pool) * self.gain
        noise = [torch.randn(means.shape[1:], generator=one) for one in generators]
        return means + 0.01 * torch.stack(noise)


@pytest.fixture
def options(tmp_path: Path) -> DatasetOptions:
    return replace(
        PLAIN,
        dir=str(tmp_path / "data"),
        resolution=(64, 64),
        bucket_reso_steps=16,
        min_bucket_reso=16,
        max_bucket_reso=128,
        flip_aug=True,
    )


@pytest.fixture
def dataset(options: DatasetOptions) -> Dataset:
    """Return three pictures: two of one bucket, one of another."""
    folder = Path(options.dir) / "2_girl"
    folder.mkdir(parents=True)
    for index, size in enumerate([(96, 64), (96, 64), (48, 64)]):
        save(folder / f"{index}.png", noise(size, index))
    return read_dataset(options, pixels_per_latent=8)


def noise(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    width, height = size
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(path)


def encode(dataset: Dataset, base: FakeBase, tmp_path: Path, *, flips: bool = False) -> LatentCache:
    return encode_dataset(dataset, cast(BaseModel, base), cache_dir=tmp_path / "cache", flips=flips)


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "latents").iterdir())


def equal(one: LatentCache, other: LatentCache) -> bool:
    assert one.latents_CHW.keys() == other.latents_CHW.keys()
    return all(torch.equal(one.latents_CHW[key], other.latents_CHW[key]) for key in one.latents_CHW)


def placed(
    path: Path,
    picture: Image.Image | NDArray[np.uint8],
    *,
    resized: tuple[int, int],
    bucket: tuple[int, int],
) -> CaptionedImage:
    """Return a picture in the bucket that a test chose."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    path /= "picture.png"
    picture.save(path)
    return CaptionedImage(
        path=path,
        key=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        caption="",
        class_words="",
        repeats=1,
        width=picture.width,
        height=picture.height,
        bucket=bucket,
        resized=resized,
    )


# --- pixels ---

# Computed with cv2.resize(..., interpolation=cv2.INTER_AREA) of OpenCV 5.0, red channel.
PATTERN = (np.arange(7 * 5 * 3, dtype=np.uint32) * 97 % 251).astype(np.uint8).reshape(7, 5, 3)
BY_OPENCV = [
    ((3, 4), PATTERN, [[102, 80, 122], [158, 164, 63], [92, 134, 155], [191, 76, 111]]),
    (
        (2, 7),
        PATTERN,
        [[32, 128], [182, 77], [181, 76], [130, 126], [79, 175], [128, 124], [178, 73]],
    ),
    ((2, 3), PATTERN[:6, :4], [[120, 75], [144, 161], [104, 122]]),
]


@pytest.mark.parametrize(("size", "pixels", "red"), BY_OPENCV)
def test_shrinking_is_opencvs_inter_area(
    size: tuple[int, int], pixels: NDArray[np.uint8], red: list[list[int]]
) -> None:
    small = shrink(pixels, width=size[0], height=size[1])
    assert small[..., 0].tolist() == red


def test_a_picture_in_its_own_size_is_not_touched(tmp_path: Path) -> None:
    pixels = noise((24, 16), 0)
    image = placed(tmp_path, pixels, resized=(24, 16), bucket=(24, 16))
    assert np.array_equal(load_pixels(image), pixels)
    assert np.array_equal(load_pixels(image, flipped=True), pixels[:, ::-1])


def test_the_excess_is_cut_off_evenly_and_the_odd_pixel_at_the_end(tmp_path: Path) -> None:
    pixels = noise((27, 20), 0)
    image = placed(tmp_path, pixels, resized=(27, 20), bucket=(16, 16))
    assert np.array_equal(load_pixels(image), pixels[2:18, 5:21])
    assert np.array_equal(load_pixels(image, flipped=True), pixels[2:18, 5:21][:, ::-1])


def test_shrinking_averages_and_enlarging_is_lanczos(tmp_path: Path) -> None:
    pixels = noise((32, 32), 0)
    image = placed(tmp_path, pixels, resized=(20, 20), bucket=(20, 20))
    assert np.array_equal(load_pixels(image), shrink(pixels, width=20, height=20))
    larger = replace(image, resized=(40, 40), bucket=(40, 40))
    wanted = Image.fromarray(pixels).resize((40, 40), Image.Resampling.LANCZOS)
    assert np.array_equal(load_pixels(larger), np.asarray(wanted))


def test_transparency_is_dropped_and_palettes_become_colors(tmp_path: Path) -> None:
    clear = np.full((8, 8, 4), (10, 20, 30, 0), dtype=np.uint8)
    opaque = Image.fromarray(clear[..., :3].copy())
    for picture in (Image.fromarray(clear), opaque.quantize(2)):
        image = placed(tmp_path, picture, resized=(8, 8), bucket=(8, 8))
        assert load_pixels(image).tolist() == [[[10, 20, 30]] * 8] * 8


# --- the cache ---


def test_a_second_call_encodes_nothing_and_gives_the_same_bits(
    dataset: Dataset, tmp_path: Path
) -> None:
    base = FakeBase()
    first = encode(dataset, base, tmp_path)
    assert (first.num_encoded, first.num_read, first.notices) == (3, 0, ())
    assert base.num_calls == 3
    second = encode(dataset, base, tmp_path)
    assert (second.num_encoded, second.num_read, second.notices) == (0, 3, ())
    assert base.num_calls == 3
    assert equal(first, second)


def test_latents_are_of_the_pixels_of_the_bucket(dataset: Dataset, tmp_path: Path) -> None:
    cache = encode(dataset, FakeBase(), tmp_path, flips=True)
    for image in dataset.images:
        for flipped in (False, True):
            latents_CHW = cache.latents_CHW[image.key, flipped]
            width, height = image.bucket
            assert latents_CHW.shape == (3, height // 8, width // 8)
            pixels = load_pixels(image, flipped=flipped).astype(np.float32) / 255 * 2 - 1
            means = pixels.reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))
            assert np.abs(latents_CHW.numpy() - means.transpose(2, 0, 1)).max() < 0.06


def test_each_latent_is_a_sample_of_its_own(dataset: Dataset, tmp_path: Path) -> None:
    cache = encode(dataset, FakeBase(gain=0.0), tmp_path, flips=True)
    samples = {value.numpy().tobytes()[:16] for value in cache.latents_CHW.values()}
    assert len(samples) == 6


def test_latents_do_not_depend_on_what_the_cache_already_held(
    dataset: Dataset, tmp_path: Path
) -> None:
    first = encode(dataset, FakeBase(), tmp_path)
    entries(tmp_path)[1].unlink()
    second = encode(dataset, FakeBase(), tmp_path)
    assert (second.num_encoded, second.num_read) == (1, 2)
    assert equal(first, second)


def test_mirrored_pictures_are_encoded_only_where_asked_for(
    dataset: Dataset, tmp_path: Path
) -> None:
    assert encode(dataset, FakeBase(), tmp_path).num_encoded == 3
    both = encode(dataset, FakeBase(), tmp_path, flips=True)
    assert (both.num_encoded, both.num_read, len(both.latents_CHW)) == (3, 3, 6)
    assert encode(dataset, FakeBase(), tmp_path, flips=True).num_encoded == 0


def test_another_autoencoder_or_bucket_or_picture_is_another_entry(
    dataset: Dataset, options: DatasetOptions, tmp_path: Path
) -> None:
    encode(dataset, FakeBase(), tmp_path)
    assert encode(dataset, FakeBase("v2"), tmp_path).num_encoded == 3
    smaller = read_dataset(replace(options, resolution=(48, 48)), pixels_per_latent=8)
    assert encode(smaller, FakeBase(), tmp_path).num_encoded == 3
    save(dataset.images[0].path, noise((96, 64), 9))
    changed = read_dataset(options, pixels_per_latent=8)
    cache = encode(changed, FakeBase(), tmp_path)
    assert (cache.num_encoded, cache.num_read) == (1, 2)
    assert encode(dataset, FakeBase(), tmp_path).num_encoded == 0  # the old ones are still there


def test_the_key_knows_all_that_latents_depend_on(dataset: Dataset) -> None:
    image = dataset.images[0]
    gpu = FakeBase()
    gpu.device = torch.device("cuda")
    keys = {
        cache_key(image, cast(BaseModel, FakeBase()), flipped=False),
        cache_key(image, cast(BaseModel, FakeBase()), flipped=True),
        cache_key(image, cast(BaseModel, FakeBase("v2")), flipped=False),
        cache_key(image, cast(BaseModel, gpu), flipped=False),
        cache_key(replace(image, key="0" * 16), cast(BaseModel, FakeBase()), flipped=False),
        cache_key(replace(image, bucket=(16, 16)), cast(BaseModel, FakeBase()), flipped=False),
        cache_key(replace(image, resized=(99, 99)), cast(BaseModel, FakeBase()), flipped=False),
    }
    assert len(keys) == 7
    renamed = replace(image, path=Path("elsewhere.png"), caption="other", repeats=99)
    assert cache_key(renamed, cast(BaseModel, FakeBase()), flipped=False) in keys


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x80\x04pickle" * 20)


def _rewritten(path: Path, latents_CHW: Tensor, name: str = "latents_CHW") -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.write_bytes(safetensors.torch.save({name: latents_CHW}, metadata=metadata))


def _of_another_picture(path: Path) -> None:
    latents_CHW = safetensors.torch.load_file(path)["latents_CHW"] + 1
    path.write_bytes(safetensors.torch.save({"latents_CHW": latents_CHW}, {"key": "0" * 64}))


def _reshaped(path: Path) -> None:
    _rewritten(path, torch.zeros(3, 2, 2))


def _flattened(path: Path) -> None:
    _rewritten(path, torch.zeros(3))


def _not_finite(path: Path) -> None:
    latents_CHW = safetensors.torch.load_file(path)["latents_CHW"]
    _rewritten(path, latents_CHW / 0)


def _halved(path: Path) -> None:
    _rewritten(path, safetensors.torch.load_file(path)["latents_CHW"].half())


def _renamed(path: Path) -> None:
    _rewritten(path, safetensors.torch.load_file(path)["latents_CHW"], "latents")


def _flipped(path: Path) -> None:
    """The last bit of the last number: finite, and of the right shape."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flipped,
        _cut,
        _empty,
        _foreign,
        _of_another_picture,
        _reshaped,
        _flattened,
        _not_finite,
        _halved,
        _renamed,
    ],
)
def test_a_damaged_entry_is_encoded_again_and_told(
    dataset: Dataset, tmp_path: Path, damage: object
) -> None:
    first = encode(dataset, FakeBase(), tmp_path)
    path = entries(tmp_path)[0]
    assert callable(damage)
    damage(path)
    second = encode(dataset, FakeBase(), tmp_path)
    assert (second.num_encoded, second.num_read) == (1, 2)
    assert equal(first, second)
    (notice,) = second.notices
    assert str(path) in notice
    assert encode(dataset, FakeBase(), tmp_path).notices == ()


def test_nothing_but_whole_entries_is_left_on_disk(dataset: Dataset, tmp_path: Path) -> None:
    encode(dataset, FakeBase(), tmp_path)
    assert [path.suffix for path in entries(tmp_path)] == [".safetensors"] * 3


def test_pictures_that_changed_since_they_were_read_are_all_told(
    dataset: Dataset, tmp_path: Path
) -> None:
    save(dataset.images[0].path, noise((96, 64), 9))
    dataset.images[2].path.unlink()
    with pytest.raises(DatasetError) as caught:
        encode(dataset, FakeBase(), tmp_path, flips=True)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["0.png", "2.png"]


@pytest.mark.parametrize("base", [FakeBase(gain=float("nan")), FakeBase(pool=4)])
def test_an_autoencoder_that_gives_nonsense_is_refused_and_nothing_is_kept(
    dataset: Dataset, tmp_path: Path, base: FakeBase
) -> None:
    with pytest.raises(BaseError, match="0.png"):
        encode(dataset, base, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_equal_pictures_are_encoded_once(
    dataset: Dataset, options: DatasetOptions, tmp_path: Path
) -> None:
    twin = dataset.images[0].path.with_name("twin.png")
    twin.write_bytes(dataset.images[0].path.read_bytes())
    twins = read_dataset(options, pixels_per_latent=8)
    assert len(twins.images) == 4
    assert encode(twins, FakeBase(), tmp_path).num_encoded == 3


# --- batches ---


def test_every_planned_batch_gets_its_latents(
    dataset: Dataset, options: DatasetOptions, tmp_path: Path
) -> None:
    cache = encode(dataset, FakeBase(), tmp_path, flips=True)
    planned = plan_epoch(dataset, options, seed=1, epoch=1, batch_size=3)
    assert any(sample.flipped for one in planned for sample in one.samples)
    for one in planned:
        (batch,) = cache.batches([one])
        assert batch.samples == one.samples
        for index, sample in enumerate(one.samples):
            wanted = cache.latents_CHW[sample.image_key, sample.flipped]
            assert torch.equal(batch.latents_BCHW[index], wanted)


def test_freshly_encoded_latents_can_be_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    # Tensors made in inference mode cannot be saved for a backward pass.
    latents_CHW = next(iter(encode(dataset, FakeBase(), tmp_path).latents_CHW.values()))
    weight = torch.ones((), requires_grad=True)
    (latents_CHW * weight).sum().backward()
    assert weight.grad is not None
