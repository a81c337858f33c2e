"""Paired validation loss: one set of images, noise and timesteps for every network.

A loss on random draws moves more from draw to draw than from network to network. Here every
network meets the same draws, so two of them are compared image by image and timestep by
timestep, and most of the noise cancels. Nothing of a run enters a draw, not even its seed.

Shapes: B timesteps of one image, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from optbench import rng
from optbench.contracts import BaseModel, TextOptions
from optbench.records import CaptionedImage, Sizes

if TYPE_CHECKING:
    from torch import Tensor

# Images that are trained on; that are not; of the subject in outfits and places that are not; of
# other subjects.
Split = Literal["training", "held_out", "ood", "others"]
_SEED = 0  # of the draws, the same for all runs
_MAX_BATCH = 5  # fixed, because the last bits depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSample:
    """One image on which networks are compared."""

    image_key: str
    split: Split
    caption: str  # whole and in its own order
    sizes: Sizes
    latents_CHW: Tensor  # as the unet expects, float32 on the CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLoss:
    """The loss of one image at one timestep; comparable with every other of the same place."""

    image_key: str
    split: Split
    timestep: int
    loss: float


def choose_images(
    images: Sequence[CaptionedImage], num_pictures: int | None
) -> list[CaptionedImage]:
    """Return so many different images, the same ones for every run on them; None for all.

    The order is that of a draw keyed by each image's content, so an image more or less in a
    folder changes little.
    """
    different = {image.key: image for image in images}
    drawn = sorted(different, key=lambda key: rng.key(_SEED, "validation", "choice", key))
    return [different[key] for key in drawn[:num_pictures]]


def paired_losses(
    base: BaseModel,
    samples: Sequence[ValidationSample],
    *,
    timesteps: Sequence[int],
    text_options: TextOptions,
) -> Iterator[PairedLoss]:
    """Yield the mean squared error of the base's prediction, for every image and timestep.

    The base answers as it stands: alone, or inside a network's `attached()` or `merged()`. Noise
    is drawn from generators of its own and no gradient is recorded, so nothing else changes.

    Args:
        base: What is measured.
        samples: The images.
        timesteps: Noise levels, from 0 (nearly none) up to `process.num_timesteps` (excluded).
        text_options: As in training.
    """
    for sample in samples:
        with torch.inference_mode():
            text = base.encode_captions([sample.caption], text_options)
            conditioning = {**text, **base.encode_sizes([sample.sizes])}
            for start in range(0, len(timesteps), _MAX_BATCH):
                chosen = list(timesteps[start : start + _MAX_BATCH])
                repeated = {
                    name: value.expand(len(chosen), *value.shape[1:])
                    for name, value in conditioning.items()
                }
                losses_B = _losses(base, sample, chosen, repeated)
                for timestep, loss in zip(chosen, losses_B.tolist(), strict=True):
                    yield PairedLoss(
                        image_key=sample.image_key,
                        split=sample.split,
                        timestep=timestep,
                        loss=loss,
                    )


def _losses(
    base: BaseModel,
    sample: ValidationSample,
    timesteps: Sequence[int],
    conditioning: dict[str, Tensor],
) -> Tensor:
    """Return one loss per timestep, (B,)."""
    shape = sample.latents_CHW.shape
    noise_BCHW = torch.stack(
        [
            torch.randn(
                shape, generator=rng.generator(_SEED, "validation", sample.image_key, timestep)
            )
            for timestep in timesteps
        ]
    )
    latents_BCHW = sample.latents_CHW.expand(len(timesteps), *shape)
    latents_BCHW = latents_BCHW.to(base.device, memory_format=torch.channels_last)
    noise_BCHW = noise_BCHW.to(base.device, memory_format=torch.channels_last)
    timesteps_B = base.process.validation_timesteps(timesteps).to(base.device)
    noisy_BCHW = base.process.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    target_BCHW = base.process.target(latents_BCHW, noise_BCHW, timesteps_B)
    predicted_BCHW = base.predict(noisy_BCHW, timesteps_B, conditioning)
    return (predicted_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))
