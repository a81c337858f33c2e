"""Draw the noise and timesteps of a batch, each image's from its own random address.

Options that are off draw nothing, and none changes another's draw. Kohya's trainer draws the
random strengths and the patches' sizes once per batch, and divides multires noise by the deviation
of the whole batch; here all of that is each image's own, or the noise would depend on how
images are split into batches.

Shapes: B batch, C latent channels, H and W latent height and width, h and w those of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from optbench import rng
from optbench.contracts import NoiseProcess
from optbench.records import Batch
from optbench.schema import LossOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What is random about one batch, on the CPU."""

    noise_BCHW: Tensor  # what the target is made of
    input_noise_BCHW: Tensor | None  # what the denoiser is shown instead; None: the same
    timesteps_B: Tensor


def draw_noise(batch: Batch, process: NoiseProcess, options: LossOptions, *, seed: int) -> Draw:
    """Return the batch's noise and timesteps.

    An image's noise is e = N(0, 1), then the offset is added, then the patches, and what the
    denoiser is shown may be perturbed at last (the order is kohya's).
    """

    def generators(purpose: rng.Purpose) -> list[torch.Generator]:
        return [
            rng.generator(seed, purpose, sample.epoch, sample.image_key, sample.occurrence)
            for sample in batch.samples
        ]

    shape = batch.latents_BCHW.shape[1:]
    noise_BCHW = torch.stack(
        [torch.randn(shape, generator=generator) for generator in generators("noise")]
    )
    if options.noise_offset is not None:
        noise_BCHW = noise_BCHW + torch.stack(
            [
                offset_noise(latents_CHW, options, generator)
                for latents_CHW, generator in zip(
                    batch.latents_BCHW, generators("noise-offset"), strict=True
                )
            ]
        )
    if options.multires_noise_iterations is not None:
        assert options.multires_noise_discount is not None
        noise_BCHW = torch.stack(
            [
                multires_noise(
                    noise_CHW,
                    iterations=options.multires_noise_iterations,
                    discount=options.multires_noise_discount,
                    generator=generator,
                )
                for noise_CHW, generator in zip(noise_BCHW, generators("multires"), strict=True)
            ]
        )
    input_noise_BCHW = None
    if options.ip_noise_gamma is not None:
        input_noise_BCHW = noise_BCHW + torch.stack(
            [
                perturbation(
                    shape,
                    gamma=options.ip_noise_gamma,
                    is_random=options.ip_noise_gamma_random_strength,
                    generator=generator,
                )
                for generator in generators("input-perturbation")
            ]
        )
    timesteps_B = process.sample_timesteps(generators("timesteps"), options)
    return Draw(noise_BCHW=noise_BCHW, input_noise_BCHW=input_noise_BCHW, timesteps_B=timesteps_B)


def offset_noise(latents_CHW: Tensor, options: LossOptions, generator: torch.Generator) -> Tensor:
    """Return one image's noise offset (C, 1, 1): the same everywhere, so it moves whole areas.

    o N(0, 1) per channel, o = `noise_offset`; o U(0, 1) N(0, 1) with a random strength; with
    `adaptive_noise_scale` a, max(0, o + a |mean of the latent over its pixels|) per channel
    (Guttenberg, Diffusion With Offset Noise, 2023; the random and adaptive forms are kohya's).
    """
    assert options.noise_offset is not None
    # First, so that the direction is the same with and without a random strength.
    direction_C11 = torch.randn(len(latents_CHW), 1, 1, generator=generator)
    strength_C11 = torch.tensor(options.noise_offset)
    if options.noise_offset_random_strength:
        strength_C11 = strength_C11 * torch.rand((), generator=generator)
    if options.adaptive_noise_scale is not None:
        means_C11 = latents_CHW.mean(dim=(1, 2), keepdim=True).abs()
        strength_C11 = (strength_C11 + options.adaptive_noise_scale * means_C11).clamp(min=0)
    return strength_C11 * direction_C11


def multires_noise(
    noise_CHW: Tensor, *, iterations: int, discount: float, generator: torch.Generator
) -> Tensor:
    """Return noise with ever larger patches in it, of standard deviation 1.

    For i = 0, 1, ...: ratio r = U(2, 4) drawn anew, N(0, 1) of floor(H / r^i) x floor(W / r^i) and
    at least 1 x 1, enlarged bilinearly to H x W and added with the weight `discount`^i; it ends
    after `iterations`, or once a side has come down to 1. The sum is divided by its standard
    deviation (Whitaker, Multi-Resolution Noise for Diffusion Model Training, 2023; ratios as
    kohya's).
    """
    height, width = noise_CHW.shape[1:]
    total_CHW = noise_CHW.clone()
    for level in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        patches_Chw = torch.randn(len(noise_CHW), *size, generator=generator)
        enlarged_1CHW = interpolate(patches_Chw[None], (height, width), mode="bilinear")
        total_CHW += enlarged_1CHW[0] * discount**level
        if 1 in size:
            break
    return total_CHW / total_CHW.std()


def perturbation(
    shape: Sequence[int], *, gamma: float, is_random: bool, generator: torch.Generator
) -> Tensor:
    """Return what is added to the noise the denoiser is shown, and not to its target: g N(0, 1).

    g is `gamma`, or U(0, `gamma`) with a random strength (Ning et al., Input Perturbation Reduces
    Exposure Bias in Diffusion Models, arXiv:2301.11706).
    """
    normal_CHW = torch.randn(tuple(shape), generator=generator)
    strength = torch.rand((), generator=generator) if is_random else torch.tensor(1.0)
    return gamma * strength * normal_CHW
