"""The embedded base's architecture: standard classes in sizes a laptop can train.

Everything that makes a 512x768 picture cheap: 32 pixels per latent with 32 channels (a 16x24 grid
where SD1.5 has 64x96), no attention on the unet's top level, few channels at full resolution.
The noise schedule and the eps target are SD1.5's, so every code path is the one it takes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

LATENT_CHANNELS = 32
PIXELS_PER_LATENT = 32
TEXT_WIDTH = 80
IMAGE_ENCODER_PX = 128
EMBEDDING_WIDTH = 64
_AUTOENCODER_CHANNELS = (8, 16, 24, 40, 56, 72)
# The top level must be wider than the latents, or the noise to predict does not pass through it:
# 32 channels for 32 latents never drew anything but noise (docs/lab-log.md).
_UNET_CHANNELS = (64, 80, 80)

NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder; latents come out white, so its scaling factor is 1."""
    num_levels = len(_AUTOENCODER_CHANNELS)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=_AUTOENCODER_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=512,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    return model.to(memory_format=torch.channels_last)


def new_unet() -> UNet2DConditionModel:
    """Return an untrained unet; attention only where the grid is 8x12 and 4x6."""
    model = UNet2DConditionModel(
        sample_size=(24, 16),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=_UNET_CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        # diffusers reads this as the number of heads for SD1.x unets: 16 channels a head.
        attention_head_dim=tuple(width // 16 for width in _UNET_CHANNELS),
        norm_num_groups=8,
    )
    _start_as_identity(model)
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def _start_as_identity(model: UNet2DConditionModel) -> None:
    """Let the untrained unet answer with its input, which at high noise is nearly the answer.

    There an error of 0.02 in the noise is an error of 2 standard deviations in the picture, so a
    unet that must first learn to pass its input through draws nothing for a long time. The first
    convolution writes x and -x side by side, the last resnet hands its skip on, and the last
    convolution takes silu(x) - silu(-x), which is x.
    """
    width = _UNET_CHANNELS[0]
    last = model.up_blocks[-1].resnets[-1]
    written = (model.conv_in, last.conv_shortcut, last.conv2, model.conv_out)
    for layer in written:
        layer.weight.zero_()
        layer.bias.zero_()
    for channel in range(LATENT_CHANNELS):
        mirrored = channel + LATENT_CHANNELS
        model.conv_in.weight[channel, channel, 1, 1] = 1
        model.conv_in.weight[mirrored, channel, 1, 1] = -1
        model.conv_out.weight[channel, channel, 1, 1] = 1
        model.conv_out.weight[channel, mirrored, 1, 1] = -1
    for channel in range(width):
        last.conv_shortcut.weight[channel, width + channel, 0, 0] = 1


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder for `tokenizer`, 77 tokens wide as CLIP's."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_image_encoder() -> CLIPVisionModelWithProjection:
    """Return an untrained image encoder: pictures squashed to 128x128, embeddings of 64 numbers."""
    config = CLIPVisionConfig(
        hidden_size=80,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=IMAGE_ENCODER_PX,
        patch_size=16,
        projection_dim=EMBEDDING_WIDTH,
    )
    return CLIPVisionModelWithProjection(config)


def new_scheduler() -> DDIMScheduler:
    """Return SD1.5's noise schedule in the form its checkpoints store it."""
    return DDIMScheduler(
        **NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
