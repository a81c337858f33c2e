"""Say as hex what a run's losses and images would be made from now, without loading anything.

A run that is done keeps what it was made from with its status. Where that is no longer what the
same command would use - held-out images or captions were edited, the prompt grammar is another -
the command measures and renders again what has become stale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.models.text.prompt_grammar import GRAMMAR_VERSION
from optbench.models.text.tokens import CLEANING_VERSION
from optbench.schema import DatasetOptions, PromptOptions, RenderOptions, ValidateOptions
from optbench.storage import hashing
from optbench.training.plan import RunPlan

_SCHEMA = 1  # raise it when equal runs begin to give other losses or images


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What losses and images depend on besides the LoRA and their own settings."""

    base: str  # fingerprint of the base model's files
    data: str  # of the images that are trained on and held out
    device: str  # its kind
    precision: str
    clip_skip: int | None  # None: what a LoRA file says
    max_token_length: int


def made_as(plan: RunPlan) -> dict[str, str]:
    """Return by name what losses and images of a training depend on, where they are wanted."""
    config, train, dataset = plan.config, plan.config.train, plan.dataset
    # Of a data set without what is held out of it, the whole one says what that is.
    whole = dataset.fingerprint if plan.held_out is None else plan.held_out.fingerprint
    classes = [(image.key, image.caption) for image in dataset.class_images]
    surroundings = Surroundings(
        base=plan.base_fingerprint,
        data=hashing.fingerprint(
            {"trained": dataset.fingerprint, "whole": whole, "classes": classes}
        ),
        device=train.device.partition(":")[0],
        precision=train.mixed_precision,
        clip_skip=train.clip_skip,
        max_token_length=train.max_token_length,
    )
    return made_in(
        surroundings,
        validate=config.validate,
        prompts=config.prompts,
        render=config.render,
        cache_dir=Path(config.cache_dir),
    )


def made_in(
    surroundings: Surroundings,
    *,
    validate: ValidateOptions,
    prompts: PromptOptions,
    render: RenderOptions,
    cache_dir: Path,
) -> dict[str, str]:
    """Return a hash of all that `losses` and `images` depend on, of those that are wanted."""
    shared = {
        "schema": _SCHEMA,
        "cleaning": CLEANING_VERSION,
        **dataclasses.asdict(surroundings),
    }
    keys = {}
    if validate.enabled:
        content = {
            **shared,
            "options": dataclasses.asdict(validate),
            "folders": folder_contents(validate, cache_dir=cache_dir),
        }
        keys["losses"] = hashing.fingerprint(content)
    if render.enabled:
        content = {
            **{key: value for key, value in shared.items() if key != "data"},
            "grammar": GRAMMAR_VERSION,
            "prompts": [dataclasses.asdict(prompt) for prompt in prompts.prompts],
            "options": dataclasses.asdict(render),
        }
        keys["images"] = hashing.fingerprint(content)
    return keys


def is_current(facts: Mapping[str, Any], keys: Mapping[str, str]) -> bool:
    """Return whether a run that is done was made from what `keys` say.

    Args:
        facts: Those of its status.
        keys: As `made_as` or `made_in` returns them now.
    """
    stored = facts.get("made_as")
    stored = stored if isinstance(stored, Mapping) else {}
    return all(stored.get(name) == key for name, key in keys.items())


def folder_contents(
    options: ValidateOptions | DatasetOptions, *, cache_dir: Path
) -> dict[str, str]:
    """Return a hash of every file of every folder that a group names, by its setting."""
    contents = {}
    for field in dataclasses.fields(options):
        folder = getattr(options, field.name)
        if field.name.endswith("dir") and isinstance(folder, str) and Path(folder).is_dir():
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            digests = hashing.file_hashes(files, cache_dir=cache_dir)
            contents[field.name] = hashing.fingerprint(
                {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}
            )
    return contents
