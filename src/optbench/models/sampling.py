"""A request for pictures -> pictures, for every base with one unet and one autoencoder.

Shapes: B pictures, C latent channels, H and W latent height and width, P texts.
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
    """Return one picture per seed; noise is made on the CPU, so it is the same everywhere.

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
    conditioned = _by_step(model, texts, request)

    def predict(latents_BCHW: Tensor, timestep: Tensor, step_index: int) -> Tensor:
        conditioning = conditioned[step_index]
        if not is_guided:
            towards = {key: value[len(value) // 2 :] for key, value in conditioning.items()}
            return model.predict(latents_BCHW, timestep, towards)
        both = torch.cat([latents_BCHW, latents_BCHW])
        away, near = model.predict(both, timestep, conditioning).chunk(2)
        return away + request.cfg_scale * (near - away)

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


def _by_step(
    model: SamplingModel, texts: Sequence[str], request: SampleRequest
) -> list[Mapping[str, Tensor]]:
    """Return what the unet is told at each step, the negative prompts' rows first.

    Every text is encoded once, and all together, so that all are of one number of tokens.
    """
    steps = [at_steps(text, request.steps) for text in texts]
    first = [each[0] for each in steps]
    every = [*first, *dict.fromkeys(text for each in steps for text in each if text not in first)]
    encoded = model.encode(every, request.text_options)
    places = {text: every.index(text) for text in every}
    num_pictures = len(request.seeds)
    made: dict[tuple[int, ...], Mapping[str, Tensor]] = {}
    found = []
    for now in zip(*reversed(steps), strict=True):
        rows = tuple(places[text] for text in now)
        if rows not in made:
            index = [row for row in rows for _ in range(num_pictures)]
            made[rows] = {key: value[index] for key, value in encoded.items()}
        found.append(made[rows])
    return found
