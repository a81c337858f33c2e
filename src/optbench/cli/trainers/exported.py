"""What all exporters share: the files of another trainer, and what they cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.optimizers import optimizers
from optbench.data.layouts import METADATA_NAME, find_images
from optbench.data.rules import Findings

END_OF_FILE = "END_OF_FILE"
_NEVER_SAME = (
    "order, noise and timesteps are drawn otherwise there: the same settings, other weights from "
    "the same seed"
)
_OFF: Mapping[str, Any] = {  # settings of the loss and network that few trainers have
    "loss.adaptive_noise_scale": None,
    "loss.multires_noise_iterations": None,
    "loss.v_pred_like_loss": None,
    "loss.scale_v_pred_loss_like_noise_pred": False,
    "loss.noise_offset_random_strength": False,
    "loss.ip_noise_gamma": None,
    "network.rank_dropout": 0.0,
    "network.module_dropout": 0.0,
    "network.down_lr_weight": None,
    "network.mid_lr_weight": None,
    "network.up_lr_weight": None,
    "network.block_dims": None,
    "network.block_alphas": None,
    "network.conv_block_dims": None,
    "network.conv_block_alphas": None,
    "network.scale_weight_norms": None,
    "network.rslora": False,
    "dataset.enable_wildcard": False,
    "dataset.caption_suffix": None,
    "dataset.keep_tokens_separator": None,
    "dataset.secondary_separator": None,
    "dataset.token_warmup_step": 0,
    "dataset.caption_dropout_every_n_epochs": 0,
    "dataset.color_aug": False,
}


@dataclass(frozen=True, slots=True)
class Exported:
    """A shell script for another trainer, and a sentence for each setting that it cannot have."""

    script: str
    lost: tuple[str, ...]


@dataclass(slots=True)
class Run:
    """A run on its way to another trainer; `lost` grows while settings are written."""

    config: Mapping[str, Any]
    name: str
    total_steps: int | None = None
    lost: list[str] = field(default_factory=lambda: [_NEVER_SAME])

    def get(self, key: str) -> Any:
        """Return a setting by its dotted key."""
        section, _, name = key.partition(".")
        return self.config[section][name] if name else self.config[section]

    @property
    def rates(self) -> tuple[float, float, float]:
        """Return the rates of unet and text encoder, and the one they come from; 0 without any."""
        optimizer, factor = self.config["optimizer"], self.config["lr_mult"]
        lr = (optimizer["lr"] or 0.0) * factor
        unet = lr if optimizer["unet_lr"] is None else optimizer["unet_lr"] * factor
        text = lr if optimizer["text_encoder_lr"] is None else optimizer["text_encoder_lr"] * factor
        return unet, text, lr

    def steps(self, trainer: str) -> int:
        """Return the updates of the run; said where only its epochs are known."""
        if self.total_steps is not None:
            return self.total_steps
        limit: int | None = self.config["train"]["max_steps"]
        if limit is None:
            self.lost.append(
                f"train.epochs={self.config['train']['epochs']}: {trainer} counts steps, and how "
                "many the run has is not known yet; 1000 stands there"
            )
        return limit or 1000

    def say_base(self) -> None:
        """Say what is true of the base in every other trainer."""
        base = self.config["base"]
        if base["name"] == "tiny":
            self.lost.append(
                "base.path: no other trainer loads the embedded base; name your checkpoint"
                + unscaled(self.config)
            )

    def say_unless(self, *supported: str) -> None:
        """Say every setting that is on and that the other trainer, but for these, has not."""
        for key, off in _OFF.items():
            value = self.get(key)
            if key not in supported and value != off and value is not None:
                self.lost.append(f"{key}={value}: no such setting there")
        validate = self.config.get("validate", {})
        if (
            validate.get("enabled")
            and validate.get("holdout") == "auto"
            and not validate.get("dir")
        ):
            self.lost.append(
                "validate.holdout=auto: of 12 images or more a sixth was not trained on here; "
                "there all are"
            )

    def folders(self) -> list[ImageFolder]:
        """Return the folders of images with their repeats, as far as they lie on this disk."""
        dataset = self.config["dataset"]
        listed = []
        for key, is_reg in (("dir", False), ("reg_dir", True)):
            root = Path(dataset[key]).expanduser().absolute() if dataset[key] else None
            if root is None:
                continue
            if not root.is_dir():
                self.lost.append(f"dataset.{key}={root}: not on this disk; its folders go unlisted")
                listed.append(
                    ImageFolder(str(root), dataset["num_repeats"] or 1, is_regularization=is_reg)
                )
                continue
            for folder in find_images(root, f"dataset.{key}", dataset["num_repeats"], Findings()):
                if folder.captions is not None:
                    self.lost.append(
                        f"{folder.path / METADATA_NAME}: captions are read from files beside the "
                        "images there"
                    )
                listed.append(
                    ImageFolder(
                        str(folder.path),
                        folder.repeats,
                        class_words=dataset["class_tokens"] or folder.class_words,
                        is_regularization=is_reg,
                    )
                )
        return listed

    def optimizer(self, trainer: str) -> tuple[str, dict[str, Any]]:
        """Return that trainer's name of the class, and our arguments of it.

        Where it has none, AdamW's stands there and that is said.
        """
        optimizer = self.config["optimizer"]
        # The same class first, before another form of it that a remark tells of.
        for named in sorted(optimizers(trainer).values(), key=lambda named: bool(named.remark)):
            recipe = named.recipe.removesuffix("_auto")
            is_class = not named.target and optimizer["name"].removesuffix("_auto") == recipe
            if recipe and (is_class or named.target == optimizer["_target_"]):
                if named.remark:
                    self.lost.append(f"{named.name}: {named.remark}")
                return named.name, dict(optimizer["args"])
        self.lost.append(
            f"optimizer={optimizer['name']}: that trainer does not build it; AdamW stands there"
        )
        adamw = next(
            named
            for named in optimizers(trainer).values()
            if named.recipe == "adamw" and not named.target and not named.remark
        )
        return adamw.name, {}

    def prompts(self) -> list[dict[str, Any]]:
        """Return text, negative, width, height and seed of each image that is rendered."""
        if not self.config["render"]["enabled"]:
            return []
        return [
            {**{key: prompt[key] for key in ("text", "negative", "width", "height")}, "seed": seed}
            for prompt in self.config["prompts"]["prompts"].values()
            for seed in self.config["render"]["seeds"]
        ]

    def script(self, title: str, files: Mapping[str, str], command: Sequence[str]) -> Exported:
        """Return a shell script that writes files and then starts the trainer."""
        lines = ["#!/bin/sh", f"# {self.name}, for {title}; run it in its folder."]
        lines += [f"# Not in it: {' '.join(sentence.split())}" for sentence in self.lost]
        for name, text in files.items():
            lines += [f"cat > {name} <<'{END_OF_FILE}'", text.rstrip("\n"), END_OF_FILE]
        return Exported("\n".join([*lines, *command]) + "\n", tuple(self.lost))


def files_of(script: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of every file that an exported script writes."""
    lines = iter(script.splitlines())
    for line in lines:
        if line.startswith("cat > ") and line.endswith(f"<<'{END_OF_FILE}'"):
            text: list[str] = []
            for inner in lines:
                if inner == END_OF_FILE:
                    break
                text.append(inner)
            yield line.split()[2], "\n".join(text) + "\n"


def unscaled(config: Mapping[str, Any]) -> str:
    """Return what to do with rates that suit the base they were trained on, if they do."""
    base, optimizer = config["base"], config["optimizer"]
    role = optimizer["traits"]["lr_role"]
    scale = base["lr_scale"] if role == "manual" else None
    if role == "multiplier":
        scale = (base.get("lr_scales") or {}).get(optimizer["name"])
    if scale in (None, 1):
        return ""
    return f", and divide the rates by {scale:g} unless you gave them yourself"
