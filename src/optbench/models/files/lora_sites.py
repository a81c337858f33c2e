"""Find the layers of a base model that may carry a LoRA, in the headers of its files.

The rule is kohya's: a LoRA goes on every linear layer and convolution inside the text encoders'
attention and MLP and inside the unet's transformers, and with `network.conv_dim` inside its
resnets and samplers too. Paths are those of diffusers' modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from optbench.models.files import locate
from optbench.models.files.detect import UNET
from optbench.models.files.facts import tensor_shapes
from optbench.models.files.families import FAMILIES, Family
from optbench.models.files.unet_names import diffusers_name, unet_name
from optbench.records import LoraSite, Part
from optbench.schema import BaseOptions
from optbench.storage.disk import read_text

_TEXT_LAYER = re.compile(r"\.(self_attn|mlp)\.")
_UNET_LAYER = re.compile(r"\.attentions\.")
_UNET_CONV_LAYER = re.compile(r"\.(resnets|downsamplers|upsamplers)\.")
_WEIGHT = ".weight"
_PROJECTIONS = (".proj_in", ".proj_out")
_TEXT_MODEL = "text_model."  # transformers 5 may leave it out of a file
# Where a file in original layout has its text encoders, first and second, and in whose names.
_ORIGINAL_TEXT = (
    ("cond_stage_model.transformer.", 0),
    ("cond_stage_model.model.transformer.", 0),
    ("conditioner.embedders.0.transformer.", 0),
    ("conditioner.embedders.1.model.transformer.", 1),
)
_OPEN_CLIP_LAYER = re.compile(r"resblocks\.(\d+)\.(.+)")
_OPEN_CLIP = {
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
    # Query, key and value in one tensor, one above the other; each has a LoRA of its own.
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
_USUAL_UNET = {"layers_per_block": 2, "up_block_types": ["CrossAttnUpBlock2D"] * 4}
_Weight = tuple[str, tuple[int, ...]]  # path in diffusers, and shape


def carries_lora(part: Part, path: str) -> bool:
    """Return whether the linear layer or convolution at this path may carry a LoRA."""
    if part == "text_encoder":
        return _TEXT_LAYER.search(path) is not None
    return _UNET_LAYER.search(path) is not None or needs_conv_dim(path)


def needs_conv_dim(unet_path: str) -> bool:
    """Return whether the unet's layer at this path has a LoRA only with `network.conv_dim`."""
    return _UNET_CONV_LAYER.search(unet_path) is not None


def text_name(prefix: str, path: str) -> str:
    """Return kohya's name of a text encoder's layer; `path` begins behind `text_model.`."""
    return f"{prefix}_{_TEXT_MODEL}{path}".replace(".", "_")


def unet_layer_name(path: str) -> str:
    """Return kohya's name of the unet's layer, from diffusers' path or the original one."""
    return f"lora_unet_{path}".replace(".", "_")


def lora_sites(options: BaseOptions) -> dict[str, LoraSite]:
    """Return every layer that may carry a LoRA by kohya's name; none where headers do not tell.

    Pickles have no header, and a folder may hold one of its parts in another format.
    """
    family = FAMILIES.get(options.family)
    if family is None:
        return {}
    weights = [(name, shape) for name, shape in tensor_shapes(options) if len(shape) in (2, 4)]
    sites: dict[str, LoraSite] = {}
    for number, prefix in enumerate(family.lora_prefixes):
        before = len(sites)
        for text_path, shape in _text_weights(weights, family, number):
            if carries_lora("text_encoder", text_path):
                name = text_name(prefix, text_path)
                sites[name] = LoraSite(
                    name=name, part="text_encoder", needs_conv_dim=False, shape=shape, block=None
                )
        if len(sites) == before:
            return {}
    unet_config = _unet_config(options)
    before = len(sites)
    for weight, shape in weights:
        path: str | None = None
        original = ""
        if weight.startswith("unet."):
            path = weight.removeprefix("unet.").removesuffix(_WEIGHT)
        elif weight.startswith(UNET):
            original = weight.removeprefix(UNET).removesuffix(_WEIGHT)
            path = diffusers_name(original)
        if path is None or not carries_lora("unet", path):
            continue
        if original and family.has_pointwise_projections and path.endswith(_PROJECTIONS):
            shape = (*shape[:2], 1, 1)  # linear in some files, and loaded as a convolution
        if family.has_original_names and not original:
            original = unet_name(path, unet_config)
        name = unet_layer_name(original if family.has_original_names else path)
        sites[name] = LoraSite(
            name=name,
            part="unet",
            needs_conv_dim=needs_conv_dim(path),
            shape=shape,
            block=family.block_of(name),
        )
    return {} if len(sites) == before else sites


def _text_weights(weights: Sequence[_Weight], family: Family, number: int) -> Iterator[_Weight]:
    """Yield the path behind `text_model.` and the shape of one text encoder's weights."""
    folder = f"{family.text_encoders[number]}."
    places = [folder, *(place for place, of_number in _ORIGINAL_TEXT if of_number == number)]
    for name, shape in weights:
        place = next((place for place in places if name.startswith(place)), None)
        if place is None:
            continue
        bare = name.removeprefix(place).removeprefix(_TEXT_MODEL)
        if match := _OPEN_CLIP_LAYER.fullmatch(bare):
            paths = _OPEN_CLIP.get(match[2], ())
            # OpenCLIP's last layer is in the file of SD2 and in no model.
            if place != folder and number == 0 and int(match[1]) >= family.num_text_layers:
                continue
            for path in paths:
                yield f"encoder.layers.{match[1]}.{path}", (shape[0] // len(paths), *shape[1:])
        elif bare.endswith(_WEIGHT):
            yield bare.removesuffix(_WEIGHT), shape


def _unet_config(options: BaseOptions) -> dict[str, Any]:
    """Return the unet's config in a folder, or what all families have."""
    file = locate.located(options.path) / "unet" / "config.json"
    try:
        config = json.loads(read_text(file))
    except (OSError, ValueError):
        config = {}
    return {**_USUAL_UNET, **config} if isinstance(config, dict) else {**_USUAL_UNET}
