"""Samplers by the names A1111 gives them, as data only: ways to make an image out of noise.

Some are schedulers of diffusers; those that it lacks, has only with further packages, or counts
other steps of than A1111, are in `models.solvers`. A name may end in a schedule of noise levels, as
in "DPM++ 2M Karras"; A1111 from 1.9 on writes the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AUTOMATIC = "Automatic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One way to make an image out of noise."""

    name: str  # A1111's, without the schedule
    schedule: str  # A1111's name of the noise levels
    solver: str  # a class of diffusers, or a function of `models.solvers`
    settings: Mapping[str, Any]  # of the class; of a function `use_karras_sigmas` and the like
    is_random: bool  # draws fresh noise on its way


_DPM = "DPMSolverMultistepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++"}
# Name -> class or function, its settings, whether it draws noise, which schedules it takes.
_SOLVERS: Mapping[str, tuple[str, Mapping[str, Any], bool, tuple[str, ...]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, False, ()),
    "Euler": ("EulerDiscreteScheduler", {}, False, ("Karras", "Exponential", "SGM Uniform")),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}, True, ("SGM Uniform",)),
    "Heun": ("heun", {}, False, ("Karras", "Exponential")),
    "LMS": ("lms", {}, False, ("Karras", "Exponential")),
    "DPM2": ("dpm_2", {}, False, ("Karras", "Exponential")),
    "DPM2 a": ("dpm_2_ancestral", {}, True, ("Karras", "Exponential")),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", {}, True, ("Karras", "Exponential")),
    "DPM++ 2M": (
        _DPM,
        {"algorithm_type": "dpmsolver++"},
        False,
        ("Karras", "Exponential", "SGM Uniform"),
    ),
    "DPM++ SDE": ("dpmpp_sde", {}, True, ("Karras", "Exponential")),
    "DPM++ 2M SDE": (_DPM, _SDE, True, ("Karras", "Exponential", "SGM Uniform")),
    "DPM++ 2M SDE Heun": (
        _DPM,
        {**_SDE, "solver_type": "heun"},
        True,
        ("Karras", "Exponential"),
    ),
    "UniPC": ("UniPCMultistepScheduler", {}, False, ()),
}
_SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    AUTOMATIC: {},
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}
SAMPLERS: Mapping[str, Sampler] = {
    name if schedule == AUTOMATIC else f"{name} {schedule}": Sampler(
        name=name,
        schedule=schedule,
        solver=solver,
        settings={**settings, **_SCHEDULES[schedule]},
        is_random=is_random,
    )
    for name, (solver, settings, is_random, schedules) in _SOLVERS.items()
    for schedule in (AUTOMATIC, *schedules)
}
