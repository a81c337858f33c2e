"""Frozen values that travel between the stages of one run.

Shapes: B images in a batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Part = Literal["unet", "text_encoder"]
UnetSide = Literal["down", "mid", "up"]
ModelVersion = Literal["sd_v1", "sd_v1_v", "sd_v2", "sd_v2_v", "sdxl_base_v1-0"]  # kohya's words
# `stopped`: trained as far as it was asked to, and to be continued from there.
Status = Literal[
    "running", "done", "stopped", "diverged", "out_of_memory", "failed", "skipped", "interrupted"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedImage:
    """One image of the data set, its caption, and the bucket it is trained in."""

    path: Path
    key: str  # hex of the SHA-256 of the file's bytes, shortened to 16
    caption: str
    class_words: str
    repeats: int
    width: int  # of the file, pixels
    height: int
    bucket: tuple[int, int]  # width, height in pixels after resizing and cropping
    resized: tuple[int, int]  # width, height in pixels before cropping
    is_regularization: bool = False  # an image of the class, not of what is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """One folder of a data set, as it lies on disk."""

    name: str
    repeats: int  # of its name; regularization images are used as often as balancing says
    num_images: int
    is_regularization: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All images in a fixed order, regularization images last, and their fingerprint."""

    images: tuple[CaptionedImage, ...]
    fingerprint: str  # hex; changes with any image, caption, repeat or bucket
    folders: tuple[ImageFolder, ...] = ()
    notices: tuple[str, ...] = ()  # sentences on what may not be meant as it is
    # All regularization images with their folders' repeats; those in `images` are balanced.
    class_images: tuple[CaptionedImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """SDXL's conditioning on sizes, besides the caption: (width, height), or (left, top)."""

    original: tuple[int, int]  # of the file, pixels
    crop: tuple[int, int]  # left and top, as kohya works it out; not always the true ones
    target: tuple[int, int]  # the bucket, pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One use of one image in one epoch: its address for every draw."""

    image_key: str
    epoch: int  # counts from 1
    occurrence: int  # which of the image's repeats, from 0; counted on over equal images
    caption: str  # after shuffling and dropping
    flipped: bool
    sizes: Sizes
    is_regularization: bool = False  # an image of the class, not of what is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures of one bucket that go through the model together."""

    latents_BCHW: Tensor  # scaled as the base's unet expects, float32 on the CPU
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetBlocks:
    """How many blocks the unet of a family has, as kohya's trainer counts them.

    Blocks without layers of their own count too, so that a list means the same for every base
    model of a family.
    """

    down: int
    mid: int
    up: int
    num_ends: int  # 1: lists for all blocks begin with the embeddings and end with the way out

    @property
    def num_listed(self) -> int:
        """How many numbers a list for all blocks has."""
        return self.down + self.mid + self.up + 2 * self.num_ends

    def at(self, side: UnetSide) -> int:
        """Return how many blocks one side has."""
        return {"down": self.down, "mid": self.mid, "up": self.up}[side]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnetBlock:
    """One block of a unet: its side, and its number there from 0."""

    side: UnetSide
    number: int
    blocks: UnetBlocks  # of the whole unet

    @property
    def index(self) -> int:
        """Its place in lists for all blocks."""
        counts = self.blocks
        first = {"down": 0, "mid": counts.down, "up": counts.down + counts.mid}
        return counts.num_ends + first[self.side] + self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSite:
    """One layer of a base model that may carry a LoRA, as the headers of its files tell it."""

    name: str  # kohya's key prefix, for instance lora_unet_mid_block_attentions_0_proj_in
    part: Part
    needs_conv_dim: bool  # only with network.conv_dim (everything inside resnets and samplers)
    shape: tuple[int, ...]  # of its weight: (O, I), or (O, I, kernel, kernel)
    block: UnetBlock | None  # None: of a text encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTarget:
    """One layer of the loaded base model that may carry a LoRA."""

    name: str  # kohya's key prefix, for instance lora_unet_mid_block_attentions_0_proj_in
    module: nn.Module  # nn.Linear or nn.Conv2d
    part: Part
    needs_conv_dim: bool  # only with network.conv_dim (everything inside resnets and samplers)
    block: UnetBlock | None = None  # None: of a text encoder
    diffusers_path: str = ""  # in a pipeline, for instance unet.mid_block.attentions.0.proj_in

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight: (O, I), or (O, I, kernel, kernel)."""
        weight: Tensor = self.module.get_parameter("weight")
        return tuple(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters of a network that train at one rate."""

    name: str  # the part's, or unet_x0.5 for blocks of it whose rate is multiplied by 0.5
    part: Part
    lr_weight: float  # a factor of the part's rate
    parameters: Sequence[nn.Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSize:
    """The memory of an optimizer's state, besides the weights."""

    num_bytes: int
    share_8bit: float  # of the weights: those whose state is kept in 8 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer update as a flat record; seconds are wall time of this step."""

    step: int  # counts from 1
    epoch: int
    loss: float
    grad_norm: float  # before clipping, over the trained parameters
    lr: Mapping[str, float]  # per group
    d: Mapping[str, float]  # per group; empty for classes that estimate no d
    effective_lr: Mapping[str, float]
    update_ratio: Mapping[str, float]  # ||change|| / ||weights|| per group; empty in most steps
    seconds_data: float
    seconds_forward: float
    seconds_backward: float
    seconds_optimizer: float

    def as_row(self) -> dict[str, float | int]:
        """Return the record with one key per number: `lr/unet`, `d/unet`, `update_ratio/unet`."""
        row: dict[str, float | int] = {"step": self.step, "epoch": self.epoch, "loss": self.loss}
        row["grad_norm"] = self.grad_norm
        for name in ("lr", "d", "effective_lr", "update_ratio"):
            row.update({f"{name}/{group}": value for group, value in getattr(self, name).items()})
        for phase in ("data", "forward", "backward", "optimizer"):
            row[f"seconds_{phase}"] = getattr(self, f"seconds_{phase}")
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One whole epoch of training, before anything is saved or rendered."""

    epoch: int  # counts from 1
    step: int  # the last step taken
    mean_loss: float  # over the epoch's steps
    seconds_train: float
    norms: Mapping[str, float]  # mean and largest module norm, modules scaled by max-norm
    layer_norms: Mapping[str, float]  # ||scale * up @ down||_F of each layer
    state: StateSize

    def as_row(self) -> dict[str, float | int]:
        """Return the record with one key per number; the layers' norms are records of their own."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "mean_loss": self.mean_loss,
            "seconds_train": self.seconds_train,
            "optimizer_state_bytes": self.state.num_bytes,
            "optimizer_state_8bit_share": self.state.share_8bit,
            **self.norms,
        }

    def layer_rows(self) -> list[dict[str, float | int | str]]:
        """Return one row for each layer."""
        return [
            {"epoch": self.epoch, "layer": layer, "norm": norm}
            for layer, norm in self.layer_norms.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One image of a grid: which prompt, which seed, at which size, after which epoch."""

    prompt: str  # the prompt's name
    width: int
    height: int
    seed: int
    epoch: int  # 0: the untouched base

    @property
    def file_name(self) -> str:
        """Return the image's file name inside its epoch's folder."""
        return f"{self.prompt}-{self.width}x{self.height}-s{self.seed}.png"
