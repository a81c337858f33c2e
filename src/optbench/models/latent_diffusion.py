"""What the families of one UNet, one autoencoder and CLIP's text encoders share.

Shapes: B batch, C latent channels, H and W latent height and width (pixels / pixels per latent).
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from optbench.contracts import Conditioning, SampleRequest, TextOptions
from optbench.models import autoencoder
from optbench.models.assemble import Sources
from optbench.models.checkpoint import Checkpoint, check_fit
from optbench.models.compute import compile_unet, set_attention, set_gradient_checkpointing
from optbench.models.diffusion import DiffusionProcess
from optbench.models.sampling import SamplingModel, sample_images
from optbench.models.text import clip
from optbench.models.text.clip import ClipTextOptions
from optbench.records import LoraTarget, ModelVersion, Sizes
from optbench.schema import Attention, BaseOptions, DynamoBackend, LossOptions

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded pieces of one checkpoint; a tokenizer for each text encoder."""

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    vae: Any
    unet: Any
    schedule: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What a loaded base model is called, and what its files hash to."""

    name: str  # of the settings that chose it
    family: str
    fingerprint: str
    vae_fingerprint: str


class LatentDiffusion(abc.ABC):
    """A frozen UNet with autoencoder and CLIP's text encoders, behind `contracts.BaseModel`."""

    def __init__(self, parts: Parts, name: Name) -> None:
        """Freeze the parts and keep them; the autoencoder stays in float32."""
        self.name = name.name
        self.family = name.family
        self.fingerprint = name.fingerprint
        self.vae_fingerprint = name.vae_fingerprint
        self.tokenizers = parts.tokenizers
        self.text_encoders = parts.text_encoders
        self.vae = parts.vae
        self.unet = parts.unet
        for part in (*self.text_encoders, self.vae, self.unet):
            part.eval().requires_grad_(False)
        self._compiled_unet: Callable[..., Any] | None = None
        self.device: torch.device = self.unet.device
        self.dtype: torch.dtype = self.unet.dtype
        self.pixels_per_latent = autoencoder.pixels_per_latent(self.vae)
        self.process = DiffusionProcess(parts.schedule)

    @property
    @abc.abstractmethod
    def model_version(self) -> ModelVersion:
        """Return kohya's word for ss_base_model_version."""

    @abc.abstractmethod
    def encode_captions(self, captions: Sequence[str], options: TextOptions) -> Conditioning:
        """Return what `predict` needs of the captions, each tensor with leading size B."""

    @abc.abstractmethod
    def encode_sizes(self, sizes: Sequence[Sizes]) -> Conditioning:
        """Return what `predict` needs besides, of each image's sizes."""

    @abc.abstractmethod
    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA under kohya's names, text encoders first."""

    @abc.abstractmethod
    def _encode_prompts(self, prompts: Sequence[str], options: TextOptions) -> Conditioning:
        """Return the conditioning of prompts, whose grammar is read and whose length is any."""

    @abc.abstractmethod
    def _call_unet(
        self, unet: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return a UNet's prediction under this family's conditioning."""

    def for_training(self, options: LossOptions) -> Self:
        """Return this base model, weights shared, under the noise process these options ask for."""
        process = self.process.for_training(options)
        if process is self.process:
            return self
        other = copy.copy(self)
        other.process = process
        other.fingerprint = f"{self.fingerprint}+zero-terminal-snr"
        return other

    def compute_with(
        self,
        *,
        gradient_checkpointing: bool,
        attention: Attention,
        compiled_by: DynamoBackend | None,
    ) -> None:
        """Recompute activations or keep them, attend with one kind of code, compile `predict`."""
        set_gradient_checkpointing(self.unet, self.text_encoders, is_on=gradient_checkpointing)
        set_attention(self.unet, self.text_encoders, attention)
        self._compiled_unet = compile_unet(self.unet, compiled_by)

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return one sample of each image's posterior, scaled, float32 on the CPU."""
        return autoencoder.encode_images(self.vae, pixels_BCHW, generators)

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        """Return `clip_skip` and `max_token_length` of these settings."""
        return ClipTextOptions.of(settings)

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Return the conditionings of several captions as that of one batch, in their order."""
        return clip.stack(conditionings)

    def num_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return how many tokens each text has, the two marks left out."""
        return clip.num_tokens(self.tokenizers[0], texts)

    def prompt_settings(self, prompts: Sequence[str], options: TextOptions) -> Mapping[str, object]:
        """Return what decides how `sample` reads these prompts, for keys of stored images."""
        return clip.prompt_settings(self.tokenizers[0], prompts, options)

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the UNet's prediction, shaped like `noisy_BCHW`."""
        unet = self.unet if self._compiled_unet is None else self._compiled_unet
        return self._call_unet(unet, noisy_BCHW, timesteps_B, conditioning)

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one image per seed; noise is made on the CPU, so it is the same everywhere."""
        size = (request.width, request.height)
        sizes = self.encode_sizes([Sizes(original=size, crop=(0, 0), target=size)])

        def predict(latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            dtype = conditioning["states_BTE"].dtype
            repeated = {
                name: value.to(dtype).repeat(len(latents), 1) for name, value in sizes.items()
            }
            return self._call_unet(self.unet, latents, timestep, {**conditioning, **repeated})

        model = SamplingModel(
            unet=self.unet,
            vae=self.vae,
            process=self.process,
            encode=self._encode_prompts,
            predict=predict,
        )
        return sample_images(model, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderFile:
    """A text encoder in a single file: its class, its sizes, where its weights are."""

    kind: Any  # a class of transformers
    config: Mapping[str, Any]
    sources: Sources
    pad_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """What a file in original layout does not say of itself."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[TextEncoderFile, ...]


_Model = TypeVar("_Model", bound=LatentDiffusion)


def load(
    kind: type[_Model],
    single_file: SingleFile,
    options: BaseOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
) -> _Model:
    """Return the checkpoint at `options.path`, a folder, a file or a hub id.

    Raises:
        BaseError: If a part is missing, damaged, or of another family.
    """
    checkpoint = Checkpoint(options, device=device, dtype=dtype)
    tokenizers, text_encoders = [], []
    for number, file in enumerate(single_file.text_encoders, start=1):
        ending = "" if number == 1 else f"_{number}"  # as diffusers numbers the folders
        tokenizers.append(checkpoint.tokenizer(name=f"tokenizer{ending}", pad_token=file.pad_token))
        text_encoders.append(
            checkpoint.text_encoder(
                file.kind, file.config, file.sources, name=f"text_encoder{ending}"
            )
        )
    parts = Parts(
        tokenizers=tuple(tokenizers),
        text_encoders=tuple(text_encoders),
        vae=checkpoint.vae(single_file.vae),
        unet=checkpoint.unet(single_file.unet),
        schedule=checkpoint.schedule(),
    )
    context_width = sum(encoder.config.hidden_size for encoder in text_encoders)
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        check_fit(
            checkpoint,
            tokenizer=tokenizer,
            text_encoder=encoder,
            unet=parts.unet,
            vae=parts.vae,
            context_width=context_width,
        )
    fingerprint, vae_fingerprint = checkpoint.fingerprints(cache_dir)
    name = Name(
        name=options.name,
        family=options.family,
        fingerprint=fingerprint,
        vae_fingerprint=vae_fingerprint,
    )
    return kind(parts, name)
