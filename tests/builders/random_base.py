"""The embedded base's architecture with random weights, as a folder and loaded."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from optbench.models import load_base
from optbench.models.stable_diffusion import StableDiffusion
from optbench.schema import BaseOptions
from tools.tinybase import pretrain, shapes
from tools.tinybase.tokenizer import build_tokenizer

CPU = torch.device("cpu")


def write_base(folder: Path) -> Path:
    """Write a base in diffusers layout, in whose pictures the text is seen, and return it."""
    build_tokenizer(folder / "words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        text_encoder = shapes.new_text_encoder(CLIPTokenizer.from_pretrained(folder / "words"))
        vae, unet = shapes.new_autoencoder(), shapes.new_unet()
        image_encoder = shapes.new_image_encoder()
        # Untrained it is the identity, whatever the text says.
        for weight in unet.parameters():
            weight.data += 0.05 * torch.randn(weight.shape)
    pretrain.export(
        folder / "base", text_encoder=text_encoder, vae=vae, unet=unet, image_encoder=image_encoder
    )
    return folder / "base"


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
