"""musubi-tuner's command lines and TOML files: from there and to there.

Its families cannot be trained here yet, so the base is refused by name and all else is translated.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optbench.cli.trainers.exported import Exported, Run
from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported, literal, pairs
from optbench.cli.trainers.kohya.option_names import RECIPES, SPELLED
from optbench.cli.trainers.trees import Training, TreeTranslation
from optbench.optim.schedules import settings_in_use

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
        self._side = max(sides)
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
        self._set(
            "train.save_precision", _FILES.get(args["save_precision"], "bf16"), "save_precision"
        )

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


def export(run: Run) -> Exported:
    """Return a script with the data sets that starts musubi-tuner, for a family that it has.

    It has none of ours, so the program and its model files are variables that the user gives.
    """
    family = run.get("base.family")
    run.lost.append(
        f"base={family}: musubi-tuner does not train it; PROGRAM, DIT and NETWORK say which of its "
        "families is trained instead, and rates may need to be others there"
    )
    run.say_base()
    run.say_unless("network.rank_dropout", "network.module_dropout", "network.scale_weight_norms")
    if run.get("network.conv_dim") is not None:
        run.lost.append("network.conv_dim: no LoRA of convolutions there")
    if run.get("network.train_text_encoder"):
        run.lost.append("network.train_text_encoder=true: no LoRA of text encoders there")
    for key in ("min_snr_gamma", "noise_offset", "debiased_estimation_loss", "zero_terminal_snr"):
        if run.get(f"loss.{key}"):
            run.lost.append(f"loss.{key}={run.get(f'loss.{key}')}: flow models have none")
    words = [shlex.quote(word) for word in _exported_words(run)]
    command = [
        "accelerate launch --num_cpu_threads_per_process 1 \\",
        '  "${PROGRAM:?for instance zimage_train_network.py}" \\',
        '  --dit "${DIT:?the model file}" --network_module "${NETWORK:?networks.lora_zimage}" \\',
        "  " + " \\\n  ".join(words),
    ]
    return run.script("musubi-tuner", {"optbench-data.toml": _exported_data(run)}, command)


def _exported_words(run: Run) -> Iterator[str]:
    train, network, optimizer = run.get("train"), run.get("network"), run.get("optimizer")
    unet, _, lr = run.rates
    yield "--dataset_config=optbench-data.toml"
    if train["max_steps"] is None:
        yield f"--max_train_epochs={train['epochs']}"
    else:
        yield f"--max_train_steps={min(train['max_steps'], run.total_steps or train['max_steps'])}"
    yield f"--gradient_accumulation_steps={train['gradient_accumulation']}"
    yield f"--mixed_precision={train['mixed_precision']}"
    yield f"--save_precision={train['save_precision']}"
    yield f"--max_grad_norm={train['max_grad_norm']}"
    yield f"--seed={run.get('seed') % 2**32}"
    if train["gradient_checkpointing"]:
        yield "--gradient_checkpointing"
    yield f"--network_dim={network['dim']}"
    yield f"--network_alpha={network['alpha']}"
    if network["dropout"]:
        yield f"--network_dropout={network['dropout']}"
    if network["scale_weight_norms"]:
        yield f"--scale_weight_norms={network['scale_weight_norms']}"
    if network["weights"]:
        yield f"--network_weights={network['weights']}"
    dropouts = [
        f"{key}={network[key]}" for key in ("rank_dropout", "module_dropout") if network[key]
    ]
    if dropouts:
        yield from ("--network_args", *dropouts)
    if unet != lr:
        run.lost.append(f"optimizer.unet_lr={unet:g}: the one rate there")
    kind = SPELLED.get(optimizer["name"], optimizer["_target_"])
    arguments = {key: value for key, value in optimizer["args"].items() if key != "fused"}
    # Only AdamW, its 8-bit form and Adafactor have short names there; others by their class.
    short = kind if kind in ("AdamW", "AdamW8bit", "Adafactor") else optimizer["_target_"]
    yield f"--optimizer_type={short}"
    yield f"--learning_rate={unet!r}"
    if arguments:
        yield "--optimizer_args"
        yield from (f"{key}={value!r}".replace(" ", "") for key, value in arguments.items())
    yield from _exported_schedule(run)
    yield from ("--sdpa", "--save_every_n_epochs=1", "--output_dir=.", f"--output_name={run.name}")


def _exported_schedule(run: Run) -> Iterator[str]:
    schedule = run.get("lr_scheduler")
    kind = schedule["name"]
    if kind == "adafactor":
        return
    if kind not in _SCHEDULES:
        run.lost.append(f"lr_scheduler={kind}: no such schedule there; constant is written")
        yield "--lr_scheduler=constant"
        return
    yield f"--lr_scheduler={kind}"
    names = {
        "warmup_steps": "lr_warmup_steps",
        "num_cycles": "lr_scheduler_num_cycles",
        "power": "lr_scheduler_power",
        "min_lr_ratio": "lr_scheduler_min_lr_ratio",
        "timescale": "lr_scheduler_timescale",
        "decay_steps": "lr_decay_steps",
    }
    for key in settings_in_use(kind):
        value = schedule[key]
        if key == "timescale" and value is not None and value < 1:
            run.lost.append(f"lr_scheduler.timescale={value}: steps there; left out")
        elif key == "min_lr_ratio" and kind == "polynomial":
            run.lost.append(f"lr_scheduler.min_lr_ratio={value}: the last rate is 1e-07 there")
        elif value is not None:
            whole = float(value).is_integer() and key not in ("power", "min_lr_ratio")
            yield f"--{names[key]}={int(value) if whole else value}"


def _exported_data(run: Run) -> str:
    dataset = run.get("dataset")
    lines = [
        "[general]",
        f"resolution = {list(dataset['resolution'])}",
        f"caption_extension = {json.dumps(dataset['caption_extension'])}",
        f"batch_size = {run.get('train.batch_size')}",
        f"enable_bucket = {str(dataset['enable_bucket']).lower()}",
        f"bucket_no_upscale = {str(dataset['bucket_no_upscale']).lower()}",
    ]
    for key in ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "flip_aug"):
        if dataset[key]:
            run.lost.append(f"dataset.{key}={dataset[key]}: no such setting there")
    for number, folder in enumerate(run.folders()):
        if folder.is_regularization:
            run.lost.append(f"{folder.path}: no class images there; left out")
            continue
        lines += [
            "",
            "[[datasets]]",
            f"image_directory = {json.dumps(folder.path)}",
            f"cache_directory = {json.dumps(f'cache/{run.name}/{number}')}",
            f"num_repeats = {folder.repeats}",
        ]
    return "\n".join(lines) + "\n"
