"""What a run writes of its own training: provenance, LoRA files, records and states, in order.

The order of the writes at an epoch's end is what makes a run resumable (docs/decisions/0002):
killed before the state is written, the epoch is trained again to the same bits; killed after it,
only what follows it is made again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from optbench.lora.initial_weights import initial_weights_metadata
from optbench.lora.metadata import LoraCard, kohya_metadata
from optbench.lora.save import save_lora
from optbench.models.files.facts import kohya_hashes
from optbench.optim.recipes import departures
from optbench.records import EpochRecord
from optbench.storage import files, provenance
from optbench.storage.source_code import source_fingerprint
from optbench.training import memory, validation
from optbench.training.lane import FinishedEpoch, RunLane
from optbench.training.state import forget_partial_state, write_partial_state, write_state
from optbench.training.tensorboard import rewrite_scalars, write_pictures, write_scalars

_LOSSES = "validation_loss"  # with which the names of a record's validation losses begin


def begin_session(lane: RunLane) -> None:
    """Add this process to the run's provenance: versions, hardware, and what was really built.

    A run that is trained to its end keeps what is said of its training.
    """
    config, dataset = lane.plan.config, lane.plan.dataset
    held_out = lane.plan.held_out
    facts = {
        "departures": list(departures(config.optimizer)),
        "note": config.optimizer.note,
        "changed": list(lane.plan.changed_settings),
        "optimizer": {
            **lane.optimizer.described(),
            "package": config.optimizer.package,
            "package_version": provenance.package_version(config.optimizer.package),
            "source_fingerprint": source_fingerprint(config.optimizer.target),
        },
        "paper": config.optimizer.paper,
        "base": {"name": config.base.name, "fingerprint": lane.plan.base_fingerprint},
        "dataset": {
            "num_images": len(dataset.images),
            "num_samples_per_epoch": sum(image.repeats for image in dataset.images),
            "fingerprint": dataset.fingerprint,
            # Of everything in the folders, which seeds train on different parts of.
            "whole_fingerprint": (
                dataset.fingerprint if held_out is None else held_out.fingerprint
            ),
            "num_held_out": 0 if held_out is None else len(held_out.images),
        },
        "weights_fingerprint": lane.plan.weights_fingerprint,
        "total_steps": lane.plan.total_steps,
        "num_parameters": sum(weight.numel() for weight in lane.optimizer.parameters()),
    }
    packages = ["torch", "diffusers", "transformers", "accelerate", "safetensors"]
    packages.append(config.optimizer.package)
    session = provenance.collect(
        packages=list(dict.fromkeys(packages)),
        command=sys.argv,
        extra={
            "device": str(lane.base.device),
            "num_threads": torch.get_num_threads(),
            "from_step": lane.step,
            "to_step": lane.step,
        },
    )
    path = lane.run.provenance_path
    if lane.step == lane.plan.total_steps:
        facts |= provenance.run_facts(path)
    facts["notices"] = list(lane.notices)
    if damage := provenance.begin_session(path, session, facts):
        lane.notices.append(damage)


def end_session_part(lane: RunLane, *, num_rendered: int, num_measured: int) -> None:
    """Write into the run's provenance what this process has rendered and measured since."""
    lane.num_rendered += num_rendered
    lane.num_measured += num_measured
    if num_rendered or num_measured:
        provenance.update_session(
            lane.run.provenance_path,
            num_rendered=lane.num_rendered,
            num_measured=lane.num_measured,
        )


def save_partial_epoch(lane: RunLane) -> None:
    """Write a point inside the epoch, from which the run resumes bit for bit."""
    provenance.update_session(lane.run.provenance_path, to_step=lane.step)
    write_partial_state(lane.run, lane)


def rewrite_tensorboard(lane: RunLane) -> None:
    """Write TensorBoard's scalars anew from the records: a killed run may have left other ones."""
    run = lane.run
    # An epoch whose record is not written yet tells its scalars when it is.
    epochs = [
        row for row in files.read_rows(run.epochs_path) if row["epoch"] <= lane.finished.epoch
    ]
    rewrite_scalars(run.tensorboard_dir, [*files.read_rows(run.steps_path), *epochs])


def save_epoch(lane: RunLane, record: EpochRecord) -> float:
    """Write one trained epoch: LoRA file, records, then the state; return the seconds it took."""
    started = time.perf_counter()
    run = lane.run
    row: dict[str, Any] = {
        **record.as_row(),
        "peak_memory_bytes": memory.peak_memory_bytes(lane.base.device.type),
        "load_average": os.getloadavg()[0],  # much above ours, and seconds say nothing
    }
    lane.finished = FinishedEpoch(epoch=record.epoch, step=record.step, row=row)
    # The LoRA file comes first: it can be written again from a state, but after the state nobody
    # would know that it lacks. The records follow; lines after the last state are cut off when the
    # run is resumed, so that writing them twice does no harm.
    save_lora_files(lane)
    files.append_rows(run.steps_path, lane.partial.rows)
    files.append_rows(run.layers_path, record.layer_rows())
    provenance.update_session(run.provenance_path, to_step=record.step)
    # The state is the commit. Everything after it is made from what lies on disk by now.
    write_state(run, lane.finished, lane)
    write_scalars(run.tensorboard_dir, lane.partial.rows)
    forget_partial_state(run)
    return time.perf_counter() - started


def save_lora_files(lane: RunLane) -> None:
    """Write the finished epoch's LoRA file from the evaluation weights, and a record of it.

    The last one of a run is written under two names.

    Raises:
        DivergedError: If a tensor holds NaN or infinity.
    """
    plan, run, config = lane.plan, lane.run, lane.plan.config
    card = LoraCard(
        name=plan.name,
        model_version=lane.base.model_version,
        prediction=lane.base.process.prediction,
        num_timesteps=lane.base.process.num_timesteps,
        files=kohya_hashes(config.base, cache_dir=Path(config.cache_dir)),
        seed=config.seed,
        lr_mult=config.lr_mult,
        epoch=lane.finished.epoch,
        step=lane.finished.step,
        # Those that the steps begin, as kohya's trainer counts them under max_train_steps.
        num_epochs=-(-plan.total_steps // plan.steps_per_epoch),
        num_steps=plan.total_steps,
        num_batches_per_epoch=plan.num_batches_per_epoch,
        images=plan.dataset.images,
        folders=plan.dataset.folders,
        dataset=config.dataset,
        network=config.network,
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
        train=config.train,
        loss=config.loss,
    )
    with lane.optimizer.evaluation_weights():
        tensors = lane.network.state_dict()
    metadata = {**kohya_metadata(card), **initial_weights_metadata(plan.initial_weights)}
    paths = [run.lora_path(card.epoch)]
    if card.step == card.num_steps:
        paths.append(run.lora_path(None))
    rows = []
    for path in paths:
        digest = save_lora(path, tensors, precision=config.train.save_precision, metadata=metadata)
        rows.append({"epoch": card.epoch, "file": path.name, "sha256": digest})
    files.append_rows(run.files_path, rows)


def refresh_epoch_records(lane: RunLane, *, flat_images: Callable[[int], Sequence[str]]) -> None:
    """Bring the records of finished epochs up to losses and images that were made again since.

    Args:
        lane: The run.
        flat_images: Returns the names of an epoch's images that are of one colour.
    """
    run = lane.run
    rows, losses = files.read_rows(run.epochs_path), files.read_rows(run.validation_path)
    current = []
    for row in rows:
        kept = {name: value for name, value in row.items() if not name.startswith(_LOSSES)}
        kept |= validation.summary(losses, epoch=row["epoch"])
        current.append({**kept, "num_flat_pictures": len(flat_images(row["epoch"]))})
    if current != rows:
        files.write_rows(run.epochs_path, current)


def write_epoch_record(
    lane: RunLane, *, flat_images: Sequence[str], seconds: dict[str, float] | None = None
) -> None:
    """Append the finished epoch's record, unless a killed process had got as far as that.

    It comes last, after the epoch's images, because it says what they are like; until then its
    numbers lie in the state.
    """
    run, row = lane.run, lane.finished.row
    if row is None:
        return
    epoch = row["epoch"]
    if all(other["epoch"] != epoch for other in files.read_rows(run.epochs_path)):
        losses = validation.summary(files.read_rows(run.validation_path), epoch=epoch)
        row = {**row, **losses, **(seconds or {}), "num_flat_pictures": len(flat_images)}
        files.append_rows(run.epochs_path, [row])
        write_scalars(run.tensorboard_dir, [row])
        write_pictures(run, {epoch: row["step"]})
    if lane.trackers is not None:
        lane.trackers.log(run)
