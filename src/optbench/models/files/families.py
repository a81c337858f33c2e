"""The model families, as far as settings can be checked without loading one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from optbench.records import UnetBlock, UnetBlocks, UnetSide

_DIFFUSERS_LAYER = re.compile(
    r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)"
)
_ORIGINAL_LAYER = re.compile(r"lora_unet_(input|middle|output)_blocks?_(\d+)_")
_SIDES: Mapping[str, UnetSide] = {"input": "down", "middle": "mid", "output": "up"}
_LAYERS_PER_BLOCK = 3  # two of resnets and attentions, and the sampler
_STABLE_DIFFUSION_BLOCKS = UnetBlocks(down=12, mid=1, up=12, num_ends=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is true of every checkpoint of one family."""

    name: str  # a module of optbench.models
    words: str
    context_width: int  # numbers per token that the unet reads
    text_encoders: tuple[str, ...]  # folders of the diffusers layout, the first one read first
    num_text_layers: int  # of the first text encoder
    obeys_clip_skip: bool
    tells_prediction: bool  # False: what a single file predicts cannot be seen in it
    unet_blocks: UnetBlocks
    lora_prefixes: tuple[str, ...]  # kohya's, one for each text encoder
    has_pointwise_projections: (
        bool  # into and out of a single file's transformers: 1x1 convolutions
    )
    has_original_names: bool  # kohya names the unet's layers as the original layout does

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders that the diffusers layout needs."""
        tokenizers = (name.replace("text_encoder", "tokenizer") for name in self.text_encoders)
        return ("unet", "vae", *self.text_encoders, *tokenizers)

    def block_of(self, layer: str) -> UnetBlock | None:
        """Return the block of a layer, from its kohya name; None for a text encoder's layer.

        Of SD1.x and SD2 the first of 12 down blocks is the unet's own first convolution.
        """
        if match := _ORIGINAL_LAYER.match(layer):
            return self._block(_SIDES[match[1]], int(match[2]))
        if match := _DIFFUSERS_LAYER.match(layer):
            place = _LAYERS_PER_BLOCK * int(match[2])
            place += _LAYERS_PER_BLOCK - 1 if "samplers" in match[3] else int(match[4])
            return (
                self._block("down", 1 + place) if match[1] == "down" else self._block("up", place)
            )
        return self._block("mid", 0) if layer.startswith("lora_unet_mid_block_") else None

    def _block(self, side: UnetSide, number: int) -> UnetBlock:
        return UnetBlock(side=side, number=number, blocks=self.unet_blocks)


_ALL = (
    Family(
        name="sd15",
        words="Stable Diffusion 1.x",
        context_width=768,
        text_encoders=("text_encoder",),
        num_text_layers=12,
        obeys_clip_skip=True,
        tells_prediction=True,
        unet_blocks=_STABLE_DIFFUSION_BLOCKS,
        lora_prefixes=("lora_te",),
        has_pointwise_projections=True,
        has_original_names=False,
    ),
    Family(
        name="sd2",
        words="Stable Diffusion 2.x",
        context_width=1024,
        text_encoders=("text_encoder",),
        num_text_layers=23,  # of OpenCLIP's 24 the last is not used
        obeys_clip_skip=True,
        tells_prediction=False,
        unet_blocks=_STABLE_DIFFUSION_BLOCKS,
        lora_prefixes=("lora_te",),
        has_pointwise_projections=True,
        has_original_names=False,
    ),
    Family(
        name="sdxl",
        words="Stable Diffusion XL",
        context_width=2048,
        text_encoders=("text_encoder", "text_encoder_2"),
        num_text_layers=12,
        obeys_clip_skip=False,
        tells_prediction=True,
        unet_blocks=UnetBlocks(down=9, mid=3, up=9, num_ends=1),
        lora_prefixes=("lora_te1", "lora_te2"),
        has_pointwise_projections=False,
        has_original_names=True,
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})
