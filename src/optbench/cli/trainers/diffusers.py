"""A run for the example scripts of diffusers, text-to-image with a LoRA."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from optbench.cli.trainers.exported import Exported, Run

_PROGRAMS = {"sdxl": "train_text_to_image_lora_sdxl.py"}
_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts")
_ADAMW_ARGS = {
    "weight_decay": "adam_weight_decay",
    "eps": "adam_epsilon",
}


def export(run: Run) -> Exported:
    """Return a script that starts diffusers' text-to-image script with a LoRA."""
    words = [shlex.quote(word) for word in _words(run)]
    run.say_base()
    run.say_unless()
    program = _PROGRAMS.get(run.get("base.family"), "train_text_to_image_lora.py")
    command = [f"accelerate launch {program} \\", "  " + " \\\n  ".join(words)]
    return run.script("diffusers (examples/text_to_image)", {}, command)


def _words(run: Run) -> Iterator[str]:
    train, network, loss, base = (run.get(key) for key in ("train", "network", "loss", "base"))
    is_sdxl = base["family"] == "sdxl"
    yield f"--pretrained_model_name_or_path={base['path']}"
    if base["vae"] and is_sdxl:
        yield f"--pretrained_vae_model_name_or_path={base['vae']}"
    elif base["vae"]:
        run.lost.append(f"base.vae={base['vae']}: the checkpoint's own there")
    yield from _data(run)
    yield f"--train_batch_size={train['batch_size']}"
    yield f"--gradient_accumulation_steps={train['gradient_accumulation']}"
    if train["max_steps"] is None:
        yield f"--num_train_epochs={train['epochs']}"
    else:
        yield f"--max_train_steps={run.steps('diffusers')}"
    yield f"--mixed_precision={train['mixed_precision']}"
    yield f"--max_grad_norm={train['max_grad_norm'] or 1e9:g}"
    yield f"--seed={run.get('seed') % 2**32}"
    if train["gradient_checkpointing"]:
        yield "--gradient_checkpointing"
    if train["clip_skip"] != 1 and not is_sdxl:
        run.lost.append(f"train.clip_skip={train['clip_skip']}: the last layer there")
    yield f"--rank={network['dim']}"
    if network["alpha"] != network["dim"]:
        run.lost.append(f"network.alpha={network['alpha']}: it is the rank there")
    for key in ("conv_dim", "dropout", "weights"):
        if network[key]:
            run.lost.append(f"network.{key}={network[key]}: no such setting there")
    if network["dora"]:
        run.lost.append("network.dora=true: no such setting there")
    run.lost.append("layers: to_q, to_k, to_v and to_out alone get a LoRA there")
    if network["train_text_encoder"] and is_sdxl:
        yield "--train_text_encoder"
    elif network["train_text_encoder"]:
        run.lost.append("network.train_text_encoder=true: the unet alone there")
    for key in ("debiased_estimation_loss", "zero_terminal_snr", "min_timestep", "max_timestep"):
        if loss[key]:
            run.lost.append(f"loss.{key}={loss[key]}: no such setting there")
    if loss["loss_type"] != "l2":
        run.lost.append(f"loss.loss_type={loss['loss_type']}: the squared error there")
    if loss["min_snr_gamma"]:
        yield f"--snr_gamma={loss['min_snr_gamma']}"
    if loss["noise_offset"]:
        yield f"--noise_offset={loss['noise_offset']}"
    if base["v_parameterization"] is not None:
        yield f"--prediction_type={'v_prediction' if base['v_parameterization'] else 'epsilon'}"
    yield from _optimizer(run)
    if prompts := run.prompts():
        yield f"--validation_prompt={' '.join(prompts[0]['text'].split())}"
    yield f"--output_dir={run.name}"


def _data(run: Run) -> Iterator[str]:
    dataset = run.get("dataset")
    width, height = dataset["resolution"]
    yield f"--train_data_dir={dataset['dir']}"
    yield f"--resolution={round((width * height) ** 0.5)}"
    run.lost.append("dataset.enable_bucket: every image is cropped to a square there")
    run.lost.append(
        f"dataset.dir={dataset['dir']}: an imagefolder there; write metadata.jsonl into it, lines "
        '{"file_name": "01.png", "text": "..."}, for it reads no caption files and no repeats'
    )
    if not dataset["random_crop"]:
        yield "--center_crop"
    if dataset["flip_aug"]:
        yield "--random_flip"
    for key in ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "reg_dir"):
        if dataset[key]:
            run.lost.append(f"dataset.{key}={dataset[key]}: no such setting there")


def _optimizer(run: Run) -> Iterator[str]:
    optimizer, schedule = run.get("optimizer"), run.get("lr_scheduler")
    unet, text, lr = run.rates
    if unet != lr or (run.get("network.train_text_encoder") and text != lr):
        run.lost.append(f"optimizer.unet_lr={unet:g}: one rate there, the unet's is written")
    yield f"--learning_rate={unet!r}"
    if optimizer["name"] not in ("adamw", "adamw8bit"):
        run.lost.append(f"optimizer={optimizer['name']}: AdamW alone there")
    else:
        if optimizer["name"] == "adamw8bit":
            yield "--use_8bit_adam"
        for key, value in optimizer["args"].items():
            if key == "betas":
                yield from (f"--adam_beta1={value[0]}", f"--adam_beta2={value[1]}")
            elif key in _ADAMW_ARGS:
                yield f"--{_ADAMW_ARGS[key]}={value}"
    kind, warmup = schedule["name"], schedule["warmup_steps"]
    if kind not in _SCHEDULES:
        run.lost.append(f"lr_scheduler={kind}: no such schedule there; constant is written")
        kind, warmup = "constant", 0
    if kind == "cosine_with_restarts" and schedule["num_cycles"] != 1:
        run.lost.append(f"lr_scheduler.num_cycles={schedule['num_cycles']}: one cycle there")
    if 0 < warmup < 1:
        warmup = int(warmup * run.steps("diffusers"))
    yield f"--lr_scheduler={kind}"
    yield f"--lr_warmup_steps={int(warmup)}"
