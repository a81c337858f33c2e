"""The layers of a loaded base model that may carry a LoRA, under the names of kohya's trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from optbench.models.compute import text_model
from optbench.models.files.families import Family
from optbench.models.files.lora_sites import (
    carries_lora,
    needs_conv_dim,
    text_name,
    unet_layer_name,
)
from optbench.models.files.unet_names import unet_name
from optbench.records import LoraTarget, Part


def text_targets(encoder: Any, family: Family, *, number: int = 0) -> list[LoraTarget]:
    """Return the layers of a family's text encoder, the first one or the second."""
    return [
        LoraTarget(
            name=text_name(family.lora_prefixes[number], path),
            module=layer,
            part="text_encoder",
            needs_conv_dim=False,
            diffusers_path=f"{family.text_encoders[number]}.text_model.{path}",
        )
        for path, layer in _layers(text_model(encoder), "text_encoder")
    ]


def unet_targets(unet: Any, family: Family) -> list[LoraTarget]:
    """Return the unet's layers, those for conv_dim last."""
    targets = []
    for path, layer in _layers(unet, "unet"):
        name = unet_layer_name(unet_name(path, unet.config) if family.has_original_names else path)
        targets.append(
            LoraTarget(
                name=name,
                module=layer,
                part="unet",
                needs_conv_dim=needs_conv_dim(path),
                block=family.block_of(name),
                diffusers_path=f"unet.{path}",
            )
        )
    return sorted(targets, key=lambda target: target.needs_conv_dim)


def _layers(root: nn.Module, part: Part) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and the layer of every linear layer and convolution that may carry a LoRA."""
    for path, layer in root.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and carries_lora(part, path):
            yield path, layer
