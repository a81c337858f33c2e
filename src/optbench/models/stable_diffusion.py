"""Stable Diffusion 1.x and 2.x: one text encoder, one UNet. `sd15` and `sd2` load it.

Shapes: B batch, P prompts, K pieces of a text, T tokens, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from optbench.contracts import Conditioning, TextOptions
from optbench.models.compute import text_model
from optbench.models.files.families import FAMILIES
from optbench.models.latent_diffusion import LatentDiffusion
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.models.text import clip, prompt_weights
from optbench.records import LoraTarget, ModelVersion, Sizes


class StableDiffusion(LatentDiffusion):
    """A frozen Stable Diffusion 1.x or 2.x behind `contracts.BaseModel`."""

    @property
    def tokenizer(self) -> Any:
        """Return the only tokenizer."""
        return self.tokenizers[0]

    @property
    def text_encoder(self) -> Any:
        """Return the only text encoder."""
        return self.text_encoders[0]

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

    def encode_captions(self, captions: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE"}: the text encoder's states of 77, 152 or 227 tokens.

        With `clip_skip` n the states after the n-th last layer, through the final norm, as A1111.
        """
        pieces_BKT = clip.token_pieces(
            self.tokenizer, captions, max_token_length=options.max_tokens
        ).to(self.device)
        return {"states_BTE": clip.joined_states(self._states(pieces_BKT, options))}

    def encode_sizes(self, sizes: Sequence[Sizes]) -> Conditioning:
        """Return nothing: this family is not told the sizes of images."""
        return {}

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA under kohya's names, text encoder first."""
        family = FAMILIES[self.family]
        return (*text_targets(self.text_encoder, family), *unet_targets(self.unet, family))

    def _encode_prompts(self, prompts: Sequence[str], options: TextOptions) -> Conditioning:
        """Return {"states_BTE"} of prompts, whose grammar is read and whose length is any."""
        ids_PKT, weights_PKT = prompt_weights.prompt_tokens(self.tokenizer, prompts)
        states_PKTE = self._states(ids_PKT.to(self.device), options)
        states_PKTE = prompt_weights.emphasize(states_PKTE, weights_PKT)
        return {"states_BTE": prompt_weights.side_by_side(states_PKTE)}

    def _states(self, pieces_BKT: Tensor, options: TextOptions) -> Tensor:
        clip_skip = clip.options(options).clip_skip
        layer = None if clip_skip == 1 else -clip_skip
        states_BKTE, _ = clip.encoded(self.text_encoder, pieces_BKT, layer=layer)
        if layer is not None:
            states_BKTE = text_model(self.text_encoder).final_layer_norm(states_BKTE)
        return states_BKTE

    def _call_unet(
        self, unet: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        states = conditioning["states_BTE"]
        predicted: Tensor = unet(noisy.to(self.dtype), timesteps, states, return_dict=False)[0]
        return predicted
