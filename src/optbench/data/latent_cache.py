"""Encode images to latents once per data set and base, keep them on disk, and form batches.

An entry of the cache is named by everything its content depends on: the image's bytes, its size
and bucket, the flip, the autoencoder and the kind of device. So nothing stale is ever used, and
entries of other data sets and bases can lie beside each other.

Shapes: B images in a batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from optbench import rng
from optbench.contracts import BaseModel
from optbench.data.augmentation import draw_colors, draw_corner
from optbench.data.prefetch import ahead
from optbench.errors import BaseError, DamagedFileError, DatasetError, Problem
from optbench.records import Batch, CaptionedImage, Dataset, Sample
from optbench.schema import DatasetOptions
from optbench.storage import files
from optbench.storage.disk import read_bytes
from optbench.storage.images import opened
from optbench.storage.safetensors_header import parse_header

if TYPE_CHECKING:
    from optbench.data.batches import PlannedBatch

_SCHEMA = 1  # raise it when equal images begin to give other latents
_FOLDER = "latents"
_TENSOR = "latents_CHW"
_NUM_NAME_DIGITS = 32
# One sample of the posterior per image, the same for every run: the cache knows no run's seed.
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCache:
    """All latents of a data set in memory, and where they came from."""

    latents_CHW: Mapping[tuple[str, bool], Tensor]  # by image's key and flip; float32, CPU
    num_encoded: int
    num_read: int
    notices: tuple[str, ...]  # damaged entries that were encoded again

    def batches(self, planned: Iterable[PlannedBatch]) -> Iterator[Batch]:
        """Yield the planned batches with their latents."""
        for batch in planned:
            chosen = [self.latents_CHW[one.image_key, one.flipped] for one in batch.samples]
            yield Batch(latents_BCHW=torch.stack(chosen), samples=batch.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshLatents:
    """Latents of images that are cropped or coloured anew at every use, encoded when needed.

    kohya's trainer, too, keeps no latents of these. Every crop, colour and sample of the posterior
    is drawn at the address of the use, so that no other draw notices.
    """

    images: Mapping[str, CaptionedImage]  # by key
    base: BaseModel
    options: DatasetOptions
    seed: int  # the run's
    notices: tuple[str, ...] = (
        "dataset.color_aug and dataset.random_crop: images are encoded anew at every use",
    )

    def batches(self, planned: Iterable[PlannedBatch]) -> Iterator[Batch]:
        """Yield the planned batches with their latents; images are read ahead.

        Raises:
            DatasetError: If an image changed or vanished since the data set was read.
            BaseError: If the autoencoder gives NaN or infinity.
        """
        num_workers = self.options.num_workers
        for batch, pixels in ahead(self._pixels_of, planned, num_workers=num_workers):
            latents = []
            for sample, pixels_HWC in zip(batch.samples, pixels, strict=True):
                draw = rng.generator(self.seed, "vae", *_place(sample))
                image = self.images[sample.image_key]
                latents.append(_encode_pixels(pixels_HWC, image, self.base, draw))
            yield Batch(latents_BCHW=torch.stack(latents), samples=batch.samples)

    def _pixels_of(self, batch: PlannedBatch) -> list[NDArray[np.uint8]]:
        pixels_of_samples = []
        for sample in batch.samples:
            image = self.images[sample.image_key]
            corner = None
            if self.options.random_crop:
                (width, height), bucket = image.resized, image.bucket
                draw = rng.shuffler(self.seed, "crop", *_place(sample))
                corner = draw_corner((width - bucket[0], height - bucket[1]), draw)
            pixels = load_pixels(image, flipped=sample.flipped, corner=corner)
            if self.options.color_aug:
                draw = rng.shuffler(self.seed, "color", *_place(sample))
                pixels = draw_colors(pixels, draw)
            pixels_of_samples.append(pixels)
        return pixels_of_samples


def _place(sample: Sample) -> tuple[int, str, int]:
    """Return the address of all draws of one use of an image."""
    return sample.epoch, sample.image_key, sample.occurrence


def latents_of(
    dataset: Dataset, base: BaseModel, options: DatasetOptions, *, seed: int, cache_dir: Path
) -> LatentCache | FreshLatents:
    """Return where a run's latents come from: the cache, unless every use has its own pixels.

    Raises:
        DatasetError: As `encode_dataset`.
        BaseError: As `encode_dataset`.
    """
    if options.color_aug or options.random_crop:
        images = {image.key: image for image in dataset.images}
        return FreshLatents(images=images, base=base, options=options, seed=seed)
    return encode_dataset(
        dataset,
        base,
        cache_dir=cache_dir,
        flips=options.flip_aug,
        num_workers=options.num_workers,
    )


def encode_dataset(
    dataset: Dataset, base: BaseModel, *, cache_dir: Path, flips: bool, num_workers: int = 0
) -> LatentCache:
    """Return the latents of every image, read from the cache or encoded and put into it.

    Each is one sample of the autoencoder's posterior (as kohya), drawn at an address of its own
    that no run's seed is part of. Images are encoded one by one: the last bits of a convolution
    depend on the batch, and so would the latents on what the cache already held.

    Args:
        dataset: The images.
        base: Whose autoencoder is used.
        cache_dir: Latents lie in its folder `latents`; it may be shared by everything.
        flips: Whether every image is needed mirrored, too.
        num_workers: Threads that read images while others are encoded.

    Raises:
        DatasetError: If images changed or vanished since the data set was read.
        BaseError: If the autoencoder gives latents of another size, or NaN or infinity.
    """
    latents: dict[tuple[str, bool], Tensor] = {}
    notices: list[str] = []
    problems: list[Problem] = []
    missing: list[_Missing] = []
    images = {image.key: image for image in dataset.images}
    for image, flipped in itertools.product(images.values(), (False, True)[: 1 + flips]):
        key = cache_key(image, base, flipped=flipped)
        path = cache_dir / _FOLDER / f"{key[:_NUM_NAME_DIGITS]}.safetensors"
        try:
            latents[image.key, flipped] = _read(path, key, size=_latent_size(image, base))
            continue
        except FileNotFoundError:
            pass
        except DamagedFileError as error:
            aside = files.set_aside(path)
            notices.append(f"{error}\n    It is now {aside.name}, and was encoded again.")
        missing.append(_Missing(image=image, flipped=flipped, key=key, path=path))
    for entry, pixels in ahead(_Missing.pixels, missing, num_workers=num_workers):
        if isinstance(pixels, DatasetError):
            problems += pixels.problems
            continue
        image, flipped = entry.image, entry.flipped
        draw = rng.generator(_SEED, "vae", image.key, int(flipped))
        encoded_CHW = _encode_pixels(pixels, image, base, draw)
        about = {"key": entry.key, "sha256": _digest(encoded_CHW)}
        content = safetensors.torch.save({_TENSOR: encoded_CHW}, metadata=about)
        files.write_atomic(entry.path, content)
        latents[image.key, flipped] = encoded_CHW
    if problems:
        raise DatasetError(*dict.fromkeys(problems))
    return LatentCache(
        latents_CHW=latents,
        num_encoded=len(missing),
        num_read=len(latents) - len(missing),
        notices=tuple(notices),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Missing:
    """An entry that the cache does not hold yet."""

    image: CaptionedImage
    flipped: bool
    key: str
    path: Path

    def pixels(self) -> NDArray[np.uint8] | DatasetError:
        """Return the image, or what is wrong with it, to be said together with the others."""
        try:
            return load_pixels(self.image, flipped=self.flipped)
        except DatasetError as error:
            return error


def cache_key(image: CaptionedImage, base: BaseModel, *, flipped: bool) -> str:
    """Return 64 hex digits that change with everything the image's latents depend on.

    The kind of device counts, because it changes their last bits.
    """
    content = {
        "schema": _SCHEMA,
        "picture": image.key,
        "bucket": image.bucket,
        "resized": image.resized,
        "flipped": flipped,
        "vae": base.vae_fingerprint,
        "device": base.device.type,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_pixels(
    image: CaptionedImage, *, flipped: bool = False, corner: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return the image resized and cropped to its bucket: uint8, (height, width, RGB).

    Transparency is dropped and the excess is cut off evenly on both sides, as kohya does, or
    what is left of and above `corner` and too much on the other sides.
    Shrinking averages areas (OpenCV's INTER_AREA), enlarging is Lanczos.

    Raises:
        DatasetError: If the file has vanished, or is not the one the data set was read from.
    """
    try:
        content = read_bytes(image.path)
    except OSError as error:
        raise DatasetError(_changed(image, f"{type(error).__name__}: {error}")) from error
    if not hashlib.sha256(content).hexdigest().startswith(image.key):
        raise DatasetError(_changed(image, "other bytes than when the data set was read"))
    with opened(io.BytesIO(content)) as file:
        picture = file.convert("RGB")
    width, height = image.resized
    if width > picture.width or height > picture.height:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    if picture.size != (width, height):
        pixels = shrink(pixels, width=width, height=height)
    left, top = corner or ((width - image.bucket[0]) // 2, (height - image.bucket[1]) // 2)
    pixels = pixels[top : top + image.bucket[1], left : left + image.bucket[0]]
    return np.ascontiguousarray(pixels[:, ::-1] if flipped else pixels)


def shrink(pixels: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    """Return uint8 pixels (height, width, RGB), each the mean of the area it covers.

    Pixels on an area's edge count by the share that lies inside. Pillow's BOX filter takes them
    whole or not at all, and so differs from INTER_AREA unless the factor is a whole number.
    """
    rows = _mean_rows(pixels, height)
    both = _mean_rows(rows.swapaxes(0, 1), width).swapaxes(0, 1)
    # OpenCV rounds halves up when both sides are halved, and to even otherwise.
    is_halved = pixels.shape[:2] == (2 * height, 2 * width)
    rounded = np.floor(both + 0.5) if is_halved else np.rint(both)
    return rounded.clip(0, 255).astype(np.uint8)


def _mean_rows(values: NDArray[Any], num_rows: int) -> NDArray[np.float32]:
    """Return `num_rows` rows that each average an equal, perhaps fractional, number of rows."""
    scale = len(values) / num_rows
    starts = np.arange(num_rows) * scale
    total = np.zeros((num_rows, *values.shape[1:]), dtype=np.float32)
    for offset in range(math.ceil(scale) + 1):
        indices = np.floor(starts).astype(np.intp) + offset
        shares = np.minimum(indices + 1, starts + scale) - np.maximum(indices, starts)
        shares = (shares.clip(0, 1) / scale).astype(np.float32)
        total += shares[:, None, None] * values[np.minimum(indices, len(values) - 1)]
    return total


def _encode_pixels(
    pixels: NDArray[np.uint8], image: CaptionedImage, base: BaseModel, draw: torch.Generator
) -> Tensor:
    """Return latents of pixels that some use of an image has: (C, H, W) in float32 on the CPU."""
    pixels_HWC = torch.tensor(pixels, dtype=torch.float32)
    pixels_BCHW = (pixels_HWC / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        latents_BCHW = base.encode_images(pixels_BCHW, [draw])
    # Cloned outside of inference mode: autograd refuses tensors that were made in it.
    latents_CHW = latents_BCHW[0].to("cpu", torch.float32).contiguous().clone()
    wrong = _what_is_wrong(latents_CHW, size=_latent_size(image, base))
    if wrong:
        raise BaseError(
            Problem(
                f"the autoencoder of base {base.name}",
                f"latents with {wrong}, for {image.path}",
                f"finite latents of {_latent_size(image, base)} (height, width)",
                "use another autoencoder (base.vae=FOLDER); SDXL's own needs its fp16 fix",
            )
        )
    return latents_CHW


def _read(path: Path, key: str, *, size: tuple[int, int]) -> Tensor:
    """Return one entry of the cache.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is damaged, or is not what its name says.
    """
    content = read_bytes(path)
    try:
        tensors = safetensors.torch.load(content)
        wrong = _what_is_wrong(tensors[_TENSOR], size=size)
        metadata = parse_header(content, size=len(content)).metadata
        if metadata.get("key") != key:
            wrong = "another image's or base's latents"
        # Entries of older versions say nothing of their content, and are read all the same.
        if metadata.get("sha256", digest := _digest(tensors[_TENSOR])) != digest:
            wrong = "other numbers than were written"
    except (SafetensorError, KeyError, ValueError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        raise DamagedFileError(
            Problem(
                str(path),
                wrong,
                "whole latents of the image its name stands for",
                "nothing to do, unless it happens again: then check the disk",
            )
        )
    return tensors[_TENSOR]


def _digest(latents_CHW: Tensor) -> str:
    return hashlib.sha256(latents_CHW.contiguous().numpy().tobytes()).hexdigest()


def _what_is_wrong(latents_CHW: Tensor, *, size: tuple[int, int]) -> str:
    if latents_CHW.dtype != torch.float32 or latents_CHW.dim() != 3:
        return f"shape {tuple(latents_CHW.shape)} in {latents_CHW.dtype}"
    if tuple(latents_CHW.shape[1:]) != size:
        return f"shape {tuple(latents_CHW.shape)}"
    return "" if bool(latents_CHW.isfinite().all()) else "NaN or infinity"


def _latent_size(image: CaptionedImage, base: BaseModel) -> tuple[int, int]:
    """Return height and width of the image's latents."""
    width, height = image.bucket
    return height // base.pixels_per_latent, width // base.pixels_per_latent


def _changed(image: CaptionedImage, found: str) -> Problem:
    return Problem(
        str(image.path),
        found,
        "images that stay as they are while they are trained on",
        "put the image back or start again, which reads the data set anew",
    )
