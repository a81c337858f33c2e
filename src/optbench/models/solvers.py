"""From noise to latents: the loop over a sampler's steps, and solvers that diffusers has not.

All noise is made on the CPU in a stream per picture, so it is the same on every device and in every
batch. Every solver undoes dx/ds = (x - D(x, s)) / s (Karras et al., arXiv:2206.00364), in which a
noise level s is sqrt((1 - a) / a) and D is what a unet makes of x.

Shapes: B batch, C latent channels, H and W latent height and width, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from torch import Tensor

from optbench.models.diffusion import DiffusionProcess
from optbench.models.samplers import AUTOMATIC, Sampler

Predict = Callable[[Tensor, Tensor, int], Tensor]  # scaled latents, timestep, step -> prediction
_LMS_ORDER = 4
_KARRAS_RHO = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What pictures begin as: their first noise, and what goes on drawing it."""

    noise_BCHW: Tensor  # of variance 1, on the device and in the dtype of the unet
    generators: Sequence[torch.Generator]  # one per picture, on the CPU


def solve(
    predict: Predict, process: DiffusionProcess, sampler: Sampler, start: Start, *, num_steps: int
) -> Tensor:
    """Return latents like `start.noise_BCHW`; `predict` is told the step, counted from 0."""
    if sampler.solver in _FUNCTIONS:
        return _own(predict, process, sampler, start, num_steps)
    kind = getattr(diffusers, sampler.solver)
    settings = process.sampler_settings(kind)
    scheduler = kind(**{**settings, **sampler.settings}, steps_offset=1)
    scheduler.set_timesteps(num_steps, device=start.noise_BCHW.device)
    if sampler.schedule != AUTOMATIC:
        # Timesteps found from noise levels may round to equal ones, among which none can be found.
        scheduler.set_begin_index(0)
    more: dict[str, Any] = {"generator": list(start.generators)} if sampler.is_random else {}
    latents: Tensor = start.noise_BCHW * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        answer = predict(scheduler.scale_model_input(latents, timestep), timestep, index)
        latents = scheduler.step(answer, timestep, latents, **more, return_dict=False)[0]
    return latents


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """What an own solver is given: noise levels to go through, a denoiser, fresh noise."""

    sigmas: Sequence[float]  # S + 1, falling, the last one 0
    denoise: Callable[[Tensor, float, int], Tensor]  # x, level, step -> D
    fresh: Callable[[], Tensor]  # noise of variance 1


def _own(
    predict: Predict, process: DiffusionProcess, sampler: Sampler, start: Start, num_steps: int
) -> Tensor:
    levels_T = process.noise_levels()
    sigmas = _sigmas(levels_T, sampler, num_steps, is_trailing=process.is_zero_terminal)
    noise_BCHW = start.noise_BCHW
    logs_T = np.log(levels_T)

    def denoise(x_BCHW: Tensor, sigma: float, step_index: int) -> Tensor:
        place = np.interp(math.log(sigma), logs_T, np.arange(len(logs_T)))
        timestep = torch.tensor(float(place), device=x_BCHW.device)
        shrink = 1 / math.sqrt(sigma**2 + 1)
        answer = predict(x_BCHW * shrink, timestep, step_index)
        if process.prediction_type == "v_prediction":
            return x_BCHW * shrink**2 - answer * (sigma * shrink)
        return x_BCHW - answer * sigma

    def fresh() -> Tensor:
        drawn: Tensor = randn_tensor(
            noise_BCHW.shape,
            generator=list(start.generators),
            device=noise_BCHW.device,
            dtype=noise_BCHW.dtype,
        )
        return drawn

    way = _Way(sigmas=sigmas, denoise=denoise, fresh=fresh)
    return _FUNCTIONS[sampler.solver](noise_BCHW * sigmas[0], way)


def _sigmas(
    levels_T: NDArray[np.float64], sampler: Sampler, num_steps: int, *, is_trailing: bool
) -> list[float]:
    """Return the noise levels of a picture's steps, and 0 at their end."""
    lowest, highest = float(levels_T[0]), float(levels_T[-1])
    shares = np.linspace(0, 1, num_steps)
    if sampler.settings.get("use_karras_sigmas"):
        ends = highest ** (1 / _KARRAS_RHO), lowest ** (1 / _KARRAS_RHO)
        found = (ends[0] + shares * (ends[1] - ends[0])) ** _KARRAS_RHO
    elif sampler.settings.get("use_exponential_sigmas"):
        found = np.exp(math.log(highest) + shares * (math.log(lowest) - math.log(highest)))
    else:
        last = len(levels_T) - 1
        ending = last / num_steps if is_trailing else 0
        places = np.linspace(last, ending, num_steps) if num_steps > 1 else np.array([last])
        logs = np.interp(places, np.arange(len(levels_T)), np.log(levels_T))
        found = np.exp(logs)
    return [*found.tolist(), 0.0]


def _ancestral(now: float, then: float) -> tuple[float, float]:
    """Return where to go down to, and how much noise to add, to arrive at the level `then`."""
    up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
    return math.sqrt(then**2 - up**2), up


def lms(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after linear multistep steps: Adams and Bashforth's over uneven noise levels."""
    slopes: list[Tensor] = []
    for index in range(len(way.sigmas) - 1):
        now, then = way.sigmas[index], way.sigmas[index + 1]
        slopes.append((x_BCHW - way.denoise(x_BCHW, now, index)) / now)
        slopes = slopes[-_LMS_ORDER:]
        known = way.sigmas[index - len(slopes) + 1 : index + 1]
        for own, slope in enumerate(slopes):
            basis = Polynomial([1.0])
            for other, level in enumerate(known):
                if other != own:
                    basis *= Polynomial([-level, 1.0]) / (known[own] - level)
            whole = basis.integ()
            x_BCHW = x_BCHW + slope * float(whole(then) - whole(now))
    return x_BCHW


def heun(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after steps along the mean of both ends' slopes (arXiv:2206.00364, algorithm 1)."""
    for index in range(len(way.sigmas) - 1):
        now, then = way.sigmas[index], way.sigmas[index + 1]
        slope = (x_BCHW - way.denoise(x_BCHW, now, index)) / now
        end = x_BCHW + slope * (then - now)
        if then > 0:
            other = (end - way.denoise(end, then, index)) / then
            end = x_BCHW + (slope + other) * ((then - now) / 2)
        x_BCHW = end
    return x_BCHW


def dpm_2(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after steps along the slope half of the way in log(s) (arXiv:2206.00927)."""
    return _midpoints(x_BCHW, way, is_ancestral=False)


def dpm_2_ancestral(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after steps of `dpm_2` that go too far down, and up again by fresh noise."""
    return _midpoints(x_BCHW, way, is_ancestral=True)


def _midpoints(x_BCHW: Tensor, way: _Way, *, is_ancestral: bool) -> Tensor:
    for index in range(len(way.sigmas) - 1):
        now, then = way.sigmas[index], way.sigmas[index + 1]
        denoised = way.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        down, up = _ancestral(now, then) if is_ancestral else (then, 0.0)
        middle = math.sqrt(now * down)
        slope = (x_BCHW - denoised) / now
        half = x_BCHW + slope * (middle - now)
        slope = (half - way.denoise(half, middle, index)) / middle
        x_BCHW = x_BCHW + slope * (down - now)
        if is_ancestral:
            x_BCHW = x_BCHW + way.fresh() * up
    return x_BCHW


def dpmpp_2s_ancestral(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after steps of DPM-Solver++(2S) (Lu et al., arXiv:2211.01095), each with noise."""
    for index in range(len(way.sigmas) - 1):
        now, then = way.sigmas[index], way.sigmas[index + 1]
        denoised = way.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        down, up = _ancestral(now, then)
        middle = math.sqrt(now * down)  # half of the way in log(s)
        half = _moved(x_BCHW, denoised, now, middle)
        x_BCHW = _moved(x_BCHW, way.denoise(half, middle, index), now, down)
        x_BCHW = x_BCHW + way.fresh() * up
    return x_BCHW


def dpmpp_sde(x_BCHW: Tensor, way: _Way) -> Tensor:
    """Return x after steps of SDE-DPM-Solver++ of order 2, single-step, r = 1/2.

    The noise of a half step is a part of the whole step's, as on one Brownian path.
    """
    for index in range(len(way.sigmas) - 1):
        now, then = way.sigmas[index], way.sigmas[index + 1]
        denoised = way.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        middle = math.sqrt(now * then)
        first, second = way.fresh(), way.fresh()
        down, up = _ancestral(now, middle)
        half = _moved(x_BCHW, denoised, now, down) + first * up
        share = (now - middle) / (now - then)
        path = first * math.sqrt(share) + second * math.sqrt(1 - share)
        down, up = _ancestral(now, then)
        x_BCHW = _moved(x_BCHW, way.denoise(half, middle, index), now, down) + path * up
    return x_BCHW


def _moved(x_BCHW: Tensor, denoised_BCHW: Tensor, now: float, then: float) -> Tensor:
    """Return x at another noise level, if it denoises to the same everywhere on the way."""
    return x_BCHW * (then / now) + denoised_BCHW * (1 - then / now)


_FUNCTIONS: dict[str, Callable[[Tensor, _Way], Tensor]] = {
    "heun": heun,
    "lms": lms,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
}
