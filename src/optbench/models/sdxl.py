"""Stable Diffusion XL: two text encoders, a pooled text vector, and the sizes of the picture.

Shapes: B batch, C latent channels, H and W latent height and width (pixels / pixels per latent),
K pieces of a caption, T tokens, E embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from optbench.contracts import Conditioning, SampleRequest, TextOptions
from optbench.models import autoencoder, random_parts, sd15
from optbench.models.checkpoint import AUTOENCODER, Checkpoint, check_fit
from optbench.models.compute import attend_with, compiled, keep_activations
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, DiffusionProcess, with_prediction
from optbench.models.files.families import FAMILIES
from optbench.models.key_maps import clip_origins, open_clip_origins
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.models.sampling import Studio, paint
from optbench.models.stable_diffusion import Name
from optbench.models.text import clip, prompt_weights
from optbench.models.text.clip import ClipTextOptions, clip_tokenizer
from optbench.records import LoraTarget, ModelVersion, Sizes
from optbench.schema import Attention, BaseOptions, DynamoBackend, LossOptions

if TYPE_CHECKING:
    from PIL.Image import Image

PAD_TOKENS = ("<|endoftext|>", "!")
_LAYER = -2  # of both text encoders the last layer but one, without the final norm

UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Mapping[str, Any] = {**AUTOENCODER, "sample_size": 1024, "scaling_factor": 0.13025}
TEXT_ENCODER_2: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFile:
    """What a file in original layout does not say of itself."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], Mapping[str, Any]]


SINGLE_FILE = SingleFile(unet=UNET, vae=VAE, text_encoders=(sd15.TEXT_ENCODER, TEXT_ENCODER_2))
_ORIGINS = (
    clip_origins("conditioner.embedders.0.transformer."),
    open_clip_origins("conditioner.embedders.1.model."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded pieces of one checkpoint."""

    tokenizers: tuple[Any, Any]
    text_encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]
    vae: Any
    unet: Any
    schedule: Mapping[str, Any]


class StableDiffusionXL:
    """A frozen Stable Diffusion XL behind `contracts.BaseModel`."""

    family = "sdxl"
    model_version: ModelVersion = "sdxl_base_v1-0"  # for v-prediction too, as kohya

    def __init__(self, parts: Parts, name: Name) -> None:
        """Freeze the parts and keep them; the autoencoder stays in float32."""
        self.name = name.name
        self.fingerprint = name.fingerprint
        self.vae_fingerprint = name.vae_fingerprint
        self.tokenizers = parts.tokenizers
        self.text_encoders = parts.text_encoders
        self.vae = parts.vae
        self.unet = parts.unet
        self._compiled_unet: Callable[..., Any] | None = None
        for part in (*self.text_encoders, self.vae, self.unet):
            part.eval().requires_grad_(False)
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self.pixels_per_latent = autoencoder.pixels_per_latent(self.vae)
        self.process = DiffusionProcess(parts.schedule)

    def for_training(self, options: LossOptions) -> StableDiffusionXL:
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
        keep_activations(self.unet, self.text_encoders, are_recomputed=gradient_checkpointing)
        attend_with(self.unet, self.text_encoders, attention)
        self._compiled_unet = compiled(self.unet, compiled_by)

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return one sample of each picture's posterior, scaled, float32 on the CPU."""
        return autoencoder.encode_images(self.vae, pixels_BCHW, generators)

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        """Return `clip_skip` and `max_token_length` of these settings."""
        return ClipTextOptions.of(settings)

    def encode_captions(self, captions: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE", "pooled_BE"}: both encoders' states side by side, and one vector.

        The states are those after the last layer but one, without a norm, whatever `clip_skip`
        says. The vector is the second encoder's last state at the first end mark of the first
        piece, normed and projected (kohya).
        """
        states = []
        pooled_BE = torch.empty(0)
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            pieces_BKT = clip.token_pieces(
                tokenizer, captions, max_token_length=options.max_tokens
            ).to(self.device)
            # Of the second encoder, which comes last, the vector is kept.
            states_BKTE, pooled_BE = self._states(tokenizer, encoder, pieces_BKT)
            states.append(clip.joined_states(states_BKTE))
        pooled_BE = self.text_encoders[1].text_projection(pooled_BE)
        return {"states_BTE": torch.cat(states, dim=-1), "pooled_BE": pooled_BE}

    def encode_sizes(self, sizes: Sequence[Sizes]) -> Conditioning:
        """Return {"sizes_B6"}: original height and width, crop top and left, bucket's as well."""
        rows = [
            [*reversed(one.original), *reversed(one.crop), *reversed(one.target)] for one in sizes
        ]
        return {"sizes_B6": torch.tensor(rows, dtype=torch.float32, device=self.device)}

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Return the conditionings of several captions as that of one batch, in their order."""
        return clip.stack(conditionings)

    def cut_texts(self, texts: Sequence[str], options: TextOptions) -> tuple[str, ...]:
        """Return the texts of more tokens than `encode_captions` reads."""
        return clip.cut_texts(self.tokenizers[0], texts, max_token_length=options.max_tokens)

    def prompt_settings(self, prompts: Sequence[str], options: TextOptions) -> Mapping[str, object]:
        """Return what decides how `sample` reads these prompts, for keys of stored images."""
        return clip.prompt_settings(self.tokenizers[0], prompts, options)

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the unet's prediction, shaped like `noisy_BCHW`."""
        unet = self.unet if self._compiled_unet is None else self._compiled_unet
        return self._answer(unet, noisy_BCHW, timesteps_B, conditioning)

    def _answer(
        self, unet: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        added = {"text_embeds": conditioning["pooled_BE"], "time_ids": conditioning["sizes_B6"]}
        answer: Tensor = unet(
            noisy.to(self.dtype),
            timesteps,
            conditioning["states_BTE"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return answer

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA, text encoders first, the unet by SGM's names.

        Both text encoders are one part, with one rate, as in kohya's trainer.
        """
        text = [
            target
            for number, encoder in enumerate(self.text_encoders)
            for target in text_targets(encoder, FAMILIES[self.family], number=number)
        ]
        return (*text, *unet_targets(self.unet, FAMILIES[self.family]))

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed; noise is made on the CPU, so it is the same everywhere."""
        size = (request.width, request.height)
        told = self.encode_sizes([Sizes(original=size, crop=(0, 0), target=size)])

        def predict(latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            sizes_B6 = told["sizes_B6"].to(conditioning["states_BTE"].dtype)
            sizes_B6 = sizes_B6.repeat(len(latents), 1)
            whole = {**conditioning, "sizes_B6": sizes_B6}
            return self._answer(self.unet, latents, timestep, whole)

        studio = Studio(
            unet=self.unet,
            vae=self.vae,
            process=self.process,
            encode=self._encode_prompts,
            predict=predict,
        )
        return paint(studio, request)

    def _encode_prompts(self, prompts: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE", "pooled_BE"} of prompts, whose grammar is read, of any length.

        The pooled vector is of the first piece, and no weight of a word reaches it (A1111).
        """
        states = []
        pooled_PE = torch.empty(0)
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids_PKT, weights_PKT = prompt_weights.prompt_tokens(tokenizer, prompts)
            states_PKTE, pooled_PE = self._states(tokenizer, encoder, ids_PKT.to(self.device))
            states_PKTE = prompt_weights.emphasize(states_PKTE, weights_PKT)
            states.append(prompt_weights.side_by_side(states_PKTE))
        pooled_PE = self.text_encoders[1].text_projection(pooled_PE)
        return {"states_BTE": torch.cat(states, dim=-1), "pooled_BE": pooled_PE}

    def _states(self, tokenizer: Any, encoder: Any, pieces_BKT: Tensor) -> tuple[Tensor, Tensor]:
        """Return one encoder's states of all pieces, and its last at the first piece's end mark."""
        states_BKTE, last_BKTE = clip.encoded(encoder, pieces_BKT, layer=_LAYER)
        ends_B = (pieces_BKT[:, 0] == tokenizer.eos_token_id).int().argmax(dim=1)
        return states_BKTE, last_BKTE[torch.arange(len(ends_B), device=self.device), 0, ends_B]


def load(
    options: BaseOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
) -> StableDiffusionXL:
    """Return the Stable Diffusion XL at `options.path`, a folder, a file or a hub id.

    Raises:
        BaseError: If a part is missing, damaged, or not Stable Diffusion XL.
    """
    return load_parts(options, SINGLE_FILE, device=device, dtype=dtype, cache_dir=cache_dir)


def load_parts(
    options: BaseOptions,
    single_file: SingleFile,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None,
) -> StableDiffusionXL:
    """Return the checkpoint at `options.path`; a file in original layout is of these sizes."""
    checkpoint = Checkpoint(options, device=device, dtype=dtype)
    first, second = single_file.text_encoders
    names = ("text_encoder", "text_encoder_2")
    parts = Parts(
        tokenizers=(
            checkpoint.tokenizer(pad_token=PAD_TOKENS[0]),
            checkpoint.tokenizer(name="tokenizer_2", pad_token=PAD_TOKENS[1]),
        ),
        text_encoders=(
            checkpoint.text_encoder(CLIPTextModel, first, _ORIGINS[0], name=names[0]),
            checkpoint.text_encoder(
                CLIPTextModelWithProjection, second, _ORIGINS[1], name=names[1]
            ),
        ),
        vae=checkpoint.vae(single_file.vae),
        unet=checkpoint.unet(single_file.unet),
        schedule=checkpoint.schedule(),
    )
    width = sum(encoder.config.hidden_size for encoder in parts.text_encoders)
    for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
        check_fit(
            checkpoint,
            tokenizer=tokenizer,
            text_encoder=encoder,
            unet=parts.unet,
            vae=parts.vae,
            context_width=width,
        )
    own, vae = checkpoint.fingerprints(cache_dir)
    name = Name(name=options.name, family="sdxl", fingerprint=own, vae_fingerprint=vae)
    return StableDiffusionXL(parts, name)


def tiny(seed: int, *, predicts_v: bool = False) -> StableDiffusionXL:
    """Return a random Stable Diffusion XL of three levels, for tests; reads CLIP's own tokens."""
    tokenizers = (clip_tokenizer(pad_token=PAD_TOKENS[0]), clip_tokenizer(pad_token=PAD_TOKENS[1]))
    width = random_parts.TEXT_WIDTH
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = random_parts.text_config(tokenizers[0])
        second = random_parts.text_config(
            tokenizers[1], num_hidden_layers=3, hidden_act="gelu", projection_dim=12
        )
        parts = Parts(
            tokenizers=tokenizers,
            text_encoders=(CLIPTextModel(first), CLIPTextModelWithProjection(second)),
            vae=random_parts.autoencoder(scaling_factor=VAE["scaling_factor"]),
            unet=random_parts.unet(
                block_out_channels=(8, 8, 16),
                layers_per_block=2,
                down_block_types=UNET["down_block_types"],
                up_block_types=UNET["up_block_types"],
                transformer_layers_per_block=(1, 1, 2),
                cross_attention_dim=2 * width,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 12,
            ),
            schedule=with_prediction(STABLE_DIFFUSION_SCHEDULE, predicts_v),
        )
    name = f"random-sdxl-{seed}"
    return StableDiffusionXL(
        parts, Name(name=name, family="sdxl", fingerprint=name, vae_fingerprint=name)
    )
