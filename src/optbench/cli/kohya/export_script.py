"""Write a run's config as a shell script for kohya's trainer; list what has no equivalent."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optbench.cli.kohya import option_names
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
_PROMPT_FILE = "prompts.txt"
_PROMPT_END = "END_OF_PROMPTS"


@dataclass(frozen=True, slots=True)
class Exported:
    """A shell script for kohya's trainer, and a sentence for each setting it has no option for."""

    script: str
    lost: tuple[str, ...]


def export(config: Mapping[str, Any], *, name: str) -> Exported:
    """Return the script for a run's config, as its config.yaml holds it; `name` is the LoRA's."""
    words = [*_plain(config), *_training(config), *_network(config), *_optimizer(config)]
    words += [*_schedule(config), *_trackers(config), "--save_every_n_epochs=1", "--cache_latents"]
    words += ["--output_dir=.", f"--output_name={name}"]
    lost = tuple(_lost(config))
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
    """Yield the options whose value is ours, and the flags."""
    for kohya, ours in {**option_names.VALUES, **option_names.LOSS_VALUES}.items():
        value = _get(config, ours)
        if value is not None and not ours.startswith("lr_scheduler."):
            yield f"--{kohya}={value}"
    for kohya, ours in {**option_names.FLAGS, **option_names.LOSS_FLAGS}.items():
        if _get(config, ours):
            yield f"--{kohya}"
    for kohya, ours in option_names.DROPOUTS.items():
        if value := _get(config, ours):
            yield f"--{kohya}={value}"


def _trackers(config: Mapping[str, Any]) -> Iterator[str]:
    if "wandb" in config.get("tracker", {}).get("log_with", ()):
        yield "--log_with=wandb"
        for kohya, ours in option_names.TRACKER_VALUES.items():
            if (value := _get(config, ours)) is not None:
                yield f"--{kohya}={value}"


def _training(config: Mapping[str, Any]) -> Iterator[str]:
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
    steps = train["max_steps"]
    yield (
        f"--max_train_epochs={train['epochs']}" if steps is None else f"--max_train_steps={steps}"
    )


def _network(config: Mapping[str, Any]) -> Iterator[str]:
    network = config["network"]
    yield "--network_module=networks.lora"
    words = []
    for kohya, ours in option_names.NETWORK_ARGS.items():
        value = _get(config, ours)
        if isinstance(value, list | tuple):
            value = ",".join(f"{item:g}" for item in value)
        if value:
            words.append(f"{kohya}={value}")
    if words:
        yield "--network_args"
        yield from words
    if not network["train_text_encoder"]:
        yield "--network_train_unet_only"
    if not network["train_unet"]:
        yield "--network_train_text_encoder_only"


def _optimizer(config: Mapping[str, Any]) -> Iterator[str]:
    optimizer, lr_mult = config["optimizer"], config["lr_mult"]
    yield f"--optimizer_type={option_names.SPELLED.get(optimizer['name'], optimizer['_target_'])}"
    for kohya, ours in (
        ("learning_rate", "lr"),
        ("unet_lr", "unet_lr"),
        ("text_encoder_lr", "text_encoder_lr"),
    ):
        if optimizer[ours] is not None:
            yield f"--{kohya}={optimizer[ours] * lr_mult!r}"
    arguments = dict(optimizer["args"])
    if optimizer["name"].startswith("sgdnesterov"):
        arguments.pop("nesterov", None)  # the name says it there
    if arguments:
        yield "--optimizer_args"
        yield from (f"{name}={_literal(value)}" for name, value in arguments.items())


def _schedule(config: Mapping[str, Any]) -> Iterator[str]:
    schedule = config["lr_scheduler"]
    kohya = option_names.SCHEDULES.get(schedule["name"])
    if kohya is None:
        return
    yield f"--lr_scheduler={kohya}"
    for option, ours in option_names.VALUES.items():
        section, _, key = ours.partition(".")
        value = schedule[key] if section == "lr_scheduler" else None
        # There a whole number is steps and any other one a fraction.
        if value is not None and not (schedule["name"] == "polynomial" and key == "min_lr_ratio"):
            is_steps = isinstance(value, float) and value.is_integer() and key != "power"
            yield f"--{option}={int(value) if is_steps else value}"
    if schedule["step_rules"] is not None:
        yield "--lr_scheduler_args"
        yield f"step_rules='{schedule['step_rules']}'"


def _lost(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each setting that has no equivalent in kohya's trainer."""
    optimizer, schedule, train = config["optimizer"], config["lr_scheduler"], config["train"]
    yield (
        "order, noise and timesteps are drawn otherwise there: the same settings, other weights "
        "from the same seed"
    )
    if config["base"]["name"] == "tiny":
        yield (
            "base.path: no other trainer loads the embedded base; put your checkpoint behind "
            "--pretrained_model_name_or_path, and divide the rates by base.lr_scale "
            f"({config['base']['lr_scale']:g}) unless you gave them yourself"
        )
    for name, instead in _ONLY_IN_FILES.items():
        if (value := config["dataset"][name]) is not None:
            yield f"dataset.{name}={value}: {instead}"
    validate = config.get("validate", {})
    if (
        validate.get("enabled")
        and validate.get("dir") is None
        and validate.get("holdout", "none") == "auto"
    ):
        yield (
            "validate.holdout=auto: of 12 images or more a sixth was not trained on here; there "
            "all are (validate.holdout=none does the same here)"
        )
    if config["base"]["v_parameterization"] is None and config["base"]["family"] != "sd15":
        yield (
            "base.v_parameterization=null: the checkpoint said what it predicts; add "
            "--v_parameterization if it is v"
        )
    if others := [
        name for name in config.get("tracker", {}).get("log_with", ()) if name != "wandb"
    ]:
        yield f"tracker.log_with={others}: only TensorBoard and W&B are trackers there"
    if schedule["name"] not in option_names.SCHEDULES:
        yield f"lr_scheduler={schedule['name']}: the rate stays constant there"
    if schedule["name"] == "polynomial":
        yield (
            f"lr_scheduler.min_lr_ratio={schedule['min_lr_ratio']:g}: the smallest rate there is "
            f"{option_names.SMALLEST_POLYNOMIAL_RATE:g}"
        )
    if optimizer["group_args"]:
        given = dict(optimizer["group_args"])
        yield f"optimizer.group_args={given}: groups take no arguments there"
    traits, target = optimizer["traits"], optimizer["_target_"]
    if traits["stepping"] == "closure":
        yield f"{target} needs the loss at every step, which it is not given there"
    if traits["weights"] == "averaged" and not target.lower().endswith("schedulefree"):
        yield f"{target} is saved there without its averaged weights"
    for name in ("rslora", "dora"):
        if config["network"][name]:
            yield f"network.{name}=true: networks.lora there has no such thing"
    if train["max_steps"] is not None:
        yield f"train.epochs={train['epochs']}: max_train_steps alone decides there"
    if config["loss"]["zero_terminal_snr"]:
        yield (
            "loss.zero_terminal_snr: weights by SNR and previews use the schedule without it there"
        )
    render = config["render"]
    if render["enabled"] and render["sampler"] not in _SAMPLERS:
        yield f"render.sampler={render['sampler']}: previews are drawn with DDIM there"


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


def _literal(value: Any) -> str:
    """Return a value as the Python literal that kohya's trainer reads, without spaces."""
    if isinstance(value, list | tuple):
        return ",".join(_literal(item) for item in value)
    return repr(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
