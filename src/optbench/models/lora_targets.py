"""Which layers of a base may carry a LoRA, and what kohya's trainer calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from optbench.models.compute import text_model
from optbench.records import LoraTarget

# kohya's lists: a LoRA goes on every linear and convolution inside these classes.
_ENCODERS = {"lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
_TEXT_CLASSES = ("CLIPAttention", "CLIPMLP")
_UNET_CLASSES = ("Transformer2DModel",)
_UNET_CONV_CLASSES = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


def text_targets(encoder: Any, *, prefix: str) -> list[LoraTarget]:
    """Return a text encoder's layers; prefix is lora_te, or lora_te1 and lora_te2 in SDXL."""
    layers = _layers(text_model(encoder), _TEXT_CLASSES)
    return [
        LoraTarget(
            name=_key(f"{prefix}_text_model", name),
            module=layer,
            part="text_encoder",
            needs_conv_dim=False,
            diffusers_path=f"{_ENCODERS[prefix]}.text_model.{name}",
        )
        for name, layer in layers
    ]


def unet_targets(
    unet: nn.Module, *, rename: Callable[[str], str] = lambda name: name
) -> list[LoraTarget]:
    """Return the unet's layers, those for conv_dim last; `rename` maps the names of modules."""
    targets = []
    for classes, needs_conv_dim in ((_UNET_CLASSES, False), (_UNET_CONV_CLASSES, True)):
        targets += [
            LoraTarget(
                name=_key("lora_unet", rename(name)),
                module=layer,
                part="unet",
                needs_conv_dim=needs_conv_dim,
                diffusers_path=f"unet.{name}",
            )
            for name, layer in _layers(unet, classes)
        ]
    return targets


def _layers(root: nn.Module, classes: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and the layer of every linear and convolution inside `classes`."""
    for block_name, block in root.named_modules():
        if type(block).__name__ not in classes:
            continue
        for layer_name, layer in block.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                yield f"{block_name}.{layer_name}", layer


def _key(prefix: str, path: str) -> str:
    return f"{prefix}_{path}".replace(".", "_")
