"""Write the metadata of a LoRA file: how it was trained, in the keys of kohya's trainer.

Loaders tell the model's family by it, A1111 and its extensions show it, and people read it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.lora.blocks import spelled_blocks
from optbench.records import CaptionedImage, ImageFolder, ModelVersion
from optbench.schema import (
    PIECE_TOKENS,
    DatasetOptions,
    LossOptions,
    LrSchedulerOptions,
    NetworkOptions,
    OptimizerOptions,
    TrainOptions,
)

# What readers of `modelspec.architecture` expect (modelspec 1.0.1).
_ARCHITECTURES: Mapping[ModelVersion, str] = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v1_v": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
}
_SGM = "https://github.com/Stability-AI/generative-models"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCard:
    """All that the metadata of a LoRA file is made from."""

    name: str  # of the run
    model_version: ModelVersion
    prediction: str  # modelspec's word: epsilon, v
    num_timesteps: int
    files: Mapping[str, str]  # the base's names and hashes under kohya's keys
    seed: int
    lr_mult: float
    epoch: int  # epochs trained so far
    step: int  # steps trained so far
    num_epochs: int
    num_steps: int
    num_batches_per_epoch: int
    images: Sequence[CaptionedImage]
    folders: Sequence[ImageFolder]
    dataset: DatasetOptions
    network: NetworkOptions
    optimizer: OptimizerOptions
    lr_scheduler: LrSchedulerOptions
    train: TrainOptions
    loss: LossOptions


def kohya_metadata(card: LoraCard) -> dict[str, str]:
    """Return the ss_* and modelspec.* strings that kohya's trainer would write for this run.

    Left out is what we do not know, and what would make two equal runs' files differ: the times
    of day, the session id and the date.
    """
    return {
        **_model_metadata(card),
        **_dataset_metadata(card),
        **_training_metadata(card),
        **_loss_metadata(card),
        **_network_metadata(card.network),
    }


def _model_metadata(card: LoraCard) -> dict[str, str]:
    is_sdxl = card.model_version.startswith("sdxl_")
    width, height = card.dataset.resolution
    token_length = card.train.max_token_length
    values: dict[str, object] = {
        "ss_output_name": card.name,
        **card.files,
        "ss_base_model_version": card.model_version,
        "ss_v2": card.model_version.startswith("sd_v2"),
        "ss_clip_skip": card.train.clip_skip,
        "ss_max_token_length": None if token_length == PIECE_TOKENS else token_length,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _ARCHITECTURES[card.model_version],
        "modelspec.implementation": _SGM if is_sdxl else "diffusers",
        "modelspec.title": card.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": card.prediction,
        "modelspec.encoder_layer": card.train.clip_skip,
    }
    return _strings(values)


def _dataset_metadata(card: LoraCard) -> dict[str, str]:
    options = card.dataset
    tags: dict[str, Counter[str]] = {}
    for image in card.images:
        folder = image.path.parent.name
        # Once per image, whatever its repeats (kohya).
        words = filter(None, map(str.strip, image.caption.lower().split(",")))
        tags.setdefault(folder, Counter()).update(words)
    values: dict[str, object] = {
        "ss_num_train_images": _num_uses(card, is_regularization=False),
        "ss_num_reg_images": _num_uses(card, is_regularization=True),
        "ss_resolution": tuple(options.resolution),
        "ss_enable_bucket": options.enable_bucket,
        "ss_bucket_no_upscale": options.bucket_no_upscale,
        "ss_min_bucket_reso": options.min_bucket_reso,
        "ss_max_bucket_reso": options.max_bucket_reso,
        "ss_shuffle_caption": options.shuffle_caption,
        "ss_keep_tokens": options.keep_tokens,
        "ss_caption_dropout_rate": options.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": options.caption_dropout_every_n_epochs,
        "ss_caption_tag_dropout_rate": options.caption_tag_dropout_rate,
        "ss_flip_aug": options.flip_aug,
        "ss_color_aug": options.color_aug,
        "ss_random_crop": options.random_crop,
        "ss_cache_latents": not (options.color_aug or options.random_crop),
        "ss_dataset_dirs": json.dumps(_folders(card, is_regularization=False)),
        "ss_reg_dataset_dirs": json.dumps(_folders(card, is_regularization=True)),
        "ss_tag_frequency": json.dumps(tags),
    }
    if options.enable_bucket:
        values["ss_bucket_info"] = json.dumps(_bucket_info(card.images))
    return _strings(values)


def _num_uses(card: LoraCard, *, is_regularization: bool) -> int:
    """Return images times repeats as the folders say; kohya counts before it balances."""
    return sum(
        folder.repeats * folder.num_images
        for folder in card.folders
        if folder.is_regularization == is_regularization
    )


def _folders(card: LoraCard, *, is_regularization: bool) -> dict[str, dict[str, int]]:
    return {
        folder.name: {"n_repeats": folder.repeats, "img_count": folder.num_images}
        for folder in card.folders
        if folder.is_regularization == is_regularization
    }


def _bucket_info(images: Sequence[CaptionedImage]) -> dict[str, Any]:
    """Return each bucket's size and number of uses, and how far the aspect ratios are off."""
    counts: Counter[tuple[int, int]] = Counter()
    for image in images:
        counts[image.bucket] += image.repeats
    errors = [
        abs(image.bucket[0] / image.bucket[1] - image.width / image.height) for image in images
    ]
    buckets = {
        str(index): {"resolution": list(bucket), "count": counts[bucket]}
        for index, bucket in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}


def _training_metadata(card: LoraCard) -> dict[str, str]:
    optimizer, train, warmup_steps = card.optimizer, card.train, card.lr_scheduler.warmup_steps
    rates = {
        name: None if rate is None else rate * card.lr_mult
        for name, rate in (("unet_lr", optimizer.unet_lr), ("te_lr", optimizer.text_encoder_lr))
    }
    # A YAML list is written as the tuple that kohya's users know: betas=(0.9, 0.99).
    arguments = ",".join(
        f"{name}={tuple(value) if isinstance(value, list) else value}"
        for name, value in optimizer.args.items()
    )
    return _strings(
        {
            "ss_seed": card.seed,
            "ss_epoch": card.epoch,
            "ss_steps": card.step,
            "ss_num_epochs": card.num_epochs,
            "ss_max_train_steps": card.num_steps,
            "ss_num_batches_per_epoch": card.num_batches_per_epoch,
            "ss_batch_size_per_device": train.batch_size,
            "ss_total_batch_size": train.batch_size * train.gradient_accumulation,
            "ss_gradient_accumulation_steps": train.gradient_accumulation,
            "ss_gradient_checkpointing": train.gradient_checkpointing,
            "ss_mixed_precision": train.mixed_precision,
            "ss_full_fp16": False,
            "ss_max_grad_norm": train.max_grad_norm,
            "ss_optimizer": f"{optimizer.target}({arguments})",
            "ss_learning_rate": None if optimizer.lr is None else optimizer.lr * card.lr_mult,
            "ss_unet_lr": rates["unet_lr"],
            "ss_text_encoder_lr": rates["te_lr"],
            "ss_lr_scheduler": card.lr_scheduler.name,
            # Kohya reads a float as a fraction of all steps and an integer as steps.
            "ss_lr_warmup_steps": int(warmup_steps) if warmup_steps >= 1 else warmup_steps,
        }
    )


def _loss_metadata(card: LoraCard) -> dict[str, str]:
    options = card.loss
    last = options.max_timestep
    values: dict[str, object] = {
        "ss_loss_type": options.loss_type,
        "ss_huber_schedule": options.huber_schedule,
        "ss_huber_c": options.huber_c,
        "ss_huber_scale": options.huber_scale,
        "ss_min_snr_gamma": options.min_snr_gamma,
        "ss_debiased_estimation": options.debiased_estimation_loss,
        "ss_noise_offset": options.noise_offset,
        "ss_noise_offset_random_strength": options.noise_offset_random_strength,
        "ss_adaptive_noise_scale": options.adaptive_noise_scale,
        "ss_multires_noise_iterations": options.multires_noise_iterations,
        "ss_multires_noise_discount": options.multires_noise_discount,
        "ss_ip_noise_gamma": options.ip_noise_gamma,
        "ss_ip_noise_gamma_random_strength": options.ip_noise_gamma_random_strength,
        "ss_zero_terminal_snr": options.zero_terminal_snr,
        "ss_prior_loss_weight": options.prior_loss_weight,
        # Kohya writes no word on these three, which change what is learnt as well.
        "ss_scale_v_pred_loss_like_noise_pred": options.scale_v_pred_loss_like_noise_pred,
        "ss_v_pred_like_loss": options.v_pred_like_loss,
        "ss_v_parameterization": card.prediction == "v",
    }
    if options.min_timestep > 0 or last is not None:
        values["modelspec.timestep_range"] = f"{options.min_timestep},{last or card.num_timesteps}"
    return _strings(values)


def _network_metadata(options: NetworkOptions) -> dict[str, str]:
    values: dict[str, object] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": options.dim,
        "ss_network_alpha": options.alpha,
        "ss_network_dropout": options.dropout,
        "ss_scale_weight_norms": options.scale_weight_norms,
    }
    arguments = {
        "conv_dim": options.conv_dim,
        "conv_alpha": options.conv_alpha if options.conv_dim is not None else None,
        "rank_dropout": options.rank_dropout or None,
        "module_dropout": options.module_dropout or None,
        **spelled_blocks(options),
        "rs_lora": options.rslora or None,
        "dora_wd": options.dora or None,
    }
    written = {name: str(value) for name, value in arguments.items() if value is not None}
    if written:
        values["ss_network_args"] = json.dumps(written)
    return _strings(values)


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
