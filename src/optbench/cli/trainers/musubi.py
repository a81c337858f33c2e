"""musubi-tuner's command lines and TOML files as settings of ours.

Its families cannot be trained here yet, so the base is refused by name and all else is translated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported, literal, pairs
from optbench.cli.trainers.kohya.option_names import RECIPES
from optbench.cli.trainers.trees import Training, TreeTranslation

_PROGRAM = re.compile(r"(.+?)_train(_network)?(_self_flow)?(\.py)?$")
_SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_min_lr": "cosine_with_min_lr",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "warmup_stable_decay",
}
_SMALLEST_POLYNOMIAL_RATE = 1e-7
_FILES = {"fp32": "float", "float": "float", "fp16": "fp16", "bf16": "bf16", None: "bf16"}


def convert(training: Training, *, program: str = "") -> Imported:
    """Return what a training means here.

    Args:
        training: The options by name, and the data sets.
        program: The script's name, which says the family; empty: the network module does.
    """
    return _Musubi(training, program).imported


class _Musubi(TreeTranslation):
    def __init__(self, training: Training, program: str) -> None:
        super().__init__(training)
        args = self.args
        match = _PROGRAM.search(Path(program).name)
        module = str(args["network_module"] or "")
        kind = (
            match[1] if match else module.removeprefix("networks.lora").strip("_") or "hunyuanvideo"
        )
        self._family(kind, program or module or "no program is named")
        self.imported.notes.append("base.path: give the checkpoint of a base that is here")
        self._data()
        self._steps()
        self._lora()
        self._stepping()
        kind = args["log_with"]
        self._wandb(
            kind in ("wandb", "all"), args["log_tracker_name"], args["wandb_run_name"], "log_with"
        )
        if args["seed"] is None:
            self.imported.notes.append("seed: drawn at random there; 1234 here")
        else:
            self._same("seed")
        named = args["sample_prompts"]
        self._set_prompts([], f", and sample_prompts={named} was not read" if named else "")
        self._finish()

    def _data(self) -> None:
        folders = [
            ImageFolder(path=str(one["image_directory"]), repeats=max(1, int(one["num_repeats"])))
            for one in self.datasets
            if one["image_directory"]
        ]
        self._folders(folders)
        if not self.datasets:
            if file := self.given.get("dataset_config"):
                self.imported.notes.append(f"dataset_config: {file} was not found beside the file")
            return
        size: Any = self._one_of("resolution")
        sides = [int(side) for side in (size if isinstance(size, list) else [size, size])]
        self._set("dataset.resolution", sides, *self.given)
        is_on = bool(self._one_of("enable_bucket"))
        self._buckets(64, enabled=is_on, upscale=not self._one_of("bucket_no_upscale"))
        suffix = self._one_of("caption_extension")
        if suffix:
            suffix = suffix if str(suffix).startswith(".") else f".{suffix}"
            self._set("dataset.caption_extension", suffix, *self.given)
        self._set("train.batch_size", int(self._one_of("batch_size")), *self.given)

    def _steps(self) -> None:
        args = self.args
        if args["max_train_epochs"] is not None:
            self._set("train.epochs", args["max_train_epochs"], "max_train_epochs")
            self._ignore("max_train_steps", "max_train_epochs wins")
        else:
            self._set("train.max_steps", args["max_train_steps"], "max_train_steps")
            self._set("train.epochs", args["max_train_steps"], "max_train_steps")
        self._same("gradient_accumulation_steps", "gradient_checkpointing", "max_grad_norm")
        self._set("train.mixed_precision", args["mixed_precision"] or "no", "mixed_precision")
        self._set("train.save_precision", _FILES[args["save_precision"]], "save_precision")

    def _lora(self) -> None:
        args = self.args
        module = str(args["network_module"] or "")
        if re.search(r"networks\.(loha|lokr)|lycoris", module):
            self._lose("network_module", "another kind of network; a LoRA is trained here")
        dim, alpha = args["network_dim"] or 4, args["network_alpha"]
        self._set("network.dim", dim, "network_dim")
        self._set("network.alpha", float(alpha or dim), "network_alpha")
        for name in (
            "network_dropout",
            "scale_weight_norms",
            "network_weights",
            "dim_from_weights",
        ):
            if args[name]:
                self._same(name)
        for key, value in pairs(args["network_args"] or ()):
            if key in ("rank_dropout", "module_dropout"):
                self._set(f"network.{key}", float(value), "network_args")
            else:
                self.imported.lost.append(f"network_args {key}={value}: no such argument here")
        self._untrained("text_encoder", "there is no LoRA of text encoders there")

    def _stepping(self) -> None:
        args = self.args
        written = str(args["optimizer_type"] or "")
        given = {key: literal(value) for key, value in pairs(args["optimizer_args"] or ())}
        recipe = RECIPES.get(written.lower().rpartition(".")[2], "")
        if recipe == "adafactor" and (given.get("relative_step", True) or given.get("warmup_init")):
            recipe = "adafactor_auto"
        if recipe:
            self._set_optimizer(recipe, given)
        else:
            recipe = self._named_optimizer(written, given, "optimizer_type")
        self._rates(recipe, float(args["learning_rate"]))
        self._schedule(recipe)

    def _schedule(self, recipe: str) -> None:
        args = self.args
        names = ("lr_scheduler", "lr_warmup_steps")
        if recipe == "adafactor_auto":
            self._set_schedule("adafactor", {}, *names)
            return
        name = _SCHEDULES.get(str(args["lr_scheduler"]))
        if name is None or args["lr_scheduler_type"]:
            option = "lr_scheduler_type" if args["lr_scheduler_type"] else "lr_scheduler"
            self._lose(option, "the rate is constant here")
            name = "constant"
        if recipe.endswith("schedulefree"):
            name = "constant"
        values: dict[str, Any] = {
            "warmup_steps": args["lr_warmup_steps"],
            "num_cycles": args["lr_scheduler_num_cycles"],
            "power": args["lr_scheduler_power"],
            "min_lr_ratio": args["lr_scheduler_min_lr_ratio"] or 0.0,
            "timescale": args["lr_scheduler_timescale"],
            "decay_steps": args["lr_decay_steps"],
        }
        if name == "polynomial":
            values["min_lr_ratio"] = _SMALLEST_POLYNOMIAL_RATE / float(args["learning_rate"])
        self._set_schedule(name, values, *names)
