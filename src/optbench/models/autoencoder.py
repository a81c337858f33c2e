"""Pixels to scaled latents and back, through the autoencoder of a latent diffusion model.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pixels_per_latent(vae: Any) -> int:
    """Return how many pixels one latent is wide."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode_images(vae: Any, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return one sample of each image's posterior, scaled, float32 on the CPU."""
    pixels_BCHW = pixels_BCHW.to(vae.device, torch.float32)
    posterior = vae.encode(pixels_BCHW).latent_dist
    mean_BCHW, spread_BCHW = posterior.mean.cpu(), posterior.std.cpu()
    shape = mean_BCHW.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    scaled: Tensor = (mean_BCHW + spread_BCHW * noise) * vae.config.scaling_factor
    return scaled


def first_noise(unet: Any, seeds: Sequence[int], height: int, width: int) -> tuple[Tensor, Any]:
    """Return one image's worth of noise per seed and the generators that go on from there.

    Made on the CPU in float32, so it is the same everywhere; height and width are of the latents.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    shape = (unet.config.in_channels, height, width)
    return torch.stack(
        [torch.randn(shape, generator=generator) for generator in generators]
    ), generators


def decode(vae: Any, latents_BCHW: Tensor) -> Tensor:
    """Return pixels in [-1, 1], computed in the autoencoder's own dtype.

    Not by a pipeline's decoding: it would hand 16-bit latents to a float32 autoencoder.
    """
    scaled = latents_BCHW.to(vae.dtype) / vae.config.scaling_factor
    pixels: Tensor = vae.decode(scaled).sample
    return pixels
