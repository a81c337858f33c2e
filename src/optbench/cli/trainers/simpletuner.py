"""SimpleTuner's configurations and data backends: from there and to there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from optbench.cli.trainers.exported import Exported, Run
from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported, literal
from optbench.cli.trainers.trees import Training, TreeTranslation

_SCHEDULES = ("constant", "constant_with_warmup", "linear", "polynomial")
_OWN_PERIODS = ("cosine", "sine", "cosine_with_restarts")
_DEFAULT_VAE = "madebyollin/sdxl-vae-fp16-fix"
_CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds", "conditioning")


def convert(training: Training) -> Imported:
    """Return what a configuration means here."""
    return _SimpleTuner(training).imported


class _SimpleTuner(TreeTranslation):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        args = self.args
        named = str(args["model_family"] or args["pretrained_model_name_or_path"] or "")
        self.family = self._family(named, f"model_family={named}")
        if args["pretrained_model_name_or_path"]:
            self._same("pretrained_model_name_or_path")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        vae = args["pretrained_vae_model_name_or_path"]
        if "pretrained_vae_model_name_or_path" in self.given or self.family == "sdxl":
            self._set("base.vae", vae or _DEFAULT_VAE, "pretrained_vae_model_name_or_path")
        self._prediction()
        self._data()
        self._steps()
        self._loss()
        self._lora()
        self._stepping()
        self._samples()
        reports = str(args["report_to"])
        self._wandb(
            reports in ("wandb", "all"),
            self.given.get("tracker_project_name"),
            self.given.get("tracker_run_name"),
            "report_to",
        )
        if reports not in ("wandb", "all", "tensorboard", "none", "simpletuner", ""):
            self._lose("report_to", "no such tracker")
        if args["seed"] is None:
            self.imported.notes.append("seed: drawn at random there; 1234 here")
        else:
            self._set("seed", int(args["seed"]), "seed")
        self._finish()

    def _prediction(self) -> None:
        kind = self.args["prediction_type"]
        if kind == "v_prediction":
            self._set("base.v_parameterization", True, "prediction_type")
        elif kind == "epsilon":
            self._set("base.v_parameterization", False, "prediction_type")
        if self.args["rescale_betas_zero_snr"]:
            if kind == "v_prediction":
                self._set("loss.zero_terminal_snr", True, "rescale_betas_zero_snr")
            else:
                self._lose("rescale_betas_zero_snr", "only v_prediction has it here")

    def _data(self) -> None:
        images = [
            one
            for one in self.datasets
            if one["dataset_type"] not in _CACHES and not one["disabled"]
        ]
        self.datasets = images
        folders = []
        for one in images:
            name = one["id"] or one["instance_data_dir"]
            if one["type"] not in ("local", None) or not one["instance_data_dir"]:
                self.imported.lost.append(
                    f"{name}: type={one['type']}: images that are no folder on this disk"
                )
                continue
            if one["is_regularisation_data"]:
                self.imported.lost.append(
                    f"{name}: is_regularisation_data: the base's own prediction is the target "
                    "there; here class images are trained like others, by loss.prior_loss_weight"
                )
            if one["probability"] not in (1.0, None):
                self.imported.lost.append(
                    f"{name}: probability={one['probability']:g}: drawn from less often; all images"
                    " as often as their repeats say here"
                )
            if one["repeats"]:
                self.imported.notes.append(
                    f"{name}: repeats={one['repeats']}: {one['repeats']} further uses, so "
                    f"{one['repeats'] + 1} an epoch here"
                )
            caption = one["instance_prompt"] or self.args["instance_prompt"]
            folders.append(
                ImageFolder(
                    path=str(one["instance_data_dir"]),
                    repeats=int(one["repeats"] or 0) + 1,
                    class_words=str(caption or "") if self._only(one) else "",
                    is_regularization=bool(one["is_regularisation_data"]),
                )
            )
        self._folders(folders)
        if not self.datasets and (file := self.given.get("data_backend_config")):
            self.imported.notes.append(f"data_backend_config: {file} was not found beside the file")
        self._size()
        self._captions()

    def _only(self, one: Mapping[str, Any]) -> bool:
        strategy = one["caption_strategy"] or self.args["caption_strategy"]
        return str(strategy).replace("_", "") == "instanceprompt" or bool(
            one["only_instance_prompt"] or self.args["only_instance_prompt"]
        )

    def _size(self) -> None:
        first = self.datasets[0] if self.datasets else {}
        for name in ("resolution", "resolution_type", "crop", "crop_aspect"):
            if self.datasets:
                self._one_of(name)
        size = first.get("resolution") or self.args["resolution"]
        kind = first.get("resolution_type") or self.args["resolution_type"]
        if kind == "area":
            self._square(math.sqrt(float(size)) * 1000)
        else:
            self._square(float(size))
        crops = first.get("crop") and first.get("crop_aspect") == "square"
        if kind == "pixel" and not crops:
            self.imported.lost.append(
                f"resolution_type=pixel: {size:g} is the shorter side there; here the area of a "
                "square of it, so oblong images are smaller"
            )
        self._buckets(int(self.args["aspect_bucket_alignment"] or 64), enabled=not crops)
        if first.get("crop") and first.get("crop_style") == "random":
            self._set("dataset.random_crop", True, "crop_style")
        elif first.get("crop") and first.get("crop_style") == "corner":
            self.imported.lost.append("crop_style=corner: crops in the middle here")

    def _captions(self) -> None:
        self._set("dataset.caption_extension", ".txt")
        if not self.datasets:
            return
        strategies = [str(one["caption_strategy"] or "") for one in self.datasets]
        strategy = strategies[0] or str(self.args["caption_strategy"])
        if strategy in ("filename", "parquet", "webshart"):
            self.imported.lost.append(
                f"caption_strategy={strategy}: captions are read from .txt beside the images, "
                "or from metadata.jsonl"
            )
        if strategy == "textfile" and not self._one_of("disable_multiline_split"):
            self._set("dataset.enable_wildcard", True, "disable_multiline_split", *self.given)
            self.imported.notes.append(
                "dataset.enable_wildcard=true: a caption's lines are alternatives, as there; here "
                "{a|b} is one, too"
            )
        shuffle = self._one_of("caption_shuffle") or {}
        if shuffle.get("enable"):
            self._set("dataset.shuffle_caption", True, *self.given)
            keep = int(shuffle.get("position_start", 0))
            self._set("dataset.keep_tokens", keep, *self.given)
            self.imported.lost.append(
                f"caption_shuffle: {shuffle.get('count', 1)} orders made beforehand there; a new "
                "order at every use here"
            )
        if self._one_of("prepend_instance_prompt") and self._one_of("instance_prompt"):
            self._set("dataset.caption_prefix", self._one_of("instance_prompt"), *self.given)
        if rate := self.args["caption_dropout_probability"]:
            self._set("dataset.caption_dropout_rate", rate, "caption_dropout_probability")

    def _steps(self) -> None:
        args = self.args
        steps, epochs = int(args["max_train_steps"] or 0), int(args["num_train_epochs"] or 0)
        if steps:
            self._set("train.max_steps", steps, "max_train_steps")
            self._set(
                "train.epochs",
                epochs if "num_train_epochs" in self.given and epochs else steps,
                "max_train_steps",
            )
        else:
            self._set("train.epochs", max(1, epochs), "num_train_epochs")
        self._same("train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
        precision = args["mixed_precision"]
        if precision == "fp8":
            self._lose("mixed_precision", "bf16 here")
        self._set(
            "train.mixed_precision", "bf16" if precision == "fp8" else precision, "mixed_precision"
        )
        self._set(
            "train.save_precision", "float" if precision == "no" else "bf16", "mixed_precision"
        )
        if args["grad_clip_method"] == "value" and args["max_grad_norm"]:
            self.imported.lost.append(
                f"grad_clip_method=value, as by default there: every gradient is cut at "
                f"{args['max_grad_norm']:g}; nothing is clipped here"
            )
            self._clip(0, "max_grad_norm")
        else:
            self._clip(args["max_grad_norm"], "max_grad_norm")

    def _loss(self) -> None:
        args = self.args
        self._same("loss_type")
        if args["loss_type"] != "l2":
            for name in ("huber_schedule", "huber_c"):
                self._same(name)
            if args["huber_schedule"] != "snr":
                self._set("loss.huber_scale", 1.0, "huber_schedule")
        if args["snr_gamma"]:
            self._same("snr_gamma")
        if args["offset_noise"]:
            self._set("loss.noise_offset", args["noise_offset"], "noise_offset", "offset_noise")
            if args["noise_offset_probability"] != 1:
                self._lose("noise_offset_probability", "so many batches get it there; all here")
        if args["input_perturbation"]:
            self._set("loss.ip_noise_gamma", args["input_perturbation"], "input_perturbation")
        if args["timestep_bias_strategy"] not in (None, "none"):
            self._lose("timestep_bias_strategy", "favours some timesteps; all alike here")

    def _lora(self) -> None:
        args, lost = self.args, self.imported.lost
        if args["model_type"] != "lora":
            self._lose("model_type", "trains no LoRA; a LoRA is trained here")
        if args["lora_type"] != "standard":
            self._lose(
                "lora_type", "another kind of network, from lycoris_config; a LoRA is trained here"
            )
        rank = int(args["lora_rank"])
        alpha = args["lora_alpha"]
        self._set("network.dim", rank, "lora_rank")
        self._set(
            "network.alpha", float(rank if alpha is None else alpha), "lora_alpha", "lora_rank"
        )
        if args["use_dora"]:
            self._set("network.dora", True, "use_dora")
        if args["init_lora"]:
            self._same("init_lora")
        if args["lora_dropout"]:
            lost.append(
                f"lora_dropout={args['lora_dropout']:g}: drops a layer's inputs there; "
                "network.dropout here drops the LoRA's inner values"
            )
        if args["lora_init_type"] != "default":
            self._lose("lora_init_type", "the LoRA begins as kohya's does")
        if args["peft_lora_mode"] != "standard":
            self._lose("peft_lora_mode", "another kind of network")
        if not args["train_text_encoder"]:
            self._untrained("text_encoder", "there is no LoRA of text encoders there")
        if not self.imported.refused:
            what = args["peft_lora_target_modules"] or "to_q, to_k, to_v and to_out alone"
            lost.append(f"layers: {what} there; all of the transformer blocks here")
        if args["base_model_precision"] not in (None, "no_change"):
            self._lose("base_model_precision", "the base is not quantized here")

    def _stepping(self) -> None:
        args = self.args
        items = str(args["optimizer_config"] or "").split(",")
        given = {
            name.strip(): literal(value.strip())
            for name, _, value in (item.partition("=") for item in items)
            if name.strip()
        }
        first = args["optimizer_beta1"] if "adam_beta1" not in self.given else args["adam_beta1"]
        second = args["optimizer_beta2"] if "adam_beta2" not in self.given else args["adam_beta2"]
        if first is not None or second is not None:
            given["betas"] = [
                0.9 if first is None else first,
                0.999 if second is None else second,
            ]
        if "adam_weight_decay" in self.given:
            given["weight_decay"] = args["adam_weight_decay"]
        if "adam_epsilon" in self.given:
            given["eps"] = args["adam_epsilon"]
        recipe = self._named_optimizer(str(args["optimizer"]), given, "optimizer")
        lr = float(args["learning_rate"])
        if args["lr_scale"]:
            factor = args["train_batch_size"] * args["gradient_accumulation_steps"]
            factor = math.sqrt(factor) if args["lr_scale_sqrt"] else factor
            self.imported.notes.append(f"lr_scale: the rate is {factor:g} times that in the file")
            lr *= factor
        self._rates(recipe, lr, text=args["text_encoder_lr"])
        self._schedule(recipe, lr)

    def _schedule(self, recipe: str, lr: float) -> None:
        args = self.args
        name, warmup = str(args["lr_scheduler"]), int(args["lr_warmup_steps"] or 0)
        names = ("lr_scheduler", "lr_warmup_steps")
        if recipe.endswith("schedulefree") or recipe == "prodigyplus":
            if name != "constant":
                self._ignore("lr_scheduler", "a schedule-free class")
            self._ignore("lr_warmup_steps", "a schedule-free class")
            self._set_schedule("constant", {}, *names)
            return
        if recipe == "adafactor_auto":
            self._set_schedule("adafactor", {}, *names)
            return
        if name in _OWN_PERIODS:
            self._lose(
                "lr_scheduler",
                f"a wave of lr_warmup_steps={warmup} updates; the rate is constant here",
            )
            name, warmup = "constant", 0
        elif name not in _SCHEDULES:
            self._lose("lr_scheduler", "no such schedule; the rate is constant here")
            name, warmup = "constant", 0
        if name == "constant" and warmup:
            self._ignore("lr_warmup_steps", "constant has none")
            warmup = 0
        values: dict[str, Any] = {"warmup_steps": warmup}
        if name == "polynomial":
            values |= {
                "power": args["lr_power"],
                "min_lr_ratio": float(args["lr_end"]) / lr,
            }
        self._set_schedule(name, values, *names)

    def _samples(self) -> None:
        args = self.args
        texts = [str(args["validation_prompt"])] if args["validation_prompt"] else []
        texts += [str(one["prompt"]) for one in self.training.prompts]
        size = str(args["validation_resolution"]).split(",")[0].lower()
        width, _, height = size.partition("x")
        sides = [max(64, int(float(side)) // 8 * 8) for side in (width, height or width)]
        negative = str(args["validation_negative_prompt"] or "")
        self._set_prompts(
            [(text, negative, sides[0], sides[1]) for text in dict.fromkeys(texts)], ""
        )


def export(run: Run) -> Exported:
    """Return a script with a configuration and its data backends that starts SimpleTuner."""
    config = {
        "model_family": {"sd15": "sd1x", "sd2": "sd2x"}.get(
            run.get("base.family"), run.get("base.family")
        ),
        "model_type": "lora",
        "lora_type": "standard",
        "pretrained_model_name_or_path": str(run.get("base.path")),
        "data_backend_config": "optbench-data.json",
        "output_dir": f"output/{run.name}",
        **_exported_training(run),
        **_exported_optimizer(run),
        **_exported_samples(run),
    }
    backends = _exported_backends(run)
    run.say_base()
    run.say_unless("loss.ip_noise_gamma")
    return run.script(
        "SimpleTuner",
        {
            "optbench-config.json": json.dumps(config, indent=1),
            "optbench-data.json": json.dumps(backends, indent=1),
        },
        ["CONFIG_BACKEND=json CONFIG_PATH=optbench-config.json simpletuner train"],
    )


def _exported_training(run: Run) -> dict[str, Any]:
    train, loss, network, base = (run.get(key) for key in ("train", "loss", "network", "base"))
    width, height = run.get("dataset.resolution")
    if network["train_text_encoder"]:
        run.lost.append("network.train_text_encoder=true: no LoRA of text encoders there")
    if network["conv_dim"] is not None:
        run.lost.append(f"network.conv_dim={network['conv_dim']}: no LoRA of convolutions there")
    run.lost.append("layers: to_q, to_k, to_v and to_out alone get a LoRA there")
    if network["dropout"]:
        run.lost.append(
            f"network.dropout={network['dropout']}: drops a layer's inputs there; 0 is written"
        )
    if base["family"] != "sdxl" and train["clip_skip"] != 1:
        run.lost.append(f"train.clip_skip={train['clip_skip']}: the last layer there")
    for key in ("debiased_estimation_loss",):
        if loss[key]:
            run.lost.append(f"loss.{key}=true: no such setting there")
    if loss["min_timestep"] or loss["max_timestep"]:
        run.lost.append("loss.min_timestep, loss.max_timestep: all timesteps there")
    kind = loss["loss_type"]
    if kind == "l1":
        run.lost.append("loss.loss_type=l1: l2 is written")
    written: dict[str, Any] = {
        "lora_rank": network["dim"],
        "lora_alpha": float(network["alpha"]),
        "lora_dropout": 0.0,
        "use_dora": network["dora"],
        "train_batch_size": train["batch_size"],
        "gradient_accumulation_steps": train["gradient_accumulation"],
        "gradient_checkpointing": train["gradient_checkpointing"],
        "mixed_precision": train["mixed_precision"],
        "max_grad_norm": train["max_grad_norm"],
        "grad_clip_method": "norm",
        "seed": run.get("seed") % 2**32,
        "resolution": math.sqrt(width * height) / 1.0,
        "resolution_type": "pixel_area",
        "caption_dropout_probability": run.get("dataset.caption_dropout_rate"),
        "aspect_bucket_alignment": "64",
        "loss_type": "l2" if kind == "l1" else kind,
    }
    if width == height:
        written["resolution"] = width
    if kind in ("huber", "smooth_l1"):
        written |= {"huber_schedule": loss["huber_schedule"], "huber_c": loss["huber_c"]}
        if loss["huber_scale"] not in (None, 1.0):
            run.lost.append(f"loss.huber_scale={loss['huber_scale']}: 1 there")
    # Epochs and steps are never both: the shorter one decides, as here.
    if train["max_steps"] is None:
        written |= {"num_train_epochs": train["epochs"], "max_train_steps": 0}
    else:
        written |= {"num_train_epochs": 0, "max_train_steps": run.steps("SimpleTuner")}
    if loss["min_snr_gamma"]:
        written["snr_gamma"] = loss["min_snr_gamma"]
    if loss["noise_offset"]:
        written |= {
            "offset_noise": True,
            "noise_offset": loss["noise_offset"],
            "noise_offset_probability": 1.0,
        }
    if loss["ip_noise_gamma"]:
        written["input_perturbation"] = loss["ip_noise_gamma"]
    if base["v_parameterization"] is not None:
        written["prediction_type"] = "v_prediction" if base["v_parameterization"] else "epsilon"
    if loss["zero_terminal_snr"]:
        written["rescale_betas_zero_snr"] = True
    if base["vae"]:
        written["pretrained_vae_model_name_or_path"] = str(base["vae"])
    if network["weights"]:
        written["init_lora"] = str(network["weights"])
    return written


def _exported_optimizer(run: Run) -> dict[str, Any]:
    name, ours = run.optimizer("simpletuner")
    unet, text, lr = run.rates
    if unet != lr or (run.get("network.train_text_encoder") and text != lr):
        run.lost.append(f"optimizer.unet_lr={unet:g}: one rate there, the unet's is written")
    arguments = {key: value for key, value in ours.items() if key not in ("fused", "betas")}
    written: dict[str, Any] = {"optimizer": name, "learning_rate": unet}
    if arguments:
        written["optimizer_config"] = ",".join(f"{key}={value}" for key, value in arguments.items())
    if betas := ours.get("betas"):
        written |= {"optimizer_beta1": betas[0], "optimizer_beta2": betas[1]}
        if len(betas) > 2:
            run.lost.append(f"optimizer.args.betas={betas}: two of them there")
    schedule = run.get("lr_scheduler")
    kind, warmup = schedule["name"], schedule["warmup_steps"]
    if kind in _OWN_PERIODS or kind not in _SCHEDULES:
        run.lost.append(f"lr_scheduler={kind}: no such schedule there; constant is written")
        return written | {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    if 0 < warmup < 1:
        warmup = int(warmup * run.steps("SimpleTuner"))
    written |= {"lr_scheduler": kind, "lr_warmup_steps": int(warmup)}
    if kind == "polynomial":
        written |= {"lr_power": schedule["power"], "lr_end": schedule["min_lr_ratio"] * unet}
    return written


def _exported_samples(run: Run) -> dict[str, Any]:
    prompts = run.prompts()
    if not prompts:
        return {}
    first = prompts[0]
    if len({prompt["text"] for prompt in prompts}) > 1:
        run.lost.append("prompts: the first one alone is written as validation_prompt")
    return {
        "validation_prompt": first["text"],
        "validation_negative_prompt": first["negative"],
        "validation_resolution": f"{first['width']}x{first['height']}",
        "validation_seed": first["seed"] % 2**32,
        "validation_guidance": run.get("render.cfg_scale"),
        "validation_num_inference_steps": run.get("render.steps"),
    }


def _exported_backends(run: Run) -> list[dict[str, Any]]:
    dataset = run.get("dataset")
    width, height = dataset["resolution"]
    size = width if width == height else math.sqrt(width * height)
    run.lost.append("buckets: that trainer chooses among shapes of its own")
    if dataset["caption_tag_dropout_rate"]:
        run.lost.append("dataset.caption_tag_dropout_rate: no such setting there")
    if dataset["flip_aug"]:
        run.lost.append("dataset.flip_aug=true: no such setting there")
    if dataset["caption_extension"] != ".txt":
        run.lost.append(f"dataset.caption_extension={dataset['caption_extension']}: .txt there")
    if dataset["shuffle_caption"]:
        run.lost.append("dataset.shuffle_caption=true: 10 orders are made beforehand there")
    backends: list[dict[str, Any]] = []
    for number, folder in enumerate(run.folders()):
        if folder.is_regularization:
            run.lost.append(f"{folder.path}: class images are another thing there; left out")
            continue
        backend: dict[str, Any] = {
            "id": f"{run.name}-{number}",
            "type": "local",
            "instance_data_dir": folder.path,
            "repeats": folder.repeats - 1,
            "resolution": size,
            "resolution_type": "pixel_area",
            "crop": not dataset["enable_bucket"],
            "crop_aspect": "preserve" if dataset["enable_bucket"] else "square",
            "crop_style": "random" if dataset["random_crop"] else "center",
            "caption_strategy": "textfile",
            "disable_multiline_split": not dataset["enable_wildcard"],
            "cache_dir_vae": f"cache/{run.name}/{number}",
        }
        if dataset["shuffle_caption"]:
            backend["caption_shuffle"] = {
                "enable": True,
                "count": 10,
                "position_start": dataset["keep_tokens"],
                "include_original": False,
            }
        if dataset["caption_prefix"]:
            backend |= {
                "instance_prompt": dataset["caption_prefix"],
                "prepend_instance_prompt": True,
            }
        backends.append(backend)
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "type": "local"}
    return [*backends, texts | {"cache_dir": f"cache/{run.name}/texts"}]
