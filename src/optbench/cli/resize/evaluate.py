"""Evaluate a resized LoRA by its images and losses, beside those of its original.

The original is a run of its own in the sweep's folder, made once and before all others, from the
source as it is (of a merge: from the exact weighted sum).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from optbench.contracts import BaseModel
from optbench.errors import ConfigError, Problem
from optbench.lora.adapters.apply import AdapterFile, applied, misfits
from optbench.metrics.ssim import compare_pictures
from optbench.models import load_base
from optbench.models.device import dtype_of, find_device
from optbench.render import run_images
from optbench.render.prompts import OomSafeSampler, cells_of, origin_of
from optbench.schema import BaseOptions, ResizeOptions
from optbench.storage import files, resources
from optbench.storage.files import Row
from optbench.storage.rundir import RunDir
from optbench.terminal import tell
from optbench.training import validation
from optbench.training.paired_loss import ValidationSample

LIKENESS_FILE = "likeness.jsonl"  # one record per image: how far it is from the original's

_FIX = (
    "give the base it was trained on, for instance base=sd15 base.path=FOLDER, or "
    "render=off validate=off"
)


@final
class ResizeEvaluator:
    """The base model with its prompts and validation images, loaded once for all runs."""

    def __init__(self, options: ResizeOptions) -> None:
        """Load the base model; validation images are encoded when they are needed.

        Raises:
            ConfigError: If this machine has no such device, or the device no such precision.
            BaseError: If the base model cannot be loaded.
        """
        self._options = options
        device = find_device(options.device, precision=options.mixed_precision)
        dtype = dtype_of(options.mixed_precision)
        self.base: BaseModel = load_base(options.base, device=device, dtype=dtype)
        self._sampler = OomSafeSampler(self.base, tell)

    @functools.cached_property
    def _samples(self) -> tuple[ValidationSample, ...]:
        options = self._options
        cache_dir = Path(options.cache_dir)
        return validation.read_samples(
            options.validate, options.dataset, self.base, cache_dir=cache_dir
        )

    def misfits(self, sources: Sequence[Path]) -> list[Problem]:
        """Return what keeps the sources from being used on the base model."""
        targets = self.base.lora_targets()
        return [
            problem
            for path in sources
            for problem in misfits(
                targets, AdapterFile(path, allow_others=True), base=self.base.name, fix=_FIX
            )
        ]

    def evaluate(
        self,
        run: RunDir,
        loras: Sequence[tuple[Path, float]],
        *,
        epoch: int,
        clip_skip: int,
        original: RunDir | None,
    ) -> Row:
        """Render and measure one epoch; return what its record says of images and losses.

        Args:
            run: The run's folder.
            loras: The file, or the files of a merge, each with its strength.
            epoch: The run's epoch that is rendered and measured.
            clip_skip: That captions and prompts are encoded with.
            original: The run to compare with, None for the original itself, which is compared
                with the base model alone: that is how far a LoRA can fall.
        """
        options, cache_dir = self._options, Path(self._options.cache_dir)
        text_options = self.base.text_options({"clip_skip": clip_skip})
        gallery = validator = None
        if options.render.enabled:
            gallery = run_images.RunImages(
                run=run,
                base=self.base,
                prompts=options.prompts.prompts,
                options=options.render,
                text_options=text_options,
                cache_dir=cache_dir,
                sampler=self._sampler,
                origin=origin_of(options.base, cache_dir=cache_dir),
                say=tell,
            )
            run_images.render_base(gallery)
        if options.validate.enabled:
            validator = validation.Validator(
                run=run,
                base=self.base,
                samples=self._samples,
                options=options.validate,
                text_options=text_options,
                cache_dir=cache_dir,
            )
            validation.measure_base(validator)
        adapters = [(AdapterFile(path, allow_others=True), weight) for path, weight in loras]
        with applied(self.base.lora_targets(), adapters):
            started = time.perf_counter()
            if gallery is not None:
                run_images.render_merged(gallery, epoch=epoch, lora=run.name)
            rendered = time.perf_counter()
            if validator is not None and validation.needs_measuring(validator, epoch):
                losses = None if original is None else _losses_of(original, epoch)
                validation.measure(validator, epoch=epoch, originals=losses)
        row: Row = {
            "seconds_render": rendered - started,
            "seconds_validate": time.perf_counter() - rendered,
            **validation.summary(files.read_rows(run.validation_path), epoch=epoch),
        }
        if gallery is not None:
            row |= self._likeness(run, epoch=epoch, original=original)
        return row

    def _likeness(self, run: RunDir, *, epoch: int, original: RunDir | None) -> Row:
        """Compare an epoch's images with the original's; return means, record each."""
        options = self._options
        rows: list[Row] = []
        for prompt in options.prompts.prompts:
            for cell in cells_of(prompt, options.render, epoch=epoch):
                first = run.image_path(cell)
                if original is None:
                    second = run.images_dir(0) / cell.file_name
                else:
                    second = original.image_path(cell)
                likeness = compare_pictures(first, second) if second.is_file() else None
                if likeness is not None:
                    rows.append({**asdict(cell), **asdict(likeness)})
        if not rows:
            return {}
        files.append_rows(run.path / LIKENESS_FILE, rows)
        prefix = "base_" if original is None else ""
        return {
            f"{prefix}picture_difference": _mean(rows, "mean_abs_difference"),
            f"{prefix}picture_ssim": _mean(rows, "ssim"),
        }


def is_embedded(options: BaseOptions) -> bool:
    """Return whether a base is the one that ships, which few LoRAs of the world belong to."""
    return Path(options.path).resolve() == resources.asset("tiny").resolve()


def is_evaluated(options: ResizeOptions) -> bool:
    """Return whether images or losses are asked for."""
    return options.render.enabled or options.validate.enabled


def has_images(run: RunDir, options: ResizeOptions, epochs: Sequence[int]) -> bool:
    """Return whether every image that is asked for is on disk."""
    if not options.render.enabled:
        return True
    return all(
        run.image_path(cell).is_file()
        for epoch in epochs
        for prompt in options.prompts.prompts
        for cell in cells_of(prompt, options.render, epoch=epoch)
    )


def _losses_of(run: RunDir, epoch: int) -> dict[validation.Place, float]:
    losses = {
        (str(row["image"]), int(row["timestep"])): float(row["loss"])
        for row in files.read_rows(run.validation_path)
        if row["epoch"] == epoch
    }
    if not losses:
        raise ConfigError(
            Problem(
                str(run.path),
                f"no losses of epoch {epoch}",
                "those of the original, made first",
                f"delete the folder {run.path} and give the command again",
            )
        )
    return losses


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)
