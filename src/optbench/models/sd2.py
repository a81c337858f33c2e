"""Stable Diffusion 2.x: OpenCLIP's text encoder, and v-prediction in the 768 models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel

from optbench.models import random_parts
from optbench.models.checkpoint import AUTOENCODER
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, with_prediction
from optbench.models.key_maps import open_clip_origins
from optbench.models.stable_diffusion import Name, Parts, SingleFile, StableDiffusion, load_parts
from optbench.models.text.clip import clip_tokenizer
from optbench.schema import BaseOptions

PAD_TOKEN = "!"  # token 0, which OpenCLIP fills up with

UNET: Mapping[str, Any] = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    # 2.1 overflows in half precision without it, and 2.0 does not mind.
    "upcast_attention": True,
}
# OpenCLIP-H has 24 layers; the last one is never used, so it is not built (as everywhere).
TEXT_ENCODER: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 0,
}
SINGLE_FILE = SingleFile(
    unet=UNET,
    vae=AUTOENCODER,
    text_encoder=TEXT_ENCODER,
    text_origins=open_clip_origins("cond_stage_model.model."),
    pad_token=PAD_TOKEN,
)


def load(
    options: BaseOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
) -> StableDiffusion:
    """Return the Stable Diffusion 2.x at `options.path`, a folder, a file or a hub id.

    Raises:
        BaseError: If a part is missing, damaged, or not Stable Diffusion 2.x.
    """
    return load_parts(options, SINGLE_FILE, device=device, dtype=dtype, cache_dir=cache_dir)


def tiny(seed: int, *, predicts_v: bool = True) -> StableDiffusion:
    """Return a random Stable Diffusion 2 of two levels, for tests; reads CLIP's own tokens."""
    tokenizer = clip_tokenizer(pad_token=PAD_TOKEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = Parts(
            tokenizer=tokenizer,
            text_encoder=CLIPTextModel(
                random_parts.text_config(tokenizer, num_hidden_layers=3, hidden_act="gelu")
            ),
            vae=random_parts.autoencoder(),
            unet=random_parts.unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            schedule=with_prediction(STABLE_DIFFUSION_SCHEDULE, predicts_v),
        )
    name = f"random-sd2-{seed}"
    return StableDiffusion(
        parts, Name(name=name, family="sd2", fingerprint=name, vae_fingerprint=name)
    )
