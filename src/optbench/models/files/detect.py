"""Detect a checkpoint's family by the names and shapes of its tensors, or by its configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.models.files.families import FAMILIES
from optbench.storage.disk import read_text

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_FIRST_LAYER = UNET + "input_blocks.0.0.weight"
_LATENT_CHANNELS = 4
_INPAINTING_CHANNELS = 9
_PARTS = (((VAE,), "autoencoder"), (("cond_stage_model.", "conditioner."), "text encoder"))
# What else comes as one .safetensors, by a piece of a name that nothing before it in the list has.
_OTHERS = (
    (".lora_down.", "a LoRA"),
    (".lora_up.", "a LoRA"),
    (".lora_A.", "a LoRA"),
    (".hada_w1_a", "a LoHa"),
    (".lokr_w1", "a LoKr"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "Flux"),
    ("double_stream_blocks.", "a model of Flux's kind"),
    ("emb_params", "a textual inversion"),
)
# By the class of `transformer/` in a folder.
_TRANSFORMERS = {"SD3Transformer2DModel": "Stable Diffusion 3", "FluxTransformer2DModel": "Flux"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a checkpoint is."""

    family: str | None  # a key of FAMILIES; None: it cannot be told, or is none of them
    words: str
    is_usable: bool  # False: whatever family is asked for, this cannot be its base
    predicts_v: bool | None = None  # None: it does not say


def what_file_is(shapes: Shapes) -> Finding:
    """Return what a single file is, from its tensors' names and shapes."""
    for piece, words in _OTHERS:
        if any(piece in name for name in shapes):
            return _unusable(words)
    has_unet = any(name.startswith(UNET) for name in shapes)
    if not has_unet:
        return _unusable(_without_unet(shapes))
    family = _family_of(shapes)
    if family is None:
        return _unusable("a unet of none of the known families")
    words = FAMILIES[family].words
    channels = shapes.get(_FIRST_LAYER, (0, _LATENT_CHANNELS))[1]
    if channels != _LATENT_CHANNELS:
        return _unusable(_of_channels(words, channels))
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        return _unusable("the refiner of Stable Diffusion XL")
    for prefixes, missing in _PARTS:
        if not any(name.startswith(prefixes) for name in shapes):
            return _unusable(f"{words} without its {missing}")
    # A convention of v-prediction fine-tunes of SDXL: an empty tensor of this name.
    predicts_v = True if "v_pred" in shapes else None
    return Finding(family=family, words=words, is_usable=True, predicts_v=predicts_v)


def what_folder_is(folder: Path) -> Finding:
    """Return what a folder in diffusers layout is, as far as its configs can be read."""
    transformer = _config(folder / "transformer")
    if transformer:
        kind = str(transformer.get("_class_name"))
        return _unusable(_TRANSFORMERS.get(kind, f"a model with a {kind}"))
    unet, text = _config(folder / "unet"), _config(folder / "text_encoder")
    family = None
    if unet.get("addition_embed_type") == "text_time":
        family = "sdxl"
        if not text and _config(folder / "text_encoder_2"):
            return _unusable("the refiner of Stable Diffusion XL")
    else:
        widths = {
            known.context_width: known.name for known in FAMILIES.values() if known.name != "sdxl"
        }
        family = widths.get(text.get("hidden_size", 0))
    words = FAMILIES[family].words if family else "a Stable Diffusion of a size of its own"
    channels = unet.get("in_channels", _LATENT_CHANNELS)
    if channels == _INPAINTING_CHANNELS:
        return _unusable(_of_channels(words, channels))
    schedule = _read(folder / "scheduler" / "scheduler_config.json")
    target = schedule.get("prediction_type")
    return Finding(
        family=family,
        words=words,
        is_usable=True,
        predicts_v=None if target is None else target == "v_prediction",
    )


def is_autoencoder(shapes: Shapes) -> bool:
    """Return whether a file holds an autoencoder in original layout, alone or among others."""
    return any(name.removeprefix(VAE) == "encoder.conv_in.weight" for name in shapes)


def _unusable(words: str) -> Finding:
    return Finding(family=None, words=words, is_usable=False)


def _of_channels(words: str, channels: int) -> str:
    kind = "for inpainting" if channels == _INPAINTING_CHANNELS else "for editing"
    return f"{words} {kind}: a unet that reads {channels} channels"


def _without_unet(shapes: Shapes) -> str:
    if is_autoencoder(shapes):
        return "an autoencoder (VAE) alone"
    if any(name.startswith(("down_blocks.", "up_blocks.")) for name in shapes):
        return "a unet alone, under diffusers' names"
    if any(name.startswith(("text_model.", "encoder.layers.")) for name in shapes):
        return "a text encoder alone"
    first = min(shapes, default="nothing at all")
    return f"{len(shapes)} tensors of no checkpoint known here, for instance {first}"


def _family_of(shapes: Shapes) -> str | None:
    """Return the family by the text encoder's names, or else by what the unet reads per token."""
    for prefix, family in (
        ("conditioner.embedders.", "sdxl"),
        ("cond_stage_model.model.", "sd2"),
        ("cond_stage_model.transformer.", "sd15"),
    ):
        if any(name.startswith(prefix) for name in shapes):
            return family
    reads = next((shape[1] for name, shape in shapes.items() if ".attn2.to_k.weight" in name), 0)
    return next((known.name for known in FAMILIES.values() if known.context_width == reads), None)


def _config(folder: Path) -> dict[str, Any]:
    return _read(folder / "config.json")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError):
        return {}  # what is wrong with it is said where it is loaded
    return content if isinstance(content, dict) else {}
