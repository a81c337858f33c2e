"""OneTrainer's configurations and presets, with concepts and samples: from there and to there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.cli.trainers.exported import Exported, Run
from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.optimizers import optimizers
from optbench.cli.trainers.trees import Training, TreeTranslation
from optbench.schema import PIECE_TOKENS

_PRECISIONS = {"FLOAT_32": "no", "TFLOAT_32": "no", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
_SCHEDULES = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_RESTARTS": "cosine_with_min_lr",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
    "REX": "rex",
    "ADAFACTOR": "adafactor",
}
_TIMESTEPS = 1000
_FAMILIES = {
    "sd15": "STABLE_DIFFUSION_15",
    "sd2": "STABLE_DIFFUSION_21",
    "sdxl": "STABLE_DIFFUSION_XL_10_BASE",
}
_FILES = {"float": "FLOAT_32", "fp16": "FLOAT_16", "bf16": "BFLOAT_16"}
_VERSION, _CONCEPT_VERSION = 11, 2  # of the files' layout, without which it would be migrated
_PARTS = ("unet", "text_encoder", "text_encoder_2")


def convert(training: Training) -> Imported:
    """Return what a configuration means here, with concepts as data sets."""
    return _OneTrainer(training).imported


class _OneTrainer(TreeTranslation):
    prefix = "concepts"

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        args = self.args
        self.family = self._family(args["model_type"], f"model_type={args['model_type']}")
        if "base_model_name" in self.given:
            self._same("base_model_name")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        if args["vae.model_name"]:
            self._same("vae.model_name")
        self._prediction()
        self._data()
        self._steps()
        self._loss()
        self._lora()
        self._stepping()
        self._samples()
        self.imported.notes.append("seed: there is no such option there; 1234 here")
        self._finish()

    def _prediction(self) -> None:
        args = self.args
        if args["force_v_prediction"]:
            self._set("base.v_parameterization", True, "force_v_prediction")
        elif args["force_epsilon_prediction"]:
            self._set("base.v_parameterization", False, "force_epsilon_prediction")
        if args["rescale_noise_scheduler_to_zero_terminal_snr"]:
            name = "rescale_noise_scheduler_to_zero_terminal_snr"
            if args["force_v_prediction"]:
                self._set("loss.zero_terminal_snr", True, name)
            else:
                self._lose(name, "without force_v_prediction it cannot be trained here")

    def _data(self) -> None:
        sides = str(self.args["resolution"]).split(",")
        if len(sides) > 1:
            self._lose("resolution", "several sizes in turn; the first for all here")
        width, _, height = sides[0].strip().partition("x")
        if height:
            self._set("dataset.resolution", [int(width), int(height)], "resolution")
            self._side = max(int(width), int(height))
        else:
            self._square(float(width))
        self._buckets(64, enabled=self.args["aspect_ratio_bucketing"])
        used = [one for one in self.datasets if one["enabled"]]
        for one in used:
            self._say_concept(one)
        folders = [
            ImageFolder(path=one["path"], repeats=max(1, round(one["balancing"])))
            for one in used
            if one["path"] and one["type"] != "VALIDATION"
        ]
        self._folders(folders)
        if not self.datasets and (file := self.given.get("concept_file_name")):
            self.imported.notes.append(f"concept_file_name: {file} was not found beside the file")
        self.datasets = used
        self._captions()

    def _say_concept(self, one: Mapping[str, Any]) -> None:
        lost, where = self.imported.lost, one["name"] or one["path"]
        if one["type"] == "VALIDATION":
            self.imported.notes.append(
                f"{where}: held out there; give it as validate.dir, in folders like dataset.dir's"
            )
        elif one["type"] == "PRIOR_PREDICTION":
            lost.append(f"{where}: type PRIOR_PREDICTION: the base's own prediction as the target")
        if one["balancing_strategy"] == "SAMPLES":
            lost.append(
                f"{where}: balancing={one['balancing']:g} samples an epoch; here it is every image "
                "as often as its repeats say"
            )
        elif one["balancing"] != round(one["balancing"]) or one["balancing"] < 1:
            lost.append(
                f"{where}: balancing={one['balancing']:g}: a broken number of repeats; whole ones "
                "here"
            )
        if one["loss_weight"] != 1:
            lost.append(f"{where}: loss_weight={one['loss_weight']:g}: every image counts 1 here")
        if one["include_subdirectories"]:
            lost.append(f"{where}: include_subdirectories: images in folders inside are not read")
        if one["text.prompt_source"] != "sample":
            lost.append(
                f"{where}: prompt_source={one['text.prompt_source']}: captions are read from .txt "
                "files beside the images, or from metadata.jsonl"
            )
        if one["image.enable_resolution_override"]:
            lost.append(
                f"{where}: resolution_override={one['image.resolution_override']}: one resolution "
                "for all"
            )

    def _captions(self) -> None:
        self._set("dataset.caption_extension", ".txt")
        if not self.datasets:
            return
        shuffles = self._one_of("text.enable_tag_shuffling")
        self._set("dataset.shuffle_caption", shuffles, "concepts.text.enable_tag_shuffling")
        drop = self._one_of("text.tag_dropout_enable") and self._one_of(
            "text.tag_dropout_probability"
        )
        mode = self._one_of("text.tag_dropout_mode")
        if drop and mode == "FULL":
            self._set("dataset.caption_dropout_rate", drop, *self.given)
        elif drop and mode == "RANDOM":
            self._set("dataset.caption_tag_dropout_rate", drop, *self.given)
        elif drop:
            self.imported.lost.append(f"tag_dropout_mode={mode}: later tags are dropped more often")
        if shuffles or (drop and mode == "RANDOM"):
            self._set("dataset.keep_tokens", self._one_of("text.keep_tags_count"), *self.given)
            self._set("dataset.caption_separator", self._one_of("text.tag_delimiter"), *self.given)
        if self._one_of("image.enable_random_flip"):
            self._set("dataset.flip_aug", True, *self.given)
        if self._one_of("image.enable_crop_jitter"):
            self.imported.lost.append(
                "enable_crop_jitter: crops a little beside the middle, image_variations times; "
                "in the middle here, anywhere with dataset.random_crop"
            )

    def _steps(self) -> None:
        self._same("epochs", "batch_size", "gradient_accumulation_steps", "output_dtype")
        self._same("unet.gradient_checkpointing")
        precision = self.args["train_dtype"]
        if precision not in _PRECISIONS:
            self._lose("train_dtype", "bf16 here")
        self._set("train.mixed_precision", _PRECISIONS.get(precision, "bf16"), "train_dtype")
        if self.args["lora_weight_dtype"] != "FLOAT_32":
            self._lose("lora_weight_dtype", "LoRA weights are always float32")
        self._clip(self.args["clip_grad_norm"], "clip_grad_norm")
        skip = self.args["text_encoder_layer_skip"]
        if self.family == "sdxl":
            if skip or self.args["text_encoder_2_layer_skip"]:
                self._lose("text_encoder_layer_skip", "SDXL reads the last layer but one here")
            skip = 0
        self._set("train.clip_skip", skip + 1, "text_encoder_layer_skip")

    def _loss(self) -> None:
        args, lost = self.args, self.imported.lost
        strengths = {kind: args[f"{kind}_strength"] for kind in ("mse", "mae", "log_cosh", "huber")}
        on = {kind: value for kind, value in strengths.items() if value}
        if on in ({"mse": 1.0}, {"mae": 1.0}):
            self._set("loss.loss_type", "l2" if "mse" in on else "l1", "mae_strength")
        else:
            said = ", ".join(f"{kind}_strength={value:g}" for kind, value in strengths.items())
            lost.append(f"{said}: a sum of losses; the squared error alone here")
        weight = args["loss_weight_fn"]
        if weight == "MIN_SNR_GAMMA":
            self._set("loss.min_snr_gamma", args["loss_weight_strength"], "loss_weight_fn")
        elif weight == "DEBIASED_ESTIMATION":
            self._set("loss.debiased_estimation_loss", True, "loss_weight_fn")
            if args["force_v_prediction"]:
                lost.append("DEBIASED_ESTIMATION: of v it is the root of 1 / (SNR + 1) there")
        elif weight != "CONSTANT":
            self._lose("loss_weight_fn", "no such weights here")
        if args["loss_scaler"] != "NONE":
            self._lose(
                "loss_scaler",
                "multiplies the loss, which clipping and most optimizers undo; not at all here",
            )
        if args["offset_noise_weight"]:
            self._same("offset_noise_weight")
        self._timesteps()

    def _timesteps(self) -> None:
        args = self.args
        first = int(args["min_noising_strength"] * _TIMESTEPS)
        last = int(args["max_noising_strength"] * _TIMESTEPS)
        self._set("loss.min_timestep", first, "min_noising_strength")
        if last < _TIMESTEPS:
            self._set("loss.max_timestep", last, "max_noising_strength")
        if args["timestep_distribution"] != "UNIFORM":
            self._lose(
                "timestep_distribution",
                f"with noising_weight={args['noising_weight']:g} and "
                f"noising_bias={args['noising_bias']:g} it favours some timesteps; all alike here",
            )
        if args["timestep_shift"] != 1:
            self._lose("timestep_shift", "moves timesteps towards noise; not here")

    def _lora(self) -> None:
        args, lost = self.args, self.imported.lost
        if args["training_method"] != "LORA":
            self._lose("training_method", "trains no LoRA; a LoRA is trained here")
        if args["peft_type"] != "LORA":
            self._lose("peft_type", "another kind of network; a LoRA is trained here")
        rank, alpha = args["lora_rank"], args["lora_alpha"]
        preset = args["layer_filter_preset"]
        is_full = preset == "full" or (preset == "custom" and not args["layer_filter"])
        self._set("network.dim", rank, "lora_rank")
        self._set("network.alpha", alpha, "lora_alpha")
        if is_full:
            self._set("network.conv_dim", rank, "lora_rank")
            self._set("network.conv_alpha", alpha, "lora_alpha")
            lost.append(
                "layer_filter_preset=full: there the first and last convolution and the timestep's "
                "layers get a LoRA, too"
            )
        elif preset != "attn-mlp":
            what = args["layer_filter"] or "attention alone"
            lost.append(
                f"layer_filter_preset={preset} ({what}): here all layers of the transformer blocks "
                "get a LoRA"
            )
        if args["lora_decompose"]:
            self._set("network.dora", True, "lora_decompose")
            if args["lora_decompose_output_axis"]:
                self._lose("lora_decompose_output_axis", "DoRA's norm is over inputs here")
        if args["dropout_probability"]:
            self._same("dropout_probability")
        if args["lora_model_name"]:
            self._same("lora_model_name")
        for part in _PARTS:
            if (
                args[f"{part}.stop_training_after_unit"] != "NEVER"
                and args[f"{part}.stop_training_after"]
            ):
                self._lose(f"{part}.stop_training_after", "it is trained to the end here")
        if not args["unet.train"]:
            self._untrained("unet", "unet.train=false")
        encoders = _PARTS[1:] if self.family == "sdxl" else _PARTS[1:2]
        trained = [part for part in encoders if args[f"{part}.train"]]
        if not trained:
            self._untrained("text_encoder", "text_encoder.train=false")
        elif len(trained) < len(encoders):
            lost.append(f"only {trained[0]} is trained there; both text encoders here")

    def _stepping(self) -> None:
        args = self.args
        written = args["optimizer.optimizer"]
        recipe = self._named_optimizer(written, self._optimizer_args(), "optimizer")
        scale = {"NONE": 1, "BATCH": args["batch_size"], "GLOBAL_BATCH": args["batch_size"]}
        accumulated = args["gradient_accumulation_steps"]
        scale |= {"GRADIENT_ACCUMULATION": accumulated}
        scale |= dict.fromkeys(("BOTH", "GLOBAL_BOTH"), args["batch_size"] * accumulated)
        factor = math.sqrt(scale.get(args["learning_rate_scaler"], 1))
        if factor != 1:
            self.imported.notes.append(
                f"learning_rate_scaler={args['learning_rate_scaler']}: the rates are {factor:g} "
                "times those in the file, as there"
            )
        rates = {
            part: args["learning_rate"]
            if args[f"{part}.learning_rate"] is None
            else args[f"{part}.learning_rate"]
            for part in _PARTS
        }
        if self.family == "sdxl" and rates["text_encoder"] != rates["text_encoder_2"]:
            self._lose("text_encoder_2.learning_rate", "one rate for both text encoders here")
        self._rates(
            recipe,
            args["learning_rate"] * factor,
            unet=rates["unet"] * factor,
            text=rates["text_encoder"] * factor,
        )
        self._schedule(recipe)

    def _schedule(self, recipe: str) -> None:
        args, lost = self.args, self.imported.lost
        written = args["learning_rate_scheduler"]
        name = _SCHEDULES.get(written, "constant")
        if written == "CUSTOM":
            lost.append("learning_rate_scheduler=CUSTOM: the rate is constant here")
        names = ("learning_rate_scheduler", "learning_rate_warmup_steps")
        if recipe == "adafactor_auto":
            self._set_schedule("adafactor", {}, *names)
            return
        if recipe.endswith("schedulefree") or recipe == "prodigyplus":
            if written != "CONSTANT":
                self._ignore("learning_rate_scheduler", "a schedule-free class")
            self._set_schedule("constant", {}, *names)
            return
        floor, warmup = args["learning_rate_min_factor"], max(0, args["learning_rate_warmup_steps"])
        if warmup > 1:
            updates = int(warmup / args["gradient_accumulation_steps"])
            if args["gradient_accumulation_steps"] > 1:
                self.imported.notes.append(
                    f"learning_rate_warmup_steps={warmup:g}: batches there, {updates} updates here"
                )
            warmup = updates
        values: dict[str, Any] = {"warmup_steps": warmup}
        cycles = args["learning_rate_cycles"]
        if name == "adafactor":
            lost.append("learning_rate_scheduler=ADAFACTOR: constant here without relative_step")
            name = "constant"
        if name == "constant" and warmup:
            name = "constant_with_warmup"
        elif name == "cosine" and floor:
            name = "cosine_with_min_lr"
        elif name == "linear" and floor:
            name = "polynomial"
        elif name in ("cosine_with_min_lr", "cosine_with_restarts"):
            # Down and up again is a whole cosine there; ours counts halves of one.
            halves = 2 * cycles if name == "cosine_with_min_lr" else cycles
            values["num_cycles"] = max(1, round(halves))
            if values["num_cycles"] != halves:
                self._lose("learning_rate_cycles", "whole cycles here")
        elif name == "rex":
            lost.append(
                "learning_rate_scheduler=REX: there (1 - p) / (1 - 0.9 p), which falls later; here "
                "(1 - p) / (1 - p / 2)"
            )
        if name in ("cosine_with_min_lr", "polynomial"):
            values["min_lr_ratio"] = floor
        elif floor and not name.startswith("constant"):
            self._lose("learning_rate_min_factor", f"{name} falls to 0 here")
        self._set_schedule(name, values, *names)

    def _optimizer_args(self) -> dict[str, Any]:
        """Return what the file gives the class, under the class's names."""
        given = {
            name.removeprefix("optimizer."): value
            for name, value in self.given.items()
            if name.startswith("optimizer.") and value is not None
        }
        named = optimizers("onetrainer").get(self.args["optimizer.optimizer"].lower())
        known = dict(named.args) if named else {}
        if "betas" in known:
            known["betas"] = [
                given.get(f"beta{number}", value)
                for number, value in enumerate(known["betas"], start=1)
            ]
        for key in list(known):
            if key == "eps" and isinstance(known[key], list):
                known[key] = [given.get("eps", known[key][0]), given.get("eps2", known[key][1])]
            elif key != "betas":
                known[key] = given.get(key, known[key])
        return known

    def _samples(self) -> None:
        prompts = [
            (
                str(one.get("prompt", "")),
                str(one.get("negative_prompt", "")),
                int(one.get("width", 512)),
                int(one.get("height", 512)),
            )
            for one in self.training.prompts
            if isinstance(one, Mapping) and one.get("enabled", True) and one.get("prompt")
        ]
        self._set_prompts(list(dict.fromkeys(prompts)), "")


def export(run: Run) -> Exported:
    """Return a script that starts OneTrainer; its one file has concepts and samples in it."""
    config = {
        "__version": _VERSION,
        "training_method": "LORA",
        "model_type": _FAMILIES[run.get("base.family")],
        "base_model_name": str(run.get("base.path")),
        "output_model_destination": f"models/{run.name}.safetensors",
        "output_model_format": "KOHYA_LORA",
        "save_every": 1,
        "save_every_unit": "EPOCH",
        **_exported_model(run),
        **_exported_training(run),
        **_exported_loss(run),
        **_exported_optimizer(run),
        "concepts": _exported_concepts(run),
        "samples": [
            {
                "prompt": prompt["text"],
                "negative_prompt": prompt["negative"],
                "width": prompt["width"],
                "height": prompt["height"],
                "seed": prompt["seed"] % 2**31,
                "diffusion_steps": run.get("render.steps"),
                "cfg_scale": run.get("render.cfg_scale"),
            }
            for prompt in run.prompts()
        ],
        "sample_after": 1,
        "sample_after_unit": "EPOCH",
    }
    run.say_base()
    run.say_unless()
    run.lost.append(f"seed={run.get('seed')}: there is no such option there")
    return run.script(
        "OneTrainer",
        {"optbench.json": json.dumps(config, indent=1)},
        ["python scripts/train.py --config-path optbench.json"],
    )


def _exported_model(run: Run) -> dict[str, Any]:
    network, base = run.get("network"), run.get("base")
    unet, text, lr = run.rates
    del lr
    train_text = network["train_text_encoder"]
    skip = run.get("train.clip_skip") - 1
    parts: dict[str, Any] = {
        "unet": {
            "train": network["train_unet"],
            "learning_rate": unet,
            "gradient_checkpointing": run.get("train.gradient_checkpointing"),
        },
        "text_encoder": {"train": train_text, "learning_rate": text},
    }
    if base["family"] == "sdxl":
        parts["text_encoder_2"] = dict(parts["text_encoder"])
    else:
        parts["text_encoder_layer_skip"] = skip
    if base["vae"]:
        parts["vae"] = {"model_name": str(base["vae"])}
    if base["v_parameterization"] is not None:
        name = "force_v_prediction" if base["v_parameterization"] else "force_epsilon_prediction"
        parts[name] = True
    conv = (network["conv_dim"], network["conv_alpha"])
    is_full = conv == (network["dim"], network["alpha"])
    if conv[0] is not None and not is_full:
        run.lost.append(
            f"network.conv_dim={conv[0]}: 3x3 convolutions have the other layers' rank and alpha "
            "there, or no LoRA; none is written"
        )
    elif is_full:
        run.lost.append(
            "layer_filter_preset=full: there the first and last convolution and the timestep's "
            "layers get a LoRA, too"
        )
    if network["weights"]:
        parts["lora_model_name"] = str(Path(network["weights"]).absolute())
    return {
        **parts,
        "peft_type": "LORA",
        "lora_rank": network["dim"],
        "lora_alpha": float(network["alpha"]),
        "lora_decompose": network["dora"],
        "lora_decompose_output_axis": False,
        "dropout_probability": float(network["dropout"] or 0),
        "layer_filter_preset": "full" if is_full else "attn-mlp",
    }


def _exported_training(run: Run) -> dict[str, Any]:
    train, dataset = run.get("train"), run.get("dataset")
    width, height = dataset["resolution"]
    if train["max_steps"] is not None:
        run.lost.append(f"train.max_steps={train['max_steps']}: epochs alone decide there")
    run.lost.append("buckets: that trainer chooses among shapes of its own")
    precisions = {"no": "FLOAT_32", "fp16": "FLOAT_16", "bf16": "BFLOAT_16"}
    if train["max_token_length"] != PIECE_TOKENS:
        run.lost.append(f"train.max_token_length={train['max_token_length']}: 75 there")
    return {
        "epochs": train["epochs"],
        "batch_size": train["batch_size"],
        "gradient_accumulation_steps": train["gradient_accumulation"],
        "train_dtype": precisions[train["mixed_precision"]],
        "output_dtype": _FILES[train["save_precision"]],
        "clip_grad_norm": train["max_grad_norm"] or None,
        "resolution": str(width) if width == height else f"{width}x{height}",
        "aspect_ratio_bucketing": dataset["enable_bucket"],
    }


def _exported_loss(run: Run) -> dict[str, Any]:
    loss, kind = run.get("loss"), run.get("loss.loss_type")
    if kind not in ("l1", "l2"):
        run.lost.append(f"loss.loss_type={kind}: no such loss there; the squared error is written")
    if loss["prior_loss_weight"] != 1 and run.get("dataset.reg_dir"):
        run.lost.append(
            f"loss.prior_loss_weight={loss['prior_loss_weight']:g}: written as the concepts' "
            "loss_weight"
        )
    written: dict[str, Any] = {
        "mse_strength": float(kind != "l1"),
        "mae_strength": float(kind == "l1"),
        "offset_noise_weight": float(loss["noise_offset"] or 0),
        "rescale_noise_scheduler_to_zero_terminal_snr": loss["zero_terminal_snr"],
        "min_noising_strength": loss["min_timestep"] / _TIMESTEPS,
        "max_noising_strength": (loss["max_timestep"] or _TIMESTEPS) / _TIMESTEPS,
    }
    if loss["min_snr_gamma"]:
        written |= {
            "loss_weight_fn": "MIN_SNR_GAMMA",
            "loss_weight_strength": float(loss["min_snr_gamma"]),
        }
        if loss["debiased_estimation_loss"]:
            run.lost.append("loss.debiased_estimation_loss=true: one kind of weights there")
    elif loss["debiased_estimation_loss"]:
        written["loss_weight_fn"] = "DEBIASED_ESTIMATION"
    return written


def _exported_optimizer(run: Run) -> dict[str, Any]:
    name, ours = run.optimizer("onetrainer")
    known = optimizers("onetrainer")[name.lower()].args
    written: dict[str, Any] = {"optimizer": name}
    for key, value in ours.items():
        if key == "betas":
            written |= {f"beta{number}": beta for number, beta in enumerate(value, start=1)}
        elif key == "eps" and isinstance(value, list | tuple):
            written |= {"eps": value[0], "eps2": value[1]}
        elif key in known:
            written[key] = value
        elif key != "fused":
            run.lost.append(f"optimizer.args.{key}={value}: no such argument there")
    schedule, accumulated = run.get("lr_scheduler"), run.get("train.gradient_accumulation")
    warmup = schedule["warmup_steps"]
    warmup = warmup * accumulated if warmup >= 1 else warmup
    cycles, floor = float(schedule["num_cycles"]), schedule["min_lr_ratio"] or 0.0
    kind = schedule["name"]
    names = {ours: theirs for theirs, ours in _SCHEDULES.items() if ours != "cosine_with_min_lr"}
    theirs = names.get(kind, "CONSTANT")
    if kind == "cosine_with_min_lr":
        theirs = "COSINE" if cycles == 1 else "COSINE_WITH_RESTARTS"
        cycles /= 2
    elif kind == "polynomial" and schedule["power"] == 1:
        theirs = "LINEAR"
    elif kind not in names and kind != "constant_with_warmup":
        run.lost.append(f"lr_scheduler={kind}: no such schedule there; CONSTANT is written")
        floor = 0.0
    if kind == "rex":
        run.lost.append("lr_scheduler=rex: there it falls later, (1 - p) / (1 - 0.9 p)")
    return {
        "optimizer": written,
        "learning_rate": run.rates[2],
        "learning_rate_scheduler": theirs,
        "learning_rate_warmup_steps": float(warmup),
        "learning_rate_cycles": cycles,
        "learning_rate_min_factor": floor,
    }


def _exported_concepts(run: Run) -> list[dict[str, Any]]:
    dataset = run.get("dataset")
    dropout, tags = dataset["caption_dropout_rate"], dataset["caption_tag_dropout_rate"]
    if dropout and tags:
        run.lost.append(
            f"dataset.caption_tag_dropout_rate={tags}: captions or tags there, not both"
        )
    if dataset["caption_extension"] != ".txt":
        run.lost.append(f"dataset.caption_extension={dataset['caption_extension']}: .txt there")
    if dataset["caption_prefix"]:
        run.lost.append(
            f"dataset.caption_prefix={dataset['caption_prefix']}: write it into captions"
        )
    if dataset["random_crop"]:
        run.lost.append("dataset.random_crop=true: only a little beside the middle there")
    text = {
        "__version": 0,
        "prompt_source": "sample",
        "enable_tag_shuffling": dataset["shuffle_caption"],
        "tag_delimiter": dataset["caption_separator"],
        "keep_tags_count": dataset["keep_tokens"],
        "tag_dropout_enable": bool(dropout or tags),
        "tag_dropout_mode": "FULL" if dropout else "RANDOM",
        "tag_dropout_probability": float(dropout or tags),
    }
    image = {
        "__version": 0,
        "enable_crop_jitter": False,
        "enable_random_flip": dataset["flip_aug"],
    }
    return [
        {
            "__version": _CONCEPT_VERSION,
            "name": Path(folder.path).name,
            "path": folder.path,
            "balancing": float(folder.repeats),
            "balancing_strategy": "REPEATS",
            "loss_weight": float(run.get("loss.prior_loss_weight"))
            if folder.is_regularization
            else 1.0,
            "text": text,
            "image": image,
        }
        for folder in run.folders()
    ]
