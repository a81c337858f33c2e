"""Write a loaded base as files: one in original layout, or a folder in diffusers layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optbench.models import key_maps, sd2, sd15, sdxl
from optbench.models.assemble import Sources
from optbench.models.sdxl import StableDiffusionXL
from optbench.models.stable_diffusion import StableDiffusion
from optbench.schema import BaseOptions

AnyBase = StableDiffusion | StableDiffusionXL
_THIRDS = 3
_TEXT_SOURCES = {
    family: tuple(file.sources for file in module.SINGLE_FILE.text_encoders)
    for family, module in (("sd15", sd15), ("sd2", sd2), ("sdxl", sdxl))
}


def encoders_of(base: Any) -> tuple[Any, ...]:
    if base.family == "sdxl":
        return tuple(base.text_encoders)
    return (base.text_encoder,)


def options(family: str, path: Path, **changes: Any) -> BaseOptions:
    settings: dict[str, Any] = {
        "vae": None,
        "v_parameterization": None,
        "lr_scale": 1.0,
        "lr_scales": {},
    }
    return BaseOptions(name=family, family=family, path=str(path), **{**settings, **changes})


def in_original_layout(base: Any) -> dict[str, Tensor]:
    """Return every tensor of a single file as such files hold them."""
    levels = len(base.vae.config.block_out_channels)
    tensors = {
        **_renamed(base.unet, key_maps.unet_sources(base.unet.config)),
        **_renamed(base.vae, key_maps.vae_sources(levels)),
    }
    for encoder, sources in zip(encoders_of(base), _TEXT_SOURCES[base.family], strict=True):
        tensors.update(_renamed(encoder, sources))
    # Found in every such file, and of no use.
    tensors["alphas_cumprod"] = torch.ones(3)
    return tensors


def _renamed(model: nn.Module, sources: Sources) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, weight in model.named_parameters():
        tensor_part = sources(name)[0]
        value = weight.detach()
        # The original autoencoder's attention is made of 1x1 convolutions.
        if ".attn_1." in tensor_part.name and value.dim() == 2:
            value = value[:, :, None, None]
        if tensor_part.third is None:
            found[tensor_part.name] = value.T if tensor_part.is_transposed else value
        else:
            thirds.setdefault(tensor_part.name, {})[tensor_part.third] = value
    for name, pieces in thirds.items():
        found[name] = torch.cat([pieces[index] for index in range(_THIRDS)])
    return found


def write_file(base: Any, path: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a single file, one tensor after the other: the library would need a second copy."""
    tensors = in_original_layout(base)
    header, start = {}, 0
    spelled = {torch.float32: "F32", torch.float16: "F16"}[dtype]
    for name, value in tensors.items():
        stop = start + value.numel() * dtype.itemsize
        header[name] = {
            "dtype": spelled,
            "shape": list(value.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(value.to(dtype).contiguous().numpy().tobytes())
    return path


def write_folder(base: Any, folder: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write what save_pretrained of a whole pipeline writes; `dtype` may halve the weights."""
    parts: dict[str, Any] = {"unet": base.unet, "vae": base.vae}
    tokenizers = base.tokenizers if base.family == "sdxl" else [base.tokenizer]
    for number, (encoder, tokenizer) in enumerate(
        zip(encoders_of(base), tokenizers, strict=True), start=1
    ):
        ending = "" if number == 1 else f"_{number}"
        parts[f"text_encoder{ending}"] = encoder
        _write_tokenizer(tokenizer, folder / f"tokenizer{ending}")
    for name, part in parts.items():
        (part if dtype is None else part.to(dtype)).save_pretrained(folder / name)
    schedule: Mapping[str, Any] = base.process.config
    (folder / "scheduler").mkdir()
    text = json.dumps({"_class_name": "DDIMScheduler", **schedule, "steps_offset": 1})
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    (folder / "model_index.json").write_text(json.dumps(_index(base)))
    return folder


def _index(base: Any) -> dict[str, Any]:
    is_sdxl = base.family == "sdxl"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    if is_sdxl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        return index
    return {**index, "safety_checker": [None, None], "feature_extractor": [None, None]}


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files that published checkpoints have: vocabulary, merges, special tokens."""
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer._merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": tokenizer.pad_token,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
