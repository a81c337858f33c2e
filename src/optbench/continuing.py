"""The LoRA file a training continues from (`network.weights`): read, judged and named, torch-free.

Everything that can be wrong with the file or between it and the network's settings is said before
a base is loaded. Which layers the base offers, only the base knows: `warmstart` compares those.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from optbench import lora_layout
from optbench.errors import ConfigError, Problem
from optbench.lora_layout import ALPHA, NUM_LENGTH_BYTES, ModuleShape, keys_of
from optbench.options import NetworkOptions
from optbench.records import Part

METADATA_KEY = "optbench.continued_from"
_FINGERPRINT_LENGTH = 16
_PREFIXES: Mapping[str, Part] = {"lora_unet_": "unet", "lora_te": "text_encoder"}
PART_WORDS: Mapping[Part, str] = {"unet": "unet", "text_encoder": "text encoder"}
# Safetensors' name -> numpy's, and the bits that are all set where a number is not finite; numpy
# knows neither bfloat16 nor 8-bit floats.
_FLOATS: Mapping[str, tuple[str, int]] = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """The dim and alpha that a layer has in the file."""

    dim: int
    alpha: float
    is_window: bool  # a convolution over more than one pixel: sized by conv_dim
    rounding: str  # the file's dtype of alpha; "" where the file has none and alpha is dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingLora:
    """A LoRA file to continue from."""

    path: Path
    fingerprint: str  # hex; changes with any tensor's name, shape, dtype or bytes
    model_hash: str  # kohya's sshs_model_hash of the file as it is
    name: str  # that its own metadata gives it, else the file's
    layers: Mapping[str, LayerSize]
    shapes: Mapping[str, ModuleShape]

    def of_parts(self, options: NetworkOptions) -> dict[str, LayerSize]:
        """Return the layers of those parts that are trained; only they are continued."""
        trained = trained_parts(options)
        return {name: size for name, size in self.layers.items() if part_of(name) in trained}


def part_of(name: str) -> Part | None:
    """Return the part of a base that a layer of kohya's name belongs to."""
    return next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), None)


def starting_lora(options: NetworkOptions) -> StartingLora | None:
    """Return what the settings continue from, None for a fresh LoRA; reads every tensor once.

    Raises:
        DamagedFileError: If the file is absent, cut short, or holds NaN or infinity.
        ConfigError: If it is another kind of adapter than kohya's LoRA.
    """
    if options.weights is None:
        return None
    path = Path(options.weights)
    if path.is_dir():
        raise ConfigError(_is_folder(path))
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(_no_file(path)) from error
    return _read(path, (stat.st_size, stat.st_mtime_ns))


def sized_by_file(options: NetworkOptions) -> NetworkOptions:
    """Return the settings with the file's dims and alphas, where `dim_from_weights` asks for that.

    Of a file whose layers differ, those of its largest layer; every layer keeps its own.
    """
    start = starting_lora(options) if options.dim_from_weights else None
    if start is None:
        return options
    sizes = list(start.of_parts(options).values())
    plain = _largest([size for size in sizes if not size.is_window])
    window = _largest([size for size in sizes if size.is_window])
    return dataclasses.replace(
        options,
        dim=(plain or sizes[0]).dim,
        alpha=(plain or sizes[0]).alpha,
        conv_dim=None if window is None else window.dim,
        conv_alpha=None if window is None else window.alpha,
    )


def start_sentences(options: NetworkOptions, start: StartingLora | None) -> tuple[str, ...]:
    """Return what is to be said of a start: which LoRA it is, and what of it is left out."""
    if start is None:
        return ()
    kept, trained = start.of_parts(options), trained_parts(options)
    said = [f"continues {start.name}: {len(kept)} layers of {start.path.name}"]
    if num_lost := len(start.layers) - len(kept):
        parts = [PART_WORDS[part] for part in _PREFIXES.values() if part not in trained]
        said.append(
            f"{num_lost} layers of the {' and '.join(parts)} in {start.path.name} are not "
            "continued and not in the new LoRA, because that part is not trained"
        )
    return tuple(said)


def start_metadata(start: StartingLora | None) -> dict[str, str]:
    """Return what a file says about the one it continues; kohya's trainer has no key for it."""
    if start is None:
        return {}
    said = {"name": start.name, "sshs_model_hash": start.model_hash}
    return {METADATA_KEY: json.dumps(said)}


@functools.lru_cache(maxsize=16)
def _read(path: Path, _stamp: tuple[int, int]) -> StartingLora:
    try:
        # The library's own reader proves the header; tensors it cannot give without torch.
        with safe_open(path, framework="numpy") as handle:
            metadata = dict(handle.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise lora_layout.unreadable(path, error) from error
    entries, start = _entries(path)
    shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
    problems = lora_layout.refusals_of(shapes, where=str(path)) or _unknown(entries, path)
    if problems:
        raise ConfigError(*problems)
    blob = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
    broken = [key for key, entry in entries.items() if not _is_finite(_numbers(blob, entry))]
    if broken:
        raise lora_layout.not_finite(broken, len(entries), where=str(path))
    model_hash = hashlib.sha256(blob.data).hexdigest()
    named = json.dumps([model_hash, sorted(entries.items())])
    return StartingLora(
        path=path,
        fingerprint=hashlib.sha256(named.encode()).hexdigest()[:_FINGERPRINT_LENGTH],
        model_hash=model_hash,
        name=metadata.get("ss_output_name") or path.stem,
        layers=_layers(shapes, entries, blob),
        shapes=lora_layout.modules_of(shapes),
    )


def _entries(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return what the header says of every tensor, by key, and where the tensors begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(NUM_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return dict(sorted(header.items())), NUM_LENGTH_BYTES + length


def _unknown(entries: Mapping[str, Mapping[str, Any]], path: Path) -> list[Problem]:
    """Return what a network of ours has no place for: other keys, other dtypes."""
    layers = lora_layout.modules_of({key: tuple(one["shape"]) for key, one in entries.items()})
    own = {key for name in layers if part_of(name) for key in keys_of(name)}
    complaints = {
        "keys of neither unet nor text encoder": [key for key in entries if key not in own],
        f"another dtype than {', '.join(_FLOATS)}": [
            key for key, entry in entries.items() if entry["dtype"] not in _FLOATS
        ],
    }
    return [
        Problem(
            found=f"{what} in {lora_layout.named(keys, len(entries))}",
            expected="lora_unet_* and lora_te_* layers in 32, 16 or 8-bit floats",
            where=str(path),
            fix="give a LoRA that kohya's trainer or optbench made for the family of this base",
        )
        for what, keys in complaints.items()
        if keys
    ]


def _numbers(blob: Any, entry: Mapping[str, Any]) -> Any:
    """Return a tensor's numbers as unsigned integers of their width, with their exponents' bits."""
    kind, mask = _FLOATS[entry["dtype"]]
    first, last = entry["data_offsets"]
    return blob[first:last].view(kind), mask


def _is_finite(numbers: tuple[Any, int]) -> bool:
    bits, mask = numbers
    return not bool(((bits & mask) == mask).any())


def _layers(
    shapes: Mapping[str, tuple[int, ...]], entries: Mapping[str, Mapping[str, Any]], blob: Any
) -> dict[str, LayerSize]:
    found = {}
    for name, module in lora_layout.modules_of(shapes).items():
        entry = entries[name + ALPHA] if module.has_alpha else None
        found[name] = LayerSize(
            dim=module.dim,
            alpha=float(module.dim) if entry is None else _number(blob, entry),
            is_window=math.prod(module.down[2:]) > 1,
            rounding="" if entry is None else entry["dtype"],
        )
    return found


def _number(blob: Any, entry: Mapping[str, Any]) -> float:
    """Return the one number of a tensor, exactly."""
    bits = int(_numbers(blob, entry)[0].reshape(-1)[0])
    kind = entry["dtype"]
    if kind == "F32":
        return float(np.uint32(bits).view(np.float32))
    if kind == "F16":
        return float(np.uint16(bits).view(np.float16))
    if kind == "BF16":
        return float(np.uint32(bits << 16).view(np.float32))
    if kind == "F8_E5M2":
        return float(np.uint16(bits << 8).view(np.float16))
    sign, exponent, fraction = -1.0 if bits & 0x80 else 1.0, bits >> 3 & 0xF, bits & 0x7
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return sign * size


def trained_parts(options: NetworkOptions) -> list[Part]:
    """Return the parts of the base that these settings train."""
    is_on = {"unet": options.train_unet, "text_encoder": options.train_text_encoder}
    return [part for part in _PREFIXES.values() if is_on[part]]


def _largest(sizes: Sequence[LayerSize]) -> LayerSize | None:
    return max(sizes, key=lambda size: (size.dim, size.alpha), default=None)


def _is_folder(path: Path) -> Problem:
    files = sorted((path / "lora").glob("*.safetensors"), key=lambda one: (len(one.name), one.name))
    return Problem(
        found=f"{path}, a folder",
        expected="one LoRA file",
        where="network.weights",
        fix=f"write network.weights={files[0] if files else path / 'FILE.safetensors'}",
    )


def _no_file(path: Path) -> Problem:
    return Problem(
        found=f"{path}, where there is none",
        expected="a LoRA file to continue from",
        where="network.weights",
        fix=f"write network.weights=FILE.safetensors, relative to {Path.cwd()} or absolute",
    )
