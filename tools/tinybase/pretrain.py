"""From a seed to the shipped base: every stage of its pre-training, in order, resumable."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from tools.tinybase.autoencoder import apply_gains, fit_codes, latent_gains, train_autoencoder
from tools.tinybase.drawings import make_drawings, with_gains
from tools.tinybase.shapes import IMAGE_ENCODER_PX, new_scheduler
from tools.tinybase.text import train_encoders
from tools.tinybase.tokenizer import build_tokenizer
from tools.tinybase.unet import train_unet

# Of float16's 10. What is cut off is below what training leaves undecided, and compressed the files
# take a third less, in every clone. Not so near the latents: there an error in the predicted noise
# is many times that error in the picture, so those layers, and all vectors, keep every bit.
_MANTISSA_BITS = 4
_LAYERS_AT_THE_LATENTS = ("conv_in.", "conv_out.", "up_blocks.2.resnets.1.", "quant_conv.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long each stage trains; docs/embedded-base.md says what the shipped weights took."""

    num_drawings: int = 16_000
    encoder_steps: int = 4_000
    decoder_steps: int = 6_500
    text_steps: int = 2_000
    unet_steps: int = 22_000


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
    vae = train_autoencoder(
        folder,
        seed=seed,
        num_encoder_steps=budget.encoder_steps,
        num_decoder_steps=budget.decoder_steps,
    )
    drawings = make_drawings(
        folder,
        codes,
        seed=seed,
        num_drawings=budget.num_drawings,
        num_workers=os.cpu_count() or 1,
    )
    text_encoder, image_encoder = train_encoders(
        folder, tokenizer, drawings, seed=seed, num_steps=budget.text_steps
    )
    gains = latent_gains(codes)
    scaled = with_gains(drawings, gains)
    unet = train_unet(
        folder, text_encoder, tokenizer, scaled, seed=seed, num_steps=budget.unet_steps
    )
    apply_gains(vae, gains)
    export(target, text_encoder=text_encoder, vae=vae, unet=unet, image_encoder=image_encoder)


def export(
    target: Path,
    *,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
) -> None:
    """Write the base as a diffusers folder; weights are float16, most with 4 bits of mantissa."""
    # Not save_pretrained: since transformers 5 it leaves out the two files CLIP checkpoints have.
    build_tokenizer(target / "tokenizer")
    models = {
        "text_encoder": text_encoder,
        "vae": vae,
        "unet": unet,
        "image_encoder": image_encoder,
    }
    for name, model in models.items():
        _round_weights(model)
        model.to("cpu", torch.float16).save_pretrained(target / name)
    _name_as_in_checkpoints(target / "text_encoder" / "model.safetensors")
    new_scheduler().save_pretrained(target / "scheduler")
    _describe_pictures(target / "image_encoder" / "preprocessor_config.json")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def _round_weights(model: torch.nn.Module) -> None:
    """Round most weights to the nearest number with few mantissa bits: at most 3.1 % off."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or any(part in name for part in _LAYERS_AT_THE_LATENTS):
            continue
        mantissa, exponent = torch.frexp(weight)  # 0.5 <= |mantissa| < 1
        steps = 2 ** (_MANTISSA_BITS + 1)
        weight.copy_(torch.ldexp(torch.round(mantissa * steps) / steps, exponent))


def _describe_pictures(path: Path) -> None:
    """Write what CLIPImageProcessor has to do to a picture before the image encoder sees it."""
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": int(Image.Resampling.BICUBIC),
        "size": {"height": IMAGE_ENCODER_PX, "width": IMAGE_ENCODER_PX},
    }
    path.write_text(json.dumps(preprocessing, indent=2) + "\n")


def _name_as_in_checkpoints(path: Path) -> None:
    """Put `text_model.` before every key: transformers 5 reads both, all others only this."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
