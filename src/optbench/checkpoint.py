"""One LoRA file: safetensors with kohya's keys, hashes and metadata, written whole or not at all.

Equal tensors and equal metadata give an identical file, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from optbench.blocks import spelled_blocks
from optbench.errors import DamagedFileError, DivergedError, Problem
from optbench.options import (
    BaseOptions,
    DatasetOptions,
    LrSchedulerOptions,
    NetworkOptions,
    OptimizerOptions,
    SavePrecision,
    TrainOptions,
)
from optbench.records import CaptionedImage

ModelVersion = Literal["sd_v1", "sd_v1_v", "sd_v2", "sd_v2_v", "sdxl_base_v1-0"]

DTYPES: Mapping[SavePrecision, torch.dtype] = {
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_NAMES: Mapping[torch.dtype, str] = {  # as a safetensors header spells them
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# What readers of `modelspec.architecture` expect (modelspec 1.0.1).
_ARCHITECTURES: Mapping[ModelVersion, str] = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v1_v": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
}
_SGM = "https://github.com/Stability-AI/generative-models"
_NUM_LENGTH_BYTES = 8  # a safetensors file opens with its header's length
_LEGACY_RANGE_BYTES = slice(0x100000, 0x110000)
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCard:
    """What a LoRA file says about its own making."""

    name: str  # of the run
    model_version: ModelVersion
    seed: int
    lr_mult: float
    epoch: int  # epochs trained so far
    step: int  # steps trained so far
    num_epochs: int
    num_steps: int
    num_batches_per_epoch: int
    images: Sequence[CaptionedImage]
    base: BaseOptions
    dataset: DatasetOptions
    network: NetworkOptions
    optimizer: OptimizerOptions
    lr_scheduler: LrSchedulerOptions
    train: TrainOptions


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    precision: SavePrecision,
    metadata: Mapping[str, str],
) -> None:
    """Write one LoRA file whole, or leave what was there before.

    Every tensor is cast, alphas too, as kohya's trainer does. The two hashes that A1111 and its
    extensions look for are added to `metadata`. Tensors are cast one at a time, so that saving
    needs no second copy of a large network.

    Raises:
        DivergedError: If a tensor holds NaN or infinity, or would after the cast.
    """
    _check_finite(tensors, where=str(path), precision=precision)
    names = sorted(tensors)  # the order of the library itself, for tensors of one dtype
    entries = _entries(tensors, names, DTYPES[precision])
    start = bytearray()  # as much of the tensors as the older hash may reach
    digest = hashlib.sha256()
    for piece in _pieces(tensors, names, precision):
        digest.update(piece)
        start += piece[: _LEGACY_RANGE_BYTES.stop - len(start)]
    header = _header(entries, _with_hashes(metadata, entries, start, digest.hexdigest()))
    _write_whole(path, header, _pieces(tensors, names, precision))


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, in the dtype of the file, and its metadata.

    Raises:
        DamagedFileError: If the file is absent, cut short or no safetensors file, or if a tensor
            holds NaN or infinity.
    """
    try:
        blob = path.read_bytes()
        tensors = safetensors.torch.load(blob)
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype torch lacks
        raise DamagedFileError(
            Problem(
                found=f"{type(error).__name__}: {error}",
                expected="a whole safetensors file",
                where=str(path),
                fix="copy or train the file again; a file that was cut short cannot be repaired",
            )
        ) from error
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise DamagedFileError(
            Problem(
                found=f"NaN or infinity in {_named(broken, len(tensors))}",
                expected="finite numbers only",
                where=str(path),
                fix="use an earlier epoch's file; this one was saved after its training diverged",
            )
        )
    length = int.from_bytes(blob[:_NUM_LENGTH_BYTES], "little")
    header = json.loads(blob[_NUM_LENGTH_BYTES : _NUM_LENGTH_BYTES + length])
    return tensors, header.get("__metadata__") or {}


def kohya_metadata(card: LoraCard) -> dict[str, str]:
    """Return the ss_* and modelspec.* strings that kohya's trainer would write for this run.

    Left out is what we do not know, and what would make two equal runs' files differ: the times
    of day, the session id and the date.
    """
    return {
        **_model_metadata(card),
        **_dataset_metadata(card),
        **_training_metadata(card),
        **_network_metadata(card.network),
    }


def _model_metadata(card: LoraCard) -> dict[str, str]:
    is_sdxl = card.model_version.startswith("sdxl_")
    width, height = card.dataset.resolution
    values: dict[str, object] = {
        "ss_output_name": card.name,
        "ss_sd_model_name": card.base.name,
        "ss_base_model_version": card.model_version,
        "ss_v2": card.model_version.startswith("sd_v2"),
        "ss_clip_skip": card.train.clip_skip,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _ARCHITECTURES[card.model_version],
        "modelspec.implementation": _SGM if is_sdxl else "diffusers",
        "modelspec.title": card.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": "v" if card.model_version.endswith("_v") else "epsilon",
        "modelspec.encoder_layer": card.train.clip_skip,
    }
    if card.base.vae is not None:
        values["ss_vae_name"] = Path(card.base.vae).name
    return _strings(values)


def _dataset_metadata(card: LoraCard) -> dict[str, str]:
    options = card.dataset
    folders: dict[str, dict[str, int]] = {}
    tags: dict[str, Counter[str]] = {}
    for image in card.images:
        folder = image.path.parent.name
        folders.setdefault(folder, {"n_repeats": image.repeats, "img_count": 0})["img_count"] += 1
        # Once per picture, whatever its repeats (kohya).
        words = [word.strip().lower() for word in image.caption.split(",")]
        tags.setdefault(folder, Counter()).update(word for word in words if word)
    values: dict[str, object] = {
        "ss_num_train_images": sum(image.repeats for image in card.images),
        "ss_num_reg_images": 0,
        "ss_resolution": tuple(options.resolution),
        "ss_enable_bucket": options.enable_bucket,
        "ss_bucket_no_upscale": options.bucket_no_upscale,
        "ss_min_bucket_reso": options.min_bucket_reso,
        "ss_max_bucket_reso": options.max_bucket_reso,
        "ss_shuffle_caption": options.shuffle_caption,
        "ss_keep_tokens": options.keep_tokens,
        "ss_caption_dropout_rate": options.caption_dropout_rate,
        "ss_flip_aug": options.flip_aug,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_cache_latents": True,
        "ss_dataset_dirs": json.dumps(folders),
        "ss_reg_dataset_dirs": json.dumps({}),
        "ss_tag_frequency": json.dumps(tags),
    }
    if options.enable_bucket:
        values["ss_bucket_info"] = json.dumps(_bucket_info(card.images))
    return _strings(values)


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
    arguments = ",".join(f"{name}={_plain(value)}" for name, value in optimizer.args.items())
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
    given = {name: str(value) for name, value in arguments.items() if value is not None}
    if given:
        values["ss_network_args"] = json.dumps(given)
    return _strings(values)


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _plain(value: object) -> object:
    """Return a YAML list as the tuple that kohya's users know: betas=(0.9, 0.99)."""
    return tuple(value) if isinstance(value, list) else value


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file's first part, with its length and sorted metadata."""
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    content = {"__metadata__": dict(sorted(metadata.items())), **tensors}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _NUM_LENGTH_BYTES)  # so that the tensors start aligned
    return len(text).to_bytes(_NUM_LENGTH_BYTES, "little") + text


def _entries(
    tensors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype
) -> dict[str, Any]:
    """Return what a safetensors header says of tensors that lie one behind the other."""
    entries: dict[str, Any] = {}
    start = 0
    for name in names:
        stop = start + tensors[name].numel() * dtype.itemsize
        shape = list(tensors[name].shape)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": shape,
            "data_offsets": [start, stop],
        }
        start = stop
    return entries


def _pieces(
    tensors: Mapping[str, Tensor], names: Sequence[str], precision: SavePrecision
) -> Iterator[memoryview]:
    """Yield the bytes of every tensor after the cast, little-endian, row by row."""
    for name in names:
        cast = tensors[name].detach().to("cpu", DTYPES[precision]).contiguous()
        yield cast.flatten().view(torch.uint8).numpy().data


def _with_hashes(
    metadata: Mapping[str, str], entries: Mapping[str, Any], start: bytearray, model_hash: str
) -> dict[str, str]:
    """Return the metadata with kohya's hash of the tensors and the older one of 64 KiB.

    The older one covers a fixed range of a file that carries the ss_* metadata alone, of which
    `start` is what follows the header.
    """
    kept = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    legacy = hashlib.sha256(
        (_header(entries, kept) + bytes(start))[_LEGACY_RANGE_BYTES]
    ).hexdigest()
    return {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy[:8]}


def _write_whole(path: Path, header: bytes, pieces: Iterable[memoryview]) -> None:
    """Put a file in place in one move, after its bytes are on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(header)
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _check_finite(tensors: Mapping[str, Tensor], *, where: str, precision: SavePrecision) -> None:
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    overflown = [
        name
        for name, tensor in tensors.items()
        if name not in broken and not _is_finite(tensor.detach().to(DTYPES[precision]))
    ]
    problems = []
    if broken:
        problems.append(
            Problem(
                found=f"NaN or infinity in {_named(broken, len(tensors))}",
                expected="finite weights",
                where=where,
                fix="the training diverged: lower optimizer.lr or lr_mult",
            )
        )
    if overflown:
        problems.append(
            Problem(
                found=f"values too large for {precision} in {_named(overflown, len(tensors))}",
                expected=f"at most {torch.finfo(DTYPES[precision]).max:g}",
                where=where,
                fix="set train.save_precision=bf16 or float, or lower optimizer.lr",
            )
        )
    if problems:
        raise DivergedError(*problems)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().float().isfinite().all())


def _named(names: Sequence[str], num_all: int) -> str:
    """Return how many tensors, and the first few names: a diverged network breaks hundreds."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} of {num_all} tensors: {', '.join(names[:_MAX_NAMED])}{more}"
