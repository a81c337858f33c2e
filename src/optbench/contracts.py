"""The seams of the pipeline: base model and noise process, LoRA network, optimizer.

Shapes: B batch, C latent channels, H and W latent height and width (pixels / `pixels_per_latent`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

    from optbench.records import LoraTarget, ModelVersion, ParameterGroup, Sizes
    from optbench.schema import Attention, DynamoBackend, LossOptions

Conditioning = Mapping[str, "Tensor"]


class TextOptions(Protocol):
    """How a family reads texts, under its own settings: made by the family, passed on by others.

    Hashable; equal options read equal texts alike.
    """

    @property
    def max_tokens(self) -> int:
        """Return how many tokens of a caption are read."""

    def settings(self) -> Mapping[str, object]:
        """Return every setting by its name in the configuration, for keys of what is stored."""

    def image_parameters(self) -> Mapping[str, object]:
        """Return what a rendered image's text says of them, by A1111's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Images to make in one batch: one seed per image, all of one size."""

    text: str
    negative: str
    seeds: tuple[int, ...]
    width: int
    height: int
    cfg_scale: float
    steps: int
    sampler: str  # the name A1111 gives it
    text_options: TextOptions


class NoiseProcess(Protocol):
    """How images become noise, and what the denoiser predicts on the way.

    Timesteps (B,) are the process's own: places of a schedule (int64), or shares from 0 to 1
    (float32). Only the process reads them; everybody else passes them on.

    Training and validation need no more. How images are sampled is chosen per process, behind
    `BaseModel.sample`: `models.sampling` is DDPM's, and a flow process brings its own solvers.
    """

    prediction: str  # what is predicted, in modelspec's word: "epsilon", "v"
    num_timesteps: int  # what `loss.max_timestep` and `validate.timesteps` count up to

    def sample_timesteps(
        self, generators: Sequence[torch.Generator], options: LossOptions
    ) -> Tensor:
        """Return one timestep per generator, (B,), on the CPU, within the options' limits."""

    def validation_timesteps(self, timesteps: Sequence[int]) -> Tensor:
        """Return the timesteps (B,) of places counted from 0 up to `num_timesteps`, on the CPU."""

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the denoiser's input at `timesteps_B`."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return what the denoiser should predict at `timesteps_B`."""

    def loss_factors(self, timesteps_B: Tensor, options: LossOptions) -> list[Tensor]:
        """Return what every weighting that is on multiplies each image's loss by, (B,) each."""

    def noise_level(self, timesteps_B: Tensor) -> Tensor:
        """Return the ratio of noise to signal (standard deviations) at each timestep, (B,)."""

    def progress(self, timesteps_B: Tensor) -> Tensor:
        """Return how far each timestep is on the way from image (0) to noise (1), (B,)."""

    def sampler_settings(self, scheduler: type) -> dict[str, Any]:
        """Return the arguments with which one of diffusers' schedulers undoes this process."""


class BaseModel(Protocol):
    """A frozen model being adapted; everything that differs between families is behind this."""

    name: str
    family: str
    fingerprint: str  # hex; changes with any weight
    vae_fingerprint: str  # hex; changes with what turns pixels into latents
    pixels_per_latent: int
    device: torch.device
    dtype: torch.dtype

    @property
    def process(self) -> NoiseProcess:
        """Return what noise its images meet, and what it predicts of it."""

    def for_training(self, options: LossOptions) -> BaseModel:
        """Return this base model, weights shared, under the noise process these options ask for.

        Raises:
            ConfigError: Naming every option that its process has no meaning for.
        """

    def compute_with(
        self,
        *,
        gradient_checkpointing: bool,
        attention: Attention,
        compiled_by: DynamoBackend | None,
    ) -> None:
        """Recompute activations or keep them, attend with one kind of code, compile `predict`.

        None changes a weight, and recomputing no bit of any gradient; None: nothing is compiled.
        """

    @property
    def model_version(self) -> ModelVersion:
        """Return kohya's word for the family and what it predicts."""

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return scaled latents, float32; pixels in [-1, 1]; one generator per picture."""

    def text_options(self, settings: Mapping[str, Any]) -> TextOptions:
        """Return how texts are read under settings of `train`; those of no use here are ignored."""

    def encode_captions(self, captions: Sequence[str], options: TextOptions) -> Conditioning:
        """Return what `predict` needs of the captions, each tensor with leading size B."""

    def stack(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Return the conditionings of several captions as that of one batch, in their order."""

    def encode_sizes(self, sizes: Sequence[Sizes]) -> Conditioning:
        """Return what `predict` needs besides, of each picture's sizes, in some families."""

    def num_tokens(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Return how many tokens each text has, to compare with `TextOptions.max_tokens`."""

    def prompt_settings(self, prompts: Sequence[str], options: TextOptions) -> Mapping[str, object]:
        """Return what decides how `sample` reads these prompts, for keys of stored images."""

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the unet's prediction, shaped like `noisy_BCHW`."""

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA, in kohya's order: text encoder, then unet."""

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed; noise is made on the CPU, so it is the same everywhere."""


class Network(Protocol):
    """A LoRA attached to a base: its parameters, its file form, its switches."""

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Return the trained parameters by rate, text encoder first; none of them is empty."""

    def attached(self) -> AbstractContextManager[None]:
        """Return a context in which the base computes with this network."""

    def begin_step(self, generator: torch.Generator) -> None:
        """Draw this step's dropout from `generator`; without a call nothing is dropped."""

    def end_step(self) -> Mapping[str, float]:
        """Switch dropout off, apply max-norm where asked, and return the norms' statistics."""

    def merged(self) -> AbstractContextManager[None]:
        """Return a context in which the network sits in the base's weights; restored bitwise."""

    def norms(self) -> Mapping[str, float]:
        """Return the mean and the largest Frobenius norm over the modules' weight changes."""

    def layer_norms(self) -> Mapping[str, float]:
        """Return the Frobenius norm of every module's weight change, by its name."""

    def broken_layers(self, of: Literal["weights", "gradients"]) -> tuple[str, ...]:
        """Return the layers in whose weights or gradients a number is not finite."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor of the file under kohya's keys, float32."""

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors under kohya's keys back, bit for bit; refuses missing and unknown keys."""


class StepOptimizer(Protocol):
    """A built recipe: steps, reports its rates, and shows its evaluation weights."""

    optimizer: torch.optim.Optimizer

    def step(self, loss: Callable[[], float]) -> None:
        """Update the parameters from their gradients; `loss` gives the step's loss if asked."""

    def zero_grad(self) -> None:
        """Forget all gradients."""

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters are those to save, validate and render."""

    def rates(self) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Return lr, d and effective lr of the coming step, each by group name."""

    def described(self) -> dict[str, Any]:
        """Return what was really built: class, version, every argument and rate, read back."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the optimized parameters, for clipping."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit for bit, loadable with weights_only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken, state dtypes included."""
