"""The unet's training on exact latent codes, with the text encoder learning along."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from optbench import rng
from tools.tinybase import captions, stages
from tools.tinybase.drawings import Drawings
from tools.tinybase.shapes import NOISE_SCHEDULE, new_unet
from tools.tinybase.text import tokenize

_BATCH_SIZE = 8
_PEAK_RATE = 1e-3
_TEXT_RATE_RATIO = 0.25
_AVERAGE_DECAY = 0.999
_MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556
_EMPTY_CAPTION_SHARE = 0.1  # what classifier-free guidance needs


def train_unet(
    folder: Path,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    drawings: dict[tuple[int, int], Drawings],
    *,
    seed: int,
    num_steps: int,
) -> UNet2DConditionModel:
    """Return the trained unet (averaged weights); `text_encoder` is trained along in place.

    The drawings come with their codes already multiplied by the latents' gains.
    """
    torch.manual_seed(rng.key(seed, "tiny", "unet"))
    unet = new_unet().to(stages.device())
    text_encoder.to(stages.device()).train()
    groups = [list(unet.parameters()), list(text_encoder.parameters())]
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups], lr=_PEAK_RATE, betas=(0.9, 0.98)
    )
    average = stages.WeightAverage([*groups[0], *groups[1]], decay=_AVERAGE_DECAY)
    noiser = _Noiser()

    def step(step_index: int) -> dict[str, Tensor]:
        rate = stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.param_groups[1]["lr"] = rate * _TEXT_RATE_RATIO
        generator = rng.generator(seed, "tiny", "unet", step_index)
        latents, texts = _draw_batch(drawings, rng.shuffler(seed, "tiny", "unet", step_index))
        latents = latents.to(stages.device()).contiguous(memory_format=torch.channels_last)
        ids = tokenize(tokenizer, texts).to(stages.device())
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        timesteps = noiser.timesteps(len(latents), generator).to(latents.device)
        noisy = noiser.schedule.add_noise(latents, noise, timesteps)
        with stages.autocast():
            states = text_encoder(input_ids=ids).last_hidden_state
            predicted = unet(noisy, timesteps, states).sample
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (noiser.weights.to(latents.device)[timesteps] * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*groups[0], *groups[1]], 1.0)
        optimizer.step()
        average.update()
        return {"loss": loss, "eps": errors.mean()}

    parts = {"unet": unet, "text": text_encoder, "optimizer": optimizer, "average": average}
    stages.run_stage("unet", folder, num_steps=num_steps, parts=parts, step=step)
    average.copy_to_live()
    text_encoder.eval()
    return unet


class _Noiser:
    """The noise schedule with min-SNR loss weights (gamma 5) and stratified timesteps."""

    def __init__(self) -> None:
        """Compute the weight min(SNR, 5) / SNR of every timestep."""
        self.schedule = DDPMScheduler(**NOISE_SCHEDULE)
        kept = self.schedule.alphas_cumprod
        snr = kept / (1 - kept)
        self.weights = snr.clamp(max=_MIN_SNR_GAMMA) / snr

    def timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return one timestep from each of `batch_size` equal parts of the schedule."""
        places = torch.arange(batch_size) + torch.rand(batch_size, generator=generator)
        return (places * 1000 / batch_size).long().clamp(0, 999)


def _draw_batch(
    drawings: dict[tuple[int, int], Drawings], draw: random.Random
) -> tuple[Tensor, list[str]]:
    """Return latents of one size (B, 32, H, W) and a fresh caption for each."""
    sizes = list(drawings)
    size = draw.choices(sizes, [len(drawings[size].drawn) for size in sizes])[0]
    chosen = [draw.randrange(len(drawings[size].drawn)) for _ in range(_BATCH_SIZE)]
    texts = []
    for index in chosen:
        one = drawings[size].drawn[index]
        text = captions.caption(one.tags, draw, degraded=one.degraded)
        texts.append("" if draw.random() < _EMPTY_CAPTION_SHARE else text)
    return drawings[size].latents_NCHW[chosen].float(), texts
