"""The model families, as far as settings can be checked without loading one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


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

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders that the diffusers layout needs."""
        tokenizers = (name.replace("text_encoder", "tokenizer") for name in self.text_encoders)
        return ("unet", "vae", *self.text_encoders, *tokenizers)


_ALL = (
    Family(
        name="sd15",
        words="Stable Diffusion 1.x",
        context_width=768,
        text_encoders=("text_encoder",),
        num_text_layers=12,
        obeys_clip_skip=True,
        tells_prediction=True,
    ),
    Family(
        name="sd2",
        words="Stable Diffusion 2.x",
        context_width=1024,
        text_encoders=("text_encoder",),
        num_text_layers=23,  # of OpenCLIP's 24 the last is not used
        obeys_clip_skip=True,
        tells_prediction=False,
    ),
    Family(
        name="sdxl",
        words="Stable Diffusion XL",
        context_width=2048,
        text_encoders=("text_encoder", "text_encoder_2"),
        num_text_layers=12,
        obeys_clip_skip=False,
        tells_prediction=True,
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({one.name: one for one in _ALL})
