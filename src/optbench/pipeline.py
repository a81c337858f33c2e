"""One pass, top to bottom: plan -> base and data -> LoRA and optimizer -> train -> save -> render.

Runs that agree on base, data, seed, batches, precision and loss may train in one pass, a lane
each. What a run leaves lies in its folder (storage/rundir.py); the report reads that, without
torch.
"""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from optbench.config.build import config_tree, config_yaml
from optbench.data import holdout_notice
from optbench.data.batches import EpochBatches, StepBudget
from optbench.errors import OptbenchError, Problem
from optbench.lora.blocks import network_notices
from optbench.lora.initial_weights import initial_weights_notices
from optbench.lora.warm_start import begin_network
from optbench.optim.build import build_optimizer
from optbench.optim.recipes import departures, rate_notices, unwise
from optbench.records import EpochRecord
from optbench.render import run_images
from optbench.render.notices import text_notices
from optbench.render.run_images import RunImages
from optbench.storage import files, provenance, rundir
from optbench.storage.files import write_sealed_text
from optbench.storage.rundir import RunDir
from optbench.storage.secrets import hide_in_settings
from optbench.training import interrupt, memory, recovery, save, state, tensorboard, validation
from optbench.training.lane import RunLane
from optbench.training.loop import (
    EpochDone,
    Event,
    LaneEnded,
    StepDone,
    StopAsked,
    TrainingPlan,
    train,
)
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan, holds_out
from optbench.training.progress import RunProgress
from optbench.training.session import Session, Shared
from optbench.training.trackers import tracked


def run(plans: Sequence[RunPlan], session: Session) -> dict[str, Exception]:
    """Train the planned runs in one pass, each resumed from its own folder, as far as it is to go.

    The caller holds the lock of every run's folder (launch/guard.py).

    Returns:
        What ended a run before its time, by the run's name; every other run is "done", or
        "stopped" where it is to be continued.

    Raises:
        OptbenchError: If what all of them share fails: base, data, device.
        StopAskedError: If the process was asked to stop; every run is saved.
    """
    memory.keep_freed_memory()
    for plan in plans:
        rundir.write_status(plan.run_dir, "running")
    shared = session.open(plans[0])
    memory.forget_peak_memory(shared.base.device.type)
    lanes: list[ImageLane] = []
    errors: dict[str, Exception] = {}
    with ExitStack() as contexts:
        for plan in plans:
            try:
                lanes.append(open_lane(plan, shared, contexts, has_bar=not lanes))
            except Exception as error:  # noqa: BLE001 - it ends this run, not the others
                errors[plan.name] = error
        for lane in lanes:
            with lane.ends_by_error():
                catch_up(lane)
        with interrupt.deferred():
            for event in train_pass(lanes, shared):
                match event:
                    case StepDone(lane, record):
                        lane.progress.advance(record)
                    case EpochDone(records):
                        end_epoch(records)
                    case StopAsked(lane):
                        with lane.ends_by_error():
                            save.save_partial_epoch(lane)
                    case LaneEnded():
                        pass  # `lane.error` says by what; the other lanes go on
        for lane in lanes:
            with lane.ends_by_error():
                finish(lane)
    return errors | {lane.plan.name: lane.error for lane in lanes if lane.error is not None}


@dataclass(slots=True, kw_only=True)
class ImageLane(RunLane):
    """A run's lane that also renders."""

    images: RunImages
    made_as: dict[str, str]  # what losses and images are made from, as the plan says


def open_lane(plan: RunPlan, shared: Shared, contexts: ExitStack, *, has_bar: bool) -> ImageLane:
    """Return a run ready to train: network, optimizer, and its folder's last intact state."""
    config, base, run = plan.config, shared.base, RunDir(plan.run_dir)
    _check_folder(plan, run)
    initial = plan.initial_weights
    network = begin_network(base.lora_targets(), config.network, seed=config.seed, initial=initial)
    network.to(base.device)
    optimizer = build_optimizer(
        config.optimizer,
        network.parameter_groups(),
        lr_mult=config.lr_mult,
        lr_scheduler=config.lr_scheduler,
        total_steps=plan.total_steps,
    )
    progress = RunProgress(
        plan.name,
        num_steps=plan.last_step,
        run_index=plan.run_index,
        num_runs=plan.num_runs,
        has_bar=has_bar,
    )
    images = run_images.images_of_run(config, run, base, say=progress.say)
    lane = ImageLane(
        plan=plan,
        run=run,
        base=base,
        network=network,
        optimizer=optimizer,
        scaler=copy.deepcopy(shared.accelerator.scaler),
        progress=progress,
        images=images,
        made_as=made_as(plan),
    )
    lane.notices += shared.latents.notices
    lane.notices += text_notices(
        base, plan.dataset, config.dataset, config.prompts, text_options=images.text_options
    )
    lane.notices += initial_weights_notices(config.network, initial)
    lane.notices += network_notices(config.network)
    lane.notices += unwise(
        config.optimizer,
        lr_scheduler=config.lr_scheduler,
        max_grad_norm=config.train.max_grad_norm,
    )
    lane.notices += rate_notices(config.optimizer, config.base, lr_mult=config.lr_mult)
    if holds_out(config.validate):
        lane.notices.append(holdout_notice(plan.dataset, plan.held_out))
    write_sealed_text(run.config_path, config_yaml(config))
    recovery.restore(lane, image_folders=(run.path / "images", images.shared_dir))
    save.begin_session(lane)
    save.rewrite_tensorboard(lane)
    lane.validator = validation.validator_for(plan, base)
    progress.resume_at(lane.step)
    contexts.enter_context(progress)
    tree = hide_in_settings(config_tree(config))
    lane.trackers = contexts.enter_context(tracked(config.tracker, run, tree, progress.say))
    for line in (*departures(config.optimizer), config.optimizer.note, *lane.notices):
        if line:
            progress.say(f"{config.optimizer.name}: {line}")
    return lane


def _check_folder(plan: RunPlan, run: RunDir) -> None:
    """Refuse a folder whose files are another run's: they would be resumed as if they were its."""
    if provenance.belongs_to_another(run.provenance_path, plan.weights_fingerprint):
        other = provenance.run_facts(run.provenance_path)["weights_fingerprint"]
        raise OptbenchError(
            Problem(
                str(run.path),
                f"files of another run, with the fingerprint {other}",
                f"those of this one, {plan.weights_fingerprint}: the folder was copied or renamed",
                f"move it away: mv {shlex.quote(str(run.path))} "
                f"{shlex.quote(f'{run.path}-of-another-run')}",
            )
        )


def train_pass(lanes: Sequence[ImageLane], shared: Shared) -> Iterator[Event[ImageLane]]:
    """Return the events of training the lanes as far as they go now, over shared batches."""
    if not lanes:
        return iter(())
    plan, config = lanes[0].plan, lanes[0].plan.config
    batches = EpochBatches(
        dataset=plan.dataset,
        options=config.dataset,
        latents=shared.latents,
        seed=config.seed,
        batch_size=config.train.batch_size,
        budget=StepBudget(
            gradient_accumulation=config.train.gradient_accumulation, total_steps=plan.total_steps
        ),
    )
    return train(
        shared.base,
        lanes,
        batches,
        options=config.train,
        plan=TrainingPlan.of(plan),
        accelerator=shared.accelerator,
        captions=shared.captions,
    )


def catch_up(lane: ImageLane) -> None:
    """Make what the folder lacks: the base's own images, and what a kill left epochs without.

    The finished epoch's record comes after its images, which it describes, and the trackers get
    it after that: the order of an undisturbed run.
    """
    with lane.progress.doing("rendering what is missing"):
        epochs = range(1, lane.finished.epoch + 1)
        num_measured = validation.validate_due(lane, epochs=epochs)
        num_rendered = run_images.render_missing(lane.images, lane.network, epochs=epochs)
        save.end_session_part(lane, num_rendered=num_rendered, num_measured=num_measured)
        if num_rendered or num_measured:
            save.refresh_epoch_records(
                lane, flat_images=lambda epoch: run_images.flat_images(lane.run, epoch=epoch)
            )
        rows = files.read_rows(lane.run.epochs_path)
        tensorboard.write_pictures(lane.run, {0: 0, **{row["epoch"]: row["step"] for row in rows}})
        flat = run_images.flat_images(lane.run, epoch=lane.finished.epoch)
        save.write_epoch_record(lane, flat_images=flat)


def end_epoch(records: Sequence[tuple[ImageLane, EpochRecord]]) -> None:
    """Save an epoch of every lane, then validate and render it.

    All lanes are saved first: what follows can be made again, so it may be stopped at any time.
    """
    saved = []
    for lane, record in records:
        with lane.ends_by_error(), lane.progress.doing(f"saving epoch {record.epoch}"):
            saved.append((lane, record, save.save_epoch(lane, record)))
    for lane, record, seconds_save in saved:
        with lane.ends_by_error(), lane.progress.doing(f"rendering epoch {record.epoch}"):
            started = time.perf_counter()
            with interrupt.at_once():
                num_measured = validation.validate_due(lane, epochs=[record.epoch])
                validated = time.perf_counter()
                num_rendered = run_images.render_missing(
                    lane.images, lane.network, epochs=[record.epoch]
                )
            seconds = {
                "seconds_save": seconds_save,
                "seconds_validate": validated - started,
                "seconds_render": time.perf_counter() - validated,
            }
            save.end_session_part(lane, num_rendered=num_rendered, num_measured=num_measured)
            flat = run_images.flat_images(lane.run, epoch=record.epoch)
            save.write_epoch_record(lane, flat_images=flat, seconds=seconds)
            lane.progress.end_epoch(record.epoch, mean_loss=record.mean_loss)
            if flat:
                lane.progress.say(
                    f"{len(flat)} images are black or of one color: {', '.join(flat)}"
                )


def finish(lane: ImageLane) -> None:
    """Draw the sheets of a run that is trained to its end, and write that it is done.

    One that is to be continued later is stopped instead, and says where.
    """
    if lane.error is not None:
        return
    plan, config = lane.plan, lane.plan.config
    if lane.step < plan.total_steps:
        rundir.write_status(
            lane.run.path,
            "stopped",
            f"stopped at epoch {lane.finished.epoch} of {plan.num_epochs}",
            made_as=lane.made_as,
            epoch=lane.finished.epoch,
            step=lane.step,
        )
        return
    if config.render.enabled:
        with lane.progress.doing("drawing the sheets"):
            run_images.draw_run_sheets(
                lane.run, config.prompts, config.render, num_epochs=lane.finished.epoch
            )
    tree = hide_in_settings(config_tree(config))
    tensorboard.write_end(lane.run, tree, lane.plan.changed_settings)
    state.forget_previous(lane.run)
    rundir.write_status(lane.run.path, "done", made_as=lane.made_as)
