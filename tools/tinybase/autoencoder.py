"""The autoencoder's training: latents that are fixed from the start, and a decoder for them.

The latent space is not learned: it is the whitened principal components of 32x32 patches of the
drawings (32 of 3072 directions). The encoder regresses these codes, the decoder learns to draw
from them with noise added. A target that never moves skips the grey plateau in which a plain
autoencoder sits for half an hour, needs no KL term, and lets the unet train on exact codes while
the decoder is still learning. Afterwards each latent is scaled by its gain (`latent_gains`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from optbench import rng
from tools.tinybase import stages, world
from tools.tinybase.shapes import LATENT_CHANNELS, PIXELS_PER_LATENT, new_autoencoder

_NUM_PATCH_DRAWINGS = 150
_CODE_NOISE = 0.03  # what the unet leaves; the decoder must not mind it
_LOG_VARIANCE = -6.0  # the posterior's spread, 0.05: encoding stays nearly deterministic
_PEAK_RATE = 1.5e-3
_GAIN_POWER = 0.75
_POOL_SIZE = 400
_AVERAGE_DECAY = 0.997


class PatchCodes(torch.nn.Module):
    """The fixed linear map from pictures to white latents, and its inverse."""

    mean: Tensor
    directions: Tensor
    spread: Tensor

    def __init__(self, *, mean: Tensor, directions: Tensor, spread: Tensor) -> None:
        """Keep the patches' mean (3072), unit directions (32, 3072) and code spreads (32)."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.register_buffer("spread", spread)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return codes of shape (B, 32, H / 32, W / 32) with unit variance over the world."""
        size = PIXELS_PER_LATENT
        kernel = (self.directions / self.spread[:, None]).view(LATENT_CHANNELS, 3, size, size)
        offset = (self.directions @ self.mean) / self.spread
        return F.conv2d(pixels_BCHW, kernel, stride=size) - offset[:, None, None]


def fit_codes(folder: Path, *, seed: int) -> PatchCodes:
    """Return the principal components of patches of 150 drawings, computed once per folder."""
    path = folder / "codes.safetensors"
    if not path.exists():
        patches = torch.cat([_patches(seed, index) for index in range(_NUM_PATCH_DRAWINGS)])
        mean = patches.mean(0)
        centred = patches - mean
        _, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        directions = directions.flip(1)[:, :LATENT_CHANNELS].T.contiguous()
        spread = (centred @ directions.T).std(0)
        save_file({"mean": mean, "directions": directions, "spread": spread}, path)
    return PatchCodes(**load_file(path))


def _patches(seed: int, index: int) -> Tensor:
    """Return one drawing's 32x32 patches as rows of 3072 numbers in [-1, 1]."""
    width, height = world.SIZES[index % len(world.SIZES)]
    place = rng.key(seed, "tiny", "patches", index)
    image = world.draw_variety(place, width=width, height=height)
    pixels = to_tensor([np.asarray(image)])
    return F.unfold(pixels, PIXELS_PER_LATENT, stride=PIXELS_PER_LATENT)[0].T


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Return pictures (H, W, 3) of 0..255 as one (B, 3, H, W) tensor in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(pictures).copy()).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1


def latent_gains(codes: PatchCodes) -> Tensor:
    """Return the factors (32) that turn white codes into the base's latents, of mean square 1.

    Between white latents, whose faint details drown the layout in the unet's loss, and latents
    in their natural proportions (24 to 1), whose first channel the last timestep cannot hide.
    """
    gains = codes.spread**_GAIN_POWER
    return gains / gains.square().mean().sqrt()


@torch.no_grad()
def apply_gains(model: AutoencoderKL, gains: Tensor) -> None:
    """Let a trained autoencoder write and read latents multiplied by `gains`, exactly."""
    quantize, dequantize = model.quant_conv, model.post_quant_conv
    means = slice(0, LATENT_CHANNELS)
    quantize.weight[means] *= gains[:, None, None, None]
    quantize.bias[means] *= gains
    quantize.bias[LATENT_CHANNELS:] += 2 * gains.log()  # the posterior's log-variances
    dequantize.weight /= gains[None, :, None, None]


def train_autoencoder(
    folder: Path, *, seed: int, num_encoder_steps: int, num_decoder_steps: int
) -> AutoencoderKL:
    """Return the trained autoencoder; resumes from `folder` after a kill."""
    codes = fit_codes(folder, seed=seed).to(stages.device())
    torch.manual_seed(rng.key(seed, "tiny", "autoencoder"))
    model = new_autoencoder().to(stages.device())

    def encoder_loss(step_index: int) -> dict[str, Tensor]:
        return _encoder_loss(model, codes, _whole_pictures(seed, step_index))

    def decoder_loss(step_index: int) -> dict[str, Tensor]:
        # Large crops at the end: group norm sees other statistics in whole pictures.
        large = step_index > 0.8 * num_decoder_steps
        pixels = _crops(seed, step_index, large=large).to(stages.device())
        generator = rng.generator(seed, "tiny", "code noise", step_index)
        return _decoder_loss(model, codes, pixels, generator)

    encoder = torch.nn.ModuleList([model.encoder, model.quant_conv])
    decoder = torch.nn.ModuleList([model.decoder, model.post_quant_conv])
    _train_half("encoder", folder, encoder, encoder_loss, num_steps=num_encoder_steps)
    _train_half("decoder", folder, decoder, decoder_loss, num_steps=num_decoder_steps)
    return model


def _train_half(
    name: str,
    folder: Path,
    half: torch.nn.Module,
    compute_loss: Callable[[int], dict[str, Tensor]],
    *,
    num_steps: int,
) -> None:
    """Train one half of the autoencoder on its own and leave it with its averaged weights.

    The codes between them are fixed, so neither has to wait for the other.
    """
    optimizer = torch.optim.AdamW(half.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.95))
    average = stages.WeightAverage(half.parameters(), decay=_AVERAGE_DECAY)

    def step(step_index: int) -> dict[str, Tensor]:
        stages.set_rate(optimizer, stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE))
        with stages.autocast():
            terms = compute_loss(step_index)
        optimizer.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(half.parameters(), 1.0)
        optimizer.step()
        average.update()
        return terms

    parts: dict[str, stages.Stateful] = {"model": half, "optimizer": optimizer, "average": average}
    stages.run_stage(name, folder, num_steps=num_steps, parts=parts, step=step)
    average.copy_to_live()


def _encoder_loss(
    model: AutoencoderKL, codes: PatchCodes, pictures: list[Tensor]
) -> dict[str, Tensor]:
    """Return the loss's terms: the error of the codes, and of the posterior's spread."""
    # An error in a code shows in the pixels as much as the code spreads; half by that, half evenly.
    weights = (1 + codes.spread.square() / codes.spread.square().mean()) / 2
    terms = {"codes": torch.zeros(()), "spread": torch.zeros(())}
    for pixels_BCHW in pictures:
        pixels_BCHW = pixels_BCHW.to(codes.spread.device, memory_format=torch.channels_last)
        posterior = model.encode(pixels_BCHW).latent_dist
        errors = (posterior.mean.float() - codes(pixels_BCHW)).square() * weights[:, None, None]
        spread = (posterior.logvar.float() - _LOG_VARIANCE).square()
        terms["codes"] = terms["codes"] + errors.mean().cpu() / len(pictures)
        terms["spread"] = terms["spread"] + 0.02 * spread.mean().cpu() / len(pictures)
    return terms


def _decoder_loss(
    model: AutoencoderKL, codes: PatchCodes, pixels_BCHW: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the loss's terms: the error of the pixels, twice, and of their differences."""
    pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
    target = codes(pixels_BCHW)
    noise = torch.randn(target.shape, generator=generator).to(target.device)
    error = model.decode(target + _CODE_NOISE * noise).sample.float() - pixels_BCHW
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return {
        "l1": error.abs().mean(),
        "l2": 3 * error.square().mean(),
        "edges": 0.5 * (across.abs().mean() + down.abs().mean()),
    }


def _whole_pictures(seed: int, step_index: int) -> list[Tensor]:
    """Return two whole pictures, (1, 3, H, W) each.

    Not crops: group norm sees other statistics in those, and an encoder trained on them lost
    2.5 dB on whole pictures.
    """
    draw = rng.shuffler(seed, "tiny", "whole pictures", step_index)
    slots = draw.sample(range(_POOL_SIZE), 2)
    return [to_tensor([_pool_picture(seed, slot, step_index)]) for slot in slots]


def _crops(seed: int, step_index: int, *, large: bool) -> Tensor:
    """Return one batch of crops, more often around faces than anywhere else."""
    draw = rng.shuffler(seed, "tiny", "crops", step_index)
    size, num_crops = (256, 3) if large else (128, 12)
    crops = []
    for slot in draw.sample(range(_POOL_SIZE), num_crops):
        pixels = _pool_picture(seed, slot, step_index)
        height, width, _ = pixels.shape
        left = draw.randint(0, width - size)
        top = draw.randint(0, height - size)
        if draw.random() < 0.65:
            left = round(draw.gauss((width - size) / 2, width * 0.12))
            top = round(draw.gauss(height * 0.33 - size / 2, height * 0.2))
        left = min(max(left, 0), width - size)
        top = min(max(top, 0), height - size)
        crops.append(pixels[top : top + size, left : left + size])
    return to_tensor(crops)


def _pool_picture(seed: int, slot: int, step_index: int) -> np.ndarray:
    """Return one of the pool's pictures, of which every step makes one a new one.

    Drawing all of a step's pictures anew would take as long as the step.
    """
    return _picture(seed, slot, (step_index + slot) // _POOL_SIZE)


@lru_cache(maxsize=_POOL_SIZE)
def _picture(seed: int, slot: int, version: int) -> np.ndarray:
    """Return the pixels of one picture of the pool, (H, W, 3)."""
    draw = rng.shuffler(seed, "tiny", "pool", slot, version)
    width, height = draw.choices(world.SIZES, [0.45, 0.35, 0.2])[0]
    return np.asarray(world.draw_variety(draw.getrandbits(48), width=width, height=height))
