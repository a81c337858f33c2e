"""Gradient checkpointing, attention code and compilation of the frozen parts.

No weight changes; recomputed activations change no bit of a gradient, attention its last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel

from optbench.schema import Attention, DynamoBackend

_MAX_COMPILED = 256  # sizes: of images, of batches, with and without a LoRA
_RECOMPUTE = functools.partial(checkpoint, use_reentrant=False)


def set_gradient_checkpointing(
    unet: UNet2DConditionModel, text_encoders: Sequence[CLIPTextModel], *, is_on: bool
) -> None:
    """Recompute the blocks' activations in the backward pass, or keep them.

    Recomputing costs about one forward pass more and saves most of the memory between blocks (Chen
    et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174). A LoRA inside a block
    is recomputed with it, under the same dropout masks (`LoraLayer`), so no bit changes.
    """
    if is_on:
        unet.enable_gradient_checkpointing()
    else:
        unet.disable_gradient_checkpointing()
    for encoder in text_encoders:
        for layer in text_model(encoder).encoder.layers:
            layer._gradient_checkpointing_func = _RECOMPUTE
            layer.gradient_checkpointing = is_on
            # The library asks the layer itself; what is inside it stays in evaluation mode, or a
            # checkpoint with dropout in its config would begin to drop.
            layer.training = is_on


def set_attention(
    unet: UNet2DConditionModel, text_encoders: Sequence[CLIPTextModel], kind: Attention
) -> None:
    """Choose the attention code; text encoders know no xformers and take sdpa."""
    classes: dict[Attention, Any] = {
        "sdpa": AttnProcessor2_0,
        "eager": AttnProcessor,
        "xformers": XFormersAttnProcessor,
    }
    unet.set_attn_processor(classes[kind]())
    for encoder in text_encoders:
        encoder.set_attn_implementation("eager" if kind == "eager" else "sdpa")


def compile_unet(
    unet: UNet2DConditionModel, backend: DynamoBackend | None
) -> Callable[..., Any] | None:
    """Return the UNet compiled with `backend`, or None when `backend` is None.

    A LoRA is hooks on the unet's layers. Torch leaves hooks out of what it looks at before it uses
    compiled code again; it looks at them here, or a detached LoRA would still be computed. Every
    size of image and batch is compiled for itself, more of them than torch allows by default.
    """
    if backend is None:
        return None
    import torch._dynamo  # two seconds that only this needs

    torch._dynamo.reset()  # the LoRA of the run before would stay in memory with its code
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch._dynamo.config.recompile_limit = _MAX_COMPILED
    compiled: Callable[..., Any] = torch.compile(unet, backend=backend)
    return compiled


def text_model(encoder: CLIPTextModel) -> Any:
    """Return what kohya's keys call text_model; transformers 5 made it the encoder itself."""
    return getattr(encoder, "text_model", encoder)
