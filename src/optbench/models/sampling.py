"""Sample images from a base model with one UNet, one autoencoder and DDPM's noise process.

Sampling is chosen per process: these solvers undo DDPM's noise and read members of
`DiffusionProcess` that `contracts.NoiseProcess` does not ask for. A flow process brings solvers of
its own, and its family's `sample` calls those.

Shapes: B images, C latent channels, H and W latent height and width, P texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from optbench.contracts import Conditioning, SampleRequest
from optbench.models import autoencoder
from optbench.models.diffusion import DiffusionProcess
from optbench.models.samplers import SAMPLERS
from optbench.models.solvers import Start, solve
from optbench.models.text.prompt_grammar import at_steps

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingModel:
    """The parts of a base model that make images."""

    unet: Any
    vae: Any
    process: DiffusionProcess
    # Texts -> what `predict` needs of each, leading size P, of one number of tokens.
    encode: Callable[[Sequence[str], Any], Conditioning]
    # Noisy latents, timestep, conditioning -> the unet's answer.
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor]


def sample_images(model: SamplingModel, request: SampleRequest) -> list[Image]:
    """Return one image per seed; noise is made on the CPU, so it is the same everywhere.

    Classifier-free guidance (Ho and Salimans, arXiv:2207.12598) where `cfg_scale` is above 1:
    n + cfg_scale * (p - n) with the answers n to the negative prompt and p to the prompt.
    """
    unet = model.unet
    size = autoencoder.pixels_per_latent(model.vae)
    noise_BCHW, generators = autoencoder.first_noise(
        unet, request.seeds, request.height // size, request.width // size
    )
    is_guided = request.cfg_scale > 1
    # Always two, for sums of one row are rounded otherwise; of no guidance only the first is used.
    texts = (request.text, request.negative if is_guided else "")
    conditioning_by_step = _conditioning_by_step(model, texts, request)

    def predict(latents_BCHW: Tensor, timestep: Tensor, step_index: int) -> Tensor:
        conditioning = conditioning_by_step[step_index]
        if not is_guided:
            of_prompt = {key: value[len(value) // 2 :] for key, value in conditioning.items()}
            return model.predict(latents_BCHW, timestep, of_prompt)
        both = torch.cat([latents_BCHW, latents_BCHW])
        negative, positive = model.predict(both, timestep, conditioning).chunk(2)
        return negative + request.cfg_scale * (positive - negative)

    latents = solve(
        predict,
        model.process,
        SAMPLERS[request.sampler],
        Start(noise_BCHW=noise_BCHW.to(unet.device, unet.dtype), generators=generators),
        num_steps=request.steps,
    )
    pixels = autoencoder.decode(model.vae, latents)
    images: list[Image] = VaeImageProcessor().postprocess(pixels)
    return images


def _conditioning_by_step(
    model: SamplingModel, texts: Sequence[str], request: SampleRequest
) -> list[Mapping[str, Tensor]]:
    """Return the UNet's conditioning at each step, the negative prompts' rows first.

    Every text is encoded once, and all together, so that all are of one number of tokens.
    """
    steps = [at_steps(text, request.steps) for text in texts]
    first = [prompts[0] for prompts in steps]
    others = (text for prompts in steps for text in prompts if text not in first)
    unique = [*first, *dict.fromkeys(others)]
    encoded = model.encode(unique, request.text_options)
    row_of = {text: unique.index(text) for text in unique}
    repeated: dict[tuple[int, ...], Mapping[str, Tensor]] = {}  # for all seeds, by its two rows
    conditionings = []
    for prompts_of_step in zip(*reversed(steps), strict=True):
        rows = tuple(row_of[text] for text in prompts_of_step)
        if rows not in repeated:
            index = [row for row in rows for _ in request.seeds]
            repeated[rows] = {key: value[index] for key, value in encoded.items()}
        conditionings.append(repeated[rows])
    return conditionings
