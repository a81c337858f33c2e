"""The training loop: batch -> draw -> loss -> step -> record, and nothing else.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from optbench import rng
from optbench.contracts import BaseModel, Conditioning, Network, StepOptimizer
from optbench.data.text_cache import encode_frozen
from optbench.errors import DivergedError, Problem
from optbench.optim import telemetry
from optbench.records import Batch, EpochRecord, StepRecord
from optbench.schema import LossOptions, TrainOptions
from optbench.training.loss import LossWeighting
from optbench.training.noise import draw_noise

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


_PLACES: tuple[Literal["weights", "gradients"], ...] = ("weights", "gradients")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One network and what trains it; several lanes may share a base and its batches."""

    network: Network
    optimizer: StepOptimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The part of the first epoch that was trained before, by a process that was asked to stop."""

    losses: tuple[float, ...]  # of its steps
    seconds: float
    set_generators: Callable[[], None]  # as they stood; for libraries that draw from global ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a training draws and minimizes, where it begins and how far it goes."""

    seed: int
    loss: LossOptions
    first_epoch: int  # counts from 1; more than 1 when an interrupted run goes on
    first_step: int  # steps already taken
    total_steps: int
    begun: Begun | None = None  # not None: `epoch_batches` leaves out what was trained already


@dataclass(slots=True)
class _Clock:
    """Seconds by phase of the step in progress."""

    device: torch.device
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    data: float = 0.0
    started: float = 0.0

    def start(self) -> None:
        """Begin to time a phase."""
        self.started = time.perf_counter()

    def stop(self, phase: str) -> None:
        """Add the time since `start`; a GPU is waited for, or its work lands in a later phase."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        setattr(self, phase, getattr(self, phase) + now - self.started)
        self.started = now


def train_epochs(
    base: BaseModel,
    lanes: Sequence[Lane],
    epoch_batches: Callable[[int], Iterable[Batch]],
    *,
    options: TrainOptions,
    course: Course,
    accelerator: Accelerator,
) -> Iterator[tuple[StepRecord, ...] | tuple[EpochRecord, ...]]:
    """Yield one record per lane after every step, and one per lane after every epoch.

    Writes nothing and renders nothing: whoever iterates saves, validates and renders between the
    epochs, while the loop stands still. Every draw is keyed by (seed, epoch, picture), never by
    lane, batch size or what was done in between.

    Raises:
        DivergedError: If a loss, a gradient or a weight is no longer finite.
    """
    step = course.first_step
    for epoch in range(course.first_epoch, options.epochs + 1):
        _seed_third_party_code(course.seed, epoch)
        begun = course.begun if epoch == course.first_epoch else None
        if begun is not None:
            begun.set_generators()
        losses = [[] if begun is None else [*begun.losses] for _ in lanes]
        seconds = 0.0 if begun is None else begun.seconds
        last_norms: list[Mapping[str, float]] = [{} for _ in lanes]
        for window in _windows(epoch_batches(epoch), options.gradient_accumulation):
            if step == course.total_steps:
                break
            step += 1
            records = []
            for lane_index, lane in enumerate(lanes):
                stepper = _Stepper(base, lane, options, course, accelerator)
                record, last_norms[lane_index] = stepper.step(window, step=step, epoch=epoch)
                losses[lane_index].append(record.loss)
                records.append(record)
            seconds += sum(_seconds(record) for record in records)
            yield tuple(records)
        yield tuple(
            _epoch_record(lane, epoch, step, losses[index], seconds, last_norms[index])
            for index, lane in enumerate(lanes)
        )
        if step == course.total_steps:
            return


@dataclass(frozen=True, slots=True)
class _Window:
    """The batches of one optimizer update, and the seconds it took to gather them."""

    batches: tuple[Batch, ...]
    seconds: float


def _windows(batches: Iterable[Batch], num_batches: int) -> Iterator[_Window]:
    """Yield `num_batches` batches at a time; the epoch's last window may hold fewer, as kohya's."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        gathered: list[Batch] = []
        for batch in iterator:
            gathered.append(batch)
            if len(gathered) == num_batches:
                break
        if not gathered:
            return
        yield _Window(tuple(gathered), time.perf_counter() - started)


class _Stepper:
    """One optimizer update of one lane."""

    def __init__(
        self,
        base: BaseModel,
        lane: Lane,
        options: TrainOptions,
        course: Course,
        accelerator: Accelerator,
    ) -> None:
        self.base = base
        self.lane = lane
        self.options = options
        self.course = course
        self.accelerator = accelerator

    def step(
        self, window: _Window, *, step: int, epoch: int
    ) -> tuple[StepRecord, Mapping[str, float]]:
        """Return the update's record and the norms' statistics of its max-norm, if it has one."""
        network, optimizer = self.lane.network, self.lane.optimizer
        clock = _Clock(self.base.device, data=window.seconds)
        loss_sum = 0.0
        with network.attached():
            for place, batch in enumerate(window.batches):
                network.begin_step(rng.generator(self.course.seed, "dropout", step, place))
                loss_sum += self._accumulate(batch, clock)
        clock.start()
        loss = loss_sum / len(window.batches)
        lr, d, effective_lr = optimizer.rates()
        is_wanted = step % telemetry.RATIO_EVERY == 1
        with telemetry.update_ratios(optimizer.optimizer, is_wanted=is_wanted) as ratios:
            grad_norm = self._update(loss, step=step, epoch=epoch)
        norms = network.end_step()  # after the update: what is saved keeps the max-norm
        clock.stop("optimizer")
        record = StepRecord(
            step=step,
            epoch=epoch,
            loss=loss,
            grad_norm=grad_norm,
            lr=lr,
            d=d,
            effective_lr=effective_lr,
            update_ratio=ratios,
            seconds_data=clock.data,
            seconds_forward=clock.forward,
            seconds_backward=clock.backward,
            seconds_optimizer=clock.optimizer,
        )
        return record, norms

    def _accumulate(self, batch: Batch, clock: _Clock) -> float:
        """Add one batch's gradients; return its loss."""
        clock.start()
        draw = draw_noise(batch, self.base.process, self.course.loss, seed=self.course.seed)
        process = self.base.process
        weighting = LossWeighting(self.course.loss, process, draw.timesteps_B, batch.samples)
        latents_BCHW = self._on_device(batch.latents_BCHW)
        noise_BCHW = self._on_device(draw.noise_BCHW)
        timesteps_B = draw.timesteps_B.to(self.base.device)
        captions = [sample.caption for sample in batch.samples]
        clock.stop("data")
        with self.accelerator.autocast():
            conditioning = self._conditioning(captions)
            sizes = self.base.encode_sizes([sample.sizes for sample in batch.samples])
            shown_BCHW = noise_BCHW
            if draw.input_noise_BCHW is not None:
                shown_BCHW = self._on_device(draw.input_noise_BCHW)
            noisy_BCHW = process.add_noise(latents_BCHW, shown_BCHW, timesteps_B)
            target_BCHW = process.target(latents_BCHW, noise_BCHW, timesteps_B)
            predicted_BCHW = self.base.predict(noisy_BCHW, timesteps_B, {**conditioning, **sizes})
        loss = weighting.reduce(predicted_BCHW, target_BCHW)
        clock.stop("forward")
        # Module dropout may leave no layer to learn from this batch.
        if loss.requires_grad:
            # accelerate divides by the number of accumulated batches and scales for fp16.
            self.accelerator.backward(loss)
        clock.stop("backward")
        return loss.item()

    def _conditioning(self, captions: Sequence[str]) -> Conditioning:
        """Return what the unet is told of the captions, encoded anew only if that is trained."""
        groups = self.lane.network.parameter_groups()
        if not any(group.part == "text_encoder" for group in groups):
            return encode_frozen(self.base, captions, self.options)
        return self.base.encode_captions(captions, self.base.text_options(asdict(self.options)))

    def _on_device(self, tensor_BCHW: Tensor) -> Tensor:
        return tensor_BCHW.to(self.base.device, memory_format=torch.channels_last)

    def _update(self, loss: float, *, step: int, epoch: int) -> float:
        """Clip, step and forget the gradients; return their norm before clipping.

        Under fp16 a gradient that overflowed skips the update and lowers the loss scale, as
        accelerate does, down to 1; without a scaler it means that the run has diverged.
        """
        optimizer = self.lane.optimizer
        has_gradient = any(one.grad is not None for one in optimizer.parameters())
        scaler = self.accelerator.scaler if has_gradient else None
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        limit = self.options.max_grad_norm or math.inf
        grad_norm = float(torch.nn.utils.clip_grad_norm_(optimizer.parameters(), limit))
        may_overflow = scaler is not None and scaler.get_scale() > 1
        _check_finite(
            self.lane.network,
            loss,
            0.0 if may_overflow else grad_norm,
            where=f"step {step} of epoch {epoch}",
        )
        if math.isfinite(grad_norm):
            optimizer.step(lambda: loss)
        if scaler is not None:
            scaler.update()
        optimizer.zero_grad()
        return grad_norm


def _seed_third_party_code(seed: int, epoch: int) -> None:
    """Seed the global generators, for libraries that draw from them; our own code never does."""
    key = rng.key(seed, "third-party", epoch)
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key % 2**32)


def _check_finite(network: Network, loss: float, grad_norm: float, *, where: str) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    raise _diverged(network, f"a loss of {loss} and a gradient norm of {grad_norm}", where)


def _diverged(network: Network, found: str, where: str) -> DivergedError:
    """Return the end of a run, naming the layers where numbers are not finite."""
    for of in _PLACES:
        if names := network.broken_layers(of):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found += f", not finite in the {of} of {names[0]}{more}"
            break
    return DivergedError(
        Problem(
            where,
            found,
            "finite numbers",
            "lower the rate, for instance lr_mult=0.3; the epochs before this one are kept",
        )
    )


def _seconds(record: StepRecord) -> float:
    return (
        record.seconds_data
        + record.seconds_forward
        + record.seconds_backward
        + record.seconds_optimizer
    )


def _epoch_record(
    lane: Lane,
    epoch: int,
    step: int,
    losses: Sequence[float],
    seconds: float,
    max_norms: Mapping[str, float],
) -> EpochRecord:
    """Return the epoch's record; weights that are not finite end the run here."""
    if lane.network.broken_layers("weights"):
        raise _diverged(lane.network, "weights", f"the LoRA after epoch {epoch}")
    return EpochRecord(
        epoch=epoch,
        step=step,
        mean_loss=sum(losses) / len(losses),
        seconds_train=seconds,
        norms={**lane.network.norms(), **max_norms},
        layer_norms=lane.network.layer_norms(),
        state=telemetry.state_size(lane.optimizer.optimizer),
    )
