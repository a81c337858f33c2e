"""diffusion-pipe's TOML files as settings of ours."""

from __future__ import annotations

from typing import Any

from optbench.cli.trainers.folders import ImageFolder
from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.trees import Training, TreeTranslation

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
_FILES = {"bfloat16": "bf16", "float16": "fp16", "float32": "float"}
_LAST_COSINE_RATE = 1e-6  # where its cosine ends, whatever the rate is


def convert(training: Training) -> Imported:
    """Return what a configuration and its data sets mean here."""
    return _DiffusionPipe(training).imported


class _DiffusionPipe(TreeTranslation):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        args = self.args
        kind = str(args["model.type"] or "")
        self.family = self._family(kind, f"model.type={kind}")
        if args["model.checkpoint_path"]:
            self._same("model.checkpoint_path")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        if args["model.v_pred"]:
            self._same("model.v_pred")
        self._data()
        self._steps()
        for name in ("model.min_snr_gamma", "model.debiased_estimation_loss"):
            if args[name]:
                self._same(name)
        if "model.timestep_sample_method" in self.given and self.imported.refused:
            self._lose("model.timestep_sample_method", "how flow models draw timesteps")
        self._lora()
        self._stepping()
        self._wandb(
            args["monitoring.enable_wandb"],
            args["monitoring.wandb_tracker_name"],
            args["monitoring.wandb_run_name"],
            "monitoring.enable_wandb",
        )
        self.imported.notes.append("seed: there is no such option there; 1234 here")
        self._set_prompts([], ", for there are no samples there")
        self._finish()

    def _data(self) -> None:
        self._folders(
            [
                ImageFolder(path=str(one["path"]), repeats=max(1, int(one["num_repeats"])))
                for one in self.datasets
                if one["path"]
            ]
        )
        if not self.datasets and (file := self.given.get("dataset")):
            self.imported.notes.append(f"dataset: {file} was not found beside the file")
        self._set("dataset.caption_extension", ".txt")
        if not self.datasets:
            return
        sizes = self._one_of("resolutions") or [512]
        if len(sizes) > 1:
            self.imported.lost.append(
                f"datasets.resolutions={sizes}: every size makes another copy of the data set; the "
                f"largest alone here, with {len(sizes)} times fewer images an epoch"
            )
        largest = max(
            sizes, key=lambda size: size[0] * size[1] if isinstance(size, list) else size**2
        )
        if isinstance(largest, list):
            self._set("dataset.resolution", [int(side) for side in largest], *self.given)
            self._side = int(max(largest))
        else:
            self._square(float(largest))
        is_on = bool(self._one_of("enable_ar_bucket"))
        self._buckets(64, enabled=is_on)
        if is_on and (count := self._one_of("num_ar_buckets")):
            self.imported.notes.append(
                f"num_ar_buckets={count}: so many shapes there; every shape that fits here"
            )
        shuffles = int(self._one_of("cache_shuffle_num") or self._one_of("shuffle_tags"))
        self._set("dataset.shuffle_caption", bool(shuffles), *self.given)
        if shuffles:
            separator = str(self._one_of("cache_shuffle_delimiter")).strip() or ","
            self._set("dataset.caption_separator", separator, *self.given)
            self.imported.lost.append(
                f"cache_shuffle_num: {shuffles} orders made beforehand there; a new order at every "
                "use here"
            )
        if prefix := self._one_of("caption_prefix"):
            self._set("dataset.caption_prefix", str(prefix).strip(), *self.given)
        if share := self.args["uncond_fraction"]:
            self._set("dataset.caption_dropout_rate", share, "uncond_fraction")

    def _steps(self) -> None:
        args = self.args
        if args["max_steps"] is not None:
            self._same("max_steps")
        self._set(
            "train.epochs", int(args["epochs"] or args["max_steps"] or 1), "epochs", "max_steps"
        )
        batch: Any = args["image_micro_batch_size_per_gpu"] or args["micro_batch_size_per_gpu"] or 1
        if isinstance(batch, list):
            self.imported.lost.append(
                f"micro_batch_size_per_gpu={batch}: another size for each resolution; the last one "
                "here"
            )
            batch = batch[-1][1]
        self._set("train.batch_size", int(batch), "micro_batch_size_per_gpu")
        self._same("gradient_accumulation_steps", "gradient_clipping")
        if int(args["pipeline_stages"]) == 1 and int(args["gradient_accumulation_steps"]) > 1:
            self.imported.notes.append(
                "epochs: images that do not fill a batch are left out there; here they make a "
                "smaller batch"
            )
        self._set(
            "train.gradient_checkpointing",
            args["activation_checkpointing"] not in (False, None),
            "activation_checkpointing",
        )
        precision = str(args["model.dtype"] or "bfloat16")
        self._set("train.mixed_precision", _PRECISIONS.get(precision, "bf16"), "model.dtype")
        saved = str(args["save_dtype"] or args["adapter.dtype"] or precision)
        self._set("train.save_precision", _FILES.get(saved, "bf16"), "save_dtype")

    def _lora(self) -> None:
        args = self.args
        if args["adapter.type"] != "lora":
            self._lose("adapter.type", "no LoRA; a LoRA is trained here")
        rank = int(args["adapter.rank"] or 16)
        self._set("network.dim", rank, "adapter.rank")
        self._set("network.alpha", float(rank), "adapter.rank")  # always the rank there
        if args["adapter.dropout"]:
            self._lose(
                "adapter.dropout",
                "drops a layer's inputs there; network.dropout here drops the LoRA's inner values",
            )
        if args["adapter.dtype"] not in (None, "float32"):
            self._lose("adapter.dtype", "LoRA weights are always float32")
        if args["adapter.init_from_existing"]:
            self._lose(
                "adapter.init_from_existing", "a folder there; give its file as network.weights"
            )

    def _stepping(self) -> None:
        args = self.args
        arguments = self.training.settings.get("optimizer") or {}
        ours = ("type", "lr", "gradient_release", "beta2_half_life")
        given = {key: value for key, value in arguments.items() if key not in ours}
        self.imported.lost[:] = [  # the class's own arguments are no options of the trainer
            sentence
            for sentence in self.imported.lost
            if sentence.partition(":")[0].removeprefix("optimizer.") not in given
        ]
        if "stabilize" in given and given.pop("stabilize"):
            self.imported.lost.append("optimizer.stabilize=true: StableAdamW's limit of updates")
        recipe = self._named_optimizer(str(args["optimizer.type"] or ""), given, "optimizer.type")
        forced = args["force_constant_lr"]
        lr = float(forced if forced is not None else args["optimizer.lr"] or 1e-3)
        rates = [args[f"model.{part}_lr"] for part in ("unet", "text_encoder_1", "text_encoder_2")]
        if rates[1] != rates[2] and self.family == "sdxl":
            self._lose("model.text_encoder_2_lr", "one rate for both text encoders here")
        self._rates(recipe, lr, unet=rates[0], text=rates[1])
        name, warmup = str(args["lr_scheduler"]), int(args["warmup_steps"])
        names = ("lr_scheduler", "warmup_steps")
        if forced is not None:
            name, warmup = "constant", 0
        if name not in ("constant", "linear", "cosine"):
            self._lose("lr_scheduler", "no such schedule; the rate is constant here")
            name = "constant"
        if name == "constant" and warmup:
            name = "constant_with_warmup"
        values: dict[str, Any] = {"warmup_steps": warmup}
        if name == "cosine":
            name, values["min_lr_ratio"] = "cosine_with_min_lr", _LAST_COSINE_RATE / lr
        if warmup and name != "constant":
            self.imported.notes.append(
                "warmup_steps: the first update has a rate there, and what follows the warm-up is "
                "as long as the whole run; here it ends with the run"
            )
        if recipe.endswith("schedulefree") or recipe == "prodigyplus":
            name, values = "constant", {}
        if recipe == "adafactor_auto":
            name, values = "adafactor", {}
        self._set_schedule(name, values, *names)
