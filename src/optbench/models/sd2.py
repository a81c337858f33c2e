"""Stable Diffusion 2.x: OpenCLIP's text encoder, and v-prediction in the 768 models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPTextModel

from optbench.models import latent_diffusion, random_parts
from optbench.models.checkpoint import AUTOENCODER
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, with_prediction
from optbench.models.key_maps import open_clip_sources
from optbench.models.latent_diffusion import Name, Parts, SingleFile, TextEncoderFile
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text.clip import clip_tokenizer

PAD_TOKEN = "!"  # token 0, which OpenCLIP fills up with

UNET: Mapping[str, Any] = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    # Of a single file kohya's trainer makes 1x1 convolutions, so that LoRA files have their shapes;
    # a folder in diffusers layout says itself that they are linear.
    "use_linear_projection": False,
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
    text_encoders=(
        TextEncoderFile(
            kind=CLIPTextModel,
            config=TEXT_ENCODER,
            sources=open_clip_sources("cond_stage_model.model."),
            pad_token=PAD_TOKEN,
        ),
    ),
)

load = functools.partial(latent_diffusion.load, StableDiffusion, SINGLE_FILE)


def tiny(seed: int, *, predicts_v: bool = True) -> StableDiffusion:
    """Return a random Stable Diffusion 2 of two levels, for tests; reads CLIP's own tokens."""
    tokenizer = clip_tokenizer(pad_token=PAD_TOKEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = Parts(
            tokenizers=(tokenizer,),
            text_encoders=(
                CLIPTextModel(
                    random_parts.text_config(tokenizer, num_hidden_layers=3, hidden_act="gelu")
                ),
            ),
            vae=random_parts.autoencoder(),
            unet=random_parts.unet(use_linear_projection=True, attention_head_dim=(2, 4)),
            schedule=with_prediction(STABLE_DIFFUSION_SCHEDULE, predicts_v),
        )
    name = f"random-sd2-{seed}"
    return StableDiffusion(
        parts, Name(name=name, family="sd2", fingerprint=name, vae_fingerprint=name)
    )
