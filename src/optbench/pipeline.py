"""The straight line of one run: config -> dataset -> latents -> network -> optimizer -> train ->
checkpoint -> validate -> render -> grid. The report is built afterwards, from the files left here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from optbench.config.build import config_tree, config_yaml
from optbench.contracts import BaseModel
from optbench.data.batches import Pace, plan_epoch
from optbench.data.latent_cache import FreshLatents, LatentCache, latents_of
from optbench.lora.initial_weights import start_sentences
from optbench.lora.network import LoraNetwork
from optbench.lora.warm_start import begin_network
from optbench.optim.build import build_optimizer
from optbench.optim.recipes import departures
from optbench.optim.stepping import BuiltOptimizer
from optbench.records import Batch, EpochRecord, Status, StepRecord
from optbench.render import run_images
from optbench.render.notices import text_notices
from optbench.render.prompts import Halving, Painter, origin_of
from optbench.storage import provenance, rundir
from optbench.storage.files import write_sealed_text
from optbench.storage.rundir import RunDir
from optbench.training import interrupt, memory, recovery, validation
from optbench.training import state as training_state
from optbench.training.device import base_for, make_accelerator, network_to_device
from optbench.training.loop import Course, Lane, train_epochs
from optbench.training.plan import RunPlan
from optbench.training.progress import RunProgress
from optbench.training.save import epoch_card, save_epoch
from optbench.training.state import (
    Progressed,
    forget_midway,
    set_aside_damaged_point,
    take_up,
    write_midway,
    write_state,
)
from optbench.training.tensorboard import rewrite_scalars, write_end, write_pictures, write_scalars
from optbench.training.trackers import Trackers, tracked


def run_one(plan: RunPlan) -> Status:
    """Make one run from wherever its folder stands: train, save, render, every epoch.

    Returns "done"; anything else is raised, for the caller to write down as the run's status.
    """
    memory.keep_freed_memory()
    config = plan.config
    run = RunDir(plan.run_dir)
    rundir.write_status(run.path, "running")
    accelerator = make_accelerator(config.train)
    memory.forget_peak_memory(accelerator.device.type)
    base = base_for(config, accelerator.device)
    latents = latents_of(
        plan.dataset,
        base,
        config.dataset,
        seed=config.seed,
        cache_dir=Path(config.cache_dir),
    )
    targets, start = base.lora_targets(), plan.initial_weights
    network = begin_network(targets, config.network, seed=config.seed, start=start)
    network_to_device(network, accelerator.device)
    optimizer = build_optimizer(
        config.optimizer,
        network.parameter_groups(),
        lr_mult=config.lr_mult,
        lr_scheduler=config.lr_scheduler,
        total_steps=plan.total_steps,
    )
    text_options = base.text_options(asdict(config.train))
    texts = text_notices(
        base, plan.dataset, config.dataset, config.prompts, text_options=text_options
    )
    notices = (*latents.notices, *texts, *start_sentences(config.network, start))
    stage = _Run(plan, run, base, network, optimizer, accelerator, notices)
    stage.begin()
    stage.examination = _examination(stage) if config.validate.enabled else None
    tree = config_tree(config)
    with (
        _progress(stage) as progress,
        tracked(config.tracker, run, tree, progress.say) as stage.trackers,
    ):
        stage.painter = Halving(base, progress.say)
        for line in (*departures(config.optimizer), config.optimizer.note, *stage.notices):
            if line:
                progress.say(f"{config.optimizer.name}: {line}")
        with progress.doing("rendering what is missing"):
            stage.catch_up()
        with interrupt.deferred():
            _train(stage, latents, progress)
        if config.render.enabled:
            with progress.doing("drawing the sheets"):
                last = stage.done.epoch
                run_images.draw_run_sheets(run, config.prompts, config.render, num_epochs=last)
    write_end(run, tree)
    training_state.forget_previous(run)
    rundir.write_status(run.path, "done")
    return "done"


@dataclass(slots=True)
class _Run:
    """One run in progress: what its stages share."""

    plan: RunPlan
    run: RunDir
    base: BaseModel
    network: LoraNetwork
    optimizer: BuiltOptimizer
    accelerator: Accelerator
    notices: tuple[str, ...]
    done: Progressed = Progressed(epoch=0, step=0)
    examination: validation.Examination | None = None
    trackers: Trackers | None = None
    painter: Painter | None = None

    def begin(self) -> None:
        """Bring the folder to one consistent moment: the last whole epoch, or the beginning."""
        run = self.run
        rundir.clean_partial_files(run.path)
        write_sealed_text(run.config_path, config_yaml(self.plan.config))
        standing = recovery.find_standing(run)
        if standing.state is not None:
            standing.state.put_back(self.network, self.optimizer, self.accelerator)
            self.done = standing.state.progressed
        if standing.is_lora_lost:
            rundir.truncate_rows(run.files_path, max_epoch=self.done.epoch - 1)
            self._save_lora(self.done)
        for folder in (run.path / "images", self._gallery().shared_dir):
            standing.notices += recovery.set_aside_damaged_pictures(folder)
        standing.notices += set_aside_damaged_point(run)
        self.notices += tuple(standing.notices)
        described = self._described()
        # An epoch whose record is not written yet tells its scalars when it is.
        epochs = [
            row for row in rundir.read_rows(run.epochs_path) if row["epoch"] <= self.done.epoch
        ]
        rewrite_scalars(run.tensorboard_dir, [*rundir.read_rows(run.steps_path), *epochs])
        rundir.write_json(run.provenance_path, described)

    def catch_up(self) -> None:
        """Make what is not on disk: the base's pictures, and what a kill left epochs without."""
        self.validate_missing()
        self.render_missing()
        epochs = rundir.read_rows(self.run.epochs_path)
        write_pictures(self.run, {0: 0, **{row["epoch"]: row["step"] for row in epochs}})
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
            "peak_memory_bytes": memory.peak_memory_bytes(self.base.device.type),
            "load_average": os.getloadavg()[0],  # much above ours, and seconds say nothing
        }
        rundir.append_rows(self.run.steps_path, rows)
        rundir.append_rows(self.run.layers_path, record.layer_rows())
        self.done = Progressed(epoch=record.epoch, step=record.step, row=row)
        write_state(self.run, self.done, self.network, self.optimizer, self.accelerator)
        write_scalars(self.run.tensorboard_dir, rows)
        forget_midway(self.run)
        saved = time.perf_counter()
        with interrupt.at_once():
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
            is_whole = self.done.step == self.plan.total_steps
            epochs = validation.due(self.plan.config.validate, self.done.epoch, is_last=is_whole)
            validation.validate_missing(self.examination, self.network, epochs)

    def render_missing(self) -> None:
        """Render every picture of every epoch so far that is not on disk yet."""
        if not self.plan.config.render.enabled:
            return
        gallery = self._gallery()
        run_images.render_base(gallery)
        for epoch in range(1, self.done.epoch + 1):
            run_images.render_epoch(gallery, self.network, epoch=epoch)

    def _gallery(self) -> run_images.Gallery:
        config = self.plan.config
        return run_images.Gallery(
            run=self.run,
            base=self.base,
            prompts=config.prompts.prompts,
            options=config.render,
            text_options=self.base.text_options(asdict(config.train)),
            cache_dir=Path(config.cache_dir),
            painter=self.painter,
            origin=origin_of(config.base, cache_dir=Path(config.cache_dir)),
        )

    def _save_lora(self, record: EpochRecord | Progressed) -> None:
        """Write the epoch's LoRA file from the evaluation weights; the last one under two names."""
        card = epoch_card(
            self.plan.config,
            self.plan.name,
            self.plan.dataset,
            self.base,
            reached=(record.epoch, record.step),
            num_steps=self.plan.total_steps,
        )
        with self.optimizer.evaluation_weights():
            tensors = self.network.state_dict()
        save_epoch(self.run, card, tensors, start=self.plan.initial_weights)

    def _write_epoch_row(self, row: dict[str, Any], seconds: dict[str, float]) -> None:
        """Append the epoch's record unless a killed process had got as far as that."""
        rows = rundir.read_rows(self.run.epochs_path)
        if not any(one["epoch"] == row["epoch"] for one in rows):
            flat = run_images.flat_pictures(self.run, epoch=row["epoch"])
            losses = rundir.read_rows(self.run.validation_path)
            losses_row = validation.summary(losses, epoch=row["epoch"])
            row = {**row, **losses_row, **seconds, "num_flat_pictures": len(flat)}
            rundir.append_rows(self.run.epochs_path, [row])
            write_scalars(self.run.tensorboard_dir, [row])
            write_pictures(self.run, {row["epoch"]: row["step"]})
        if self.trackers is not None:
            self.trackers.tell(self.run)

    def _described(self) -> dict[str, Any]:
        """Return versions, hardware and what was really built, read back."""
        config, dataset = self.plan.config, self.plan.dataset
        extra = {
            "departures": list(departures(config.optimizer)),
            "note": config.optimizer.note,
            "notices": list(self.notices),
            "changed": list(self.plan.changed_settings),
            "optimizer": self.optimizer.described(),
            "paper": config.optimizer.paper,
            "base": {"name": config.base.name, "fingerprint": self.plan.base_fingerprint},
            "dataset": {
                "num_images": len(dataset.images),
                "num_samples_per_epoch": sum(image.repeats for image in dataset.images),
                "fingerprint": dataset.fingerprint,
            },
            "weights_fingerprint": self.plan.weights_fingerprint,
            "total_steps": self.plan.total_steps,
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
    config, plan = stage.plan.config, stage.plan
    last_step = plan.total_steps
    if stage.done.step == last_step:
        return
    network, optimizer, accelerator = stage.network, stage.optimizer, stage.accelerator
    before = take_up(stage.run, stage.done, network, optimizer, accelerator)
    course = Course(
        seed=config.seed,
        loss=config.loss,
        first_epoch=stage.done.epoch + 1,
        first_step=stage.done.step if before is None else before.step,
        total_steps=last_step,
        begun=None if before is None else before.begun,
    )
    rows: list[dict[str, float | int]] = [] if before is None else before.rows
    lane = Lane(network=network, optimizer=optimizer)
    steps = train_epochs(
        stage.base,
        [lane],
        lambda epoch: _epoch_batches(stage, latents, epoch, course),
        options=config.train,
        course=course,
        accelerator=accelerator,
    )
    for (record,) in steps:
        if isinstance(record, StepRecord):
            rows.append(record.as_row())
            progress.advance(record)
            is_last = record.step == last_step or len(rows) == plan.steps_per_epoch
            if interrupt.is_asked() and not is_last:
                write_midway(stage.run, rows, network, optimizer, accelerator)
                interrupt.raise_if_asked()
            continue
        with progress.doing(f"saving and rendering epoch {record.epoch}"):
            stage.end_epoch(record, rows)
        progress.end_epoch(record.epoch, mean_loss=record.mean_loss)
        if flat := run_images.flat_pictures(stage.run, epoch=record.epoch):
            progress.say(f"{len(flat)} pictures are black or of one colour: {', '.join(flat)}")
        rows = []


def _epoch_batches(
    stage: _Run, latents: LatentCache | FreshLatents, epoch: int, course: Course
) -> Iterable[Batch]:
    """Return an epoch's batches, without those of the first one that were trained before."""
    config = stage.plan.config
    accumulation = config.train.gradient_accumulation
    planned = plan_epoch(
        stage.plan.dataset,
        config.dataset,
        seed=config.seed,
        epoch=epoch,
        batch_size=config.train.batch_size,
        pace=Pace(gradient_accumulation=accumulation, total_steps=course.total_steps),
    )
    is_begun = course.begun is not None and epoch == course.first_epoch
    num_trained = (course.first_step - stage.done.step) * accumulation if is_begun else 0
    return latents.batches(planned[num_trained:])


def _examination(stage: _Run) -> validation.Examination:
    config, dataset = stage.plan.config, stage.plan.dataset
    cache_dir, data = Path(config.cache_dir), config.dataset
    probes = validation.read_probes(
        config.validate, data, stage.base, dataset=dataset, cache_dir=cache_dir
    )
    return validation.Examination(
        run=stage.run,
        base=stage.base,
        probes=probes,
        options=config.validate,
        text_options=stage.base.text_options(asdict(config.train)),
        cache_dir=cache_dir,
    )


@contextmanager
def _progress(stage: _Run) -> Iterator[RunProgress]:
    with RunProgress(
        stage.run.name,
        num_steps=stage.plan.total_steps,
        num_steps_done=stage.done.step,
        run_index=stage.plan.run_index,
        num_runs=stage.plan.num_runs,
    ) as progress:
        yield progress
