"""The diffusion of Stable Diffusion's families: what is left at each timestep, and at the last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from optbench.contracts import SampleRequest
from optbench.errors import ConfigError
from optbench.models import sd15
from optbench.models.diffusion import DiffusionProcess
from optbench.models.samplers import SAMPLERS
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text.clip import ClipTextOptions
from tests.builders.small_training import LOSS

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}

ZERO_TERMINAL = replace(LOSS, zero_terminal_snr=True)


def kept_by_hand() -> np.ndarray[Any, Any]:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept: np.ndarray[Any, Any] = np.cumprod(1 - betas)
    return kept


def test_what_is_left_is_the_product_of_what_each_step_leaves() -> None:
    # A thousand factors in float32.
    np.testing.assert_allclose(DiffusionProcess(CONFIG).alphas_cumprod_T, kept_by_hand(), rtol=1e-3)


def test_timesteps_stay_in_the_range_that_is_asked_for() -> None:
    draws = [torch.Generator().manual_seed(seed) for seed in range(500)]
    found = DiffusionProcess(CONFIG).sample_timesteps(
        draws, replace(LOSS, min_timestep=200, max_timestep=220)
    )
    assert (int(found.min()), int(found.max())) == (200, 219)
    assert found.dtype == torch.int64
    counts = torch.bincount(found - 200)
    assert int(counts.min()) > 5  # of 25 expected: odds below 1e-6 for any of the twenty


def test_zero_terminal_moves_the_end_to_zero_and_keeps_the_beginning() -> None:
    root = np.sqrt(kept_by_hand())
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    found = DiffusionProcess(CONFIG).zero_terminal().alphas_cumprod_T
    assert float(found[-1]) == 0
    assert float(found[0]) == pytest.approx(float(kept_by_hand()[0]), rel=1e-6)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-6)
    assert bool((found[1:] < found[:-1]).all())


def test_at_a_zero_end_the_input_is_noise_alone_and_v_is_the_picture() -> None:
    latents, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([999, 0])
    schedule = DiffusionProcess(CONFIG).zero_terminal()
    noisy = schedule.add_noise(latents, noise, timesteps)
    assert torch.equal(noisy[0], noise[0])
    assert torch.equal(schedule.target(latents, noise, timesteps)[0], -latents[0])
    plain = DiffusionProcess(CONFIG).add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy[1], plain[1])


def test_options_without_a_meaning_are_refused_together() -> None:
    short = DiffusionProcess({**CONFIG, "num_train_timesteps": 100})
    assert short.for_training(replace(LOSS, max_timestep=100)) is short
    with pytest.raises(ConfigError) as caught:
        short.for_training(replace(LOSS, max_timestep=101, v_pred_like_loss=1.0))
    places = [problem.where for problem in caught.value.problems]
    assert places == ["loss.v_pred_like_loss", "loss.max_timestep"]


def test_samplers_undo_the_schedule_that_was_trained_on() -> None:
    plain = DiffusionProcess(CONFIG)
    assert plain.sampler_settings(DDIMScheduler) == CONFIG
    assert plain.zero_terminal().sampler_settings(DDIMScheduler) == {
        **CONFIG,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    assert (
        plain.sampler_settings(DDIMScheduler) == CONFIG
    )  # another schedule was made, this one is as before


def v_base() -> StableDiffusion:
    base = sd15.tiny(3)
    base.process = DiffusionProcess(CONFIG)
    return base


def test_a_base_under_another_schedule_shares_its_weights_and_has_another_name() -> None:
    base = v_base()
    before = base.process.alphas_cumprod_T.clone()
    other = base.for_training(ZERO_TERMINAL)
    assert other.unet is base.unet
    assert other.fingerprint != base.fingerprint  # so that no picture is taken for the other's
    assert other.vae_fingerprint == base.vae_fingerprint  # latents are the same
    assert (base.process.prediction, other.process.prediction) == ("v", "v")
    assert float(other.process.alphas_cumprod_T[-1]) == 0
    assert torch.equal(base.process.alphas_cumprod_T, before)
    assert base.for_training(LOSS) is base


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_under_either_schedule(sampler: str) -> None:
    base = v_base()
    request = SampleRequest(
        text="a",
        negative="",
        seeds=(1,),
        width=32,
        height=32,
        cfg_scale=2.0,
        steps=4,
        sampler=sampler,
        text_options=ClipTextOptions(),
    )
    with torch.no_grad():
        plain, fixed = (
            np.asarray(one.sample(request)[0], dtype=np.int64)
            for one in (base, base.for_training(ZERO_TERMINAL))
        )
    assert plain.shape == fixed.shape == (32, 32, 3)
    assert np.ptp(fixed) > 4  # something is drawn: NaN would be black
    assert np.abs(plain - fixed).max() > 0
