"""Names in the original layout (LDM, SGM, OpenCLIP) for the weights of diffusers' models.

SDXL's LoRA files use the same names for the unet's layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from optbench.models.assemble import Sources, TensorPart
from optbench.models.files.detect import UNET, VAE
from optbench.models.files.unet_names import unet_name

_VAE_BLOCK = re.compile(r"(\w+)\.(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.?(.*)")
# The newer name, the one in the original layout, and the one diffusers used before.
_VAE_ATTENTION = {
    "group_norm": ("norm", "group_norm"),
    "to_q": ("q", "query"),
    "to_k": ("k", "key"),
    "to_v": ("v", "value"),
    "to_out.0": ("proj_out", "proj_attn"),
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")


def unet_sources(config: Any) -> Sources:
    """Return where a unet's weights lie in a whole checkpoint."""
    return lambda name: (TensorPart(name=UNET + unet_name(name, config)),)


def vae_sources(num_levels: int) -> Sources:
    """Return where an autoencoder's weights lie: inside a whole checkpoint, or in a file alone."""

    def sources(name: str) -> Sequence[TensorPart]:
        original = _vae_name(name, num_levels)
        return (TensorPart(name=VAE + original), TensorPart(name=original))

    return sources


def older_vae_sources(name: str) -> Sequence[TensorPart]:
    """Return where an autoencoder's weight lies in a diffusers folder of any age."""
    for ours, (_, older) in _VAE_ATTENTION.items():
        name_before = name.replace(f".attentions.0.{ours}.", f".attentions.0.{older}.")
        if name_before != name:
            return (TensorPart(name=name), TensorPart(name=name_before))
    return (TensorPart(name=name),)


def clip_sources(prefix: str = "") -> Sources:
    """Return where the weights of a CLIP text encoder lie that keeps transformers' names.

    The level `text_model` is there in most files and not in some, and in the models of one version
    of transformers and not of the next.
    """

    def sources(name: str) -> Sequence[TensorPart]:
        bare = name.removeprefix("text_model.")
        return tuple(
            TensorPart(name=alias)
            for alias in (f"{prefix}text_model.{bare}", f"{prefix}{bare}", f"{prefix}{name}")
        )

    return sources


def open_clip_sources(prefix: str) -> Sources:
    """Return where the weights of a text encoder lie under OpenCLIP's names."""
    return lambda name: (_open_clip_source(prefix, name.removeprefix("text_model.")),)


def _open_clip_source(prefix: str, name: str) -> TensorPart:
    if name == "text_projection.weight":
        return TensorPart(name=f"{prefix}text_projection", is_transposed=True)
    if name == "embeddings.position_embedding.weight":
        return TensorPart(name=f"{prefix}positional_embedding")
    if name.startswith("embeddings."):
        return TensorPart(name=prefix + name.removeprefix("embeddings."))
    if name.startswith("final_layer_norm."):
        return TensorPart(name=f"{prefix}ln_final.{name.removeprefix('final_layer_norm.')}")
    _, _, index, *inner = name.split(".")  # encoder.layers.N. ...
    block, kind = f"{prefix}transformer.resblocks.{index}", inner[-1]
    if inner[1] in _THIRDS:
        return TensorPart(name=f"{block}.attn.in_proj_{kind}", third=_THIRDS.index(inner[1]))
    return TensorPart(name=f"{block}.{_OPEN_CLIP['.'.join(inner[:-1])]}.{kind}")


def _vae_name(name: str, num_levels: int) -> str:
    for place in ("encoder", "decoder"):
        name = name.replace(f"{place}.conv_norm_out.", f"{place}.norm_out.")
        for index in (0, 1):
            resnet, block = f"{place}.mid_block.resnets.{index}.", f"{place}.mid.block_{index + 1}."
            name = name.replace(resnet, block)
        attention = f"{place}.mid_block.attentions.0."
        if name.startswith(attention):
            inner, _, kind = name.removeprefix(attention).rpartition(".")
            return f"{place}.mid.attn_1.{_VAE_ATTENTION[inner][0]}.{kind}"
    name = name.replace(".conv_shortcut.", ".nin_shortcut.")
    match = _VAE_BLOCK.fullmatch(name)
    if match is None:
        return name
    half, way, level, kind, resnet_index, rest = match.groups()
    # Decoders count their levels from the image, diffusers from the latents.
    number = int(level) if way == "down" else num_levels - 1 - int(level)
    inner = f"block.{resnet_index}" if kind == "resnets" else f"{way}sample"
    return f"{half}.{way}.{number}.{inner}.{rest}"
