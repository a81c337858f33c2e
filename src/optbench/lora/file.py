"""One LoRA file: safetensors with kohya's keys and hashes, written whole or not at all.

Equal tensors and equal metadata give an identical file, byte for byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from optbench.errors import ConfigError, DamagedFileError, DivergedError, Problem
from optbench.lora import keys as lora_keys
from optbench.lora.keys import ALPHA, DOWN, UP, ModuleShape, keys_of
from optbench.lora.svd import Factors
from optbench.schema import SavePrecision
from optbench.storage.files import write_pieces

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
_NUM_LENGTH_BYTES = 8  # a safetensors file opens with its header's length
_LEGACY_RANGE_BYTES = slice(0x100000, 0x110000)
_MAX_NAMED = 5


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    precision: SavePrecision,
    metadata: Mapping[str, str],
) -> str:
    """Write one LoRA file whole, or leave what was there before; return its SHA-256 in hex.

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
    return write_pieces(path, itertools.chain([header], _pieces(tensors, names, precision)))


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
                str(path),
                f"{type(error).__name__}: {error}",
                "a whole safetensors file",
                "copy or train the file again; a file that was cut short cannot be repaired",
            )
        ) from error
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise DamagedFileError(
            Problem(
                str(path),
                f"NaN or infinity in {_named(broken, len(tensors))}",
                "finite numbers only",
                "use an earlier epoch's file; this one was saved after its training diverged",
            )
        )
    length = int.from_bytes(blob[:_NUM_LENGTH_BYTES], "little")
    header = json.loads(blob[_NUM_LENGTH_BYTES : _NUM_LENGTH_BYTES + length])
    return tensors, header.get("__metadata__") or {}


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
                where,
                f"NaN or infinity in {_named(broken, len(tensors))}",
                "finite weights",
                "the training diverged: lower optimizer.lr or lr_mult",
            )
        )
    if overflown:
        problems.append(
            Problem(
                where,
                f"values too large for {precision} in {_named(overflown, len(tensors))}",
                f"at most {torch.finfo(DTYPES[precision]).max:g}",
                "set train.save_precision=bf16 or float, or lower optimizer.lr",
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


@final
class LoraFile:
    """An open LoRA file: its metadata, its layers, and what else lies in it."""

    def __init__(self, path: Path, handle: Any) -> None:
        """Look at the header; `open_lora` is the way to get one."""
        self._handle = handle
        self.path: Path = path
        self.metadata: dict[str, str] = dict(handle.metadata() or {})
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in sorted(handle.keys())}
        problems = lora_keys.refusals_of(shapes, where=str(path))
        if problems:
            raise ConfigError(*problems)
        self.modules: dict[str, ModuleShape] = lora_keys.modules_of(shapes)
        own = {key for name in self.modules for key in keys_of(name)}
        self.others: tuple[str, ...] = tuple(key for key in shapes if key not in own)

    def tensor(self, key: str) -> torch.Tensor:
        """Return one tensor as it lies in the file."""
        tensor: torch.Tensor = self._handle.get_tensor(key)
        return tensor

    def factors(self, name: str) -> Factors:
        """Return one layer; without an alpha in the file, alpha is the dim, as every reader has it.

        16-bit and 8-bit weights become float32, exactly.
        """
        module = self.modules[name]
        up, down = (_widened(self.tensor(name + suffix)) for suffix in (UP, DOWN))
        alpha = float(self.tensor(name + ALPHA)) if module.has_alpha else float(module.dim)
        return Factors(up=up, down=down, alpha=alpha)

    def check_finite(self) -> None:
        """Read every tensor once.

        Raises:
            DamagedFileError: If any holds NaN or infinity; names them.
        """
        keys = [*self.others, *(key for module in self.modules.values() for key in _stored(module))]
        broken = [key for key in keys if not _is_finite_stored(self.tensor(key))]
        if broken:
            raise lora_keys.not_finite(broken, len(keys), where=str(self.path))


@contextmanager
def open_lora(path: Path) -> Iterator[LoraFile]:
    """Return a context with an open LoRA file; only its header is read yet.

    Raises:
        DamagedFileError: If the file is absent, cut short or no safetensors file.
        ConfigError: If it holds another kind of adapter, or layers that do not fit together.
    """
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise lora_keys.unreadable(path, error) from error
    with handle as opened:
        yield LoraFile(path, opened)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _is_finite_stored(tensor: torch.Tensor) -> bool:
    # torch looks for NaN in 16 bits as they are; 8 bits it cannot read at all.
    return bool((_widened(tensor) if tensor.itemsize == 1 else tensor).isfinite().all())


def _stored(module: ModuleShape) -> tuple[str, ...]:
    return keys_of(module.name)[0 if module.has_alpha else 1 :]
