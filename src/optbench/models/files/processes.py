"""The noise processes, as far as settings can be checked without loading a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from optbench.errors import Problem
from optbench.schema import BaseOptions, LossOptions
from optbench.storage.disk import read_text
from optbench.storage.safetensors_header import read_header

NUM_TIMESTEPS = 1000  # what loss.max_timestep and validate.timesteps count up to, in every process
PredictionType = Literal["epsilon", "v_prediction"]  # diffusers' words


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What is true of every base model that predicts the same thing."""

    words: str
    unsupported: Mapping[str, str]  # loss options without a meaning here, and why


PROCESSES: Mapping[PredictionType, Process] = MappingProxyType(
    {
        "epsilon": Process(
            words="predicts the noise",
            unsupported={
                "zero_terminal_snr": (
                    "a v-prediction base: at zero SNR the input is pure noise, and epsilon "
                    "carries no signal"
                ),
                "scale_v_pred_loss_like_noise_pred": (
                    "a v-prediction base: this one is trained on the noise already"
                ),
            },
        ),
        "v_prediction": Process(
            words="predicts v",
            unsupported={
                "v_pred_like_loss": (
                    "a base that predicts the noise: the loss of v needs no term that resembles it"
                )
            },
        ),
    }
)


def check_loss_for_base(base: BaseOptions, options: LossOptions) -> list[Problem]:
    """Return the loss options that do not suit what the base's files say it predicts.

    Nothing comes of files that do not say: `NoiseProcess` checks again once the base is loaded.
    """
    prediction = _prediction(base)
    return [] if prediction is None else check_loss(options, prediction)


def check_loss(options: LossOptions, prediction: PredictionType) -> list[Problem]:
    """Return a problem for each loss option that is on and means nothing for this prediction."""
    process = PROCESSES[prediction]
    return [
        Problem(
            f"loss.{name}",
            f"it with a base that {process.words}",
            reason,
            f"leave out loss.{name}, or choose another base",
        )
        for name, reason in process.unsupported.items()
        if getattr(options, name) not in (None, False)
    ]


def _prediction(base: BaseOptions) -> PredictionType | None:
    """Return what the options or the files say; None where neither does, or nothing can be read."""
    if base.v_parameterization is not None:
        return "v_prediction" if base.v_parameterization else "epsilon"
    path = Path(base.path)
    try:
        if path.suffix == ".safetensors":
            return "v_prediction" if "v_pred" in read_header(path).tensors else "epsilon"
        file = path / "scheduler" / "scheduler_config.json"
        word = json.loads(read_text(file)).get("prediction_type", "epsilon")
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with the files is reported where the base is checked
    return word if word in PROCESSES else None
