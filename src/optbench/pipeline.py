"""One pass, top to bottom: plan -> base and data -> LoRA and optimizer -> train -> save -> render.

Runs that agree on base, data, seed, batches, precision and loss may train in one pass, a lane
each. What a run leaves lies in its folder (storage/rundir.py); the report reads that, without
torch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from optbench.config.build import config_tree, config_yaml
from optbench.data.batches import StepBudget, plan_epoch
from optbench.lora.initial_weights import initial_weights_notices
from optbench.lora.warm_start import begin_network
from optbench.optim.build import build_optimizer
from optbench.optim.recipes import departures
from optbench.records import Batch, EpochRecord
from optbench.render import run_images
from optbench.render.notices import text_notices
from optbench.render.prompts import Halving, origin_of
from optbench.render.run_images import Gallery
from optbench.storage import rundir
from optbench.storage.files import write_sealed_text
from optbench.storage.rundir import RunDir
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
from optbench.training.plan import RunPlan
from optbench.training.progress import RunProgress
from optbench.training.session import Session, Shared
from optbench.training.trackers import tracked


def run(plans: Sequence[RunPlan], session: Session) -> dict[str, Exception]:
    """Train the planned runs to their end in one pass, each resumed from its own folder.

    Returns:
        What ended a run before its end, by the run's name; every other run is "done".

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
            with lane.ends_by_error(), lane.progress.doing("rendering what is missing"):
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
                            state.write_partial_state(lane.run, lane)
                    case LaneEnded():
                        pass  # `lane.error` says by what; the other lanes go on
        for lane in lanes:
            with lane.ends_by_error():
                finish(lane)
    return errors | {lane.plan.name: lane.error for lane in lanes if lane.error is not None}


@dataclass(slots=True, kw_only=True)
class ImageLane(RunLane):
    """A run's lane that also renders."""

    images: Gallery


def open_lane(plan: RunPlan, shared: Shared, contexts: ExitStack, *, has_bar: bool) -> ImageLane:
    """Return a run ready to train: network, optimizer, and its folder's last intact state."""
    config, base, run = plan.config, shared.base, RunDir(plan.run_dir)
    network = begin_network(
        base.lora_targets(), config.network, seed=config.seed, initial=plan.initial_weights
    )
    for group in network.parameter_groups():
        for weight in group.parameters:  # in place, before an optimizer sees them
            weight.data = weight.data.to(base.device)
    optimizer = build_optimizer(
        config.optimizer,
        network.parameter_groups(),
        lr_mult=config.lr_mult,
        lr_scheduler=config.lr_scheduler,
        total_steps=plan.total_steps,
    )
    progress = RunProgress(
        plan.name,
        num_steps=plan.total_steps,
        run_index=plan.run_index,
        num_runs=plan.num_runs,
        has_bar=has_bar,
    )
    cache_dir = Path(config.cache_dir)
    text_options = base.text_options(asdict(config.train))
    images = Gallery(
        run=run,
        base=base,
        prompts=config.prompts.prompts,
        options=config.render,
        text_options=text_options,
        cache_dir=cache_dir,
        painter=Halving(base, progress.say),
        origin=origin_of(config.base, cache_dir=cache_dir),
    )
    lane = ImageLane(
        plan=plan,
        run=run,
        base=base,
        network=network,
        optimizer=optimizer,
        scaler=copy.deepcopy(shared.accelerator.scaler),
        progress=progress,
        images=images,
    )
    lane.notices += shared.latents.notices
    lane.notices += text_notices(
        base, plan.dataset, config.dataset, config.prompts, text_options=text_options
    )
    lane.notices += initial_weights_notices(config.network, plan.initial_weights)
    write_sealed_text(run.config_path, config_yaml(config))
    recovery.restore(lane, image_folders=(run.path / "images", images.shared_dir))
    save.write_provenance(lane)
    save.rewrite_tensorboard(lane)
    lane.validator = validation.validator_for(plan, base)
    progress.resume_at(lane.step)
    contexts.enter_context(progress)
    tree = config_tree(config)
    lane.trackers = contexts.enter_context(tracked(config.tracker, run, tree, progress.say))
    for line in (*departures(config.optimizer), config.optimizer.note, *lane.notices):
        if line:
            progress.say(f"{config.optimizer.name}: {line}")
    return lane


def train_pass(lanes: Sequence[ImageLane], shared: Shared) -> Iterator[Event[ImageLane]]:
    """Return the events of training the lanes to their end, over the batches they share."""
    if not lanes:
        return iter(())
    plan, config = lanes[0].plan, lanes[0].plan.config
    train_options = config.train
    budget = StepBudget(
        gradient_accumulation=train_options.gradient_accumulation, total_steps=plan.total_steps
    )

    def epoch_batches(epoch: int, first: int) -> Iterable[Batch]:
        planned = plan_epoch(
            plan.dataset,
            config.dataset,
            seed=config.seed,
            epoch=epoch,
            batch_size=train_options.batch_size,
            budget=budget,
        )
        return shared.latents.batches(planned[first:])

    return train(
        shared.base,
        lanes,
        epoch_batches,
        options=train_options,
        plan=TrainingPlan(
            seed=config.seed,
            loss=config.loss,
            steps_per_epoch=plan.steps_per_epoch,
            total_steps=plan.total_steps,
        ),
        accelerator=shared.accelerator,
        captions=shared.captions,
    )


def end_epoch(records: Sequence[tuple[ImageLane, EpochRecord]]) -> None:
    """Save an epoch of every lane, and only then validate and render: from there on, all of it can
    be made again, and the process may be stopped at once.
    """
    saved = []
    for lane, record in records:
        with lane.ends_by_error(), lane.progress.doing(f"saving epoch {record.epoch}"):
            saved.append((lane, record, save.save_epoch(lane, record)))
    for lane, record, seconds_save in saved:
        with lane.ends_by_error(), lane.progress.doing(f"rendering epoch {record.epoch}"):
            started = time.perf_counter()
            with interrupt.at_once():
                validate_missing(lane)
                validated = time.perf_counter()
                render_missing(lane)
            seconds = {
                "seconds_save": seconds_save,
                "seconds_validate": validated - started,
                "seconds_render": time.perf_counter() - validated,
            }
            flat = run_images.flat_pictures(lane.run, epoch=record.epoch)
            save.write_epoch_record(lane, flat_images=flat, seconds=seconds)
            lane.progress.end_epoch(record.epoch, mean_loss=record.mean_loss)
            if flat:
                lane.progress.say(
                    f"{len(flat)} images are black or of one color: {', '.join(flat)}"
                )


def catch_up(lane: ImageLane) -> None:
    """Make what the folder lacks: the base's own images, and what a kill left epochs without.

    The finished epoch's record comes after its images, which it describes, and the trackers are
    told after the record: the order of an undisturbed run.
    """
    validate_missing(lane)
    render_missing(lane)
    rows = rundir.read_rows(lane.run.epochs_path)
    tensorboard.write_pictures(lane.run, {0: 0, **{row["epoch"]: row["step"] for row in rows}})
    if lane.finished.row is not None:
        flat = run_images.flat_pictures(lane.run, epoch=lane.finished.epoch)
        save.write_epoch_record(lane, flat_images=flat)


def validate_missing(lane: ImageLane) -> None:
    """Measure every epoch so far that is due and has no validation loss yet."""
    if lane.validator is not None:
        finished = lane.finished
        is_last = finished.step == lane.plan.total_steps
        epochs = validation.epochs_due(lane.validator.options, finished.epoch, is_last=is_last)
        validation.validate_missing(lane.validator, lane.network, epochs)


def render_missing(lane: ImageLane) -> None:
    """Render every image of every epoch so far that is not on disk yet."""
    if lane.plan.config.render.enabled:
        run_images.render_base(lane.images)
        for epoch in range(1, lane.finished.epoch + 1):
            run_images.render_epoch(lane.images, lane.network, epoch=epoch)


def finish(lane: ImageLane) -> None:
    """Draw the sheets of a run that is trained to its end, and write that it is done."""
    if lane.error is not None:
        return
    config = lane.plan.config
    if config.render.enabled:
        with lane.progress.doing("drawing the sheets"):
            run_images.draw_run_sheets(
                lane.run, config.prompts, config.render, num_epochs=lane.finished.epoch
            )
    tensorboard.write_end(lane.run, config_tree(config))
    state.forget_previous(lane.run)
    rundir.write_status(lane.run.path, "done")
