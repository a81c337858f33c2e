"""Validate the settings of loss and noise, alone and with the data set, without torch."""

from __future__ import annotations

from optbench.errors import Problem, without_effect
from optbench.models.files.processes import NUM_TIMESTEPS
from optbench.schema import DatasetOptions, LossOptions
from optbench.storage.resources import command_line

_HUBER = ("huber", "smooth_l1")


def check_loss(options: LossOptions) -> list[Problem]:
    """Return everything impossible or without effect in the settings alone."""
    return [
        *_check_huber(options),
        *_check_dependent(options),
        *_check_timesteps(options),
    ]


def check_loss_for_data(options: LossOptions, dataset: DatasetOptions) -> list[Problem]:
    """Return a problem if class images are weighed and there are none."""
    if options.prior_loss_weight == 1 or dataset.reg_dir is not None:
        return []
    return [
        Problem(
            "loss.prior_loss_weight",
            f"{options.prior_loss_weight:g} without regularization images",
            "1, or images that it can weigh",
            f"leave it out, or add dataset.reg_dir=FOLDER ({command_line('regularize')} makes one)",
        )
    ]


def _check_huber(options: LossOptions) -> list[Problem]:
    """Return the huber settings that nothing reads, and those that are missing."""
    settings = {
        "huber_schedule": options.huber_schedule,
        "huber_c": options.huber_c,
        "huber_scale": options.huber_scale,
    }
    if options.loss_type not in _HUBER:
        if options.huber_schedule is not None:
            del settings["huber_scale"]  # its default follows the schedule: one mistake, not two
        return [
            without_effect(
                f"loss.{name}",
                value,
                f"loss.loss_type is {options.loss_type}",
                "loss.loss_type=huber",
            )
            for name, value in settings.items()
            if value is not None
        ]
    problems = []
    if options.huber_schedule == "snr":
        scale = settings.pop("huber_scale")
        if scale is not None:
            problems.append(
                without_effect(
                    "loss.huber_scale",
                    scale,
                    "loss.huber_schedule is snr",
                    "loss.huber_schedule=constant",
                )
            )
    return problems + [
        Problem(
            f"loss.{name}",
            "null",
            f"a value, because loss.loss_type is {options.loss_type}",
            f"leave loss.{name} out for kohya's default",
        )
        for name, value in settings.items()
        if value is None
    ]


def _check_dependent(options: LossOptions) -> list[Problem]:
    """Return the settings that say how much of something that is off."""
    offset, gamma = options.noise_offset, options.ip_noise_gamma
    iterations = options.multires_noise_iterations
    pairs = (
        ("noise_offset_random_strength", options.noise_offset_random_strength or None,
         "noise_offset", offset, "0.05"),
        ("adaptive_noise_scale", options.adaptive_noise_scale, "noise_offset", offset, "0.05"),
        ("multires_noise_discount", options.multires_noise_discount,
         "multires_noise_iterations", iterations, "8"),
        ("ip_noise_gamma_random_strength", options.ip_noise_gamma_random_strength or None,
         "ip_noise_gamma", gamma, "0.1"),
    )  # fmt: skip
    problems = [
        without_effect(f"loss.{name}", value, f"loss.{other} is null", f"loss.{other}={example}")
        for name, value, other, other_value, example in pairs
        if value is not None and other_value is None
    ]
    if iterations is not None and options.multires_noise_discount is None:
        problems.append(
            Problem(
                "loss.multires_noise_discount",
                f"null while loss.multires_noise_iterations is {iterations}",
                "the weight of every larger patch",
                "leave it out for kohya's 0.3",
            )
        )
    return problems


def _check_timesteps(options: LossOptions) -> list[Problem]:
    last = NUM_TIMESTEPS if options.max_timestep is None else options.max_timestep
    if 0 <= options.min_timestep < last <= NUM_TIMESTEPS:
        return []
    return [
        Problem(
            "loss.min_timestep and loss.max_timestep",
            f"timesteps from {options.min_timestep} up to, but not including, {last}",
            f"at least one timestep from 0 to {NUM_TIMESTEPS - 1}",
            (
                f"write loss.min_timestep=0 loss.max_timestep={NUM_TIMESTEPS}; for one timestep "
                "alone T and T + 1"
            ),
        )
    ]
