"""What a checkpoint says of its noise schedule and of what its unet predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
