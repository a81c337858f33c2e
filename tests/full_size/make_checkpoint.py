"""Write a checkpoint of a published architecture with random weights, in half precision.

python tests/full_size/make_checkpoint.py sd15 /tmp/sd15.safetensors   # one file
python tests/full_size/make_checkpoint.py sdxl /tmp/sdxl               # a diffusers folder
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from optbench.models import sd2, sd15, sdxl
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, DiffusionProcess
from optbench.models.text.clip import clip_tokenizer
from tests.builders import checkpoint_files

SPREAD = 0.02


class Shell:
    """What the writers of small bases ask of a base, without being one."""

    def __init__(self, family: str, parts: Mapping[str, Any], tokenizers: list[Any]) -> None:
        self.family = family
        self.unet, self.vae = parts["unet"], parts["vae"]
        self.text_encoders, self.tokenizers = parts["encoders"], tokenizers
        self.text_encoder, self.tokenizer = self.text_encoders[0], tokenizers[0]
        self.process = DiffusionProcess(STABLE_DIFFUSION_SCHEDULE)


def shell(family: str) -> Shell:
    """Return the architecture with random weights, float16."""
    single = {"sd15": sd15.SINGLE_FILE, "sd2": sd2.SINGLE_FILE, "sdxl": sdxl.SINGLE_FILE}[family]
    tokens = [clip_tokenizer(pad_token=file.pad_token) for file in single.text_encoders]
    with torch.device("meta"):
        encoders = [file.kind(CLIPTextConfig(**file.config)) for file in single.text_encoders]
        parts = {
            "unet": UNet2DConditionModel(**single.unet),
            "vae": AutoencoderKL(**single.vae),
            "encoders": encoders,
        }
    draw = torch.Generator().manual_seed(1)
    for model in (parts["unet"], parts["vae"], *encoders):
        _fill(model, draw)
    return Shell(family, parts, tokens)


def _fill(model: nn.Module, draw: torch.Generator) -> None:
    for name, weight in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._parameters[last] = nn.Parameter(
            _drawn(name, weight, draw), requires_grad=False
        )


def _drawn(name: str, weight: Tensor, draw: torch.Generator) -> Tensor:
    if weight.dim() == 1:
        is_scale = name.endswith("weight")
        return torch.full(weight.shape, float(is_scale), dtype=torch.float16)
    return (SPREAD * torch.randn(weight.shape, generator=draw)).half()


def write(family: str, target: Path) -> Path:
    """Write the checkpoint: a file where the name ends in .safetensors, else a folder."""
    made: Any = shell(family)
    if target.suffix == ".safetensors":
        return checkpoint_files.write_file(made, target, dtype=torch.float16)
    return checkpoint_files.write_folder(made, target)


def main() -> None:
    """Write one checkpoint and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=["sd15", "sd2", "sdxl"])
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    path = write(asked.family, asked.target)
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    sys.stdout.write(json.dumps({"bytes": sum(one.stat().st_size for one in files)}) + "\n")


if __name__ == "__main__":
    main()
