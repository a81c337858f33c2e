"""What a resized LoRA still does: its pictures and losses, beside those of its original.

The original is a run of its own in the sweep's folder, made once and before all others, from the
source as it is (of a merge: from the exact weighted sum).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch

from optbench.contracts import BaseModel
from optbench.errors import ConfigError, Problem
from optbench.lora.adapters.placing import misfits, network_of
from optbench.lora.file import LoraFile
from optbench.lora.keys import clip_skip_of
from optbench.lora.resize.merge import layer_factors, merged_factors, merged_modules
from optbench.lora.svd import Factors
from optbench.metrics.ssim import compare_pictures
from optbench.models import load_base
from optbench.render import run_images
from optbench.render.prompts import Halving, cells_of, origin_of
from optbench.schema import BaseOptions, ResizeOptions
from optbench.storage import resources, rundir
from optbench.storage.rundir import Row, RunDir
from optbench.training import validation
from optbench.training.paired_loss import Probe
from optbench.training.progress import tell

LIKENESS_FILE = "likeness.jsonl"  # one record per picture: how far it is from the original's

_TOKENS = 75  # read of a caption, whatever the file was trained with


@final
class Laboratory:
    """The base with its pictures and captions, loaded once for all runs of a command."""

    def __init__(self, options: ResizeOptions) -> None:
        """Load the base; the pictures of the validation loss are encoded when they are needed."""
        self._options = options
        self.base: BaseModel = _base(options.base)
        self._painter = Halving(self.base, tell)

    @functools.cached_property
    def _probes(self) -> tuple[Probe, ...]:
        options = self._options
        cache_dir = Path(options.cache_dir)
        return validation.read_probes(
            options.validate, options.dataset, self.base, cache_dir=cache_dir
        )

    def misfits(self, sources: Sequence[Path]) -> list[Problem]:
        """Return what keeps the sources from being used on the base."""
        modules = merged_modules([LoraFile(path) for path in sources])
        return misfits(
            self.base.lora_targets(),
            {name: (one.up, one.down) for name, one in modules.items()},
            base=self.base.name,
            where=" and ".join(str(path) for path in sources),
        )

    def examine(
        self,
        run: RunDir,
        layers: Iterable[tuple[str, Factors]],
        *,
        epoch: int,
        clip_skip: int,
        original: RunDir | None,
    ) -> Row:
        """Render and measure one epoch's layers; return what its record says of them.

        `original` is the run to compare with, None for the original itself, which is compared
        with the base alone: that is how far a LoRA can fall.
        """
        row: Row = {}
        gallery = self._gallery(run, clip_skip=clip_skip)
        examination = self._examination(run, clip_skip=clip_skip)
        if gallery is not None:
            run_images.render_base(gallery)
        if examination is not None:
            validation.prepare(examination)
        network = network_of(self.base.lora_targets(), layers)
        with network.merged():
            started = time.perf_counter()
            if gallery is not None:
                run_images.render_merged(gallery, epoch=epoch, lora=run.name)
            rendered = time.perf_counter()
            if examination is not None and validation.is_wanted(examination, epoch):
                losses = None if original is None else _losses_of(original, epoch)
                validation.measure(examination, epoch=epoch, originals=losses)
        row["seconds_render"] = rendered - started
        row["seconds_validate"] = time.perf_counter() - rendered
        row |= validation.summary(rundir.read_rows(run.validation_path), epoch=epoch)
        if gallery is not None:
            row |= self._likeness(run, epoch=epoch, original=original)
        return row

    def _likeness(self, run: RunDir, *, epoch: int, original: RunDir | None) -> Row:
        """Compare an epoch's pictures and keep a record of each."""
        options = self._options
        rows: list[Row] = []
        for prompt in options.prompts.prompts:
            for cell in cells_of(prompt, options.render, epoch=epoch):
                first = run.image_path(cell)
                if original is None:
                    second = run.images_dir(0) / cell.file_name
                else:
                    second = original.image_path(cell)
                found = compare_pictures(first, second) if second.is_file() else None
                if found is not None:
                    rows.append({**asdict(cell), **asdict(found)})
        if not rows:
            return {}
        rundir.append_rows(run.path / LIKENESS_FILE, rows)
        prefix = "base_" if original is None else ""
        return {
            f"{prefix}picture_difference": _mean(rows, "mean_abs_difference"),
            f"{prefix}picture_ssim": _mean(rows, "ssim"),
        }

    def _gallery(self, run: RunDir, *, clip_skip: int) -> run_images.Gallery | None:
        options = self._options
        if not options.render.enabled:
            return None
        return run_images.Gallery(
            run=run,
            base=self.base,
            prompts=options.prompts.prompts,
            options=options.render,
            clip_skip=clip_skip,
            cache_dir=Path(options.cache_dir),
            painter=self._painter,
            origin=origin_of(options.base, cache_dir=Path(options.cache_dir)),
        )

    def _examination(self, run: RunDir, *, clip_skip: int) -> validation.Examination | None:
        options = self._options
        if not options.validate.enabled:
            return None
        return validation.Examination(
            run=run,
            base=self.base,
            probes=self._probes,
            options=options.validate,
            clip_skip=clip_skip,
            max_token_length=_TOKENS,
            cache_dir=Path(options.cache_dir),
        )


def read_layers(
    sources: Sequence[Path], weights: Sequence[float] | None
) -> Iterator[tuple[str, Factors]]:
    """Yield the layers of a file, or of a merge as exact as it gets, one at a time."""
    files = [LoraFile(path) for path in sources]
    for name in merged_modules(files):
        if weights is None:
            yield name, layer_factors(files[0], name)
        else:
            yield name, merged_factors(name, files, weights)


def read_dims(sources: Sequence[Path]) -> list[int]:
    """Return every layer's dim; of a merge the sum of its parts'."""
    modules = merged_modules([LoraFile(path) for path in sources])
    return [module.dim for module in modules.values()]


def read_clip_skip(source: Path) -> int:
    """Return with how many skipped layers a LoRA says it was trained; 1 where it says nothing."""
    return clip_skip_of(LoraFile(source).metadata)


def is_embedded(options: BaseOptions) -> bool:
    """Return whether a base is the one that ships, which few LoRAs of the world belong to."""
    return Path(options.path).resolve() == resources.asset("tiny").resolve()


def is_wanted(options: ResizeOptions) -> bool:
    """Return whether pictures or losses are asked for."""
    return options.render.enabled or options.validate.enabled


def has_pictures(run: RunDir, options: ResizeOptions, epochs: Sequence[int]) -> bool:
    """Return whether every picture that is asked for is on disk."""
    if not options.render.enabled:
        return True
    return all(
        run.image_path(cell).is_file()
        for epoch in epochs
        for prompt in options.prompts.prompts
        for cell in cells_of(prompt, options.render, epoch=epoch)
    )


@functools.lru_cache(maxsize=1)
def _base(options: BaseOptions) -> BaseModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_base(options, device=device, dtype=torch.float32)


def _losses_of(run: RunDir, epoch: int) -> dict[validation.Place, float]:
    found = {
        (str(row["image"]), int(row["timestep"])): float(row["loss"])
        for row in rundir.read_rows(run.validation_path)
        if row["epoch"] == epoch
    }
    if not found:
        raise ConfigError(
            Problem(
                str(run.path),
                f"no losses of epoch {epoch}",
                "those of the original, made first",
                f"delete the folder {run.path} and give the command again",
            )
        )
    return found


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)
