"""Say as hex what a run's losses and images would be made from now, without loading anything.

A run that is done keeps what it was made from with its status. Where that is no longer what the
same command would use - held-out images or captions were edited, the prompt grammar is another -
the command measures and renders again what has become stale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.models.text.prompt_grammar import GRAMMAR_VERSION
from optbench.models.text.tokens import CLEANING_VERSION
from optbench.schema import ValidateOptions
from optbench.storage import hashing
from optbench.training.plan import RunPlan

_SCHEMA = 1  # raise it when equal runs begin to give other losses or images


def made_as(plan: RunPlan) -> dict[str, str]:
    """Return by name what losses and images of a run depend on besides its LoRA, where wanted."""
    config, train = plan.config, plan.config.train
    shared = {
        "schema": _SCHEMA,
        "base": plan.base_fingerprint,
        "device": train.device,
        "precision": train.mixed_precision,
        "clip_skip": train.clip_skip,
        "max_token_length": train.max_token_length,
        "cleaning": CLEANING_VERSION,
    }
    keys = {}
    if config.validate.enabled:
        content = {
            **shared,
            "data": plan.dataset.fingerprint,
            "options": dataclasses.asdict(config.validate),
            "folders": _folders(config.validate, cache_dir=Path(config.cache_dir)),
        }
        keys["losses"] = hashing.fingerprint(content)
    if config.render.enabled:
        content = {
            **shared,
            "grammar": GRAMMAR_VERSION,
            "prompts": [dataclasses.asdict(prompt) for prompt in config.prompts.prompts],
            "options": dataclasses.asdict(config.render),
        }
        keys["images"] = hashing.fingerprint(content)
    return keys


def is_current(facts: Mapping[str, Any], plan: RunPlan) -> bool:
    """Return whether a run that is done was measured and rendered as its plan says now."""
    stored = facts.get("made_as")
    stored = stored if isinstance(stored, Mapping) else {}
    return all(stored.get(name) == key for name, key in made_as(plan).items())


def _folders(options: ValidateOptions, *, cache_dir: Path) -> dict[str, str]:
    """Return the content of every folder that validation images are read from, by its setting."""
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
