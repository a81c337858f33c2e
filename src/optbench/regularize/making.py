"""The base makes the class pictures that are missing; each depends on its own seed alone."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track

from optbench import rundir
from optbench.bases import load_base
from optbench.errors import ConfigError, Problem
from optbench.progress import tell
from optbench.records import Status
from optbench.regularize.asking import AskedPictures
from optbench.render import (
    Halving,
    Painter,
    origin_of,
    parameters_text,
    png_bytes,
    render_prompts,
)

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_pictures(asked: AskedPictures) -> Status:
    """Write every picture that is missing, whole or not at all; return "done".

    Raises:
        ConfigError: If this machine lacks the device, or the device the precision.
        BaseError: If the base cannot be loaded.
    """
    options = asked.options
    missing = asked.missing()
    if missing:
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        device = find_device(options.device, options.mixed_precision)
        base = load_base(options.base, device=device, dtype=_DTYPES[options.mixed_precision])
        asked.remember()
        asked.folder.mkdir(parents=True, exist_ok=True)
        size = options.batch_size * len(options.prompt)
        starts = range(0, len(missing), size)
        painter = Halving(base, tell)
        for start in track(starts, description=str(asked.folder)):
            _make(asked, painter, missing[start : start + size])
    rundir.write_status(asked.run_dir, "done")
    return "done"


def _make(asked: AskedPictures, painter: Painter, indices: list[int]) -> None:
    """Make some pictures, those of one prompt together."""
    options = asked.options
    origin = origin_of(options.base, cache_dir=Path(options.cache_dir))
    by_prompt: dict[int, list[int]] = {}
    for index in indices:
        by_prompt.setdefault(index % len(options.prompt), []).append(index)
    for same in by_prompt.values():
        prompt = asked.prompt(same[0])
        render = asked.render_options([options.seed + index for index in same])
        with torch.inference_mode():
            pictures = render_prompts(
                painter,
                [prompt],
                render,
                epoch=0,
                clip_skip=options.clip_skip,
                is_wanted=lambda cell: True,
            )
            for cell, _, image in pictures:
                text = parameters_text(
                    cell,
                    prompt,
                    render,
                    clip_skip=options.clip_skip,
                    origin=origin,
                )
                path = asked.picture_path(cell.seed - options.seed)
                # The picture is what says "made", so its caption comes first.
                if options.write_captions:
                    rundir.write_atomic(path.with_suffix(".txt"), prompt.text + "\n")
                rundir.write_atomic(path, png_bytes(image, text))


def find_device(name: str, precision: str) -> torch.device:
    """Return a device that this machine has and that computes in this precision, or refuse."""
    if name == "auto":
        is_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if is_mps else "cpu"
    kind, _, index = name.partition(":")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if not (index or "0").isdigit() or int(index or 0) >= counts.get(kind, 0):
        _refuse("device", name, "a device this machine has", "leave it out")
    if kind == "cpu" and precision == "fp16":
        _refuse("mixed_precision", "fp16 on a CPU", "no or bf16; fp16 needs a GPU", "leave it out")
    return torch.device(name)


def _refuse(where: str, found: str, expected: str, fix: str) -> None:
    raise ConfigError(Problem(found=found, expected=expected, where=where, fix=fix))
