"""Estimate the steps, time and disk space of a run before it starts.

Steps come from its data, time from earlier runs, disk space from the layers of the base model.
Everything is read from headers and records; nothing is loaded and nothing is measured.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError
from optbench.lora.blocks import num_saved_numbers, sized_sites
from optbench.models.files.lora_sites import lora_sites
from optbench.records import CaptionedImage, Dataset, LoraSite
from optbench.schema import BaseOptions, RunConfig
from optbench.storage.files import Row, readable_rows
from optbench.storage.rundir import RunDir, read_config
from optbench.training.plan import RunPlan

_SAVED_BYTES = {"fp16": 2, "bf16": 2, "float": 4}
_STATE_BYTES = 12  # fp32 weights and, for most recipes, two moments
_PNG_BYTES_PER_PIXEL = 0.7  # of drawings and anime images, roughly
_COUNTED = ("base", "train", "optimizer", "network")
_PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run takes; None where nothing is known yet."""

    num_steps_per_epoch: int
    num_steps: int
    num_epochs: int  # fewer than train.epochs when max_steps ends the run first
    seconds: float | None
    disk_bytes: int


def estimate(plan: RunPlan) -> Cost:
    """Return the cost of a run from its settings, its data, and earlier runs in its runs folder."""
    num_steps = plan.last_step
    num_epochs = math.ceil(num_steps / max(1, plan.steps_per_epoch))
    return Cost(
        num_steps_per_epoch=plan.steps_per_epoch,
        num_steps=num_steps,
        num_epochs=num_epochs,
        seconds=_seconds(plan.config, plan.dataset, num_steps=num_steps, num_epochs=num_epochs),
        disk_bytes=_disk_bytes(plan, num_epochs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketCount:
    """The images of one bucket, their uses per epoch, and how many of both are of the class."""

    bucket: tuple[int, int]  # width, height in pixels
    num_images: int
    num_uses: int
    num_class_images: int
    num_class_uses: int


def bucket_counts(dataset: Dataset) -> list[BucketCount]:
    """Return what every bucket holds, from the narrowest to the widest."""
    buckets: dict[tuple[int, int], list[CaptionedImage]] = {}
    for image in dataset.images:
        buckets.setdefault(image.bucket, []).append(image)
    counts = []
    for bucket, images in sorted(buckets.items()):
        class_images = [image for image in images if image.is_regularization]
        counts.append(
            BucketCount(
                bucket=bucket,
                num_images=len(images),
                num_uses=sum(image.repeats for image in images),
                num_class_images=len(class_images),
                num_class_uses=sum(image.repeats for image in class_images),
            )
        )
    return counts


def _seconds(
    config: RunConfig, dataset: Dataset, *, num_steps: int, num_epochs: int
) -> float | None:
    """Return the likely wall time: as the nearest earlier runs on this runs folder took."""
    alike: list[tuple[tuple[bool, bool], Path]] = [
        (
            (
                stored["optimizer"].get("name") == config.optimizer.name,
                stored["network"].get("dim") == config.network.dim,
            ),
            run_dir,
        )
        for run_dir, stored in _earlier_runs(Path(config.runs_dir))
        if stored["base"].get("name") == config.base.name
        and stored["train"].get("batch_size") == config.train.batch_size
    ]
    if not alike:
        return None
    best = max(likeness for likeness, _ in alike)
    nearest = [run_dir for likeness, run_dir in alike if likeness == best]
    steps: list[float] = [
        sum(_seconds_of(row, phase) for phase in _PHASES)
        for run_dir in nearest
        for row in readable_rows(RunDir(run_dir).steps_path)[0]
    ]
    pause_names = ["seconds_save"]
    pause_names += ["seconds_render"] if config.render.enabled else []
    pauses: list[float] = [
        sum(_seconds_of(row, pause) for pause in pause_names)
        for run_dir in nearest
        for row in readable_rows(RunDir(run_dir).epochs_path)[0]
    ]
    if not steps:
        return None
    pause = statistics.median(pauses) if pauses else 0.0
    validation = 0.0
    if config.validate.enabled:
        validation = _validation_seconds(config, dataset, nearest)
    epochs = range(1, num_epochs + 1)
    every = config.validate.every_n_epochs or num_epochs
    num_due = len({epoch for epoch in epochs if epoch % every == 0 or epoch == num_epochs})
    return statistics.median(steps) * num_steps + pause * num_epochs + validation * num_due


def _validation_seconds(config: RunConfig, dataset: Dataset, run_dirs: Sequence[Path]) -> float:
    """Return the likely seconds of one validation: as long as those of the earlier runs took.

    Where they had none, one forward pass for each image and timestep, as long as a training step's
    pass takes for each of its images.
    """
    options = config.validate
    measured: list[float] = [
        _seconds_of(row, "seconds_validate")
        for run_dir in run_dirs
        if RunDir(run_dir).validation_path.is_file()
        for row in readable_rows(RunDir(run_dir).epochs_path)[0][-1:]  # the last always has one
    ]
    if measured:
        return statistics.median(measured)
    forwards: list[float] = [
        _seconds_of(row, "seconds_forward")
        for run_dir in run_dirs
        for row in readable_rows(RunDir(run_dir).steps_path)[0]
    ]
    if not forwards:
        return 0.0
    num_of_kind = min(options.num_pictures or len(dataset.images), len(dataset.images))
    kinds = (options.dir, options.ood_dir, options.others_dir or config.dataset.reg_dir)
    num_images = num_of_kind * (1 + sum(kind is not None for kind in kinds))
    forward = statistics.median(forwards) / config.train.batch_size
    return forward * num_images * len(options.timesteps)


def _seconds_of(row: Row, name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _earlier_runs(runs_dir: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for file in sorted(runs_dir.glob("*/*/config.yaml")):
        try:
            stored = read_config(RunDir(file.parent))
        except DamagedFileError:
            continue  # a cost is an estimate; the report says what is wrong with the file
        if all(isinstance(stored.get(name), dict) for name in _COUNTED):
            yield file.parent, stored


def _disk_bytes(plan: RunPlan, num_epochs: int) -> int:
    config = plan.config
    num_numbers = num_lora_numbers(plan)
    files = num_numbers * _SAVED_BYTES[config.train.save_precision] * (num_epochs + 1)
    state = num_numbers * _STATE_BYTES
    images = 0.0
    if config.render.enabled:
        pixels = sum(prompt.width * prompt.height for prompt in config.prompts.prompts)
        # Every image lies there twice: alone, and in a sheet.
        images = 2 * pixels * len(config.render.seeds) * _PNG_BYTES_PER_PIXEL * num_epochs
    return round(files + state + images)


def num_lora_numbers(plan: RunPlan) -> int:
    """Return how many numbers a LoRA file of the run holds; 0 where base headers do not tell."""
    network, initial = plan.config.network, plan.initial_weights
    sizes = None
    if initial is not None and network.dim_from_weights:
        layers = initial.of_parts(network)
        sizes = {name: (layer.dim, layer.alpha) for name, layer in layers.items()}
    sites = _sites(plan.config.base, plan.base_fingerprint)
    return num_saved_numbers(sized_sites(sites.values(), network, sizes=sizes), dora=network.dora)


@functools.lru_cache(maxsize=8)
def _sites(base: BaseOptions, fingerprint: str) -> Mapping[str, LoraSite]:
    """Return the layers of a base model; its fingerprint tells that its files are the same."""
    return lora_sites(base)
