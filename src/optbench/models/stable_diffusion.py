"""Stable Diffusion 1.x and 2.x: one text encoder, one unet. `sd15` and `sd2` load it.

Shapes: B batch, C latent channels, H and W latent height and width (pixels / pixels per latent),
T tokens, E embedding width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from optbench.contracts import Conditioning, SampleRequest, TextOptions
from optbench.models import autoencoder
from optbench.models.assemble import Origins
from optbench.models.checkpoint import Checkpoint, check_fit
from optbench.models.compute import attend_with, compiled, keep_activations, text_model
from optbench.models.diffusion import DiffusionProcess
from optbench.models.files.families import FAMILIES
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.models.sampling import Studio, paint
from optbench.models.text import clip, prompt_weights
from optbench.models.text.clip import ClipTextOptions
from optbench.records import LoraTarget, ModelVersion, Sizes
from optbench.schema import Attention, BaseOptions, DynamoBackend, LossOptions

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded pieces of one checkpoint."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    schedule: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What a loaded base is called, and by whom."""

    name: str  # of the settings that chose it
    family: str
    fingerprint: str
    vae_fingerprint: str


class StableDiffusion:
    """A frozen Stable Diffusion 1.x or 2.x behind `contracts.BaseModel`."""

    def __init__(self, parts: Parts, name: Name) -> None:
        """Freeze the parts and keep them; the autoencoder stays in float32."""
        self.name = name.name
        self.family = name.family
        self.fingerprint = name.fingerprint
        self.vae_fingerprint = name.vae_fingerprint
        self.tokenizer = parts.tokenizer
        self.text_encoder = parts.text_encoder.eval().requires_grad_(False)
        self.vae = parts.vae.eval().requires_grad_(False)
        self.unet = parts.unet.eval().requires_grad_(False)
        self._compiled_unet: Callable[..., Any] | None = None
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self.pixels_per_latent = autoencoder.pixels_per_latent(self.vae)
        self.process = DiffusionProcess(parts.schedule)

    def for_training(self, options: LossOptions) -> StableDiffusion:
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
        keep_activations(self.unet, [self.text_encoder], are_recomputed=gradient_checkpointing)
        attend_with(self.unet, [self.text_encoder], attention)
        self._compiled_unet = compiled(self.unet, compiled_by)

    @property
    def model_version(self) -> ModelVersion:
        """Return kohya's word for ss_base_model_version."""
        versions: dict[tuple[bool, bool], ModelVersion] = {
            (False, False): "sd_v1",
            (False, True): "sd_v1_v",
            (True, False): "sd_v2",
            (True, True): "sd_v2_v",
        }
        return versions[self.family == "sd2", self.process.prediction == "v"]

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return one sample of each picture's posterior, scaled, float32 on the CPU."""
        return autoencoder.encode_images(self.vae, pixels_BCHW, generators)

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        """Return `clip_skip` and `max_token_length` of these settings."""
        return ClipTextOptions.of(settings)

    def encode_captions(self, captions: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE"}: the text encoder's states of 77, 152 or 227 tokens.

        With `clip_skip` n the states after the n-th last layer, through the final norm, as A1111.
        """
        pieces_BKT = clip.token_pieces(
            self.tokenizer, captions, max_token_length=options.max_tokens
        ).to(self.device)
        return {
            "states_BTE": clip.joined_states(
                self._states(pieces_BKT, clip.options(options).clip_skip)
            )
        }

    def encode_sizes(self, sizes: Sequence[Sizes]) -> Conditioning:
        """Return nothing: this family is not told the sizes of pictures."""
        return {}

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Return the conditionings of several captions as that of one batch, in their order."""
        return clip.stack(conditionings)

    def cut_texts(self, texts: Sequence[str], options: TextOptions) -> tuple[str, ...]:
        """Return the texts of more tokens than `encode_captions` reads."""
        return clip.cut_texts(self.tokenizer, texts, max_token_length=options.max_tokens)

    def prompt_settings(self, prompts: Sequence[str], options: TextOptions) -> Mapping[str, object]:
        """Return what decides how `sample` reads these prompts, for keys of stored images."""
        return clip.prompt_settings(self.tokenizer, prompts, options)

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the unet's prediction, shaped like `noisy_BCHW`."""
        unet = self.unet if self._compiled_unet is None else self._compiled_unet
        return self._answer(unet, noisy_BCHW, timesteps_B, conditioning)

    def _answer(
        self, unet: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        states = conditioning["states_BTE"]
        answer: Tensor = unet(noisy.to(self.dtype), timesteps, states, return_dict=False)[0]
        return answer

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA under kohya's names, text encoder first."""
        family = FAMILIES[self.family]
        return (*text_targets(self.text_encoder, family), *unet_targets(self.unet, family))

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed; noise is made on the CPU, so it is the same everywhere."""
        studio = Studio(
            unet=self.unet,
            vae=self.vae,
            process=self.process,
            encode=self._encode_prompts,
            predict=functools.partial(self._answer, self.unet),
        )
        return paint(studio, request)

    def _encode_prompts(self, prompts: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE"} of prompts, whose grammar is read and whose length is any."""
        ids_PKT, weights_PKT = prompt_weights.prompt_tokens(self.tokenizer, prompts)
        states_PKTE = self._states(ids_PKT.to(self.device), clip.options(options).clip_skip)
        states_PKTE = prompt_weights.emphasize(states_PKTE, weights_PKT)
        return {"states_BTE": prompt_weights.side_by_side(states_PKTE)}

    def _states(self, pieces_BKT: Tensor, clip_skip: int) -> Tensor:
        layer = None if clip_skip == 1 else -clip_skip
        states_BKTE, _ = clip.encoded(self.text_encoder, pieces_BKT, layer=layer)
        if layer is not None:
            states_BKTE = text_model(self.text_encoder).final_layer_norm(states_BKTE)
        return states_BKTE


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """What a file in original layout does not say of itself."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_origins: Origins
    pad_token: str


def load_parts(
    options: BaseOptions,
    single_file: SingleFile,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None,
) -> StableDiffusion:
    """Return the checkpoint at `options.path`, a folder, a file or a hub id.

    Raises:
        BaseError: If a part is missing, damaged, or of another family.
    """
    checkpoint = Checkpoint(options, device=device, dtype=dtype)
    parts = Parts(
        tokenizer=checkpoint.tokenizer(pad_token=single_file.pad_token),
        text_encoder=checkpoint.text_encoder(
            CLIPTextModel, single_file.text_encoder, single_file.text_origins
        ),
        vae=checkpoint.vae(single_file.vae),
        unet=checkpoint.unet(single_file.unet),
        schedule=checkpoint.schedule(),
    )
    check_fit(
        checkpoint,
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        unet=parts.unet,
        vae=parts.vae,
        context_width=parts.text_encoder.config.hidden_size,
    )
    own, vae = checkpoint.fingerprints(cache_dir)
    name = Name(name=options.name, family=options.family, fingerprint=own, vae_fingerprint=vae)
    return StableDiffusion(parts, name)
