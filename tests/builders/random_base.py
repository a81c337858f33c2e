"""The embedded base's architecture with random weights, as a folder and loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from optbench.models import load_base
from optbench.models.stable_diffusion import StableDiffusion
from optbench.schema import BaseOptions
from optbench.storage.resources import asset

CPU = torch.device("cpu")
LATENT_CHANNELS = 32
PIXELS_PER_LATENT = 32
TEXT_WIDTH = 80
NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def write_base(folder: Path) -> Path:
    """Write a base in diffusers layout, in whose images the text is seen, and return it."""
    target = folder / "base"
    shutil.copytree(asset("tiny"), target, ignore=shutil.ignore_patterns("*.safetensors"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        models = {
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(target / "text_encoder")),
            "vae": AutoencoderKL.from_config(_config(target / "vae")),
            "unet": UNet2DConditionModel.from_config(_config(target / "unet")),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig.from_pretrained(target / "image_encoder")
            ),
        }
    # The embedded base's scale is 1, which would hide one that is left out or applied twice.
    models["vae"].register_to_config(scaling_factor=0.5)
    for name, model in models.items():
        model.to(torch.float16).save_pretrained(target / name)
    # Late versions of transformers leave out the prefix that checkpoints and others have.
    text_encoder = target / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in load_file(text_encoder).items()
    }
    save_file(tensors, text_encoder, metadata={"format": "pt"})
    return target


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def base_options(folder: Path, *, vae: Path | None = None, family: str = "sd15") -> BaseOptions:
    known: dict[str, Any] = {
        "name": "random",
        "family": family,
        "path": str(folder),
        "vae": None if vae is None else str(vae),
        "v_parameterization": None,
    }
    # Whatever else a base's options say, loading does not ask for it.
    others: dict[str, Any] = {
        field.name: 1.0 for field in fields(BaseOptions) if field.name not in known
    }
    return BaseOptions(**known, **others)


def load(
    folder: Path, *, vae: Path | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    base = load_base(base_options(folder, vae=vae), device=CPU, dtype=dtype)
    assert isinstance(base, StableDiffusion)
    return base
