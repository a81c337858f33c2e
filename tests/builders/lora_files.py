"""LoRA files in kohya's format with random weights, and their products read by the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

# Name -> outputs and inputs, with the kernel for convolutions.
LAYERS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (20, (12,)),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (12, (16, 1, 1)),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (12, (768,)),
    "lora_unet_down_blocks_0_resnets_0_conv1": (24, (6, 3, 3)),
}
LINEAR, POINT, _, CONV = LAYERS


def random_tensors(
    *,
    dim: int = 8,
    alpha: float | None = 4.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: Mapping[str, tuple[int, tuple[int, ...]]] = LAYERS,
) -> dict[str, Tensor]:
    """Return a network whose singular values fall over two orders of magnitude."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in layers.items():
        up = torch.randn(outputs, dim, generator=draw) * torch.logspace(0, -2, dim)
        down = torch.randn(dim, *inputs, generator=draw) / 10
        tensors[f"{name}.lora_up.weight"] = up.view(outputs, dim, *(1 for _ in inputs[1:]))
        tensors[f"{name}.lora_down.weight"] = down
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return {key: tensor.to(dtype) for key, tensor in tensors.items()}


def write_lora(
    path: Path, tensors: Mapping[str, Tensor] | None = None, /, *, metadata: Any = None, **how: Any
) -> Path:
    """Write a file with the library itself, and return its path."""
    content = random_tensors(**how) if tensors is None else dict(tensors)
    safetensors.torch.save_file(content, path, metadata=metadata)
    return path


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}


def deltas(path: Path) -> dict[str, Tensor]:
    """Return scale * up @ down of every layer in float64, as every reader computes it."""
    tensors = read_file(path)[0]
    found = {}
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            down, up = tensors[key].double(), tensors[f"{name}.lora_up.weight"].double()
            alpha = tensors.get(f"{name}.alpha", torch.tensor(float(len(down))))
            found[name] = up.flatten(1) @ down.flatten(1) * (float(alpha) / len(down))
    return found
