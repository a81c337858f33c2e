"""Translate the names of a unet's modules between diffusers and the original layout (LDM, SGM)."""

from __future__ import annotations

import re
from typing import Any

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)")
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.?(.*)")


def unet_name(module: str, config: Any) -> str:
    """Return a unet module's name in the original layout, from its name in diffusers.

    Args:
        module: For instance `down_blocks.1.attentions.0.proj_in`; parameters work as well.
        config: The unet's: `layers_per_block` and `up_block_types` count.
    """
    for ours, theirs in _UNET_ENDS.items():
        if module == ours or module.startswith(f"{ours}."):
            return theirs + module.removeprefix(ours)
    if module.startswith("mid_block."):
        middle, index, *inner = module.removeprefix("mid_block.").split(".")
        place_there = _MIDDLE[f"{middle}.{index}"]
        return _joined("middle_block", place_there, _inner(middle, ".".join(inner)))
    match = _BLOCK.fullmatch(module)
    if match is None:
        raise KeyError(f"{module} has no name in the original layout")
    way, block, kind, layer, rest = match.groups()
    per_block = config["layers_per_block"] + 1
    if kind == "downsamplers":
        place = 1 + int(block) * per_block + per_block - 1
        return _joined(f"input_blocks.{place}.0", "op", rest.removeprefix("conv").lstrip("."))
    if kind == "upsamplers":
        place = int(block) * per_block + per_block - 1
        has_attention = "Attn" in config["up_block_types"][int(block)]
        return _joined(f"output_blocks.{place}.{2 if has_attention else 1}", rest)
    place = int(block) * per_block + int(layer)
    side = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
    return _joined(side, "0" if kind == "resnets" else "1", _inner(kind, rest))


def diffusers_name(module: str, *, layers_per_block: int = 2) -> str | None:
    """Return a unet module's name in diffusers, from the one in the original layout.

    None of the embeddings and of the first and last convolution, which lie in no block.

    Args:
        module: For instance `input_blocks.4.1.proj_in`.
        layers_per_block: The unet's; 2 in every family.
    """
    match = _ORIGINAL.fullmatch(module)
    if match is None:
        return None
    side, number, rest = match[1], int(match[2]), match[3]
    if side == "middle_block":
        places = {place: name for name, place in _MIDDLE.items()}
        kind = places[str(number)]
        return f"mid_block.{kind}.{_inner_in_diffusers(kind, rest)}"
    slot, _, inner = rest.partition(".")
    if side == "input_blocks":
        if number == 0:
            return None
        block, layer = divmod(number - 1, layers_per_block + 1)
        if layer == layers_per_block:
            return f"down_blocks.{block}.downsamplers.0.conv"
        way = "down"
    else:
        block, layer = divmod(number, layers_per_block + 1)
        if inner == "conv":
            return f"up_blocks.{block}.upsamplers.0.conv"
        way = "up"
    kind = "resnets" if slot == "0" else "attentions"
    return f"{way}_blocks.{block}.{kind}.{layer}.{_inner_in_diffusers(kind, inner)}"


def _inner_in_diffusers(kind: str, inner: str) -> str:
    if not kind.startswith("resnets"):
        return inner
    return next((ours for ours, theirs in _RESNET.items() if inner == theirs), inner)


def _inner(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    first, _, last = rest.partition(".")
    return _joined(_RESNET[first], last)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
