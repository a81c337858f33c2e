"""The parts of small random models, which the families build their instances for tests from."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

TEXT_WIDTH = 16


def text_config(tokenizer: Any, **changes: Any) -> CLIPTextConfig:
    """Return the config of a text encoder of two layers that reads this tokenizer's tokens."""
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**settings, **changes})


def autoencoder(**changes: Any) -> AutoencoderKL:
    """Return an autoencoder of three levels."""
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**{**settings, **changes})


def unet(**changes: Any) -> UNet2DConditionModel:
    """Return a unet of two levels, the deeper one with attention."""
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes})
