"""PEFT's adapter_config.json and the training of its image comparison as settings of ours."""

from __future__ import annotations

from typing import Any

from optbench.cli.trainers.imported import Imported
from optbench.cli.trainers.trees import Training, TreeTranslation

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
_WHOLE_BLOCKS = {
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
}


def convert(training: Training) -> Imported:
    """Return what an adapter and a training mean here."""
    return _Peft(training).imported


class _Peft(TreeTranslation):
    def __init__(self, training: Training) -> None:
        super().__init__(training)
        args = self.args
        base = str(args["model_id"] or args["base_model_name_or_path"] or "")
        self.family = self._family(base.rpartition("/")[2], f"model_id={base}")
        if base:
            self._set("base.path", base, "model_id", "base_model_name_or_path")
        else:
            self.imported.notes.append("base.path: give the checkpoint, the file names none")
        self.imported.notes.append("dataset.dir: give the images, the file names none")
        if args["dataset_id"]:
            self._lose("dataset_id", "a data set of the Hub; download it as an imagefolder")
        self._square(float(args["resolution"]))
        self._set("dataset.enable_bucket", False, "resolution")
        self._set("dataset.bucket_no_upscale", False, "resolution")
        self._steps()
        self._lora()
        self._stepping()
        prompts = [*(args["sample_image_prompts"] or ()), *(args["drift_image_prompts"] or ())]
        side = int(args["resolution"])
        self._set_prompts([(str(text), "", side, side) for text in prompts], "")
        if args["weighting_scheme"] != "none":
            self._lose("weighting_scheme", "weights of timesteps of flow models")
        if "valid_size" in self.given or "test_size" in self.given:
            held = int(args["valid_size"]) + int(args["test_size"])
            self.imported.lost.append(
                f"valid_size, test_size: {held} images are held out there; see validate.dir"
            )
        self._finish()

    def _steps(self) -> None:
        args = self.args
        self._same("max_steps", "batch_size", "grad_norm_clip", "use_gc", "seed")
        self._set("train.epochs", int(args["max_steps"]), "max_steps")
        precision = _PRECISIONS.get(str(args["dtype"]), "bf16")
        self._set("train.mixed_precision", precision, "dtype")
        self._set("train.save_precision", "float", "autocast_adapter_dtype")

    def _lora(self) -> None:
        args, lost = self.args, self.imported.lost
        kind = str(args["peft_type"] or "LORA")
        if kind != "LORA":
            self._lose("peft_type", "another kind of network; a LoRA is trained here")
        self._same("r", "lora_alpha")
        for name in ("use_dora", "use_rslora"):
            if args[name]:
                self._same(name)
        if args["lora_dropout"]:
            self._lose(
                "lora_dropout",
                "drops a layer's inputs there; network.dropout here drops the LoRA's inner values",
            )
        if args["bias"] != "none":
            self._lose("bias", "biases are not trained here")
        if args["init_lora_weights"] not in (True, None):
            self._lose("init_lora_weights", "the LoRA begins as kohya's does")
        targets = set(args["target_modules"] or ())
        if targets and targets != _WHOLE_BLOCKS and not self.imported.refused:
            lost.append(
                f"target_modules={' '.join(sorted(targets))}: all layers of the transformer blocks "
                "get a LoRA here"
            )
        self._untrained("text_encoder", "only the model named gets a LoRA there")

    def _stepping(self) -> None:
        args = self.args
        given: dict[str, Any] = dict(args["optimizer_kwargs"])
        if "optimizer_kwargs" not in self.given:
            self.imported.assumed.append(f"optimizer_kwargs={given}")
        lr = float(given.pop("lr", 1e-3))
        recipe = self._named_optimizer(str(args["optimizer_type"]), given, "optimizer_type")
        self._rates(recipe, lr)
        name = "cosine" if args["lr_scheduler"] == "cosine" else "constant"
        self._set_schedule(name, {}, "lr_scheduler")
