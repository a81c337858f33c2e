"""The drawn world as training data: latents, tags and true attributes, made once and kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from optbench import rng
from optbench.rundir import write_atomic
from optbench.tiny import world
from optbench.tiny.autoencoder import PatchCodes, to_tensor

_SHARD_SIZE = 500
_DEGRADED_SHARE = 0.04
_SIZE_WEIGHTS = (0.45, 0.35, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What is known of one drawing besides its latents."""

    tags: tuple[str, ...]
    attributes: Mapping[str, str]
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawings:
    """All drawings of one size: latents (N, 32, H, W) in float16 and what each one shows."""

    latents_NCHW: Tensor
    drawn: tuple[Drawn, ...]


def make_drawings(
    folder: Path, codes: PatchCodes, *, seed: int, num_drawings: int
) -> dict[tuple[int, int], Drawings]:
    """Return the training drawings by (width, height); shards already in `folder` are read."""
    shards = folder / "drawings"
    shards.mkdir(exist_ok=True)
    starts = range(0, num_drawings, _SHARD_SIZE)
    missing = [start for start in starts if not (shards / f"{start:06d}.json").exists()]
    for start in track(missing, description="drawing"):
        _draw_shard(shards, codes, seed=seed, start=start)
    latents: dict[tuple[int, int], list[Tensor]] = {size: [] for size in world.SIZES}
    drawn: dict[tuple[int, int], list[Drawn]] = {size: [] for size in world.SIZES}
    for start in starts:
        tensors = load_file(shards / f"{start:06d}.safetensors")
        rows = json.loads((shards / f"{start:06d}.json").read_text())
        for size in world.SIZES:
            key = f"{size[0]}x{size[1]}"
            latents[size].append(tensors[key])
            drawn[size].extend(
                Drawn(tags=tuple(tags), attributes=attributes, degraded=degraded)
                for tags, attributes, degraded in rows[key]
            )
    return {
        size: Drawings(latents_NCHW=torch.cat(latents[size]), drawn=tuple(drawn[size]))
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


def _draw_shard(shards: Path, codes: PatchCodes, *, seed: int, start: int) -> None:
    """Draw one shard of the world and write its latents, then its words."""
    latents: dict[str, list[Tensor]] = {}
    rows: dict[str, list[tuple[tuple[str, ...], dict[str, str], bool]]] = {}
    for index in range(start, start + _SHARD_SIZE):
        draw = rng.shuffler(seed, "tiny", "drawing", index)
        width, height = draw.choices(world.SIZES, _SIZE_WEIGHTS)[0]
        drawing = world.draw_sample(draw.getrandbits(48), width=width, height=height)
        degraded = draw.random() < _DEGRADED_SHARE
        image = world.degrade(drawing.image, draw) if degraded else drawing.image
        with torch.no_grad():
            latent = codes(to_tensor([np.asarray(image)]))[0].half()
        key = f"{width}x{height}"
        latents.setdefault(key, []).append(latent)
        rows.setdefault(key, []).append((drawing.tags, dict(drawing.attributes), degraded))
    save_file(
        {key: torch.stack(values) for key, values in latents.items()},
        shards / f"{start:06d}.safetensors",
    )
    # Last and whole: its presence is what counts the shard as done.
    write_atomic(shards / f"{start:06d}.json", json.dumps(rows))
