"""The drawn world as training data: latents, thumbnails, words and truth, made once and kept."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from optbench import rng
from optbench.storage.files import write_atomic
from tools.tinybase import world
from tools.tinybase.autoencoder import PatchCodes, to_tensor
from tools.tinybase.shapes import IMAGE_ENCODER_PX

_SHARD_SIZE = 500
_DEGRADED_SHARE = 0.06
_SIZE_WEIGHTS = (0.45, 0.35, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What is known of one drawing besides its latents."""

    tags: tuple[str, ...]
    attributes: Mapping[str, str]
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawings:
    """All drawings of one size and what each one shows.

    Latents (N, 32, H, W) are float16, thumbnails (N, 128, 128, 3) uint8: the whole picture,
    squashed to a square, for the image encoder.
    """

    latents_NCHW: Tensor
    thumbnails_NHWC: Tensor
    drawn: tuple[Drawn, ...]


def make_drawings(
    folder: Path, codes: PatchCodes, *, seed: int, num_drawings: int, num_workers: int = 1
) -> dict[tuple[int, int], Drawings]:
    """Return the training drawings by (width, height); shards already in `folder` are read.

    Any number of worker processes draws the same pictures.
    """
    shards = folder / "drawings"
    shards.mkdir(exist_ok=True)
    starts = range(0, num_drawings, _SHARD_SIZE)
    missing = [start for start in starts if not (shards / f"{start:06d}.json").exists()]
    draw = partial(_draw_shard, shards, codes, seed, _SHARD_SIZE)
    for _ in track(_each(draw, missing, num_workers), description="drawing", total=len(missing)):
        pass
    latents: dict[tuple[int, int], list[Tensor]] = {size: [] for size in world.SIZES}
    thumbnails: dict[tuple[int, int], list[Tensor]] = {size: [] for size in world.SIZES}
    drawn: dict[tuple[int, int], list[Drawn]] = {size: [] for size in world.SIZES}
    for start in starts:
        tensors = load_file(shards / f"{start:06d}.safetensors")
        rows = json.loads((shards / f"{start:06d}.json").read_text())
        for size in world.SIZES:
            key = f"{size[0]}x{size[1]}"
            latents[size].append(tensors[key])
            thumbnails[size].append(tensors[f"{key}/thumbnails"])
            drawn[size].extend(
                Drawn(tags=tuple(tags), attributes=attributes, degraded=degraded)
                for tags, attributes, degraded in rows[key]
            )
    return {
        size: Drawings(
            latents_NCHW=torch.cat(latents[size]),
            thumbnails_NHWC=torch.cat(thumbnails[size]),
            drawn=tuple(drawn[size]),
        )
        for size in world.SIZES
    }


def with_gains(
    drawings: dict[tuple[int, int], Drawings], gains: Tensor
) -> dict[tuple[int, int], Drawings]:
    """Return the drawings with their white codes (32 channels) turned into the base's latents."""
    factors = gains[:, None, None].half()
    return {
        size: dataclasses.replace(one, latents_NCHW=one.latents_NCHW * factors)
        for size, one in drawings.items()
    }


def thumbnail(image: Image.Image) -> Tensor:
    """Return what the image encoder sees of a picture: (128, 128, 3), uint8."""
    small = image.convert("RGB").resize((IMAGE_ENCODER_PX, IMAGE_ENCODER_PX))
    return torch.from_numpy(np.asarray(small).copy())


def _each(draw: Callable[[int], None], starts: list[int], num_workers: int) -> Iterator[None]:
    """Call `draw` for every start, in other processes where that is faster."""
    if min(num_workers, len(starts)) <= 1:
        yield from map(draw, starts)
        return
    # Not forked: torch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    )
    with pool:
        yield from pool.map(draw, starts)


def _draw_shard(shards: Path, codes: PatchCodes, seed: int, size: int, start: int) -> None:
    """Draw one shard of the world and write its tensors, then its words."""
    tensors: dict[str, list[Tensor]] = {}
    rows: dict[str, list[tuple[tuple[str, ...], dict[str, str], bool]]] = {}
    for index in range(start, start + size):
        draw = rng.shuffler(seed, "tiny", "drawing", index)
        width, height = draw.choices(world.SIZES, _SIZE_WEIGHTS)[0]
        drawing = world.draw_sample(draw.getrandbits(48), width=width, height=height)
        degraded = draw.random() < _DEGRADED_SHARE
        image = world.degrade(drawing.image, draw) if degraded else drawing.image
        with torch.no_grad():
            latent = codes(to_tensor([np.asarray(image)]))[0].half()
        key = f"{width}x{height}"
        tensors.setdefault(key, []).append(latent)
        tensors.setdefault(f"{key}/thumbnails", []).append(thumbnail(image))
        rows.setdefault(key, []).append((drawing.tags, dict(drawing.attributes), degraded))
    save_file(
        {key: torch.stack(values) for key, values in tensors.items()},
        shards / f"{start:06d}.safetensors",
    )
    # Last and whole: its presence is what counts the shard as done.
    write_atomic(shards / f"{start:06d}.json", json.dumps(rows))
