"""The straight line of one run: config -> dataset -> latents -> network -> optimizer -> train ->
checkpoint -> validate -> render -> grid. The report is built afterwards, from the files left here.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from optbench import allocator, pictures, provenance, rundir, validation
from optbench.basefiles.reading import kohya_hashes
from optbench.bases import load_base
from optbench.batches import Pace, num_batches, plan_epoch
from optbench.checkpoint import save_lora
from optbench.config import config_yaml
from optbench.continuing import start_metadata, start_sentences
from optbench.contracts import Base
from optbench.curves import rewrite_scalars, write_scalars
from optbench.devices import make_accelerator
from optbench.errors import ConfigError
from optbench.identity import RunIdentity, changed_settings, identify
from optbench.latents import FreshLatents, LatentCache, latents_of
from optbench.loss_checks import check_loss_for_prediction
from optbench.metadata import LoraCard, kohya_metadata
from optbench.network import LoraNetwork
from optbench.notices import text_notices
from optbench.optimizers import build_optimizer
from optbench.options import BaseOptions, RunConfig
from optbench.progress import RunProgress
from optbench.recipes import departures
from optbench.records import Batch, EpochRecord, Status, StepRecord, SweepPlace
from optbench.render import Halving, Painter, origin_of
from optbench.resume import Progressed, read_state, write_state
from optbench.rundir import RunDir
from optbench.stepping import BuiltOptimizer
from optbench.train import Course, Lane, train_epochs
from optbench.warmstart import begin_network

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_one(config: RunConfig, place: SweepPlace) -> Status:
    """Make one run from wherever its folder stands: train, save, render, every epoch.

    Returns "done"; anything else is raised, for the caller to write down as the run's status.
    """
    allocator.keep_freed_memory()
    identity = identify(config)
    run = RunDir(place.sweep_dir / identity.name)
    rundir.write_status(run.path, "running")
    accelerator = make_accelerator(config.train)
    allocator.forget_peak_memory(accelerator.device.type)
    base = _base_for(config, accelerator.device)
    latents = latents_of(
        identity.dataset,
        base,
        config.dataset,
        seed=config.seed,
        cache_dir=Path(config.cache_dir),
    )
    targets, start = base.lora_targets(), identity.start
    network = begin_network(targets, config.network, seed=config.seed, start=start)
    network_to_device(network, accelerator.device)
    optimizer = build_optimizer(
        config.optimizer,
        network.parameter_groups(),
        lr_mult=config.lr_mult,
        lr_scheduler=config.lr_scheduler,
        total_steps=total_steps(config, identity),
    )
    length = config.train.max_token_length
    texts = text_notices(
        base, identity.dataset, config.dataset, config.prompts, max_token_length=length
    )
    notices = (*latents.notices, *texts, *start_sentences(config.network, start))
    stage = _Run(config, identity, run, base, network, optimizer, accelerator, notices)
    stage.begin()
    stage.examination = _examination(stage) if config.validate.enabled else None
    with _progress(stage, place) as progress:
        stage.painter = Halving(base, progress.say)
        for line in (*departures(config.optimizer), config.optimizer.note, *notices):
            if line:
                progress.say(f"{config.optimizer.name}: {line}")
        with progress.doing("rendering what is missing"):
            stage.catch_up()
        _train(stage, latents, progress)
        if config.render.enabled:
            with progress.doing("drawing the sheets"):
                last = stage.done.epoch
                pictures.draw_run_sheets(run, config.prompts, config.render, num_epochs=last)
    rundir.write_status(run.path, "done")
    return "done"


def total_steps(config: RunConfig, identity: RunIdentity) -> int:
    """Return how many optimizer updates the run takes: `train.max_steps`, or all its epochs."""
    steps, limit = config.train.epochs * steps_per_epoch(config, identity), config.train.max_steps
    return steps if limit is None else min(limit, steps)


def steps_per_epoch(config: RunConfig, identity: RunIdentity) -> int:
    """Return the optimizer updates of one epoch; a last window of fewer batches counts too."""
    batches = num_batches(identity.dataset, batch_size=config.train.batch_size)
    return -(-batches // config.train.gradient_accumulation)


@dataclass(slots=True)
class _Run:
    """One run in progress: what its stages share."""

    config: RunConfig
    identity: RunIdentity
    run: RunDir
    base: Base
    network: LoraNetwork
    optimizer: BuiltOptimizer
    accelerator: Accelerator
    notices: tuple[str, ...]
    done: Progressed = Progressed(epoch=0, step=0)
    examination: validation.Examination | None = None
    painter: Painter | None = None

    def begin(self) -> None:
        """Bring the folder to one consistent moment: the last whole epoch, or the beginning."""
        run = self.run
        rundir.clean_partial_files(run.path)
        rundir.write_atomic(run.config_path, config_yaml(self.config))
        described = self._described()
        restored = read_state(run, self.network, self.optimizer, self.accelerator)
        self.done = restored or Progressed(epoch=0, step=0)
        records = (run.steps_path, run.epochs_path, run.layers_path, run.validation_path)
        for path in records:
            rundir.truncate_rows(path, max_epoch=self.done.epoch)
        epochs = [
            row for row in rundir.read_rows(run.epochs_path) if row["epoch"] < self.done.epoch
        ]
        epochs += [] if self.done.row is None else [self.done.row]
        rewrite_scalars(run.tensorboard_dir, [*rundir.read_rows(run.steps_path), *epochs])
        rundir.write_json(run.provenance_path, described)

    def catch_up(self) -> None:
        """Make what is not on disk: the base's pictures, and what a kill left epochs without."""
        self.validate_missing()
        self.render_missing()
        if self.done.row is not None:
            self._write_epoch_row(self.done.row, {})

    def end_epoch(self, record: EpochRecord, rows: list[dict[str, float | int]]) -> None:
        """Keep one trained epoch: LoRA file, records, state, and then its pictures.

        The state is the commit: killed before it, the epoch is trained again, to the same bits;
        killed after it, only the missing pictures are rendered.
        """
        started = time.perf_counter()
        self._save_lora(record)
        row: dict[str, Any] = {
            **record.as_row(),
            "peak_memory_bytes": allocator.peak_memory_bytes(self.base.device.type),
            "load_average": os.getloadavg()[0],  # much above ours, and seconds say nothing
        }
        rundir.append_rows(self.run.steps_path, rows)
        rundir.append_rows(self.run.layers_path, record.layer_rows())
        self.done = Progressed(epoch=record.epoch, step=record.step, row=row)
        write_state(self.run, self.done, self.network, self.optimizer, self.accelerator)
        write_scalars(self.run.tensorboard_dir, [*rows, row])
        saved = time.perf_counter()
        self.validate_missing()
        validated = time.perf_counter()
        self.render_missing()
        seconds = {
            "seconds_save": saved - started,
            "seconds_validate": validated - saved,
            "seconds_render": time.perf_counter() - validated,
        }
        self._write_epoch_row(row, seconds)

    def validate_missing(self) -> None:
        """Measure every epoch so far that is due and has no validation loss yet."""
        if self.examination is not None:
            is_whole = self.done.step == total_steps(self.config, self.identity)
            epochs = validation.due(self.config.validate, self.done.epoch, is_last=is_whole)
            validation.validate_missing(self.examination, self.network, epochs)

    def render_missing(self) -> None:
        """Render every picture of every epoch so far that is not on disk yet."""
        if not self.config.render.enabled:
            return
        gallery = pictures.Gallery(
            run=self.run,
            base=self.base,
            prompts=self.config.prompts.prompts,
            options=self.config.render,
            clip_skip=self.config.train.clip_skip,
            cache_dir=Path(self.config.cache_dir),
            painter=self.painter,
            origin=origin_of(self.config.base, cache_dir=Path(self.config.cache_dir)),
        )
        pictures.render_base(gallery)
        for epoch in range(1, self.done.epoch + 1):
            pictures.render_epoch(gallery, self.network, epoch=epoch)

    def _save_lora(self, record: EpochRecord) -> None:
        """Write the epoch's LoRA file from the evaluation weights; the last one under two names."""
        config = self.config
        card = LoraCard(
            name=self.run.name,
            model_version=self.base.model_version,
            predicts_v=self.base.prediction_type == "v_prediction",
            files=kohya_hashes(config.base, cache_dir=Path(config.cache_dir)),
            seed=config.seed,
            lr_mult=config.lr_mult,
            epoch=record.epoch,
            step=record.step,
            num_epochs=config.train.epochs,
            num_steps=total_steps(config, self.identity),
            num_batches_per_epoch=num_batches(
                self.identity.dataset, batch_size=config.train.batch_size
            ),
            images=self.identity.dataset.images,
            folders=self.identity.dataset.folders,
            dataset=config.dataset,
            network=config.network,
            optimizer=config.optimizer,
            lr_scheduler=config.lr_scheduler,
            train=config.train,
            loss=config.loss,
        )
        with self.optimizer.evaluation_weights():
            tensors = self.network.state_dict()
        metadata = {**kohya_metadata(card), **start_metadata(self.identity.start)}
        paths = [self.run.lora_path(record.epoch)]
        if record.step == card.num_steps:
            paths.append(self.run.lora_path(None))
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_lora(path, tensors, precision=config.train.save_precision, metadata=metadata)

    def _write_epoch_row(self, row: dict[str, Any], seconds: dict[str, float]) -> None:
        """Append the epoch's record unless a killed process had got as far as that."""
        rows = rundir.read_rows(self.run.epochs_path)
        if not any(one["epoch"] == row["epoch"] for one in rows):
            flat = pictures.flat_pictures(self.run, epoch=row["epoch"])
            losses = rundir.read_rows(self.run.validation_path)
            losses_row = validation.summary(losses, epoch=row["epoch"])
            row = {**row, **losses_row, **seconds, "num_flat_pictures": len(flat)}
            rundir.append_rows(self.run.epochs_path, [row])

    def _described(self) -> dict[str, Any]:
        """Return versions, hardware and what was really built, read back."""
        config, dataset = self.config, self.identity.dataset
        extra = {
            "departures": list(departures(config.optimizer)),
            "note": config.optimizer.note,
            "notices": list(self.notices),
            "changed": list(changed_settings(config)),
            "optimizer": self.optimizer.described(),
            "paper": config.optimizer.paper,
            "base": {"name": config.base.name, "fingerprint": self.identity.base_fingerprint},
            "dataset": {
                "num_images": len(dataset.images),
                "num_samples_per_epoch": sum(image.repeats for image in dataset.images),
                "fingerprint": dataset.fingerprint,
            },
            "weights_fingerprint": self.identity.weights_fingerprint,
            "total_steps": total_steps(config, self.identity),
            "device": str(self.base.device),
            "num_threads": torch.get_num_threads(),
            "num_parameters": sum(one.numel() for one in self.optimizer.parameters()),
        }
        packages = ["torch", "diffusers", "transformers", "accelerate", "safetensors"]
        packages.append(config.optimizer.package)
        return provenance.collect(
            packages=list(dict.fromkeys(packages)), command=sys.argv, extra=extra
        )


def _train(stage: _Run, latents: LatentCache | FreshLatents, progress: RunProgress) -> None:
    """Train what is left of the run, keeping every epoch as soon as it is whole."""
    config, identity = stage.config, stage.identity
    last_step = total_steps(config, identity)
    if stage.done.step == last_step:
        return
    course = Course(
        seed=config.seed,
        loss=config.loss,
        first_epoch=stage.done.epoch + 1,
        first_step=stage.done.step,
        total_steps=last_step,
    )

    pace = Pace(gradient_accumulation=config.train.gradient_accumulation, total_steps=last_step)

    def epoch_batches(epoch: int) -> Iterable[Batch]:
        planned = plan_epoch(
            identity.dataset,
            config.dataset,
            seed=config.seed,
            epoch=epoch,
            batch_size=config.train.batch_size,
            pace=pace,
        )
        return latents.batches(planned)

    rows: list[dict[str, float | int]] = []
    lane = Lane(network=stage.network, optimizer=stage.optimizer)
    for (record,) in train_epochs(
        stage.base,
        [lane],
        epoch_batches,
        options=config.train,
        course=course,
        accelerator=stage.accelerator,
    ):
        if isinstance(record, StepRecord):
            rows.append(record.as_row())
            progress.advance(record)
            continue
        with progress.doing(f"saving and rendering epoch {record.epoch}"):
            stage.end_epoch(record, rows)
        progress.end_epoch(record.epoch, mean_loss=record.mean_loss)
        if flat := pictures.flat_pictures(stage.run, epoch=record.epoch):
            progress.say(f"{len(flat)} pictures are black or of one colour: {', '.join(flat)}")
        rows = []


def _base_for(config: RunConfig, device: torch.device) -> Base:
    """Return the base, computing as this run asks; its weights are shared with other runs."""
    cache_dir = Path(config.cache_dir)
    base = _base(config.base, device, config.train.mixed_precision, cache_dir)
    if wrong := check_loss_for_prediction(config.loss, base.prediction_type):
        raise ConfigError(*wrong)
    base.compute_with(
        gradient_checkpointing=config.train.gradient_checkpointing,
        attention=config.train.attention,
        compiled_by=config.train.dynamo_backend if config.train.torch_compile else None,
    )
    return base.with_zero_terminal_snr() if config.loss.zero_terminal_snr else base


@functools.lru_cache(maxsize=1)
def _base(options: BaseOptions, device: torch.device, precision: str, cache_dir: Path) -> Base:
    """Return the base, loaded once per process and shared by its runs."""
    return load_base(options, device=device, dtype=_DTYPES[precision], cache_dir=cache_dir)


def _examination(stage: _Run) -> validation.Examination:
    config, dataset = stage.config, stage.identity.dataset
    cache_dir, data = Path(config.cache_dir), config.dataset
    probes = validation.read_probes(
        config.validate, data, stage.base, dataset=dataset, cache_dir=cache_dir
    )
    return validation.Examination(
        run=stage.run,
        base=stage.base,
        probes=probes,
        options=config.validate,
        clip_skip=config.train.clip_skip,
        max_token_length=config.train.max_token_length,
        cache_dir=cache_dir,
    )


def network_to_device(network: LoraNetwork, device: torch.device) -> None:
    """Move the network's parameters in place, before an optimizer sees them."""
    for group in network.parameter_groups():
        for parameter in group.parameters:
            parameter.data = parameter.data.to(device)


@contextmanager
def _progress(stage: _Run, place: SweepPlace) -> Iterator[RunProgress]:
    with RunProgress(
        stage.run.name,
        num_steps=total_steps(stage.config, stage.identity),
        num_steps_done=stage.done.step,
        run_index=place.run_index,
        num_runs=place.num_runs,
    ) as progress:
        yield progress
