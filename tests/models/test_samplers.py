"""Every sampler draws a known distribution from a perfect model of it.

For pictures x ~ N(m, s^2) the noise in x_t = sqrt(a) x + sqrt(1 - a) e is known exactly:
E[e | x_t] = sqrt(1 - a) (x_t - sqrt(a) m) / (a s^2 + 1 - a). The probability-flow ODE (Song et al.,
arXiv:2011.13456, section 4.3) takes x_T = sqrt(a_T) m + sqrt(a_T s^2 + 1 - a_T) z to m + s z.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.config.rules import check_sampler
from optbench.models import solvers
from optbench.models.diffusion import DiffusionProcess
from optbench.models.samplers import SAMPLERS
from optbench.models.solvers import Start, solve

MEAN, SPREAD = 1.5, 0.5
# Stable Diffusion 1.5's scheduler/scheduler_config.json.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
A1111 = (
    *("DDIM", "UniPC", "Euler", "Euler a", "Heun", "LMS", "DPM2", "DPM2 a", "DPM++ 2S a"),
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
)
RANDOM = {"Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"}
TWICE = {"Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE"}  # ask the unet twice for a step
EXACT = [name for name, sampler in SAMPLERS.items() if not sampler.is_random]


def kept_at(timestep: Tensor, kept_T: Tensor | None = None) -> Tensor:
    """Return a, the share of the picture's variance that is left, between timesteps too."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept_T = (1 - betas).cumprod(0) if kept_T is None else kept_T.double().clamp(min=2.0**-24)
    logs = (1 / kept_T - 1).log() / 2  # of the noise level, which samplers interpolate
    low = timestep.double().floor().clamp(0, 998).long()
    share = timestep.double() - low
    level = ((1 - share) * logs[low] + share * logs[low + 1]).exp()
    return 1 / (1 + level**2)


def noise_in(noisy: Tensor, timestep: Tensor, kept_T: Tensor) -> Tensor:
    kept = kept_at(timestep, kept_T)
    return (1 - kept).sqrt() * (noisy - kept.sqrt() * MEAN) / (kept * SPREAD**2 + 1 - kept)


def velocity_in(noisy: Tensor, timestep: Tensor, kept_T: Tensor) -> Tensor:
    """Return v = sqrt(a) e - sqrt(1 - a) x (Salimans and Ho, arXiv:2202.00512)."""
    kept, noise = kept_at(timestep, kept_T), noise_in(noisy, timestep, kept_T)
    picture = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
    return kept.sqrt() * noise - (1 - kept).sqrt() * picture


def draw(
    name: str,
    *,
    num_steps: int,
    kind: str = "epsilon",
    asked: list[tuple[float, int]] | None = None,
    is_zero_terminal: bool = False,
) -> list[Tensor]:
    """Return 4096 draws z and the pictures made of them, through the loop that bases use."""
    schedule = DiffusionProcess(
        {**SCHEDULE, "prediction_type": kind}, is_zero_terminal=is_zero_terminal
    )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 1, 64, 64, generator=generator, dtype=torch.float64)
    model = velocity_in if kind == "v_prediction" else noise_in

    def predict(latents: Tensor, timestep: Tensor, step_index: int) -> Tensor:
        if asked is not None:
            asked.append((float(timestep), step_index))
        return model(latents.double(), timestep.double(), schedule.alphas_cumprod_T)

    # Where the way begins, a little of the picture is left.
    kept = 0.0 if is_zero_terminal else float(kept_at(torch.tensor(999.0)))
    begin = kept**0.5 * MEAN + (kept * SPREAD**2 + 1 - kept) ** 0.5 * drawn
    start = Start(noise_BCHW=begin, generators=[generator])
    return [drawn, solve(predict, schedule, SAMPLERS[name], start, num_steps=num_steps)]


def test_the_names_are_a1111s() -> None:
    assert {sampler.name for sampler in SAMPLERS.values()} == set(A1111)
    assert {"DPM++ 2M Karras", "DPM++ SDE Karras", "LMS Karras", "DPM2 a Karras"} <= set(SAMPLERS)
    for name, sampler in SAMPLERS.items():
        assert name in (sampler.name, f"{sampler.name} {sampler.schedule}")
        assert sampler.is_random == (sampler.name in RANDOM)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "epsilon") for name in SAMPLERS), *((name, "v_prediction") for name in A1111)],
)
def test_a_sampler_draws_the_distribution_of_the_pictures(name: str, kind: str) -> None:
    # Noise that is added step by step makes the error fall like the steps' size only.
    num_steps = 200 if SAMPLERS[name].is_random else 50
    _, found = draw(name, num_steps=num_steps, kind=kind)
    # 4096 draws: the mean is known to 0.008 and the spread to 0.006, one standard deviation each.
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(found.std()) == pytest.approx(SPREAD, abs=0.04)


@pytest.mark.parametrize("name", [*A1111, "DPM++ 2M Karras", "DPM++ SDE Karras"])
def test_a_schedule_that_ends_in_pure_noise_is_sampled_from_that_end(name: str) -> None:
    asked: list[tuple[float, int]] = []
    num_steps = 200 if SAMPLERS[name].is_random else 60
    _, found = draw(
        name, num_steps=num_steps, kind="v_prediction", asked=asked, is_zero_terminal=True
    )
    assert asked[0][0] == pytest.approx(999, abs=1e-3)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.06)
    assert float(found.std()) == pytest.approx(SPREAD, abs=0.05)


@pytest.mark.parametrize("name", EXACT)
def test_more_steps_come_closer_to_the_exact_solution(name: str) -> None:
    errors = []
    for num_steps in (24, 150):
        drawn, found = draw(name, num_steps=num_steps)
        errors.append(float((found - MEAN - SPREAD * drawn).abs().max()))
    # 0.015: some start from noise of sigma_T, not of sqrt(1 + sigma_T^2).
    assert errors[1] < max(errors[0] / 2, 0.015 * SPREAD)
    assert errors[1] < 0.12 * SPREAD


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_counted_and_asked_for(name: str) -> None:
    """Prompt editing goes by these numbers."""
    for num_steps in (2, 9):
        asked: list[tuple[float, int]] = []
        draw(name, num_steps=num_steps, asked=asked)
        steps = [step for _, step in asked]
        assert sorted(set(steps)) == list(range(num_steps))
        assert steps == sorted(steps)
        num_extra = num_steps - 1 if SAMPLERS[name].name in TWICE else 0
        assert len(asked) == num_steps + num_extra
        assert all(0 <= timestep <= 999 for timestep, _ in asked)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_fresh_noise_is_the_pictures_own(name: str) -> None:
    """Each picture of a batch gets the noise it would get alone; its seed alone decides it."""
    schedule = DiffusionProcess(SCHEDULE)

    def made(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(1, 4, 4, generator=one) for one in generators])
        start = Start(noise_BCHW=noise, generators=generators)
        return solve(lambda x, *_: x / 2, schedule, SAMPLERS[name], start, num_steps=5)

    together = made(1, 2, 3)
    assert torch.equal(together, torch.cat([made(1), made(2), made(3)]))
    assert not torch.allclose(together[0], together[1])


def test_linear_multistep_is_exact_where_the_slope_is_a_polynomial() -> None:
    """Four levels make a cubic: of dx/ds = s^3 the solver's last step is exact."""
    sigmas = [9.0, 7.0, 4.0, 2.5, 1.0, 0.0]
    seen: list[float] = []

    def denoise(x: Tensor, sigma: float, step_index: int) -> Tensor:
        seen.append(float(x))
        return x - sigma * sigma**3

    way = solvers._Ode(sigmas=sigmas, denoise=denoise, fresh=lambda: torch.zeros(()))
    found = float(solvers.lms(torch.tensor(5.0, dtype=torch.float64), way))
    assert seen[4] - seen[3] == pytest.approx((1.0**4 - 2.5**4) / 4, rel=1e-12)
    assert found - seen[4] == pytest.approx(-1 / 4, rel=1e-12)
    assert seen[1] - seen[0] == pytest.approx(9.0**3 * (7 - 9), rel=1e-12)  # one slope: Euler's


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("euler a", "Euler a"),
        ("Euler A", "Euler a"),
        ("DPM++ 2M Karas", "DPM++ 2M Karras"),
        ("dpmpp_2m_sde", "DPM++ 2M SDE"),
        ("Restart", None),
        ("", None),
    ],
)
def test_unknown_names_are_refused_and_near_ones_told(name: str, near: str | None) -> None:
    (problem,) = check_sampler("render.sampler", name)
    assert problem.where == "render.sampler"
    assert all(known in problem.expected for known in A1111)
    assert near is None or near in problem.fix


def test_known_names_are_not_refused() -> None:
    for name in SAMPLERS:
        assert check_sampler("render.sampler", name) == []
