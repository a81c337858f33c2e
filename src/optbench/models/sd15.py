"""Stable Diffusion 1.x and everything of its architecture, such as the embedded base model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from optbench.models import latent_diffusion, random_parts
from optbench.models.checkpoint import AUTOENCODER
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE
from optbench.models.key_maps import clip_sources
from optbench.models.latent_diffusion import Name, Parts, SingleFile, TextEncoderFile
from optbench.models.stable_diffusion import StableDiffusion
from optbench.storage.resources import asset

UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEXT_ENCODER: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
SINGLE_FILE = SingleFile(
    unet=UNET,
    vae=AUTOENCODER,
    text_encoders=(
        TextEncoderFile(
            kind=CLIPTextModel,
            config=TEXT_ENCODER,
            sources=clip_sources("cond_stage_model.transformer."),
            pad_token="<|endoftext|>",
        ),
    ),
)

load = functools.partial(latent_diffusion.load, StableDiffusion, SINGLE_FILE)


def tiny(seed: int) -> StableDiffusion:
    """Return a random Stable Diffusion of a few thousand weights, for tests."""
    tokenizer = CLIPTokenizer.from_pretrained(asset("tiny") / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = Parts(
            tokenizers=(tokenizer,),
            text_encoders=(CLIPTextModel(random_parts.text_config(tokenizer)),),
            vae=random_parts.autoencoder(),
            unet=random_parts.unet(),
            schedule=STABLE_DIFFUSION_SCHEDULE,
        )
    name = f"random-{seed}"
    return StableDiffusion(
        parts, Name(name=name, family="sd15", fingerprint=name, vae_fingerprint=name)
    )
