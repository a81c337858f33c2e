"""A training small enough to follow by hand: a base of three layers, and what else a run needs."""

from __future__ import annotations

import contextlib
import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor, nn

from optbench import contracts
from optbench.data.text_cache import TextCache
from optbench.lora.network import LoraNetwork, build_network
from optbench.models.diffusion import DiffusionProcess
from optbench.models.files.processes import PredictionType
from optbench.models.text import clip
from optbench.models.text.clip import ClipTextOptions
from optbench.optim import toy_task
from optbench.optim.build import build_optimizer
from optbench.optim.stepping import BuiltOptimizer
from optbench.records import (
    Batch,
    EpochRecord,
    LoraTarget,
    ModelVersion,
    Sample,
    Sizes,
    StepRecord,
)
from optbench.schema import (
    LossOptions,
    LrSchedulerOptions,
    OptimizerOptions,
    OptimizerTraits,
    TrainOptions,
)
from optbench.training import loop
from optbench.training.lane import Lane
from optbench.training.loop import EpochDone, Event, LaneEnded, StepDone, TrainingPlan
from tests.builders.network_options import PLAIN_NETWORK

CONSTANT = toy_task.schedule("constant")
COSINE = toy_task.schedule("cosine")
NETWORK = replace(PLAIN_NETWORK, dim=2)
PLAIN = OptimizerTraits(
    stepping="plain",
    weights="live",
    schedule="external",
    warmup="allowed",
    clip="external",
    lr_role="manual",
    group_rates="free",
    effective_lr="lr",
    uses_global_rng=False,
    exact_load=False,
)
TRAIN = TrainOptions(
    batch_size=2,
    epochs=1,
    max_steps=None,
    gradient_accumulation=1,
    mixed_precision="no",
    max_grad_norm=0.0,
    clip_skip=1,
    max_token_length=75,
    save_precision="float",
    gradient_checkpointing=False,
    attention="sdpa",
    torch_compile=False,
    dynamo_backend="inductor",
    device="cpu",
    num_threads=1,
)
LOSS = LossOptions(
    loss_type="l2",
    huber_schedule=None,
    huber_c=None,
    huber_scale=None,
    min_snr_gamma=None,
    debiased_estimation_loss=False,
    scale_v_pred_loss_like_noise_pred=False,
    v_pred_like_loss=None,
    noise_offset=None,
    noise_offset_random_strength=False,
    adaptive_noise_scale=None,
    multires_noise_iterations=None,
    multires_noise_discount=None,
    ip_noise_gamma=None,
    ip_noise_gamma_random_strength=False,
    zero_terminal_snr=False,
    min_timestep=0,
    max_timestep=None,
    prior_loss_weight=1.0,
)


class SmallProcess(DiffusionProcess):
    """Of a variance of 1, t / 1000 is noise at timestep t. It remembers what noise it adds."""

    def __init__(
        self, prediction: PredictionType, draws: list[tuple[Tensor, Tensor]] | None = None
    ) -> None:
        alphas_T = 1 - torch.arange(1000, dtype=torch.float64) / 1000
        betas_T = 1 - alphas_T / torch.cat([alphas_T[:1], alphas_T[:-1]])
        super().__init__({"trained_betas": betas_T.tolist(), "prediction_type": prediction})
        self.draws = [] if draws is None else draws

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        self.draws.append((noise_BCHW.clone(), timesteps_B.clone()))
        return super().add_noise(latents_BCHW, noise_BCHW, timesteps_B)


class SmallBase:
    """A caption becomes four numbers, which meet the picture between two convolutions.

    It remembers every draw it is asked to train on. `spoil` may change what it predicts.
    """

    name = "small"
    family = "small"
    fingerprint = "small"
    vae_fingerprint = "small"
    pixels_per_latent = 8
    device = torch.device("cpu")
    dtype = torch.float32
    model_version: ModelVersion = "sd_v1"

    def __init__(self, process: contracts.NoiseProcess | None = None) -> None:
        """`process` None: `SmallProcess`, predicting the noise."""
        self.draws: list[tuple[Tensor, Tensor]] = []  # noise and timesteps of each batch
        self.process = SmallProcess("epsilon", self.draws) if process is None else process
        self.text = nn.Linear(5, 4)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 3, 1)
        draw = torch.Generator().manual_seed(1)
        for layer in (self.text, self.conv, self.out):
            for weight in layer.requires_grad_(False).parameters():
                weight.copy_(torch.randn(weight.shape, generator=draw) / 3)
        self.spoil: Callable[[Tensor, int], Tensor] = lambda predicted, call: predicted
        self.asked: list[tuple[bool, int]] = []  # of each encoding: gradient wanted, clip_skip

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return nn.functional.avg_pool2d(pixels_BCHW, 8)

    def text_options(self, settings: Mapping[str, Any]) -> ClipTextOptions:
        return ClipTextOptions.of(settings)

    def encode_captions(
        self, captions: Sequence[str], options: contracts.TextOptions
    ) -> contracts.Conditioning:
        self.asked.append((torch.is_grad_enabled(), clip.options(options).clip_skip))
        draws = [torch.Generator().manual_seed(zlib.crc32(one.encode())) for one in captions]
        words_BE = torch.stack([torch.randn(5, generator=draw) for draw in draws])
        return {"states_BE": torch.tanh(self.text(words_BE))}

    def encode_sizes(self, sizes: Sequence[Sizes]) -> contracts.Conditioning:
        return {}

    def stack(self, conditionings: Sequence[contracts.Conditioning]) -> contracts.Conditioning:
        return clip.stack(conditionings)

    def num_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)

    def prompt_settings(
        self, prompts: Sequence[str], options: contracts.TextOptions
    ) -> Mapping[str, object]:
        return options.settings()

    def compute_with(
        self, *, gradient_checkpointing: bool, attention: str, compiled_by: object
    ) -> None:
        pass

    def for_training(self, options: LossOptions) -> SmallBase:
        return self

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: contracts.Conditioning
    ) -> Tensor:
        states_BE11 = conditioning["states_BE"][:, :, None, None]
        predicted_BCHW: Tensor = self.out(torch.tanh(self.conv(noisy_BCHW) + states_BE11))
        return self.spoil(predicted_BCHW, len(self.draws))

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        return (
            LoraTarget(
                name="lora_te_text", module=self.text, part="text_encoder", needs_conv_dim=False
            ),
            LoraTarget(name="lora_unet_out", module=self.out, part="unet", needs_conv_dim=False),
            LoraTarget(name="lora_unet_conv", module=self.conv, part="unet", needs_conv_dim=True),
        )

    def sample(self, request: contracts.SampleRequest) -> list[Image]:
        return [new_image("RGB", (request.width, request.height)) for _ in request.seeds]


class Noisy(torch.optim.SGD):
    """Adds noise from torch's global generator, as stochastic rounding does."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.add_(torch.randn(weight.shape), alpha=0.01)
        return super().step(closure)


def make_network(base: SmallBase, *, filled: bool = True, **changes: Any) -> LoraNetwork:
    """Return a network; `filled` gives every weight a value, so that every gradient is one."""
    network = build_network(base.lora_targets(), replace(NETWORK, **changes), seed=7)
    if filled:
        draw = torch.Generator().manual_seed(2)
        for weight in weights_of(network):
            weight.data = torch.randn(weight.shape, generator=draw) / 3
    return network


def weights_of(network: LoraNetwork) -> list[nn.Parameter]:
    return [weight for group in network.parameter_groups() for weight in group.parameters]


def copies_of(network: LoraNetwork) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights_of(network)]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def recipe(target: str, **changes: Any) -> OptimizerOptions:
    """Return a recipe of a plain class, at one rate for everything."""
    options = OptimizerOptions(
        name="mine",
        target=target,
        lr=0.1,
        unet_lr=None,
        text_encoder_lr=None,
        args={},
        group_args={},
        refused_args={},
        traits=PLAIN,
        package=target.partition(".")[0],
        paper="",
        note="",
    )
    return replace(options, **changes)


SGD = recipe("torch.optim.SGD")
NOISY = recipe(f"{__name__}.Noisy")
ADAMW = recipe("torch.optim.AdamW", lr=1e-2, text_encoder_lr=5e-3)
DADAPTED = recipe(
    "dadaptation.DAdaptLion",
    lr=1.0,
    traits=replace(
        PLAIN, lr_role="multiplier", group_rates="equal", effective_lr="d*lr", exact_load=True
    ),
)
AVERAGED = recipe(
    "schedulefree.AdamWScheduleFree",
    lr=1e-2,
    traits=replace(
        PLAIN,
        weights="averaged",
        schedule="constant",
        warmup="refused",
        effective_lr="scheduled_lr",
    ),
)


def make_optimizer(
    network: LoraNetwork,
    options: OptimizerOptions = SGD,
    *,
    lr_scheduler: LrSchedulerOptions = CONSTANT,
    total_steps: int = 20,
) -> BuiltOptimizer:
    return build_optimizer(
        options,
        network.parameter_groups(),
        lr_mult=1.0,
        lr_scheduler=lr_scheduler,
        total_steps=total_steps,
    )


def make_batch(*keys: str, epoch: int = 1, occurrence: int = 0) -> Batch:
    """Return pictures that depend on their keys alone, captioned with them."""
    samples = tuple(
        Sample(
            image_key=key,
            epoch=epoch,
            occurrence=occurrence,
            caption=key,
            flipped=False,
            sizes=Sizes(original=(48, 32), crop=(0, 0), target=(48, 32)),
        )
        for key in keys
    )
    draws = [torch.Generator().manual_seed(zlib.crc32(key.encode())) for key in keys]
    latents_BCHW = torch.stack([torch.randn(3, 4, 6, generator=draw) for draw in draws])
    return Batch(latents_BCHW=latents_BCHW, samples=samples)


def six_pictures(epoch: int) -> list[Batch]:
    """Return an epoch of three batches of two."""
    return [make_batch(*pair, epoch=epoch) for pair in ("ab", "cd", "ef")]


def make_accelerator(*, gradient_accumulation: int = 1) -> Accelerator:
    # accelerate keeps the first one's settings for the life of the process.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=gradient_accumulation)


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Put Python's and numpy's global generators back; training seeds them for third parties.

    Without this, the guard in tests/conftest.py takes the seeding for a draw.
    """
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def events_of(
    base: SmallBase,
    lanes: Sequence[Lane],
    epoch_batches: Callable[[int], Iterable[Batch]] = six_pictures,
    *,
    accelerator: Accelerator | None = None,
    captions: TextCache | None = None,
    total_steps: int | None = None,
    seed: int = 5,
    loss: LossOptions = LOSS,
    **changes: Any,
) -> Iterator[Event[Lane]]:
    """Yield what happens while the lanes are trained to the end."""
    options = replace(TRAIN, **changes)
    accumulation = options.gradient_accumulation
    # Where the steps are given, the batches may be counted by the test, and are three an epoch.
    num_batches = 3 if total_steps is not None else sum(1 for _ in epoch_batches(1))
    steps_per_epoch = -(-num_batches // accumulation)
    if total_steps is None:
        total_steps = steps_per_epoch * options.epochs
    if accelerator is None:
        accelerator = make_accelerator(gradient_accumulation=accumulation)
    with global_state_kept():
        yield from loop.train(
            base,
            lanes,
            lambda epoch, first: itertools.islice(epoch_batches(epoch), first, None),
            options=options,
            plan=TrainingPlan(
                seed=seed, loss=loss, steps_per_epoch=steps_per_epoch, last_step=total_steps
            ),
            accelerator=accelerator,
            captions=TextCache(base) if captions is None else captions,
        )


def train_one(
    base: SmallBase,
    network: LoraNetwork,
    optimizer: BuiltOptimizer,
    epoch_batches: Callable[[int], Iterable[Batch]] = six_pictures,
    *,
    step: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    **changes: Any,
) -> tuple[list[StepRecord], list[EpochRecord]]:
    """Return the step and the epoch records of a single lane, from `step` taken on.

    Raises:
        Exception: What ended the lane before its end.
    """
    lane = Lane(network=network, optimizer=optimizer, step=step, scaler=scaler)
    steps, epochs = [], []
    for event in events_of(base, [lane], epoch_batches, **changes):
        match event:
            case StepDone(_, record):
                steps.append(record)
            case EpochDone(records):
                epochs += [record for _, record in records]
            case LaneEnded(_, error):
                raise error
    return steps, epochs
