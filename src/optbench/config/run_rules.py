"""Refuse what only shows once a run's data and steps are known; `plan` and a start ask alike."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.config.untrusted import shipped_targets
from optbench.data.beside import check_apart, check_places, read_beside
from optbench.errors import ConfigError, DatasetError, Problem
from optbench.models.files import facts
from optbench.optim.schedules import check_schedule
from optbench.records import CaptionedImage, Dataset, Part
from optbench.schema import DatasetOptions
from optbench.training.plan import RunPlan


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out for other runs of a command line, so that it is found out once."""

    folders: dict[tuple[str, DatasetOptions], Dataset | list[Problem]] = field(default_factory=dict)
    recipes: dict[str, list[Problem]] = field(default_factory=dict)


def check_run(plan: RunPlan, checked: Checked) -> list[Problem]:
    """Return everything that keeps a planned run from doing what its settings say.

    Args:
        plan: The run, with its data.
        checked: What is known from other runs; what this one finds out joins it.
    """
    config = plan.config
    return [
        *_check_steps(plan),
        *check_schedule(config.lr_scheduler, total_steps=plan.total_steps),
        *_check_own_warmup(plan),
        *_check_arguments(plan, checked),
        *_check_held_out(plan, checked),
    ]


def _check_steps(plan: RunPlan) -> list[Problem]:
    train = plan.config.train
    all_epochs = train.epochs * plan.steps_per_epoch
    if train.max_steps is None or train.max_steps <= all_epochs:
        return []
    enough = -(-train.max_steps // plan.steps_per_epoch)
    epochs = "1 epoch ends" if train.epochs == 1 else f"{train.epochs} epochs end"
    return [
        Problem(
            "train.max_steps",
            f"{train.max_steps}, which is never reached: {epochs} the run after {all_epochs} steps",
            "at most as many steps as the epochs give",
            f"write train.epochs={enough} beside it, or leave train.max_steps out",
        )
    ]


def _check_own_warmup(plan: RunPlan) -> list[Problem]:
    """Return a problem if a class's own warm-up lasts longer than the run."""
    options = plan.config.optimizer
    steps = options.args.get("warmup_steps")
    if not isinstance(steps, (int, float)) or isinstance(steps, bool) or steps < plan.total_steps:
        return []
    return [
        Problem(
            f"optimizer.args.warmup_steps (recipe {options.name})",
            f"{steps:g} in a run of {plan.total_steps} steps",
            "a warm-up shorter than the run, so that the rate reaches its value",
            f"write optimizer.args.warmup_steps={plan.total_steps // 10}, or train longer",
        )
    ]


def _check_arguments(plan: RunPlan, checked: Checked) -> list[Problem]:
    """Return what the class says of arguments that are not as shipped; loads torch for it.

    Only a class that a recipe of ours names is imported: nobody has agreed to another one yet.
    """
    config = plan.config
    recipe, network = config.optimizer, config.network
    is_changed = any(
        key.startswith(("optimizer.args", "optimizer.group_args")) for key in plan.changed_settings
    )
    if not is_changed or recipe.target not in shipped_targets():
        return []
    parts: tuple[tuple[Part, bool], ...] = (
        ("unet", network.train_unet),
        ("text_encoder", network.train_text_encoder),
    )
    asked: dict[str, Any] = {
        "options": recipe,
        "parts": [part for part, is_trained in parts if is_trained],
        "lr_mult": config.lr_mult,
        "lr_scheduler": config.lr_scheduler,
        "total_steps": plan.total_steps,
    }
    key = json.dumps(asked, default=lambda options: dataclasses.asdict(options))
    if key not in checked.recipes:
        from optbench.optim.build import try_recipe

        checked.recipes[key] = try_recipe(**asked)
    return checked.recipes[key]


def _check_held_out(plan: RunPlan, checked: Checked) -> list[Problem]:
    validate, data = plan.config.validate, plan.config.dataset
    if not validate.enabled:
        return []
    problems: list[Problem] = []
    by_setting: dict[str, Sequence[CaptionedImage]] = {}
    for name in (part.name for part in dataclasses.fields(validate) if part.name.endswith("dir")):
        folder, setting = getattr(validate, name), f"validate.{name}"
        if folder is None or not Path(folder).is_dir():
            continue  # said with the other settings
        if misplaced := check_places(setting, folder, data):
            problems += misplaced
            continue
        key, read = (setting + folder, data), checked.folders
        if key not in read:
            latent = facts.pixels_per_latent(plan.config.base)
            try:
                read[key] = read_beside(folder, setting, data, pixels_per_latent=latent)
            except DatasetError as error:
                read[key] = list(error.problems)
        images = read[key]
        if isinstance(images, list):
            problems += images
        else:
            by_setting[setting] = images.images
    return problems + check_apart(by_setting, plan.dataset.images)


def check_device(device: str, precision: str, *, group: str = "") -> list[Problem]:
    """Return a problem if this machine lacks a device, or the device a precision.

    Loads torch only where more is asked for than any machine has.

    Args:
        device: As `find_device`, as the next two.
        precision: What is computed in.
        group: The group of both settings.
    """
    if device in ("auto", "cpu") and precision != "fp16":
        return []
    from optbench.models.device import find_device

    try:
        find_device(device, precision=precision, group=group)
    except ConfigError as error:
        return list(error.problems)
    return []


def check_writable(setting: str, folder: Path) -> list[Problem]:
    """Return a problem if a folder cannot be made or written to; writes nothing.

    What only shows while writing, as a full disk, is found at the start of the work.
    """
    place = folder.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            found = f"{place}, which is a file and no folder"
        elif not os.access(place, os.W_OK | os.X_OK):
            found = f"{place}, which may not be written to"
        else:
            return []
    except OSError as error:
        found = f"{folder}: {(error.strerror or str(error)).lower()}"
    return [
        Problem(
            setting,
            found,
            "a folder that can be written to",
            f"write {setting}=ANOTHER_FOLDER, or correct its permissions",
        )
    ]
