"""The training loop: prepare a batch once, run every lane on it, update, record.

Writes nothing and renders nothing: it yields events, and whoever iterates saves, validates and
renders while the loop stands still. Every draw is keyed by (seed, epoch, image), never by lane,
batch size or what was done in between.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import torch

from optbench import rng
from optbench.contracts import BaseModel, Conditioning, Network, TextOptions
from optbench.data.text_cache import TextCache
from optbench.errors import DivergedError, Problem
from optbench.optim import telemetry
from optbench.records import Batch, EpochRecord, StepRecord
from optbench.schema import LossOptions, TrainOptions
from optbench.training import global_rng, interrupt
from optbench.training.lane import Lane, PartialEpoch
from optbench.training.loss import LossWeighting
from optbench.training.noise import draw_noise
from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

LaneT = TypeVar("LaneT", bound=Lane)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What all lanes of a pass draw and minimize, and how far it goes."""

    seed: int
    loss: LossOptions
    steps_per_epoch: int
    last_step: int  # at which it ends now, whether or not the run is over then

    @classmethod
    def of(cls, plan: RunPlan) -> TrainingPlan:
        """Return that of a planned run."""
        return cls(
            seed=plan.config.seed,
            loss=plan.config.loss,
            steps_per_epoch=plan.steps_per_epoch,
            last_step=plan.last_step,
        )


@dataclass(frozen=True, slots=True)
class StepDone(Generic[LaneT]):
    """One lane has taken a step."""

    lane: LaneT
    record: StepRecord


@dataclass(frozen=True, slots=True)
class EpochDone(Generic[LaneT]):
    """An epoch is over for these lanes."""

    records: Sequence[tuple[LaneT, EpochRecord]]


@dataclass(frozen=True, slots=True)
class StopAsked(Generic[LaneT]):
    """The process is asked to stop, inside an epoch of this lane; the loop ends after it."""

    lane: LaneT


@dataclass(frozen=True, slots=True)
class LaneEnded(Generic[LaneT]):
    """This lane has left the pass before its end: diverged, out of memory, or any other error."""

    lane: LaneT
    error: Exception


Event = StepDone[LaneT] | EpochDone[LaneT] | StopAsked[LaneT] | LaneEnded[LaneT]


@dataclass(slots=True)
class StepTimer:
    """Seconds by phase of the step in progress."""

    device: torch.device
    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
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

    def share(self, num_lanes: int) -> StepTimer:
        """Return a lane's timer that begins with its share of what was done once for all lanes.

        So the lanes' seconds add up to those of the pass.
        """
        data, forward = self.data / num_lanes, self.forward / num_lanes
        return StepTimer(self.device, data=data, forward=forward)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedBatch:
    """All of a batch that no lane changes, on the base's device: made once for all of them."""

    captions: tuple[str, ...]
    noisy_BCHW: Tensor  # what the denoiser is shown
    timesteps_B: Tensor
    target_BCHW: Tensor
    sizes: Conditioning  # what the denoiser is told besides the captions
    frozen: Conditioning | None  # the captions as untrained encoders encode them; None: not needed
    weighting: LossWeighting


class Executor(Protocol):
    """Runs the lanes forward and backward over the batches of one optimizer update.

    `Sequential` takes the lanes one after the other. A packed one would repeat each batch once per
    lane, let every LoRA layer add to its own lane's rows, and go backward once through the sum of
    the lanes' losses: their parameters are disjoint, so that each lane's gradients are exact. The
    loop asks no more of it than this method.
    """

    def forward_backward(
        self,
        lanes: Sequence[Lane],
        batches: Sequence[PreparedBatch],
        *,
        step: int,
        timers: Sequence[StepTimer],
    ) -> list[float | Exception]:
        """Add the batches' gradients to every lane's; return its mean loss, or what ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """One lane after the other: what each computes is to the last bit what it computes alone."""

    base: BaseModel
    options: TrainOptions
    text_options: TextOptions
    seed: int
    accelerator: Accelerator

    def forward_backward(
        self,
        lanes: Sequence[Lane],
        batches: Sequence[PreparedBatch],
        *,
        step: int,
        timers: Sequence[StepTimer],
    ) -> list[float | Exception]:
        """Add the batches' gradients to every lane's; return its mean loss, or what ended it."""
        results: list[float | Exception] = []
        for lane, timer in zip(lanes, timers, strict=True):
            try:
                with _own_generators(lane), lane.network.attached():
                    loss_sum = 0.0
                    for place, batch in enumerate(batches):
                        draw = rng.generator(self.seed, "dropout", step, place)
                        lane.network.begin_step(draw)
                        loss_sum += self._accumulate(lane, batch, timer)
                results.append(loss_sum / len(batches))
            except Exception as error:  # noqa: BLE001 - one lane's error must not end the others
                results.append(error)
        return results

    def _accumulate(self, lane: Lane, batch: PreparedBatch, timer: StepTimer) -> float:
        """Add one batch's gradients; return its loss."""
        timer.start()
        with self.accelerator.autocast():
            captions = batch.frozen
            if _trains_text(lane.network) or captions is None:
                captions = self.base.encode_captions(batch.captions, self.text_options)
            predicted_BCHW = self.base.predict(
                batch.noisy_BCHW, batch.timesteps_B, {**captions, **batch.sizes}
            )
        loss = batch.weighting.reduce(predicted_BCHW, batch.target_BCHW)
        timer.stop("forward")
        # Module dropout may leave no layer to learn from this batch.
        if loss.requires_grad:
            # Divided by the window's full size, also in an epoch's short last one (as kohya).
            part = loss / self.options.gradient_accumulation
            (part if lane.scaler is None else lane.scaler.scale(part)).backward()
        timer.stop("backward")
        return loss.item()


def train(
    base: BaseModel,
    lanes: Sequence[LaneT],
    epoch_batches: Callable[[int, int], Iterable[Batch]],
    *,
    options: TrainOptions,
    plan: TrainingPlan,
    accelerator: Accelerator,
    captions: TextCache,
    executor: Executor | None = None,
) -> Iterator[Event[LaneT]]:
    """Train the lanes to the end of the plan, each from its own step; yield what happens.

    A lane that was resumed further on waits until the others have come as far. One that ends by
    an error (its own `LaneEnded`, or set from outside as `lane.error`) leaves the pass, and no bit
    of another one depends on it.

    Args:
        base: The frozen model.
        lanes: The networks to train.
        epoch_batches: Returns the batches of an epoch, from the n-th on (from 0).
        options: Equal for all lanes.
        plan: Seed, loss and length of the pass.
        accelerator: Its autocast.
        captions: What the untrained text encoders made of captions, in this pass and before it.
        executor: `Sequential` unless given.

    Raises:
        StopAskedError: After the `StopAsked` events.
    """
    text_options = base.text_options(asdict(options))
    if executor is None:
        executor = Sequential(
            base=base,
            options=options,
            text_options=text_options,
            seed=plan.seed,
            accelerator=accelerator,
        )
    preparation = _Preparation(base, options, text_options, plan, accelerator, captions)
    accumulation = options.gradient_accumulation
    while running := _running(lanes, plan):
        step = min(lane.step for lane in running)
        epoch = step // plan.steps_per_epoch + 1
        first_step = (epoch - 1) * plan.steps_per_epoch
        _begin_epoch(running, plan.seed, epoch, first_step)
        batches = epoch_batches(epoch, (step - first_step) * accumulation)
        for window in _windows(batches, accumulation):
            running = _running(lanes, plan)
            if step == plan.last_step or not running:
                break
            step += 1
            stepping = [lane for lane in running if lane.step == step - 1]
            if not stepping:
                continue  # the lanes left over were resumed further on in this epoch
            for lane, result in _step(
                executor, preparation, stepping, window, epoch=epoch, step=step
            ):
                if isinstance(result, StepRecord):
                    yield StepDone(lane, result)
                else:
                    yield LaneEnded(lane, result)
            is_inside = step < min(first_step + plan.steps_per_epoch, plan.last_step)
            if is_inside and interrupt.is_asked():
                for lane in stepping:
                    if lane.error is None:
                        yield StopAsked(lane)
                interrupt.raise_if_asked()
        assert step == min(first_step + plan.steps_per_epoch, plan.last_step) or not running
        ended: list[tuple[LaneT, EpochRecord]] = []
        for lane in lanes:
            if lane.error is None and lane.step == step and lane.partial.rows:
                try:
                    ended.append((lane, _epoch_record(lane, epoch)))
                except DivergedError as error:
                    lane.end(error)
                    yield LaneEnded(lane, error)
        if ended:
            yield EpochDone(ended)
        for lane, _ in ended:
            lane.partial = PartialEpoch()


def _running(lanes: Sequence[LaneT], plan: TrainingPlan) -> list[LaneT]:
    return [lane for lane in lanes if lane.error is None and lane.step < plan.last_step]


def _begin_epoch(lanes: Sequence[Lane], seed: int, epoch: int, first_step: int) -> None:
    """Seed the global generators, or put them back where a stopped run left them.

    Lanes that take turns have a stream of their own each, or one's draws would change another's.
    """
    global_rng.seed_epoch(seed, epoch)
    for lane in lanes:
        if lane.step == first_step:
            lane.partial = PartialEpoch()
            if len(lanes) > 1:
                lane.partial.generators = global_rng.get_state()
    if len(lanes) == 1 and lanes[0].partial.generators is not None:
        global_rng.set_state(lanes[0].partial.generators)
        lanes[0].partial.generators = None


@dataclass(frozen=True, slots=True)
class AccumulationWindow:
    """The batches of one optimizer update, and the seconds it took to gather them."""

    batches: tuple[Batch, ...]
    seconds: float


def _windows(batches: Iterable[Batch], num_batches: int) -> Iterator[AccumulationWindow]:
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
        yield AccumulationWindow(tuple(gathered), time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Preparation:
    """Prepares batches: the noise process, and encoders that nobody trains."""

    base: BaseModel
    options: TrainOptions
    text_options: TextOptions
    plan: TrainingPlan
    accelerator: Accelerator
    captions: TextCache

    def prepare(self, batch: Batch, *, needs_frozen: bool, timer: StepTimer) -> PreparedBatch:
        """Return noise, timesteps, target, loss weights and frozen conditioning of a batch."""
        timer.start()
        process = self.base.process
        draw = draw_noise(batch, process, self.plan.loss, seed=self.plan.seed)
        weighting = LossWeighting(self.plan.loss, process, draw.timesteps_B, batch.samples)
        latents_BCHW = self._on_device(batch.latents_BCHW)
        noise_BCHW = self._on_device(draw.noise_BCHW)
        timesteps_B = draw.timesteps_B.to(self.base.device)
        captions = tuple(sample.caption for sample in batch.samples)
        timer.stop("data")
        with self.accelerator.autocast():
            frozen = None
            if needs_frozen:
                attention = self.options.attention
                frozen = self.captions.encode(captions, self.text_options, attention=attention)
            sizes = self.base.encode_sizes([sample.sizes for sample in batch.samples])
            shown_BCHW = noise_BCHW
            if draw.input_noise_BCHW is not None:
                shown_BCHW = self._on_device(draw.input_noise_BCHW)
            noisy_BCHW = process.add_noise(latents_BCHW, shown_BCHW, timesteps_B)
            target_BCHW = process.target(latents_BCHW, noise_BCHW, timesteps_B)
        timer.stop("forward")
        return PreparedBatch(
            captions=captions,
            noisy_BCHW=noisy_BCHW,
            timesteps_B=timesteps_B,
            target_BCHW=target_BCHW,
            sizes=sizes,
            frozen=frozen,
            weighting=weighting,
        )

    def _on_device(self, tensor_BCHW: Tensor) -> Tensor:
        return tensor_BCHW.to(self.base.device, memory_format=torch.channels_last)


def _step(
    executor: Executor,
    preparation: _Preparation,
    lanes: Sequence[LaneT],
    window: AccumulationWindow,
    *,
    epoch: int,
    step: int,
) -> Iterator[tuple[LaneT, StepRecord | Exception]]:
    """Take one step with every lane; yield each with its record, or with what ended it."""
    shared = StepTimer(preparation.base.device, data=window.seconds)
    needs_frozen = not all(_trains_text(lane.network) for lane in lanes)
    batches = [
        preparation.prepare(batch, needs_frozen=needs_frozen, timer=shared)
        for batch in window.batches
    ]
    timers = [shared.share(len(lanes)) for _ in lanes]
    results = executor.forward_backward(lanes, batches, step=step, timers=timers)
    for lane, timer, result in zip(lanes, timers, results, strict=True):
        if isinstance(result, Exception):
            lane.end(result)
            yield lane, result
            continue
        try:
            with _own_generators(lane):
                record = _update(lane, result, preparation.options, timer, epoch=epoch, step=step)
        except Exception as error:  # noqa: BLE001 - one lane's error must not end the others
            lane.end(error)
            yield lane, error
            continue
        lane.step = step
        lane.partial.rows.append(record.as_row())
        yield lane, record


def _update(
    lane: Lane, loss: float, options: TrainOptions, timer: StepTimer, *, epoch: int, step: int
) -> StepRecord:
    """Clip, step and forget the gradients; return the step's record.

    Under fp16 a gradient that overflowed skips the update and lowers the loss scale, as
    accelerate does, down to 1; without a scaler it means that the run has diverged.
    """
    network, optimizer = lane.network, lane.optimizer
    timer.start()
    lr, d, effective_lr = optimizer.rates()
    needs_ratios = step % telemetry.RATIO_EVERY == 1
    with telemetry.update_ratios(optimizer.optimizer, enabled=needs_ratios) as ratios:
        has_gradient = any(weight.grad is not None for weight in optimizer.parameters())
        scaler = lane.scaler if has_gradient else None
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        limit = options.max_grad_norm or math.inf
        grad_norm = float(torch.nn.utils.clip_grad_norm_(optimizer.parameters(), limit))
        may_overflow = scaler is not None and scaler.get_scale() > 1
        if not math.isfinite(loss) or not (may_overflow or math.isfinite(grad_norm)):
            shown = 0.0 if may_overflow else grad_norm
            reason = f"a loss of {loss} and a gradient norm of {shown}"
            raise _diverged(network, reason, f"step {step} of epoch {epoch}")
        if math.isfinite(grad_norm):
            optimizer.step(lambda: loss)
        if scaler is not None:
            scaler.update()
        optimizer.zero_grad()
    lane.partial.max_norms = network.end_step()  # after the update: what is saved keeps it
    timer.stop("optimizer")
    return StepRecord(
        step=step,
        epoch=epoch,
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        d=d,
        effective_lr=effective_lr,
        update_ratio=ratios,
        seconds_data=timer.data,
        seconds_forward=timer.forward,
        seconds_backward=timer.backward,
        seconds_optimizer=timer.optimizer,
    )


@contextlib.contextmanager
def _own_generators(lane: Lane) -> Iterator[None]:
    """Let libraries draw from the lane's own stream of the global generators, if it has one."""
    if lane.partial.generators is None:
        yield
        return
    global_rng.set_state(lane.partial.generators)
    try:
        yield
    finally:
        lane.partial.generators = global_rng.get_state()


def _trains_text(network: Network) -> bool:
    return any(group.part == "text_encoder" for group in network.parameter_groups())


_PLACES: tuple[Literal["weights", "gradients"], ...] = ("weights", "gradients")


def _diverged(network: Network, reason: str, where: str) -> DivergedError:
    """Return the end of a run, naming the layers where numbers are not finite."""
    for of in _PLACES:
        if names := network.broken_layers(of):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reason += f", not finite in the {of} of {names[0]}{more}"
            break
    return DivergedError(
        Problem(
            where,
            reason,
            "finite numbers",
            "lower the rate, for instance lr_mult=0.3; the epochs before this one are kept",
        )
    )


def _epoch_record(lane: Lane, epoch: int) -> EpochRecord:
    """Return the epoch's record.

    Raises:
        DivergedError: If a weight is not finite: what would be saved is no LoRA.
    """
    if lane.network.broken_layers("weights"):
        raise _diverged(lane.network, "weights", f"the LoRA after epoch {epoch}")
    rows = lane.partial.rows
    return EpochRecord(
        epoch=epoch,
        step=lane.step,
        mean_loss=sum(row["loss"] for row in rows) / len(rows),
        seconds_train=sum(
            value for row in rows for name, value in row.items() if name.startswith("seconds_")
        ),
        norms={**lane.network.norms(), **lane.partial.max_norms},
        layer_norms=lane.network.layer_norms(),
        state=telemetry.state_size(lane.optimizer.optimizer),
    )
