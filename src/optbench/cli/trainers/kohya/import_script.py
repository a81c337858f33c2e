"""Turn a training of kohya's trainer into overrides of ours that mean the same.

Every option has a value, given or the trainer's own default. What the trainer does not look at is
left out here too, because here a setting without effect is refused. All of it is said: what has no
equivalent, what was ignored, what was filled in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.cli.trainers.families import family, plain
from optbench.cli.trainers.folders import place, words_of_links
from optbench.cli.trainers.imported import (
    Imported,
    Translation,
    hydra_value,
    literal,
    pairs,
    shipped,
    shown,
)
from optbench.cli.trainers.kohya import option_names
from optbench.cli.trainers.kohya.read_script import KohyaTraining
from optbench.cli.trainers.options import options
from optbench.errors import ConfigError, Problem
from optbench.models.files.families import FAMILIES
from optbench.optim.schedules import settings_in_use
from optbench.storage import resources
from optbench.storage.disk import read_text

_SHAPE = re.compile(r"(sine|cosine|linear|reverse_linear|zeros)(\+[0-9.]+)?")
_PROMPT_OPTION = re.compile(r" --(\w+)\s+")
_ERROR_THERE = "which is an error in kohya's trainer"


def convert(training: KohyaTraining, *, folder: Path = Path()) -> Imported:
    """Return what the options mean here.

    Args:
        training: The options that were read.
        folder: Where the file lies that they were read from; files it names are looked for there.

    Raises:
        ConfigError: If arguments of the network or the resolution are no numbers.
    """
    if problems := list(_problems(training.options)):
        raise ConfigError(*problems)
    return _Import(training, folder).imported


def _problems(given: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each text that should hold numbers and does not."""
    listed = {"resolution": str(given.get("resolution") or "512").strip("[]() ")}
    # An empty weight is 0 there, and one without a comma may be the name of a shape.
    for name, text in pairs(given.get("network_args") or ()):
        if name.endswith("_lr_weight"):
            if "," in text or name == "mid_lr_weight":
                listed[name] = ",".join(item.strip() or "0" for item in text.split(","))
            elif not _SHAPE.fullmatch(text):
                yield Problem(
                    f"network_args {name}",
                    repr(text),
                    "a weight for each block, or sine, cosine, linear, reverse_linear or zeros",
                    "correct it; kohya's trainer would end with an error, too",
                )
        elif name in option_names.NETWORK_ARGS:
            listed[name] = text
    for name, text in listed.items():
        is_whole = name in ("conv_dim", "block_dims", "conv_block_dims", "resolution")
        try:
            for item in text.split(","):
                int(item) if is_whole else float(item)
        except ValueError:
            yield Problem(
                f"network_args {name}" if name in option_names.NETWORK_ARGS else f"--{name}",
                repr(text),
                "whole numbers" if is_whole else "numbers",
                "correct it; kohya's trainer would end with an error, too",
            )


class _Import(Translation):
    """One training of kohya's trainer on its way."""

    def __init__(self, training: KohyaTraining, folder: Path) -> None:
        super().__init__("kohya", options(), training.options)
        self.imported.lost += training.unknown
        self.imported.not_needed += training.elsewhere
        self.folder = folder
        self.family = "sdxl" if training.is_sdxl else "sd2" if self.args["v2"] else "sd15"
        base: str = self.family
        named = training.script.partition("train_network")[0].strip("_")
        ours, words = family(named or self.family)
        if ours is None:
            base = plain(words)
            self.imported.refused.append(
                f"{training.script}: {words} cannot be trained here yet (bases are sd15, sd2, "
                "sdxl); all other settings are below, to be used with a base of those"
            )
        self.folders = training.folders
        self.imported.overrides += [f"base={base}", "dataset=folder", "prompts=folder"]
        # Kohya's trainer trains on every image.
        self.imported.overrides.append("validate.holdout=none")
        if not training.names_script and self.family == "sd15":
            self.imported.notes.append(
                "base=sd15: no script is named; write base=sdxl for one of sdxl_train_network.py"
            )
        self._base()
        self._dataset()
        self._train()
        self._loss()
        self._network()
        self._optimizer()
        self._trackers()
        self._prompts()
        self._say_others()

    def _base(self) -> None:
        if self.family == "sdxl" and self.args["v2"]:
            self.imported.lost.append(f"v2: with sdxl_train_network.py, {_ERROR_THERE}")
        if self.args["pretrained_model_name_or_path"]:
            self._same("pretrained_model_name_or_path")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        if self.args["vae"]:
            self._same("vae")
        self._same("v_parameterization")

    def _dataset(self) -> None:
        args = self.args
        placed = place(self.folders)
        for key, value in placed.settings.items():
            self._set(key, value, *self.given)
        if placed.commands:
            self.imported.notes.append(words_of_links(placed.commands))
        if args["train_data_dir"] and not self.folders:
            self._same("train_data_dir")
        elif "dataset.dir" not in placed.settings:
            self.imported.notes.append("dataset.dir: give the images, the file names none")
        resolution = args["resolution"] or "512"
        sides = [int(side) for side in str(resolution).strip("[]() ").split(",")]
        if not args["resolution"]:
            self.imported.notes.append(f"resolution: not given, {_ERROR_THERE}; 512 here")
        self._set("dataset.resolution", [sides[0], sides[-1]], "resolution")
        self.has_reg = bool(args["reg_data_dir"]) or "dataset.reg_dir" in placed.settings
        has_reg = self.has_reg
        if args["reg_data_dir"] and "dataset.reg_dir" not in placed.settings:
            self._same("reg_data_dir")
        for name in ("caption_prefix", "caption_suffix"):
            if not (args[name] or "").strip():
                continue
            if has_reg:
                self.imported.lost.append(
                    f"{name}={args[name]}: it comes before class images too there, which undoes "
                    "it; write it into the captions"
                )
            else:
                self._same(name)
        self._buckets()
        misspelt = args["caption_extention"]
        suffix = misspelt or args["caption_extension"]
        suffix = suffix if suffix.startswith(".") else f".{suffix}"
        self._set("dataset.caption_extension", suffix, "caption_extension", "caption_extention")
        self._caption_steps()
        self._same("enable_wildcard", "caption_dropout_rate", "caption_tag_dropout_rate")
        self._same("shuffle_caption", "flip_aug", "color_aug", "random_crop")
        every, epochs = args["caption_dropout_every_n_epochs"], args["max_train_epochs"]
        if epochs is not None and every > epochs:
            self._ignore("caption_dropout_every_n_epochs", f"the training has {epochs} epochs")
        else:
            self._same("caption_dropout_every_n_epochs")
        if "max_data_loader_n_workers" in self.given:
            self._same("max_data_loader_n_workers")

    def _buckets(self) -> None:
        args, step = self.args, self.args["bucket_reso_steps"]
        self._same("enable_bucket")
        names = ("bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso")
        if not args["enable_bucket"]:
            self._set("dataset.bucket_no_upscale", False)
            for name in names:
                self._ignore(name, "without enable_bucket it is not looked at")
            return
        self._same("bucket_no_upscale", "bucket_reso_steps")
        if args["bucket_no_upscale"]:
            for name in names[2:]:
                self._ignore(name, "with bucket_no_upscale it is not looked at")
            return
        for name, rounded in (
            ("min_bucket_reso", args["min_bucket_reso"] // step * step),
            ("max_bucket_reso", math.ceil(args["max_bucket_reso"] / step) * step),
        ):
            self._set(f"dataset.{name}", rounded, name)
            if rounded != args[name]:
                self.imported.notes.append(
                    f"{name}: {args[name]} becomes {rounded}, a multiple of {step}, there too"
                )

    def _caption_steps(self) -> None:
        """Set what rearranges captions; it is ignored there where nothing does."""
        args = self.args
        separator, secondary = args["caption_separator"], args["secondary_separator"]
        rearranges = args["shuffle_caption"] or args["caption_tag_dropout_rate"] > 0
        warms_up = args["token_warmup_step"] > 0
        self._same("token_warmup_step")
        if warms_up:
            self._same("token_warmup_min")
        else:
            self._ignore("token_warmup_min", "without token_warmup_step no tag is held back")
        if secondary and secondary == separator:
            self._ignore("secondary_separator", "it is the separator already")
        elif secondary:
            self._same("secondary_separator")
        if rearranges or warms_up:
            self._same("keep_tokens")
            if args["keep_tokens_separator"]:
                self._same("keep_tokens_separator")
            if not separator:
                self.imported.lost.append(f"caption_separator is empty, {_ERROR_THERE}")
            else:
                self._same("caption_separator")
            return
        why = "nothing shuffles or drops tags, so it is not looked at"
        self._set("dataset.keep_tokens", 0, "keep_tokens")
        self._ignore("keep_tokens", why)
        self._ignore("keep_tokens_separator", why)
        if secondary and separator and secondary != separator:
            self._same("caption_separator")
        else:
            self._ignore("caption_separator", why)

    def _train(self) -> None:
        args = self.args
        if args["max_train_epochs"] is not None:
            self._same("max_train_epochs")
            self._ignore("max_train_steps", "max_train_epochs wins")
        else:
            steps = args["max_train_steps"]
            self._set("train.max_steps", steps, "max_train_steps")
            # Steps alone decide there; there cannot be more epochs than steps.
            self._set("train.epochs", steps, "max_train_steps")
        self._same("train_batch_size", "gradient_accumulation_steps", "mixed_precision")
        self._same("max_grad_norm", "gradient_checkpointing")
        self._set("train.save_precision", args["save_precision"] or "float", "save_precision")
        self._set("train.max_token_length", args["max_token_length"] or 75, "max_token_length")
        skip = args["clip_skip"] or 1
        if self.family == "sdxl" and skip != 1:
            self._ignore("clip_skip", "SDXL always reads the last layer but one")
            skip = 1
        self._set("train.clip_skip", skip, "clip_skip")
        drops = args["network_dropout"] or any(
            float(value or 0)
            for name, value in pairs(args["network_args"] or ())
            if name in ("rank_dropout", "module_dropout")
        )
        if args["torch_compile"] and drops:
            self.imported.not_needed.append(
                "torch_compile: speed only, and with dropouts the unet would be compiled anew in "
                "every step"
            )
        else:
            self._same("torch_compile")
        if not args["torch_compile"] or drops:
            self._ignore("dynamo_backend", "without torch_compile it is not looked at")
        elif args["dynamo_backend"] in ("inductor", "aot_eager", "eager"):
            self._same("dynamo_backend")
        else:
            self.imported.not_needed.append(
                f"dynamo_backend={args['dynamo_backend']}: speed only; inductor here"
            )
        if "seed" in self.given:
            self._same("seed")
        else:
            self.imported.notes.append(
                "seed: drawn at random there where it is not given; 1234 here"
            )

    def _loss(self) -> None:
        args = self.args
        is_v, has_reg = args["v_parameterization"], self.has_reg
        is_huber = args["loss_type"] in ("huber", "smooth_l1")
        self._same("loss_type", "debiased_estimation_loss")
        for name in ("huber_schedule", "huber_c"):
            if is_huber:
                self._same(name)
            else:
                self._ignore(name, f"loss_type={args['loss_type']} has none")
        if is_huber and args["huber_schedule"] != "snr":
            self._same("huber_scale")
        else:
            self._ignore("huber_scale", "only constant and exponential thresholds are scaled")
        needs = {
            "noise_offset_random_strength": "noise_offset",
            "adaptive_noise_scale": "noise_offset",
            "multires_noise_discount": "multires_noise_iterations",
            "ip_noise_gamma_random_strength": "ip_noise_gamma",
        }
        for name in (
            *("min_snr_gamma", "noise_offset", "multires_noise_iterations", "ip_noise_gamma"),
            *needs,
        ):
            needed = needs.get(name)
            if needed and not args[needed]:
                self._ignore(name, f"without {needed} it is not looked at")
            elif args[name]:
                self._same(name)
        for name, needed in needs.items():
            if args[needed] and args[name] and name.endswith("random_strength"):
                self.imported.lost.append(f"{name}: one draw a batch there, one an image here")
        if args["multires_noise_iterations"]:
            self.imported.lost.append(
                "multires_noise_iterations: patch sizes and deviation of a batch there, of an "
                "image here"
            )
        for name, fits, why in (
            (
                "scale_v_pred_loss_like_noise_pred",
                is_v,
                f"without v_parameterization, {_ERROR_THERE}",
            ),
            ("v_pred_like_loss", not is_v, f"with v_parameterization, {_ERROR_THERE}"),
            ("zero_terminal_snr", is_v, "without v_parameterization it cannot be trained here"),
        ):
            if args[name] and fits:
                self._same(name)
            elif args[name]:
                self.imported.lost.append(f"{name}={args[name]}: {why}")
        if has_reg and args["prior_loss_weight"] > 0:
            self._same("prior_loss_weight")
        elif has_reg:
            self.imported.lost.append(
                f"prior_loss_weight={args['prior_loss_weight']}: images without weight are not "
                "trained here; leave out dataset.reg_dir"
            )
        else:
            self._ignore("prior_loss_weight", "there are no class images")
        self._timesteps()

    def _timesteps(self) -> None:
        first, end = self.args["min_timestep"] or 0, self.args["max_timestep"]
        if end is not None and first >= end:
            self.imported.notes.append(
                f"min_timestep={first}: not below max_timestep, so only timestep {end} is drawn, "
                "there too"
            )
            first, end = end, end + 1
        self._set("loss.min_timestep", first, "min_timestep")
        if end is not None:
            self._set("loss.max_timestep", end, "max_timestep")

    def _network(self) -> None:
        args = self.args
        module = args["network_module"] or "networks.lora"
        if module != "networks.lora":
            self.imported.lost.append(
                f"network_module={module}: another kind of network; a LoRA is trained here"
            )
        given = dict(pairs(args["network_args"] or ()))
        from_weights = args["dim_from_weights"]
        weights = self._block_weights(given)
        if args["network_weights"]:
            self._same("network_weights")
        if from_weights:
            self._same("dim_from_weights")
        else:
            self._sizes(given, has_weights=bool(weights))
        for key, values in weights.items():
            self._set(f"network.{key}", values, "network_args")
        if weights and float(given.get("block_lr_zero_threshold", 0)):
            threshold = float(given["block_lr_zero_threshold"])
            self._set("network.block_lr_zero_threshold", threshold, "network_args")
        self._dropouts(given, from_weights=from_weights)
        if args["scale_weight_norms"]:
            self._same("scale_weight_norms")
        self._say_network_args(given, weights, from_weights=from_weights)
        self._parts()

    def _sizes(self, given: Mapping[str, str], *, has_weights: bool) -> None:
        args = self.args
        dim, alpha = args["network_dim"] or 4, args["network_alpha"]
        alpha = 1.0 if alpha is None else alpha or float(dim)  # 0 is the dim
        self._set("network.dim", dim, "network_dim")
        self._set("network.alpha", alpha, "network_alpha")
        conv_dim = int(given["conv_dim"]) if "conv_dim" in given else None
        conv_alpha = float(given.get("conv_alpha", 1.0))
        by_block = has_weights or "block_dims" in given
        if conv_dim is not None:
            self._set("network.conv_dim", conv_dim, "network_args")
            self._set("network.conv_alpha", conv_alpha or float(conv_dim), "network_args")
        if not by_block:
            return
        num_blocks = FAMILIES[self.family].unet_blocks.num_listed
        if "block_dims" in given:
            self._set("network.block_dims", _ints(given["block_dims"]), "network_args")
        elif "block_alphas" in given:
            self._set("network.block_dims", [dim] * num_blocks, "network_args")
        if "block_alphas" in given:
            self._set("network.block_alphas", _floats(given["block_alphas"]), "network_args")
        if "conv_block_dims" in given:
            dims = _ints(given["conv_block_dims"])
            self._set("network.conv_block_dims", dims, "network_args")
            if "conv_block_alphas" in given:
                alphas = _floats(given["conv_block_alphas"])
                self._set("network.conv_block_alphas", alphas, "network_args")
            elif conv_dim is None and "conv_alpha" in given:
                self._set("network.conv_alpha", conv_alpha, "network_args")

    def _block_weights(self, given: Mapping[str, str]) -> dict[str, str | list[float]]:
        """Return the weights of blocks as lists of the right length, or a named shape."""
        blocks = FAMILIES[self.family].unet_blocks
        weights: dict[str, str | list[float]] = {}
        sides = {
            "down_lr_weight": blocks.down,
            "mid_lr_weight": blocks.mid,
            "up_lr_weight": blocks.up,
        }
        for key, count in sides.items():
            if key not in given:
                continue
            text = given[key]
            if "," not in text and key != "mid_lr_weight":
                weights[key] = text  # the name of a shape
                continue
            numbers = [float(item) if item.strip() else 0.0 for item in text.split(",")]
            if len(numbers) != count:
                self.imported.notes.append(
                    f"network_args {key}: {len(numbers)} weights for {count} blocks; missing ones "
                    "are 1, more are left out, there too"
                )
            weights[key] = (numbers + [1.0] * count)[:count]
        return weights

    def _dropouts(self, given: Mapping[str, str], *, from_weights: bool) -> None:
        why = "with dim_from_weights nothing is dropped"
        if from_weights:
            self._ignore("network_dropout", why)
        elif self.args["network_dropout"]:
            self._same("network_dropout")
        for key in ("rank_dropout", "module_dropout"):
            share = float(given.get(key) or 0)
            if share and from_weights:
                self.imported.ignored.append(f"network_args {key}={share}: {why}")
            elif share:
                self._set(f"network.{key}", share, "network_args")

    def _say_network_args(
        self, given: Mapping[str, str], weights: Mapping[str, object], *, from_weights: bool
    ) -> None:
        """Say which arguments of the network nothing came of."""
        by_block = bool(weights) or "block_dims" in given
        unused = {
            "conv_alpha": "conv_dim" not in given and not ("conv_block_dims" in given and by_block),
            "block_alphas": not by_block,
            "conv_block_dims": not by_block,
            "conv_block_alphas": not (by_block and "conv_block_dims" in given),
            "block_lr_zero_threshold": not weights,
        }
        for key, value in given.items():
            said = f"network_args {key}={value}"
            if key.startswith("loraplus"):
                self.imported.lost.append(f"{said}: LoRA+")
            elif key not in option_names.NETWORK_ARGS:
                kind = self.args["network_module"] or "networks.lora"
                self.imported.ignored.append(f"{said}: {kind} has no such argument")
            elif from_weights and key in ("conv_dim", "conv_alpha", "block_dims", "block_alphas"):
                self.imported.ignored.append(f"{said}: with dim_from_weights the file decides")
            elif unused.get(key):
                why = "without block_dims or weights of blocks" if by_block else "alone"
                self.imported.ignored.append(f"{said}: {why} it is not looked at")
        if from_weights:
            for name in ("network_dim", "network_alpha"):
                self._ignore(name, "with dim_from_weights the file decides")

    def _parts(self) -> None:
        """Leave a part untrained that has no rate, or that is switched off."""
        args, rates = self.args, self._rates()
        for part, rate, only in (
            ("text_encoder", rates["text_encoder_lr"], "network_train_unet_only"),
            ("unet", rates["unet_lr"], "network_train_text_encoder_only"),
        ):
            rate = args["learning_rate"] if rate is None else rate
            if args[only]:
                self._set(f"network.train_{part}", False, only)
            elif rate == 0:
                self._set(f"network.train_{part}", False, f"{part}_lr", "learning_rate")
                self.imported.notes.append(
                    f"{part}_lr=0: it is not trained; there its layers are in the file, with zeros"
                )

    def _rates(self) -> dict[str, float | None]:
        listed = self.args["text_encoder_lr"] or [None]
        return {"unet_lr": self.args["unet_lr"], "text_encoder_lr": listed[0]}

    def _optimizer(self) -> None:
        args = self.args
        written = args["optimizer_type"] or ""
        for name, other in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
            if args[name]:
                written = other
        given = dict(pairs(args["optimizer_args"] or ()))
        is_relative = written.lower() == "adafactor" and (
            given.get("relative_step", "True") == "True" or given.get("warmup_init") == "True"
        )
        recipe, target = self._recipe(written)
        if is_relative:
            recipe = "adafactor_auto"
            if given.get("relative_step") == "False":
                self.imported.ignored.append(
                    "optimizer_args relative_step=False: warmup_init=True switches it on"
                )
                given["relative_step"] = "True"
        self._set_optimizer(recipe, given, target=target)
        rates = self._rates()
        if is_relative:
            for name in ("learning_rate", "unet_lr", "text_encoder_lr"):
                self._ignore(name, "Adafactor finds its own rates (relative_step)")
        else:
            self._set("optimizer.lr", args["learning_rate"], "learning_rate")
            for name, rate in rates.items():
                self.imported.overrides.append(f"optimizer.{name}={hydra_value(rate or None)}")
            if len(set(args["text_encoder_lr"] or ())) > 1:
                self.imported.ignored.append(
                    f"text_encoder_lr={shown(args['text_encoder_lr'])}: networks.lora takes the "
                    "first for all text encoders"
                )
        traits = shipped("optimizer", recipe)["traits"]
        if traits["stepping"] == "closure":
            self.imported.lost.append(
                f"optimizer_type={written}: here it gets the loss at every step, which kohya's "
                "trainer cannot give it: other weights"
            )
        self._schedule(written, is_relative=is_relative)

    def _recipe(self, written: str) -> tuple[str, str]:
        """Return our recipe of a class and, where its class is another one, that class's path."""
        if written.lower() in option_names.RECIPES:
            return option_names.RECIPES[written.lower()], ""
        by_class: dict[str, str] = {}
        for file in sorted((resources.conf_dir() / "optimizer").glob("*.yaml")):
            if path := shipped("optimizer", file.stem).get("_target_"):
                if path in (written, f"torch.optim.{written}"):
                    return file.stem, ""
                by_class.setdefault(path.rpartition(".")[2], file.stem)
        class_name = written.rpartition(".")[2]
        if class_name in option_names.PLAIN_CLASSES and written in (
            class_name,
            f"torch.optim.{class_name}",
        ):
            return "adamw", f"torch.optim.{class_name}"
        if "." in written and class_name in by_class:
            recipe = by_class[class_name]
            path = shipped("optimizer", recipe)["_target_"]
            self.imported.lost.append(
                f"optimizer_type={written}: {path} here, which may differ from it"
            )
            return recipe, ""
        self.imported.lost.append(
            f"optimizer_type={written}: no recipe of ours builds it, so AdamW stands here at its "
            "rates; copy one of conf/optimizer/ and name the class in it"
        )
        return "adamw", ""

    def _schedule(self, optimizer: str, *, is_relative: bool) -> None:
        args, lost = self.args, self.imported.lost
        keys = {
            "lr_warmup_steps": "warmup_steps",
            "lr_scheduler_num_cycles": "num_cycles",
            "lr_scheduler_power": "power",
            "lr_scheduler_min_lr_ratio": "min_lr_ratio",
            "lr_scheduler_timescale": "timescale",
            "lr_decay_steps": "decay_steps",
        }
        own = ("lr_scheduler", "lr_scheduler_type", "lr_scheduler_args", *keys)
        if is_relative or optimizer.lower().endswith("schedulefree"):
            why = "Adafactor's own rule replaces it" if is_relative else "a schedule-free class"
            for name in own:
                self._ignore(name, why)
            rule = "adafactor" if is_relative else "constant"
            self._set("lr_scheduler", rule, "lr_scheduler")
            return
        ours = {kohya: name for name, kohya in option_names.SCHEDULES.items()}
        name = ours.get(args["lr_scheduler"], "")
        by_class = args["lr_scheduler_type"]
        if by_class or name in ("", "adafactor"):
            option = "lr_scheduler_type" if by_class else "lr_scheduler"
            lost.append(f"{option}={args[option]}: the rate is constant here")
            name = "constant"
        self._set("lr_scheduler", name, "lr_scheduler")
        uses = settings_in_use(name)
        given = dict(pairs(args["lr_scheduler_args"] or ()))
        for option, key in keys.items():
            value = args[option]
            if key not in uses:
                error = name == "constant" and option == "lr_warmup_steps"
                self._ignore(
                    option, f"with {name}, {_ERROR_THERE}" if error else f"{name} has none"
                )
            elif isinstance(value, float) and key in ("warmup_steps", "decay_steps") and value >= 1:
                lost.append(f"{option}={value}: a number with a point is a share of the run there")
            elif key == "min_lr_ratio" and name == "polynomial":
                self._ignore(option, "polynomial has none")
                last = float(literal(given.get("lr_end", option_names.SMALLEST_POLYNOMIAL_RATE)))
                if last >= args["learning_rate"]:
                    lost.append(f"polynomial: its last rate {last:g} is no smaller, {_ERROR_THERE}")
                else:
                    share = last / args["learning_rate"]
                    self._set("lr_scheduler.min_lr_ratio", share, "learning_rate")
            elif key == "min_lr_ratio" and value is None and name == "cosine_with_min_lr":
                lost.append(f"lr_scheduler_min_lr_ratio: not given, {_ERROR_THERE}; 0.1 here")
            else:
                value = 0.0 if value is None and key == "min_lr_ratio" else value
                self._set(f"lr_scheduler.{key}", value, option)
        cycles = args["lr_scheduler_num_cycles"]
        if name == "warmup_stable_decay" and cycles != 1:
            self.imported.ignored[:] = [
                sentence
                for sentence in self.imported.ignored
                if not sentence.startswith("lr_scheduler_num_cycles=")
            ]
            lost.append(f"lr_scheduler_num_cycles={cycles}: the decay is half a cosine here")
        for key, text in given.items():
            if key == "step_rules" and name == "piecewise":
                rules = str(literal(text))
                self.imported.overrides.append(f"lr_scheduler.step_rules='{rules}'")
            elif not (key == "lr_end" and name == "polynomial"):
                lost.append(f"lr_scheduler_args {key}={text}: no such setting here")

    def _trackers(self) -> None:
        kind = self.args["log_with"]
        has_wandb = kind in ("wandb", "all")
        if has_wandb:
            self.imported.overrides.append("tracker.log_with=[wandb]")
        elif kind == "tensorboard":
            self.imported.not_needed.append(
                "log_with: TensorBoard's files are always in the run's folder"
            )
        elif kind:
            self.imported.lost.append(f"log_with={kind}: no such tracker")
        for name, key in option_names.TRACKER_VALUES.items():
            if self.args[name] and has_wandb:
                self._set(key, self.args[name], name)
            elif self.args[name]:
                self.imported.not_needed.append(f"{name}: without wandb there is nothing to name")

    def _prompts(self) -> None:
        """Take the prompts of the previews, or say that there is a placeholder."""
        named = self.args["sample_prompts"]
        places = [Path(named), self.folder / named] if named else []
        file = next((place for place in places if place.is_file() and place.suffix == ".txt"), None)
        prompts: list[tuple[str, str, int, int]] = []
        if file is not None:
            try:
                prompts = list(dict.fromkeys(_read_prompts(read_text(file, encoding="utf-8-sig"))))
            except (OSError, ValueError) as error:
                self.imported.notes.append(f"sample_prompts: {file} cannot be read: {error}")
        where = f", and sample_prompts={named} was not read" if named else ""
        self._set_prompts(prompts, where)


def _read_prompts(text: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield text, negative, width and height of each line of a file of prompts."""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words, *rest = _PROMPT_OPTION.split(f" {line.strip()}")
        values = dict(zip(rest[::2], rest[1::2], strict=False))
        sides = [max(64, int(values.get(name, 512)) // 8 * 8) for name in ("w", "h")]
        yield words.strip(), values.get("n", "").strip(), sides[0], sides[1]


def _ints(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def _floats(text: str) -> list[float]:
    return [float(item) for item in text.split(",")]
