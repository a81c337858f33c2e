"""ai-toolkit's jobs: from there and to there."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from optbench.cli.trainers.exported import Exported, Run
from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.trees import Training, TreeTranslation

_PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "float"), "no"),
}
_FILES = {"no": "float", "bf16": "bf16", "fp16": "fp16"}
_SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
}
_LOSSES = {"mse": "l2", "mae": "l1"}
_TIMESTEPS = 1000
_SMALLEST_MULTIPLIER = 0.1  # below it the trainer takes 1 for a class that finds its rate


def convert(training: Training) -> Imported:
    """Return what a job's process means here."""
    return _AiToolkit(training).imported


class _AiToolkit(TreeTranslation):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        args = self.args
        self.family = self._family(*self._arch())
        if "model.name_or_path" in self.given:
            self._same("model.name_or_path")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        if args["model.vae_path"]:
            self._same("model.vae_path")
        self._same("model.is_v_pred")
        self._data()
        self._steps()
        self._loss()
        self._lora()
        self._stepping()
        self._samples()
        self._wandb(
            args["logging.use_wandb"],
            args["logging.project_name"],
            args["logging.run_name"],
            "logging.use_wandb",
        )
        self.imported.notes.append("seed: there is no such option there; 1234 here")
        self._finish()

    def _arch(self) -> tuple[str, str]:
        """Return the family and how the file says so; older files have a flag for each."""
        args = self.args
        if arch := args["model.arch"]:
            name = str(arch).partition(":")[0]
            return name, f"model.arch={arch}"
        flags = [
            name.removeprefix("model.is_")
            for name, value in self.given.items()
            if name.startswith("model.is_") and value and name != "model.is_v_pred"
        ]
        name = {"xl": "sdxl", "v2": "sd2", "v3": "sd3"}.get(flags[0], flags[0]) if flags else "sd1"
        return name, f"model.is_{flags[0]}=true" if flags else "model.arch"

    def _data(self) -> None:
        trigger = self.args["trigger_word"]
        folders = []
        for one in self.datasets:
            place = one["folder_path"] or one["dataset_path"]
            if place and str(place).endswith(".json"):
                self.imported.lost.append(
                    f"dataset_path={place}: a list of images; write metadata.jsonl beside them"
                )
            elif place:
                folders.append(
                    ImageFolder(
                        path=str(place),
                        repeats=max(1, int(one["num_repeats"] or 1)),
                        class_words=str(one["default_caption"] or ""),
                        is_regularization=bool(one["is_reg"]),
                    )
                )
            own = one["trigger_word"]
            if own and own != trigger:
                self.imported.lost.append(
                    f"datasets.trigger_word={own}: of one folder; write it into the captions"
                )
        self._folders(folders)
        has_reg = any(one["is_reg"] for one in self.datasets)
        self.datasets = [one for one in self.datasets if not one["is_reg"]]
        if not self.datasets:
            return
        self._resolution()
        self._buckets(
            max(64, int(self._one_of("bucket_tolerance"))), enabled=bool(self._one_of("buckets"))
        )
        suffix = str(self._one_of("caption_ext"))
        suffix = suffix if suffix.startswith(".") else f".{suffix}"
        self._set("dataset.caption_extension", suffix, *self.given)
        if trigger:
            self.imported.lost.append(
                f"trigger_word={trigger}: replaces [trigger] in captions and is put before those "
                "without it; write it into the captions (dataset.caption_prefix puts it before all)"
            )
        self._captions()
        if has_reg:
            self._set("loss.prior_loss_weight", float(self.args["train.reg_weight"]), *self.given)

    def _resolution(self) -> None:
        sides = self._one_of("resolution")
        sides = list(sides) if isinstance(sides, list | tuple) else [sides]
        if len(sides) > 1:
            self.imported.lost.append(
                f"datasets.resolution={sides}: every size makes another copy of the data set; the "
                f"largest alone here, with {len(sides)} times fewer images an epoch"
            )
        self._square(float(max(sides)))

    def _captions(self) -> None:
        shuffles, drop = self._one_of("shuffle_tokens"), self._one_of("token_dropout_rate")
        keep = int(self._one_of("keep_tokens") or 0)
        self._set("dataset.shuffle_caption", bool(shuffles), *self.given)
        if drop:
            self._set("dataset.caption_tag_dropout_rate", drop, *self.given)
        if shuffles and keep:
            self.imported.lost.append(
                f"datasets.keep_tokens={keep}: there these tags are never dropped, but shuffled "
                "like all; here they would stay in front, so none do"
            )
        elif drop and keep:
            self._set("dataset.keep_tokens", keep, *self.given)
        if rate := self._one_of("caption_dropout_rate"):
            if self._one_of("cache_text_embeddings") or self.args["train.cache_text_embeddings"]:
                self.imported.ignored.append(
                    f"datasets.caption_dropout_rate={rate}: not with cached text embeddings"
                )
            else:
                self._set("dataset.caption_dropout_rate", rate, *self.given)
        if self._one_of("flip_x"):
            self._set("dataset.flip_aug", True, *self.given)
            self.imported.lost.append(
                "datasets.flip_x=true: adds a mirrored copy of every image there, so an epoch is "
                "twice as long; here half of the uses are mirrored"
            )
        if self._one_of("random_crop"):
            self._set("dataset.random_crop", True, *self.given)

    def _steps(self) -> None:
        args = self.args
        steps, legacy = int(args["train.steps"]), int(args["train.gradient_accumulation_steps"])
        together = int(args["train.gradient_accumulation"])
        if legacy == -1:
            self._lose("train.gradient_accumulation_steps", "one update an epoch; one a batch here")
            legacy = 1
        if legacy > 1:
            self.imported.notes.append(
                f"train.steps={steps}: batches there, of which {legacy} make an update: "
                f"{steps // legacy} updates here"
            )
            steps = max(1, steps // legacy)
        self._set("train.max_steps", steps, "train.steps")
        self._set("train.epochs", steps, "train.steps")  # steps alone decide
        accumulated = max(legacy, together)
        self._set(
            "train.gradient_accumulation",
            accumulated,
            "train.gradient_accumulation_steps",
            "train.gradient_accumulation",
        )
        self._same("train.batch_size", "train.max_grad_norm", "train.gradient_checkpointing")
        precision = _PRECISIONS.get(str(args["train.dtype"]))
        if precision is None:
            self._lose("train.dtype", "bf16 here")
        self._set("train.mixed_precision", precision or "bf16", "train.dtype")
        file = _PRECISIONS.get(str(args["save.dtype"]), "fp16")
        self._set("train.save_precision", _FILES[file], "save.dtype")

    def _loss(self) -> None:
        args = self.args
        kind = args["train.loss_type"]
        if kind not in _LOSSES:
            self._lose("train.loss_type", "no such loss; the squared error here")
        self._set("loss.loss_type", _LOSSES.get(kind, "l2"), "train.loss_type")
        for name in ("train.min_snr_gamma", "train.noise_offset"):
            if args[name]:
                self._same(name)
        if args["train.content_or_style"] != "balanced":
            self._lose("train.content_or_style", "favours some timesteps; all alike here")
        if "train.timestep_type" in self.given:
            if self.imported.refused:
                self._lose("train.timestep_type", "how flow models draw timesteps")
            else:
                self._ignore("train.timestep_type", "SD and SDXL draw all timesteps alike")
        first, last = args["train.min_denoising_steps"], args["train.max_denoising_steps"]
        if last < _TIMESTEPS - 1:
            self._set("loss.min_timestep", _TIMESTEPS - 1 - int(last), "train.max_denoising_steps")
        if first:
            self._set("loss.max_timestep", _TIMESTEPS - int(first), "train.min_denoising_steps")
        if args["train.ema_config.use_ema"]:
            decay = args["train.ema_config.ema_decay"]
            self.imported.lost.append(
                f"train.ema_config: an average of past weights (decay {decay:g}) is saved there"
            )

    def _lora(self) -> None:
        args = self.args
        kind = str(args["network.type"]).lower()
        if kind not in ("lora", "locon"):
            self._lose("network.type", "another kind of network; a LoRA is trained here")
        rank = args["network.rank"] or args["network.linear"] or 4
        alpha = args["network.linear_alpha"]
        alpha = args["network.alpha"] if alpha is None else alpha
        self._set("network.dim", int(rank), "network.linear", "network.rank")
        self._set("network.alpha", float(alpha or rank), "network.linear_alpha", "network.alpha")
        if conv := args["network.conv"]:
            conv_alpha = args["network.conv_alpha"]
            self._set("network.conv_dim", int(conv), "network.conv")
            self._set(
                "network.conv_alpha",
                float(conv_alpha or conv),
                "network.conv_alpha",
                "network.conv",
            )
        if args["network.dropout"]:
            self._same("network.dropout")
        if args["network.pretrained_lora_path"]:
            self._same("network.pretrained_lora_path")
        for key, value in (args["network.network_kwargs"] or {}).items():
            if value:
                self.imported.lost.append(
                    f"network.network_kwargs.{key}={value}: only some layers get a LoRA there"
                )
        if not args["train.train_unet"]:
            self._untrained("unet", "train.train_unet=false")
        if not args["train.train_text_encoder"]:
            self._untrained("text_encoder", "train.train_text_encoder=false, as by default there")
        if not self.imported.refused:
            self.imported.lost.append(
                "there the timestep's linear layers of the unet get a LoRA, too"
            )

    def _stepping(self) -> None:
        args = self.args
        given = dict(args["train.optimizer_params"] or {})
        recipe = self._named_optimizer(str(args["train.optimizer"]), given, "train.optimizer")
        lr = float(args["train.lr"])
        unet, text = args["train.unet_lr"], args["train.text_encoder_lr"]
        if recipe in ("prodigy", "dadaptadam", "dadaptlion") and lr < _SMALLEST_MULTIPLIER:
            self.imported.notes.append(f"train.lr={lr:g}: below 0.1 that trainer takes 1, as here")
            lr, unet, text = 1.0, None, None
        self._rates(
            recipe,
            lr,
            unet=None if unet is None else float(unet),
            text=None if text is None else float(text),
        )
        self._schedule(recipe)

    def _schedule(self, recipe: str) -> None:
        args = self.args
        written = str(args["train.lr_scheduler"])
        given: dict[str, Any] = dict(args["train.lr_scheduler_params"] or {})
        names = ("train.lr_scheduler", "train.lr_scheduler_params")
        if recipe == "adafactor_auto":
            self._set_schedule("adafactor", {}, *names)
            return
        name = _SCHEDULES.get(written)
        if name is None:
            self._lose("train.lr_scheduler", "no such schedule; the rate is constant here")
            name = "constant"
        given.pop("total_iters", None)
        values: dict[str, Any] = {}
        if name == "constant_with_warmup":
            values["warmup_steps"] = int(given.pop("num_warmup_steps", 1000))
        elif name == "polynomial":
            values |= {"power": given.pop("power", 1.0), "min_lr_ratio": 0.0}
        elif name == "linear" and "end_factor" not in given:
            # torch's LinearLR goes from a third up to the whole rate by itself.
            self._lose("train.lr_scheduler", "rises from a third of the rate there; constant here")
            name = "constant"
        elif name == "linear":
            last, first = given.pop("end_factor"), given.pop("start_factor", 1 / 3)
            if first != 1:
                self.imported.lost.append(f"start_factor={first:g}: begins at the whole rate here")
            if last:
                name = "polynomial"
                values |= {"power": 1.0, "min_lr_ratio": float(last)}
        if name == "cosine" and (floor := float(given.pop("eta_min", 0))):
            name, values["min_lr_ratio"] = "cosine_with_min_lr", floor / float(args["train.lr"])
        if name == "constant" and given.get("factor") == 1:
            given.pop("factor")
        self.imported.lost += [
            f"train.lr_scheduler_params.{key}={value}: no such setting here"
            for key, value in given.items()
        ]
        self._set_schedule(name, values, *names)

    def _samples(self) -> None:
        args = self.args
        items = [{"prompt": text} for text in args["sample.prompts"] or ()]
        items = args["sample.samples"] or items
        trigger = self.args["trigger_word"] or "[trigger]"
        prompts = [
            (
                str(item["prompt"]).replace("[trigger]", trigger).partition(" --")[0],
                str(item.get("neg") or args["sample.neg"] or ""),
                int(item.get("width") or args["sample.width"]),
                int(item.get("height") or args["sample.height"]),
            )
            for item in items
            if item.get("prompt")
        ]
        self._set_prompts(list(dict.fromkeys(prompts)), "")


def export(run: Run) -> Exported:
    """Return a script with one job that starts ai-toolkit."""
    process = {
        "type": "sd_trainer",
        "training_folder": "output",
        "network": _exported_network(run),
        "save": _exported_save(run),
        "datasets": _exported_datasets(run),
        "train": _exported_train(run),
        "model": _exported_model(run),
        "sample": _exported_samples(run),
    }
    run.say_base()
    run.say_unless()
    run.lost.append(f"seed={run.get('seed')}: there is no such option there")
    job = {"job": "extension", "config": {"name": run.name, "process": [process]}}
    return run.script(
        "ai-toolkit", {"optbench.yaml": OmegaConf.to_yaml(job)}, ["python run.py optbench.yaml"]
    )


def _exported_network(run: Run) -> dict[str, Any]:
    network = run.get("network")
    run.lost.append("there the timestep's linear layers of the unet get a LoRA, too")
    if network["dora"]:
        run.lost.append("network.dora=true: no such setting there")
    written: dict[str, Any] = {
        "type": "lora",
        "linear": network["dim"],
        "linear_alpha": float(network["alpha"]),
    }
    if network["conv_dim"] is not None:
        written |= {
            "conv": network["conv_dim"],
            "conv_alpha": float(network["conv_alpha"] or 1),
        }
    if network["dropout"]:
        written["dropout"] = network["dropout"]
    if network["weights"]:
        written["pretrained_lora_path"] = str(network["weights"])
    return written


def _exported_save(run: Run) -> dict[str, Any]:
    names = {"float": "float32", "fp16": "float16", "bf16": "bf16"}
    return {"dtype": names[run.get("train.save_precision")]}


def _exported_datasets(run: Run) -> list[dict[str, Any]]:
    dataset = run.get("dataset")
    width, height = dataset["resolution"]
    side = round((width * height) ** 0.5)
    if width != height:
        run.lost.append(f"dataset.resolution={width},{height}: a square of its area there")
    if dataset["keep_tokens"] and dataset["shuffle_caption"]:
        run.lost.append(
            f"dataset.keep_tokens={dataset['keep_tokens']}: tags are shuffled all together there"
        )
    if dataset["flip_aug"]:
        run.lost.append("dataset.flip_aug=true: adds a mirrored copy of every image there")
    if dataset["caption_prefix"]:
        run.lost.append(
            f"dataset.caption_prefix={dataset['caption_prefix']}: write it into captions"
        )
    run.lost.append("buckets: that trainer chooses among shapes of its own")
    return [
        {
            "folder_path": folder.path,
            "num_repeats": folder.repeats,
            "is_reg": folder.is_regularization,
            "caption_ext": dataset["caption_extension"].removeprefix("."),
            "caption_dropout_rate": dataset["caption_dropout_rate"],
            "token_dropout_rate": dataset["caption_tag_dropout_rate"],
            "shuffle_tokens": dataset["shuffle_caption"],
            "keep_tokens": dataset["keep_tokens"],
            "resolution": [side],
            "buckets": dataset["enable_bucket"],
            "flip_x": dataset["flip_aug"],
            "random_crop": dataset["random_crop"],
            **({"default_caption": folder.class_words} if folder.class_words else {}),
        }
        for folder in run.folders()
    ]


def _exported_train(run: Run) -> dict[str, Any]:
    train, loss, network = run.get("train"), run.get("loss"), run.get("network")
    unet, text, lr = run.rates
    name, ours = run.optimizer("ai-toolkit")
    arguments = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in ours.items()
        if key not in ("fused", "eps")
    }
    if "eps" in ours and ours["eps"] != 1e-6:
        run.lost.append(f"optimizer.args.eps={ours['eps']}: 1e-06 there, whatever is given")
    if train["clip_skip"] != 1 and run.get("base.family") != "sdxl":
        run.lost.append(f"train.clip_skip={train['clip_skip']}: the last layer there")
    kinds = {ours: theirs for theirs, ours in _LOSSES.items()}
    if loss["loss_type"] not in kinds:
        run.lost.append(f"loss.loss_type={loss['loss_type']}: mse is written")
    for key in ("debiased_estimation_loss", "zero_terminal_snr"):
        if loss[key]:
            run.lost.append(f"loss.{key}=true: no such setting there")
    dtypes = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
    written: dict[str, Any] = {
        "steps": run.steps("ai-toolkit"),
        "batch_size": train["batch_size"],
        "gradient_accumulation": train["gradient_accumulation"],
        "train_unet": network["train_unet"],
        "train_text_encoder": network["train_text_encoder"],
        "gradient_checkpointing": train["gradient_checkpointing"],
        "noise_scheduler": "ddpm",
        "optimizer": name,
        "optimizer_params": arguments,
        "lr": lr,
        "unet_lr": unet,
        "text_encoder_lr": text,
        "dtype": dtypes[train["mixed_precision"]],
        "max_grad_norm": train["max_grad_norm"],
        "loss_type": kinds.get(loss["loss_type"], "mse"),
        "noise_offset": float(loss["noise_offset"] or 0),
        "reg_weight": float(loss["prior_loss_weight"]),
        "max_denoising_steps": _TIMESTEPS - 1 - loss["min_timestep"],
        "min_denoising_steps": _TIMESTEPS - (loss["max_timestep"] or _TIMESTEPS),
        **_exported_schedule(run),
    }
    if loss["min_snr_gamma"]:
        written["min_snr_gamma"] = loss["min_snr_gamma"]
    return written


def _exported_schedule(run: Run) -> dict[str, Any]:
    schedule, lr = run.get("lr_scheduler"), run.rates[2]
    kind, warmup = schedule["name"], schedule["warmup_steps"]
    if kind == "constant_with_warmup":
        updates = warmup if warmup >= 1 else int(warmup * run.steps("ai-toolkit"))
        return {
            "lr_scheduler": kind,
            "lr_scheduler_params": {"num_warmup_steps": int(updates)},
        }
    if warmup:
        run.lost.append(f"lr_scheduler.warmup_steps={warmup}: {kind} has no warm-up there")
    if kind in ("constant", "cosine"):
        return {"lr_scheduler": kind}
    if kind == "linear":
        factors = {"start_factor": 1.0, "end_factor": 0.0}
        return {"lr_scheduler": kind, "lr_scheduler_params": factors}
    if kind == "cosine_with_min_lr" and schedule["num_cycles"] == 1:
        last = schedule["min_lr_ratio"] * lr
        return {"lr_scheduler": "cosine", "lr_scheduler_params": {"eta_min": last}}
    run.lost.append(f"lr_scheduler={kind}: no such schedule there; constant is written")
    return {"lr_scheduler": "constant"}


def _exported_model(run: Run) -> dict[str, Any]:
    base = run.get("base")
    written: dict[str, Any] = {
        "name_or_path": str(base["path"]),
        "arch": {"sd15": "sd1"}.get(base["family"], base["family"]),
        "is_v_pred": bool(base["v_parameterization"]),
    }
    if base["v_parameterization"] is None and base["family"] != "sd15":
        run.lost.append(
            "base.v_parameterization=null: write is_v_pred: true if the base predicts v"
        )
    return written | ({"vae_path": str(base["vae"])} if base["vae"] else {})


def _exported_samples(run: Run) -> dict[str, Any]:
    render = run.get("render")
    return {
        "sampler": "ddpm",
        "samples": [
            {
                "prompt": prompt["text"],
                "neg": prompt["negative"],
                "width": prompt["width"],
                "height": prompt["height"],
                "seed": prompt["seed"] % 2**32,
            }
            for prompt in run.prompts()
        ],
        "guidance_scale": render["cfg_scale"],
        "sample_steps": render["steps"],
    }
