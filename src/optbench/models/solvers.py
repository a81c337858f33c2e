"""Solve from noise to latents: the loop over a sampler's steps, and solvers diffusers lacks.

All noise is made on the CPU in a stream per image, so it is the same on every device and in every
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
    """The first noise of images, and the generators that draw more of it."""

    noise_BCHW: Tensor  # of variance 1, on the device and in the dtype of the unet
    generators: Sequence[torch.Generator]  # one per image, on the CPU


def solve(
    predict: Predict, process: DiffusionProcess, sampler: Sampler, start: Start, *, num_steps: int
) -> Tensor:
    """Return latents like `start.noise_BCHW`; `predict` is told the step, counted from 0."""
    if sampler.solver in _FUNCTIONS:
        return _solve_with_ours(predict, process, sampler, start, num_steps)
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
        predicted = predict(scheduler.scale_model_input(latents, timestep), timestep, index)
        latents = scheduler.step(predicted, timestep, latents, **more, return_dict=False)[0]
    return latents


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ode:
    """What one of our solvers is given: noise levels to go through, a denoiser, fresh noise."""

    sigmas: Sequence[float]  # S + 1, falling, the last one 0
    denoise: Callable[[Tensor, float, int], Tensor]  # x, level, step -> D
    fresh: Callable[[], Tensor]  # noise of variance 1


def _solve_with_ours(
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
        predicted = predict(x_BCHW * shrink, timestep, step_index)
        return process.denoised(x_BCHW, predicted, sigma)

    def fresh() -> Tensor:
        drawn: Tensor = randn_tensor(
            noise_BCHW.shape,
            generator=list(start.generators),
            device=noise_BCHW.device,
            dtype=noise_BCHW.dtype,
        )
        return drawn

    ode = _Ode(sigmas=sigmas, denoise=denoise, fresh=fresh)
    return _FUNCTIONS[sampler.solver](noise_BCHW * sigmas[0], ode)


def _sigmas(
    levels_T: NDArray[np.float64], sampler: Sampler, num_steps: int, *, is_trailing: bool
) -> list[float]:
    """Return the noise levels of an image's steps, and 0 at their end."""
    lowest, highest = float(levels_T[0]), float(levels_T[-1])
    shares = np.linspace(0, 1, num_steps)
    if sampler.settings.get("use_karras_sigmas"):
        ends = highest ** (1 / _KARRAS_RHO), lowest ** (1 / _KARRAS_RHO)
        sigmas = (ends[0] + shares * (ends[1] - ends[0])) ** _KARRAS_RHO
    elif sampler.settings.get("use_exponential_sigmas"):
        sigmas = np.exp(math.log(highest) + shares * (math.log(lowest) - math.log(highest)))
    else:
        last = len(levels_T) - 1
        ending = last / num_steps if is_trailing else 0
        places = np.linspace(last, ending, num_steps) if num_steps > 1 else np.array([last])
        logs = np.interp(places, np.arange(len(levels_T)), np.log(levels_T))
        sigmas = np.exp(logs)
    return [*sigmas.tolist(), 0.0]


def _ancestral(now: float, then: float) -> tuple[float, float]:
    """Return where to go down to, and how much noise to add, to arrive at the level `then`."""
    up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
    return math.sqrt(then**2 - up**2), up


def lms(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after linear multistep steps: Adams and Bashforth's over uneven noise levels."""
    slopes: list[Tensor] = []
    for index in range(len(ode.sigmas) - 1):
        now, then = ode.sigmas[index], ode.sigmas[index + 1]
        slopes.append((x_BCHW - ode.denoise(x_BCHW, now, index)) / now)
        slopes = slopes[-_LMS_ORDER:]
        known = ode.sigmas[index - len(slopes) + 1 : index + 1]
        for node, slope in enumerate(slopes):
            basis = Polynomial([1.0])
            for other, level in enumerate(known):
                if other != node:
                    basis *= Polynomial([-level, 1.0]) / (known[node] - level)
            whole = basis.integ()
            x_BCHW = x_BCHW + slope * float(whole(then) - whole(now))
    return x_BCHW


def heun(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after steps along the mean of both ends' slopes (arXiv:2206.00364, algorithm 1)."""
    for index in range(len(ode.sigmas) - 1):
        now, then = ode.sigmas[index], ode.sigmas[index + 1]
        slope = (x_BCHW - ode.denoise(x_BCHW, now, index)) / now
        end = x_BCHW + slope * (then - now)
        if then > 0:
            other = (end - ode.denoise(end, then, index)) / then
            end = x_BCHW + (slope + other) * ((then - now) / 2)
        x_BCHW = end
    return x_BCHW


def dpm_2(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after steps along the slope half of the way in log(s) (arXiv:2206.00927)."""
    return _midpoints(x_BCHW, ode, is_ancestral=False)


def dpm_2_ancestral(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after steps of `dpm_2` that go too far down, and up again by fresh noise."""
    return _midpoints(x_BCHW, ode, is_ancestral=True)


def _midpoints(x_BCHW: Tensor, ode: _Ode, *, is_ancestral: bool) -> Tensor:
    for index in range(len(ode.sigmas) - 1):
        now, then = ode.sigmas[index], ode.sigmas[index + 1]
        denoised = ode.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        down, up = _ancestral(now, then) if is_ancestral else (then, 0.0)
        middle = math.sqrt(now * down)
        slope = (x_BCHW - denoised) / now
        half = x_BCHW + slope * (middle - now)
        slope = (half - ode.denoise(half, middle, index)) / middle
        x_BCHW = x_BCHW + slope * (down - now)
        if is_ancestral:
            x_BCHW = x_BCHW + ode.fresh() * up
    return x_BCHW


def dpmpp_2s_ancestral(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after steps of DPM-Solver++(2S) (Lu et al., arXiv:2211.01095), each with noise."""
    for index in range(len(ode.sigmas) - 1):
        now, then = ode.sigmas[index], ode.sigmas[index + 1]
        denoised = ode.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        down, up = _ancestral(now, then)
        middle = math.sqrt(now * down)  # half of the way in log(s)
        half = _moved(x_BCHW, denoised, now, middle)
        x_BCHW = _moved(x_BCHW, ode.denoise(half, middle, index), now, down)
        x_BCHW = x_BCHW + ode.fresh() * up
    return x_BCHW


def dpmpp_sde(x_BCHW: Tensor, ode: _Ode) -> Tensor:
    """Return x after steps of SDE-DPM-Solver++ of order 2, single-step, r = 1/2.

    The noise of a half step is a part of the whole step's, as on one Brownian path.
    """
    for index in range(len(ode.sigmas) - 1):
        now, then = ode.sigmas[index], ode.sigmas[index + 1]
        denoised = ode.denoise(x_BCHW, now, index)
        if then == 0:
            return denoised
        middle = math.sqrt(now * then)
        first, second = ode.fresh(), ode.fresh()
        down, up = _ancestral(now, middle)
        half = _moved(x_BCHW, denoised, now, down) + first * up
        share = (now - middle) / (now - then)
        path = first * math.sqrt(share) + second * math.sqrt(1 - share)
        down, up = _ancestral(now, then)
        x_BCHW = _moved(x_BCHW, ode.denoise(half, middle, index), now, down) + path * up
    return x_BCHW


def _moved(x_BCHW: Tensor, denoised_BCHW: Tensor, now: float, then: float) -> Tensor:
    """Return x at another noise level, if it denoises to the same everywhere on the ode."""
    return x_BCHW * (then / now) + denoised_BCHW * (1 - then / now)


_FUNCTIONS: dict[str, Callable[[Tensor, _Ode], Tensor]] = {
    "heun": heun,
    "lms": lms,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
}
