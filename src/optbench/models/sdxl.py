"""Stable Diffusion XL: two text encoders, a pooled text vector, and the sizes of the image.

Shapes: B batch, P prompts, K pieces of a text, T tokens, E embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from optbench.contracts import Conditioning, TextOptions
from optbench.models import latent_diffusion, random_parts, sd15
from optbench.models.checkpoint import AUTOENCODER
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, with_prediction
from optbench.models.files.families import FAMILIES
from optbench.models.key_maps import clip_sources, open_clip_sources
from optbench.models.latent_diffusion import (
    LatentDiffusion,
    Name,
    Parts,
    SingleFile,
    TextEncoderFile,
)
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.models.text import clip, prompt_weights
from optbench.models.text.clip import clip_tokenizer
from optbench.records import LoraTarget, ModelVersion, Sizes

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
SINGLE_FILE = SingleFile(
    unet=UNET,
    vae=VAE,
    text_encoders=(
        TextEncoderFile(
            kind=CLIPTextModel,
            config=sd15.TEXT_ENCODER,
            sources=clip_sources("conditioner.embedders.0.transformer."),
            pad_token="<|endoftext|>",
        ),
        TextEncoderFile(
            kind=CLIPTextModelWithProjection,
            config=TEXT_ENCODER_2,
            sources=open_clip_sources("conditioner.embedders.1.model."),
            pad_token="!",
        ),
    ),
)


class StableDiffusionXL(LatentDiffusion):
    """A frozen Stable Diffusion XL behind `contracts.BaseModel`."""

    @property
    def model_version(self) -> ModelVersion:
        """Return kohya's word, which is the same for v-prediction."""
        return "sdxl_base_v1-0"

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
            [*reversed(size.original), *reversed(size.crop), *reversed(size.target)]
            for size in sizes
        ]
        return {"sizes_B6": torch.tensor(rows, dtype=torch.float32, device=self.device)}

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

    def _call_unet(
        self, unet: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        added = {"text_embeds": conditioning["pooled_BE"], "time_ids": conditioning["sizes_B6"]}
        predicted: Tensor = unet(
            noisy.to(self.dtype),
            timesteps,
            conditioning["states_BTE"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return predicted


load = functools.partial(latent_diffusion.load, StableDiffusionXL, SINGLE_FILE)


def tiny(seed: int, *, predicts_v: bool = False) -> StableDiffusionXL:
    """Return a random Stable Diffusion XL of three levels, for tests; reads CLIP's own tokens."""
    tokenizers = tuple(
        clip_tokenizer(pad_token=file.pad_token) for file in SINGLE_FILE.text_encoders
    )
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
