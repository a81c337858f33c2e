"""From a seed to the shipped base: every stage of its pre-training, in order, resumable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from optbench.tiny.autoencoder import apply_gains, fit_codes, latent_gains, train_autoencoder
from optbench.tiny.drawings import make_drawings, with_gains
from optbench.tiny.shapes import new_scheduler
from optbench.tiny.text import train_text_encoder
from optbench.tiny.tokenizer import build_tokenizer
from optbench.tiny.unet import train_unet


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long each stage trains; the defaults made the shipped weights."""

    num_drawings: int = 16_000
    autoencoder_steps: int = 3_600
    text_steps: int = 2_000
    unet_steps: int = 13_000


def pretrain(folder: Path, target: Path, *, seed: int, budget: Budget) -> None:
    """Train the embedded base and write it to `target` in diffusers layout, float16.

    `folder` keeps every stage's checkpoints and drawings: after a kill the same call goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_folder = folder / "tokenizer"
    if not (tokenizer_folder / "merges.txt").exists():
        build_tokenizer(tokenizer_folder)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    codes = fit_codes(folder, seed=seed)
    vae = train_autoencoder(folder, seed=seed, num_steps=budget.autoencoder_steps)
    drawings = make_drawings(folder, codes, seed=seed, num_drawings=budget.num_drawings)
    text_encoder = train_text_encoder(
        folder, tokenizer, drawings, seed=seed, num_steps=budget.text_steps
    )
    gains = latent_gains(codes)
    scaled = with_gains(drawings, gains)
    unet = train_unet(
        folder, text_encoder, tokenizer, scaled, seed=seed, num_steps=budget.unet_steps
    )
    apply_gains(vae, gains)
    export(target, text_encoder=text_encoder, vae=vae, unet=unet)


def export(
    target: Path,
    *,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> None:
    """Write the base as a diffusers folder whose weights are float16 safetensors."""
    # Not save_pretrained: since transformers 5 it leaves out the two files CLIP checkpoints have.
    build_tokenizer(target / "tokenizer")
    for name, model in (("text_encoder", text_encoder), ("vae", vae), ("unet", unet)):
        model.to("cpu", torch.float16).save_pretrained(target / name)
    _name_as_in_checkpoints(target / "text_encoder" / "model.safetensors")
    new_scheduler().save_pretrained(target / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _name_as_in_checkpoints(path: Path) -> None:
    """Put `text_model.` before every key: transformers 5 reads both, all others only this."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
