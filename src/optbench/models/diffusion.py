"""The diffusion that Stable Diffusion's families share: how much noise at which timestep.

Shapes: B batch, C latent channels, H and W latent height and width, T timesteps of the schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor

from optbench.contracts import PredictionType
from optbench.errors import ConfigError, Problem

_LEAST_KEPT = 2.0**-24


class NoiseSchedule:
    """How a picture x becomes sqrt(a_t) x + sqrt(1 - a_t) e, and what a unet is to find in that.

    `prediction_type` is "epsilon" or "v_prediction"; `alphas_cumprod_T` are the a_t, float32, CPU.
    """

    def __init__(self, config: Mapping[str, Any], *, is_zero_terminal: bool = False) -> None:
        """Work out the schedule of a scheduler_config.json.

        With `is_zero_terminal` nothing of a picture is left at the last timestep: sqrt(a) is moved
        and stretched so that the last one is 0 and the first one is as before (Lin et al., Common
        Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891, algorithm 1).
        """
        self._config = {"prediction_type": "epsilon", **config}
        self.is_zero_terminal = is_zero_terminal
        # Without it the keys are those of always; samplers of the library know the same two.
        self._ending: dict[str, Any] = {"rescale_betas_zero_snr": True} if is_zero_terminal else {}
        self._noiser = DDPMScheduler(**self._config, **self._ending)
        self.prediction_type: PredictionType = self._config["prediction_type"]
        self.alphas_cumprod_T: Tensor = self._noiser.alphas_cumprod.clone()

    def zero_terminal(self) -> NoiseSchedule:
        """Return this schedule with nothing of a picture left at its end."""
        return NoiseSchedule(self._config, is_zero_terminal=True)

    def sampler_settings(self, *, knows_zero_terminal: bool = True) -> dict[str, Any]:
        """Return what a sampler of diffusers must be told, so that it undoes this noise.

        A schedule that ends in pure noise is sampled from that very end (trailing spacing). A
        sampler that does not know such schedules is given their betas, whose end is almost pure.
        """
        if not self.is_zero_terminal:
            return dict(self._config)
        spacing = {"timestep_spacing": "trailing"}
        if knows_zero_terminal:
            return {**self._config, **self._ending, **spacing}
        kept_T = self._kept().double()
        betas_T = 1 - kept_T / torch.cat([torch.ones(1, dtype=torch.float64), kept_T[:-1]])
        return {**self._config, **spacing, "trained_betas": betas_T.tolist()}

    def noise_levels(self) -> NDArray[np.float64]:
        """Return the noise level sqrt((1 - a_t) / a_t) of every timestep; all are finite."""
        kept_T = self._kept().double().numpy()
        levels: NDArray[np.float64] = np.sqrt((1 - kept_T) / kept_T)
        return levels

    def _kept(self) -> Tensor:
        # As the library's own samplers: what is left of the picture at the end is no division by 0.
        return self.alphas_cumprod_T.clamp(min=_LEAST_KEPT)

    def sample_timesteps(
        self,
        generators: Sequence[torch.Generator],
        *,
        min_timestep: int = 0,
        max_timestep: int | None = None,
    ) -> Tensor:
        """Return uniform timesteps in [`min_timestep`, `max_timestep`), int64 (B,), on the CPU.

        Raises:
            ConfigError: If `max_timestep` lies behind the schedule's end.
        """
        num_all = len(self.alphas_cumprod_T)
        limit = num_all if max_timestep is None else max_timestep
        if limit > num_all:
            raise ConfigError(
                Problem(
                    "loss.max_timestep",
                    str(max_timestep),
                    f"at most {num_all}, the timesteps this base knows",
                    f"write loss.max_timestep={num_all}, or null for all",
                )
            )
        return torch.cat(
            [torch.randint(min_timestep, limit, (1,), generator=one) for one in generators]
        )

    def noisy_and_target(
        self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return sqrt(a) x + sqrt(1 - a) e and what to find in it.

        That is e, or v = sqrt(a) e - sqrt(1 - a) x (Salimans and Ho, Progressive Distillation,
        arXiv:2202.00512, appendix D).
        """
        noisy_BCHW = self._noiser.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        if self.prediction_type == "v_prediction":
            return noisy_BCHW, self._noiser.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
        return noisy_BCHW, noise_BCHW


_TARGETS = ("epsilon", "v_prediction")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SCHEDULE_KEYS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")

# Stable Diffusion's own, for files that carry none.
STABLE_DIFFUSION_SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def read_schedule(path: Path) -> Mapping[str, Any]:
    """Return the noise schedule and what the unet predicts, "epsilon" where nothing is said.

    Raises:
        OSError, ValueError: If the file is missing, damaged, or of a model nobody trains here.
    """
    schedule = {"prediction_type": "epsilon", **json.loads(path.read_text(encoding="utf-8"))}
    if absent := [key for key in _SCHEDULE_KEYS if key not in schedule]:
        raise ValueError(f"no {', '.join(absent)}")
    for key, known in (("prediction_type", _TARGETS), ("beta_schedule", _BETA_SCHEDULES)):
        if schedule[key] not in known:
            raise ValueError(f"{key} {schedule[key]!r}, not one of {', '.join(known)}")
    return {key: schedule[key] for key in (*_SCHEDULE_KEYS, "prediction_type")}


def with_prediction(schedule: Mapping[str, Any], predicts_v: bool | None) -> Mapping[str, Any]:
    """Return the schedule with what the unet predicts; None leaves it as the checkpoint says."""
    if predicts_v is None:
        return schedule
    return {**schedule, "prediction_type": "v_prediction" if predicts_v else "epsilon"}
