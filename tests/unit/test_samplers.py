"""Every sampler draws a known distribution from a perfect model of it.

For pictures x ~ N(m, s^2) the noise in x_t = sqrt(a) x + sqrt(1 - a) e is known exactly:
E[e | x_t] = sqrt(1 - a) (x_t - sqrt(a) m) / (a s^2 + 1 - a). The probability-flow ODE (Song et al.,
arXiv:2011.13456, section 4.3) takes x_T = sqrt(a_T) m + sqrt(a_T s^2 + 1 - a_T) z to m + s z.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from optbench.checks import check_render
from optbench.options import RenderOptions
from optbench.samplers import SAMPLERS

MEAN, SPREAD = 1.5, 0.5
# Stable Diffusion 1.5's scheduler/scheduler_config.json.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
RANDOM = {"Euler a"}
A1111 = ("DDIM", "DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a", "UniPC")


def build(name: str, **changes: Any) -> Any:
    """Return the sampler as a base builds it."""
    class_name, settings = SAMPLERS[name]
    return getattr(diffusers, class_name)(**SCHEDULE, **settings, steps_offset=1, **changes)


def kept_at(timestep: Tensor) -> Tensor:
    """Return a, the share of the picture's variance that is left, between timesteps too."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    logs = (1 - betas).cumprod(0).log()
    low = timestep.double().floor().clamp(0, 998).long()
    share = timestep.double() - low
    return ((1 - share) * logs[low] + share * logs[low + 1]).exp()


def noise_in(noisy: Tensor, timestep: Tensor) -> Tensor:
    kept = kept_at(timestep)
    return (1 - kept).sqrt() * (noisy - kept.sqrt() * MEAN) / (kept * SPREAD**2 + 1 - kept)


def velocity_in(noisy: Tensor, timestep: Tensor) -> Tensor:
    """Return v = sqrt(a) e - sqrt(1 - a) x (Salimans and Ho, arXiv:2202.00512)."""
    kept, noise = kept_at(timestep), noise_in(noisy, timestep)
    picture = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
    return kept.sqrt() * noise - (1 - kept).sqrt() * picture


def draw(name: str, *, num_steps: int, model: Any = noise_in, **changes: Any) -> list[Tensor]:
    """Return 4096 draws z and the pictures made of them, as diffusers' pipelines call a sampler."""
    sampler = build(name, **changes)
    sampler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 1, 64, 64, generator=generator, dtype=torch.float64)
    kept = kept_at(torch.tensor(999.0))
    start = kept.sqrt() * MEAN + (kept * SPREAD**2 + 1 - kept).sqrt() * drawn
    latents = start * sampler.init_noise_sigma
    more = {"generator": generator} if name in RANDOM else {}
    for timestep in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, timestep)
        latents = sampler.step(model(scaled, timestep), timestep, latents, **more).prev_sample
    return [drawn, latents]


def test_the_names_are_a1111s() -> None:
    assert sorted(SAMPLERS) == sorted(A1111)


@pytest.mark.parametrize("name", A1111)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_sampler_draws_the_distribution_of_the_pictures(name: str, prediction: str) -> None:
    model = velocity_in if prediction == "v_prediction" else noise_in
    # Noise that is added step by step makes the error fall like the steps' size only.
    num_steps = 400 if name in RANDOM else 100
    _, found = draw(name, num_steps=num_steps, model=model, prediction_type=prediction)
    # 4096 draws: the mean is known to 0.008 and the spread to 0.006, one standard deviation each.
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(found.std()) == pytest.approx(SPREAD, abs=0.03)


@pytest.mark.parametrize("name", [one for one in A1111 if one not in RANDOM])
def test_more_steps_come_closer_to_the_exact_solution(name: str) -> None:
    errors = []
    for num_steps in (24, 200):
        drawn, found = draw(name, num_steps=num_steps)
        errors.append(float((found - MEAN - SPREAD * drawn).abs().max()))
    # 0.01: diffusers starts some of them from noise of sigma_T, not of sqrt(1 + sigma_T^2).
    assert errors[1] < max(errors[0] / 2, 0.01 * SPREAD)
    assert errors[1] < 0.1 * SPREAD


@pytest.mark.parametrize("name", A1111)
def test_a_sampler_is_asked_for_as_many_steps_as_are_rendered(name: str) -> None:
    for num_steps in (1, 2, 24):
        sampler = build(name)
        sampler.set_timesteps(num_steps)
        assert len(sampler.timesteps) == num_steps
        assert 0 <= float(sampler.timesteps.min()) <= float(sampler.timesteps.max()) <= 999


@pytest.mark.parametrize("name", [*A1111, "euler a", "Euler A", "DPM++ SDE", ""])
def test_unknown_names_are_refused_and_the_known_ones_told(name: str) -> None:
    options = RenderOptions(
        enabled=True, seeds=(1,), cfg_scale=7.0, steps=20, sampler=name, batch_size=1
    )
    problems = check_render(options)
    assert [problem.where for problem in problems] == ["render.sampler"] * (name not in A1111)
    assert all(known in problem.expected for problem in problems for known in A1111)
