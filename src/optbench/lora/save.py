"""Write one LoRA file: safetensors with kohya's keys and hashes, whole or not at all.

Equal tensors and equal metadata give an identical file, byte for byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optbench.errors import DivergedError, Problem
from optbench.lora.keys import count_and_names
from optbench.schema import SavePrecision
from optbench.storage.files import write_pieces
from optbench.storage.hashing import KOHYA_HASH_RANGE, kohya_hash
from optbench.storage.safetensors_header import NUM_LENGTH_BYTES

DTYPES: Mapping[SavePrecision, torch.dtype] = {
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_NAMES: Mapping[SavePrecision, str] = {"float": "F32", "fp16": "F16", "bf16": "BF16"}


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    precision: SavePrecision,
    metadata: Mapping[str, str],
) -> str:
    """Write one LoRA file whole, or leave the earlier one; return its SHA-256 in hex.

    Every tensor is cast, alphas too, as kohya's trainer does. The two hashes that A1111 and its
    extensions look for are added to `metadata`: SHA-256 of all tensors, and the older hash of a
    fixed range of a file that carries the ss_* metadata alone. Tensors are cast one at a time, so
    that saving needs no second copy of a large network.

    Raises:
        DivergedError: If a tensor holds NaN or infinity, or would after the cast.
    """
    dtype = DTYPES[precision]
    _check_finite(tensors, where=str(path), precision=precision)
    names = sorted(tensors)  # the order of the library itself, for tensors of one dtype
    entries: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * dtype.itemsize
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": _NAMES[precision], "shape": shape, "data_offsets": [start, end]}
    beginning = bytearray()  # as much of the tensors as the older hash may reach
    digest = hashlib.sha256()
    for piece in _pieces(tensors, names, dtype):
        digest.update(piece)
        beginning += piece[: KOHYA_HASH_RANGE.stop - len(beginning)]
    of_kohya = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    hashed_file = _header(entries, of_kohya) + bytes(beginning)
    hashes = {
        "sshs_model_hash": digest.hexdigest(),
        "sshs_legacy_hash": kohya_hash(hashed_file[KOHYA_HASH_RANGE]),
    }
    header = _header(entries, {**metadata, **hashes})
    return write_pieces(path, itertools.chain([header], _pieces(tensors, names, dtype)))


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinity; 8-bit floats are read as well."""
    return not tensor.is_floating_point() or bool(tensor.detach().float().isfinite().all())


def _check_finite(tensors: Mapping[str, Tensor], *, where: str, precision: SavePrecision) -> None:
    dtype = DTYPES[precision]
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    overflown = [
        name
        for name, tensor in tensors.items()
        if name not in broken and not is_finite(tensor.detach().to(dtype))
    ]
    problems = []
    if broken:
        problems.append(
            Problem(
                where,
                f"NaN or infinity in {count_and_names(broken, len(tensors))}",
                "finite weights",
                "the training diverged: lower optimizer.lr or lr_mult",
            )
        )
    if overflown:
        problems.append(
            Problem(
                where,
                f"values too large for {precision} in {count_and_names(overflown, len(tensors))}",
                f"at most {torch.finfo(dtype).max:g}",
                "set train.save_precision=bf16 or float, or lower optimizer.lr",
            )
        )
    if problems:
        raise DivergedError(*problems)


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file's first part, with its length and sorted metadata."""
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    content = {"__metadata__": dict(sorted(metadata.items())), **tensors}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % NUM_LENGTH_BYTES)  # so that the tensors start aligned
    return len(text).to_bytes(NUM_LENGTH_BYTES, "little") + text


def _pieces(
    tensors: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype
) -> Iterator[memoryview]:
    """Yield the bytes of every tensor after the cast, little-endian, row by row."""
    for name in names:
        cast = tensors[name].detach().to("cpu", dtype).contiguous()
        yield cast.flatten().view(torch.uint8).numpy().data
