"""Write a run's config as a shell script for kohya's trainer; list what has no equivalent."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optbench.cli.trainers.exported import Exported, unscaled
from optbench.cli.trainers.kohya import option_names
from optbench.cli.trainers.options import options
from optbench.lora.blocks import block_numbers
from optbench.models.files.families import FAMILIES
from optbench.optim.schedules import settings_in_use
from optbench.schema import PIECE_TOKENS

_SCRIPTS = {"sdxl": "sdxl_train_network.py"}
_SAMPLERS = {
    "DDIM": "ddim",
    "Euler": "euler",
    "Euler a": "euler_a",
    "Heun": "heun",
    "LMS": "lms",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_a",
    "DPM++ 2M": "dpmsolver++",
}
_ONLY_IN_FILES = {
    "num_repeats": "put the pictures into a folder named <repeats>_<class words>",
    "class_tokens": "name the folder <repeats>_<these words>",
}
# Read by a function of its own when imported, and yet the same value.
_ALSO_PLAIN = ("clip_skip", "seed", "min_timestep", "max_timestep", "max_data_loader_n_workers")
_PATHS = (
    "pretrained_model_name_or_path",
    "vae",
    "train_data_dir",
    "reg_data_dir",
    "network_weights",
)
_ALWAYS_LOCAL = ("train_data_dir", "reg_data_dir", "network_weights")  # never a hub id
_COUNTED = re.compile(r"[1-9]\d*_|0+[1-9]\d*_")
_LARGEST_SEED = 2**32
_PROMPT_FILE = "prompts.txt"
_PROMPT_END = "END_OF_PROMPTS"


def export(config: Mapping[str, Any], *, name: str, total_steps: int | None = None) -> Exported:
    """Return the script for a run's config, as its config.yaml holds it.

    Args:
        config: The settings.
        name: What the LoRA is called.
        total_steps: The updates of the run, where they are known: shares of it become steps.
    """
    words = [*_plain(config), *_training(config, total_steps), *_network(config)]
    words += [*_optimizer(config), *_schedule(config, total_steps), *_trackers(config)]
    words.append("--save_every_n_epochs=1")
    dataset = config["dataset"]
    if not (dataset["color_aug"] or dataset["random_crop"]):
        words.append("--cache_latents")
    words += ["--output_dir=.", f"--output_name={name}"]
    lost = tuple(_lost(config, total_steps))
    prompts = list(_prompts(config))
    lines = ["#!/bin/sh", f"# {name}, for kohya's trainer (sd-scripts); run it in its folder."]
    lines += [f"# Not in this command: {_one_line(sentence)}" for sentence in lost]
    if prompts:
        lines += [f"cat > {_PROMPT_FILE} <<'{_PROMPT_END}'", *prompts, _PROMPT_END]
        words.append(f"--sample_prompts={_PROMPT_FILE}")
        words += ["--sample_every_n_epochs=1", "--sample_at_first"]
        words.append(f"--sample_sampler={_SAMPLERS.get(config['render']['sampler'], 'ddim')}")
    script = _SCRIPTS.get(config["base"]["family"], "train_network.py")
    quoted = " \\\n  ".join(shlex.quote(word) for word in words)
    lines.append(f"accelerate launch --num_cpu_threads_per_process 1 {script} \\\n  {quoted}")
    return Exported(script="\n".join(lines) + "\n", lost=lost)


def _plain(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options whose value is ours, and the flags; what would be ignored is left out."""
    dataset, is_sdxl = config["dataset"], config["base"]["family"] == "sdxl"
    left_out = {
        "scale_weight_norms": not config["network"]["scale_weight_norms"],
        "network_dropout": not config["network"]["dropout"],
        "prior_loss_weight": dataset["reg_dir"] is None,
        "dynamo_backend": not config["train"]["torch_compile"],
    }
    for option in options().values():
        is_taken = option.how == "same" or option.name in _ALSO_PLAIN
        if not is_taken or left_out.get(option.name) or not option.ours:
            continue
        value = _get(config, option.ours)
        if option.name == "clip_skip" and is_sdxl:
            continue  # ignored there, and 1 here
        if option.type == "flag":
            yield from [f"--{option.name}"] if value else []
        elif value is not None:
            yield f"--{option.name}={_place(option.name, value)}"
    step, resolution = dataset["bucket_reso_steps"], dataset["resolution"]
    least, most = dataset["min_bucket_reso"], dataset["max_bucket_reso"]
    if dataset["bucket_no_upscale"]:
        # Not looked at, and yet it must fit the resolution there.
        least = min(least, min(resolution) // step * step)
        most = max(most, math.ceil(max(resolution) / step) * step)
    if dataset["enable_bucket"]:
        yield from (f"--min_bucket_reso={least}", f"--max_bucket_reso={most}")


def _place(name: str, value: Any) -> str:
    """Return an option's value; a path that exists as an absolute one, for the script may move."""
    if name in _PATHS and (name in _ALWAYS_LOCAL or Path(value).exists()):
        return str(Path(value).expanduser().absolute())
    return str(value)


def _trackers(config: Mapping[str, Any]) -> Iterator[str]:
    if "wandb" in config.get("tracker", {}).get("log_with", ()):
        yield "--log_with=wandb"
        for kohya, ours in option_names.TRACKER_VALUES.items():
            if (value := _get(config, ours)) is not None:
                yield f"--{kohya}={value}"


def _training(config: Mapping[str, Any], total_steps: int | None) -> Iterator[str]:
    width, height = config["dataset"]["resolution"]
    yield f"--resolution={width},{height}"
    train = config["train"]
    if train["attention"] != "eager":  # which is what happens there without a word
        yield f"--{train['attention']}"
    if config["base"]["family"] == "sd2":
        yield "--v2"
    if train["max_token_length"] != PIECE_TOKENS:  # 75 is what happens there without a word
        yield f"--max_token_length={train['max_token_length']}"
    # Epochs win over steps there, so only the shorter one may be given.
    if train["max_steps"] is None:
        yield f"--max_train_epochs={train['epochs']}"
    else:
        yield f"--max_train_steps={min(train['max_steps'], total_steps or train['max_steps'])}"


def _network(config: Mapping[str, Any]) -> Iterator[str]:
    network = config["network"]
    yield "--network_module=networks.lora"
    arguments = {
        kohya: value
        for kohya, ours in option_names.NETWORK_ARGS.items()
        if (value := _get(config, ours)) is not None
    }
    blocks = FAMILIES[config["base"]["family"]].unet_blocks
    sides = {"down_lr_weight": blocks.down, "mid_lr_weight": blocks.mid, "up_lr_weight": blocks.up}
    for kohya, count in sides.items():
        value = arguments.get(kohya)
        # A shape has its name there too, but for the middle blocks; a single number has no form.
        if value is not None and not (isinstance(value, str) and kohya != "mid_lr_weight"):
            arguments[kohya] = block_numbers(_as_weights(value), count)
    for name in ("rank_dropout", "module_dropout", "block_lr_zero_threshold"):
        if not arguments.get(name):
            arguments.pop(name, None)
    if "conv_block_dims" in arguments:
        # Without block_dims it would not be looked at.
        arguments.setdefault("block_dims", [network["dim"]] * blocks.num_listed)
        if "conv_block_alphas" not in arguments:
            alpha = 1.0 if network["conv_alpha"] is None else network["conv_alpha"]
            arguments["conv_block_alphas"] = [alpha] * blocks.num_listed
        if "conv_dim" not in arguments:
            arguments.pop("conv_alpha", None)
    if arguments:
        yield "--network_args"
        for kohya, value in arguments.items():
            is_list = isinstance(value, list | tuple)
            yield f"{kohya}={','.join(map(str, value)) if is_list else value}"
    if not network["train_text_encoder"]:
        yield "--network_train_unet_only"
    if not network["train_unet"]:
        yield "--network_train_text_encoder_only"


def _as_weights(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _optimizer(config: Mapping[str, Any]) -> Iterator[str]:
    optimizer, lr_mult = config["optimizer"], config["lr_mult"]
    arguments = dict(optimizer["args"])
    kind = option_names.SPELLED.get(optimizer["name"], optimizer["_target_"])
    # Its name says nesterov there.
    if optimizer["name"].startswith("sgdnesterov") and not arguments.pop("nesterov", False):
        kind = optimizer["_target_"]
    yield f"--optimizer_type={kind}"
    for kohya, ours in (
        ("learning_rate", "lr"),
        ("unet_lr", "unet_lr"),
        ("text_encoder_lr", "text_encoder_lr"),
    ):
        if optimizer[ours] is not None:
            yield f"--{kohya}={optimizer[ours] * lr_mult!r}"
    if arguments:
        yield "--optimizer_args"
        yield from (f"{name}={_literal(value)}" for name, value in arguments.items())


def _schedule(config: Mapping[str, Any], total_steps: int | None) -> Iterator[str]:
    schedule = config["lr_scheduler"]
    name = schedule["name"]
    kohya = option_names.SCHEDULES.get(name)
    if kohya is None or _has_own_schedule(config["optimizer"]):
        return
    rules = _rules_in_steps(schedule["step_rules"], total_steps)
    if schedule["step_rules"] is not None and rules is None:
        return  # said
    yield f"--lr_scheduler={kohya}"
    for option in options().values():
        section, _, key = option.ours.partition(".")
        if section != "lr_scheduler" or key not in settings_in_use(name) or key == "step_rules":
            continue
        value = schedule[key]
        if key == "timescale" and value is not None and value < 1:
            value = None if total_steps is None else max(1, int(value * total_steps))
        # There a whole number is steps and any other one a share.
        if value is not None and not (name == "polynomial" and key == "min_lr_ratio"):
            is_whole = float(value).is_integer() and key not in ("power", "min_lr_ratio")
            yield f"--{option.name}={int(value) if is_whole else value}"
    if name == "polynomial":
        last = schedule["min_lr_ratio"] * config["optimizer"]["lr"] * config["lr_mult"]
        yield from ("--lr_scheduler_args", f"lr_end={last!r}")
    if rules is not None:
        yield from ("--lr_scheduler_args", f"step_rules='{rules}'")


def _has_own_schedule(optimizer: Mapping[str, Any]) -> bool:
    """Return whether kohya's trainer looks at no schedule for this class."""
    is_free = str(optimizer["_target_"]).lower().endswith("schedulefree")
    return is_free or optimizer["traits"]["lr_role"] == "automatic"


def _rules_in_steps(rules: str | None, total_steps: int | None) -> str | None:
    """Return rules whose ends are steps; None where shares cannot become any."""
    if rules is None:
        return None
    pieces = []
    for piece in rules.split(","):
        value, colon, end = piece.partition(":")
        if colon and float(end) < 1:
            if total_steps is None:
                return None
            end = str(int(float(end) * total_steps))
        pieces.append(f"{value.strip()}{colon}{int(float(end)) if colon else ''}")
    return ",".join(pieces)


def _lost(config: Mapping[str, Any], total_steps: int | None) -> Iterator[str]:
    """Yield a sentence for each setting that has no equivalent in kohya's trainer."""
    yield (
        "order, noise and timesteps are drawn otherwise there: the same settings, other weights "
        "from the same seed"
    )
    yield from _lost_files(config)
    yield from _lost_training(config)
    yield from _lost_optimizer(config, total_steps)
    validate = config.get("validate", {})
    holds_out = validate.get("holdout", "none") == "auto" and validate.get("dir") is None
    if validate.get("enabled") and holds_out:
        yield (
            "validate.holdout=auto: of 12 images or more a sixth was not trained on here; there "
            "all are (validate.holdout=none does the same here)"
        )
    if others := [
        name for name in config.get("tracker", {}).get("log_with", ()) if name != "wandb"
    ]:
        yield f"tracker.log_with={others}: only TensorBoard and W&B are trackers there"
    render = config["render"]
    if render["enabled"] and render["sampler"] not in _SAMPLERS:
        yield f"render.sampler={render['sampler']}: previews are drawn with DDIM there"


def _lost_files(config: Mapping[str, Any]) -> Iterator[str]:
    base, dataset = config["base"], config["dataset"]
    if base["name"] == "tiny":
        yield (
            "base.path: no other trainer loads the embedded base; put your checkpoint behind "
            f"--pretrained_model_name_or_path{unscaled(config)}"
        )
    if base["v_parameterization"] is None and base["family"] != "sd15":
        yield (
            "base.v_parameterization=null: the checkpoint said what it predicts; add "
            "--v_parameterization if it is v"
        )
    for name, instead in _ONLY_IN_FILES.items():
        if (value := dataset[name]) is not None:
            yield f"dataset.{name}={value}: {instead}"
    for key in ("dir", "reg_dir"):
        folder = Path(dataset[key]) if dataset[key] else None
        if folder is None or not folder.is_dir():
            continue
        counted = [
            inner for inner in folder.iterdir() if inner.is_dir() and _COUNTED.match(inner.name)
        ]
        if not counted:
            yield (
                f"dataset.{key}={folder}: no folder in it is named <repeats>_<class words>, and "
                "kohya's trainer takes no image elsewhere"
            )
        for inner in counted:
            if (inner / "metadata.jsonl").is_file():
                yield (
                    f"dataset.{key}: captions in {inner / 'metadata.jsonl'} are not read there; "
                    f"write them into {dataset['caption_extension']} files beside the images"
                )
    step, multiple = dataset["bucket_reso_steps"], 32 if base["family"] == "sdxl" else 64
    if dataset["enable_bucket"] and step % multiple:
        yield (
            f"dataset.bucket_reso_steps={step}: kohya's trainer ends with an error; it takes "
            f"multiples of {multiple}"
        )


def _lost_training(config: Mapping[str, Any]) -> Iterator[str]:
    train, loss, network = config["train"], config["loss"], config["network"]
    if config["seed"] >= _LARGEST_SEED:
        yield f"seed={config['seed']}: kohya's trainer takes seeds below 2^32"
    if train["max_steps"] is not None:
        yield f"train.epochs={train['epochs']}: max_train_steps alone decides there"
    for name in ("rslora", "dora"):
        if network[name]:
            yield f"network.{name}=true: networks.lora there has no such thing"
    if network["dim_from_weights"]:
        for name in ("dropout", "rank_dropout", "module_dropout"):
            if network[name]:
                yield f"network.{name}={network[name]}: nothing is dropped with dim_from_weights"
    if loss["zero_terminal_snr"]:
        yield (
            "loss.zero_terminal_snr: weights by SNR and previews use the schedule without it there"
        )
    for name in ("noise_offset_random_strength", "ip_noise_gamma_random_strength"):
        if loss[name]:
            yield f"loss.{name}: drawn for a whole batch there, for each image here"
    if loss["multires_noise_iterations"]:
        yield "loss.multires_noise_iterations: sizes and deviation are a batch's there"


def _lost_optimizer(config: Mapping[str, Any], total_steps: int | None) -> Iterator[str]:
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]
    name = schedule["name"]
    if name not in option_names.SCHEDULES:
        yield f"lr_scheduler={name}: the rate stays constant there"
    elif _has_own_schedule(optimizer):
        if name not in ("constant", "adafactor"):
            yield f"lr_scheduler={name}: kohya's trainer gives this class no schedule"
    elif schedule["step_rules"] and _rules_in_steps(schedule["step_rules"], total_steps) is None:
        yield (
            f"lr_scheduler.step_rules={schedule['step_rules']}: its ends are steps there, and how "
            "many the run has is not known yet; the rate stays constant"
        )
    elif schedule["timescale"] and schedule["timescale"] < 1 and total_steps is None:
        yield (
            f"lr_scheduler.timescale={schedule['timescale']}: it is steps there, and how many the "
            "run has is not known yet"
        )
    if optimizer["group_args"]:
        given = dict(optimizer["group_args"])
        yield (
            f"optimizer.group_args={given}: groups take no arguments there, and a class that needs "
            "them ends with an error"
        )
    for key, value in optimizer["args"].items():
        if "=" in _literal(value):
            yield f"optimizer.args.{key}={value}: a value with = in it ends with an error there"
    traits, target = optimizer["traits"], optimizer["_target_"]
    if traits["stepping"] == "closure":
        yield f"{target} needs the loss at every step, which it is not given there"
    if traits["weights"] == "averaged" and not target.lower().endswith("schedulefree"):
        yield f"{target} is saved there without its averaged weights"


def _prompts(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield kohya's line for each prompt and seed."""
    render = config["render"]
    if not render["enabled"]:
        return
    for prompt in config["prompts"]["prompts"].values():
        for seed in render["seeds"]:
            negative = _one_line(prompt["negative"])
            yield (
                f"{_one_line(prompt['text'])}{f' --n {negative}' if negative else ''} "
                f"--w {prompt['width']} --h {prompt['height']} --d {seed} "
                f"--l {render['cfg_scale']} --s {render['steps']}"
            )


def _get(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config[section][name] if name else config[section]


def _literal(value: Any, *, is_inner: bool = False) -> str:
    """Return a value as the Python literal that kohya's trainer reads, without spaces."""
    if isinstance(value, list | tuple):
        text = ",".join(_literal(item, is_inner=True) for item in value)
        text += "," if len(value) == 1 else ""
        return f"({text})" if is_inner or not value else text
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
