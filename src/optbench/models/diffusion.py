"""DDPM, the noise process of Stable Diffusion's families, predicting the noise or v.

The signal-to-noise ratio of timestep t is SNR = a / (1 - a), where a = `alphas_cumprod_T[t]` is the
share of the image's variance that is left. It is that of the schedule the run trains on,
zero-terminal or not (docs/decisions/0008).

Shapes: B batch, C latent channels, H and W latent height and width, T timesteps of the schedule.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor

from optbench.errors import ConfigError, Problem
from optbench.models.files.processes import PredictionType, check_loss
from optbench.schema import LossOptions
from optbench.storage.disk import read_text

_MIN_ALPHA = 2.0**-24
_MAX_SNR = 1000.0  # kohya's: cleaner images than this are weighted as if they had it


class DiffusionProcess:
    """`contracts.NoiseProcess` of DDPM: an image x becomes sqrt(a_t) x + sqrt(1 - a_t) e.

    `prediction_type` is "epsilon" or "v_prediction"; `alphas_cumprod_T` are the a_t, float32, CPU.
    """

    def __init__(self, config: Mapping[str, Any], *, is_zero_terminal: bool = False) -> None:
        """Work out the schedule of a scheduler_config.json.

        With `is_zero_terminal` nothing of an image is left at the last timestep: sqrt(a) is moved
        and stretched so that the last one is 0 and the first one is as before (Lin et al., Common
        Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891, algorithm 1).
        """
        self.config = {"prediction_type": "epsilon", **config}
        self.is_zero_terminal = is_zero_terminal
        # Only where needed: older schedulers of the library do not know the argument.
        self._ending: dict[str, Any] = {"rescale_betas_zero_snr": True} if is_zero_terminal else {}
        self._scheduler = DDPMScheduler(**self.config, **self._ending)
        self.prediction_type: PredictionType = self.config["prediction_type"]
        self.alphas_cumprod_T: Tensor = self._scheduler.alphas_cumprod.clone()
        self.num_timesteps = len(self.alphas_cumprod_T)
        self.prediction = "v" if self.prediction_type == "v_prediction" else "epsilon"

    def for_training(self, options: LossOptions) -> DiffusionProcess:
        """Return this process, or its zero-terminal form where `zero_terminal_snr` is on.

        Raises:
            ConfigError: Naming the options that are meant for the other kind of prediction, and a
                `max_timestep` behind the schedule's end.
        """
        problems = check_loss(options, self.prediction_type)
        if options.max_timestep is not None and options.max_timestep > self.num_timesteps:
            problems.append(
                Problem(
                    "loss.max_timestep",
                    str(options.max_timestep),
                    f"at most {self.num_timesteps}, the timesteps this base knows",
                    f"write loss.max_timestep={self.num_timesteps}, or null for all",
                )
            )
        if problems:
            raise ConfigError(*problems)
        return self.zero_terminal() if options.zero_terminal_snr else self

    def zero_terminal(self) -> DiffusionProcess:
        """Return this process with nothing of an image left at its end."""
        return DiffusionProcess(self.config, is_zero_terminal=True)

    def sample_timesteps(
        self, generators: Sequence[torch.Generator], options: LossOptions
    ) -> Tensor:
        """Return uniform timesteps in [`min_timestep`, `max_timestep`), int64 (B,), on the CPU."""
        limit = self.num_timesteps if options.max_timestep is None else options.max_timestep
        return torch.cat(
            [
                torch.randint(options.min_timestep, limit, (1,), generator=generator)
                for generator in generators
            ]
        )

    def validation_timesteps(self, timesteps: Sequence[int]) -> Tensor:
        """Return the same timesteps as a tensor, int64 (B,)."""
        return torch.tensor(list(timesteps))

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return sqrt(a) x + sqrt(1 - a) e."""
        noisy_BCHW: Tensor = self._scheduler.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        return noisy_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return e, or v = sqrt(a) e - sqrt(1 - a) x.

        v: Salimans and Ho, Progressive Distillation, arXiv:2202.00512, appendix D.
        """
        if self.prediction_type == "v_prediction":
            v_BCHW: Tensor = self._scheduler.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
            return v_BCHW
        return noise_BCHW

    def loss_factors(self, timesteps_B: Tensor, options: LossOptions) -> list[Tensor]:
        """Return the weights of the options that are on, (B,) each, with S = min(SNR, 1000).

        - `min_snr_gamma` g: min(SNR, g) / SNR for noise prediction, min(SNR, g) / (SNR + 1) for
          v-prediction (Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy,
          arXiv:2303.09556);
        - `scale_v_pred_loss_like_noise_pred`: S / (S + 1), which is what the squared error of v
          must be multiplied by to be that of the noise;
        - `v_pred_like_loss` l: 1 + l (S + 1) / S;
        - `debiased_estimation_loss`: 1 / sqrt(S) for noise prediction, 1 / (S + 1) for v-prediction
          (Yu et al., Debias the Training of Diffusion Models, arXiv:2310.08442).
        """
        is_v = self.prediction_type == "v_prediction"
        alphas_B = self.alphas_cumprod_T[timesteps_B]
        snr_B = alphas_B / (1 - alphas_B)
        bounded_B = snr_B.clamp(max=_MAX_SNR)
        factors: list[Tensor] = []
        if options.min_snr_gamma is not None:
            capped_B = snr_B.clamp(max=options.min_snr_gamma)
            factors.append(capped_B / (snr_B + 1 if is_v else snr_B))
        if options.scale_v_pred_loss_like_noise_pred:
            factors.append(bounded_B / (bounded_B + 1))
        if options.v_pred_like_loss is not None:
            factors.append(1 + options.v_pred_like_loss * (bounded_B + 1) / bounded_B)
        if options.debiased_estimation_loss:
            factors.append(1 / (bounded_B + 1) if is_v else bounded_B.rsqrt())
        return factors

    def noise_level(self, timesteps_B: Tensor) -> Tensor:
        """Return sqrt((1 - a) / a), (B,); infinite where nothing of the image is left."""
        alphas_B = self.alphas_cumprod_T[timesteps_B]
        return ((1 - alphas_B) / alphas_B).sqrt()

    def progress(self, timesteps_B: Tensor) -> Tensor:
        """Return t / T, (B,)."""
        return timesteps_B / self.num_timesteps

    def sampler_settings(self, scheduler: type) -> dict[str, Any]:
        """Return what a scheduler of diffusers must be given, so that it undoes this noise.

        A schedule that ends in pure noise is sampled from that very end (trailing spacing). A
        scheduler without an argument for it is given the betas, whose end is almost pure noise.
        """
        if not self.is_zero_terminal:
            return dict(self.config)
        spacing = {"timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" in inspect.signature(scheduler).parameters:
            return {**self.config, **self._ending, **spacing}
        alphas_T = self._nonzero_alphas().double()
        before_T = torch.cat([torch.ones(1, dtype=torch.float64), alphas_T[:-1]])
        return {**self.config, **spacing, "trained_betas": (1 - alphas_T / before_T).tolist()}

    def noise_levels(self) -> NDArray[np.float64]:
        """Return the noise level sqrt((1 - a_t) / a_t) of every timestep; all are finite."""
        alphas_T = self._nonzero_alphas().double().numpy()
        levels: NDArray[np.float64] = np.sqrt((1 - alphas_T) / alphas_T)
        return levels

    def denoised(self, x_BCHW: Tensor, predicted_BCHW: Tensor, sigma: float) -> Tensor:
        """Return the image in x + sigma e, from the prediction at x / sqrt(sigma^2 + 1)."""
        if self.prediction_type == "v_prediction":
            shrink = 1 / math.sqrt(sigma**2 + 1)
            return x_BCHW * shrink**2 - predicted_BCHW * (sigma * shrink)
        return x_BCHW - predicted_BCHW * sigma

    def _nonzero_alphas(self) -> Tensor:
        # The smallest share that the library's own schedulers use, so that none divides by 0.
        return self.alphas_cumprod_T.clamp(min=_MIN_ALPHA)


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
    schedule = {"prediction_type": "epsilon", **json.loads(read_text(path))}
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
