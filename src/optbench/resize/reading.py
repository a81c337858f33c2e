"""A LoRA file as its layers, one at a time and never all in memory; other forms are refused.

Read are the files of kohya's trainer for SD1.x, SD2 and SDXL: linear layers and convolutions of
any kernel, any floating-point dtype, with or without alphas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import SafetensorError, safe_open

from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.lowrank import Factors

_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_NUM_LENGTH_BYTES = 8  # a safetensors file opens with its header's length
_MAX_NAMED = 5
# Part of a key -> the form of adapter it belongs to; none of them is a plain product up @ down.
_OTHER_FORMS: Final = {
    ".dora_scale": "DoRA",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".lora_mid.": "LoCon with a Tucker core",
    ".oft_": "OFT",
    ".on_input": "(IA)^3",
    ".a1.weight": "GLoRA",
    ".diff": "full weight differences",
    ".lora_A.": "LoRA in PEFT's or diffusers' key names",
    ".lora.down.": "LoRA in diffusers' older key names",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShape:
    """One LoRA layer as the header of its file describes it."""

    name: str
    up: tuple[int, ...]  # (O, R) or (O, R, 1, 1)
    down: tuple[int, ...]  # (R, I) or (R, I, kernel, kernel)
    has_alpha: bool

    @property
    def dim(self) -> int:
        """The layer's dim."""
        return self.down[0]

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution, of any kernel."""
        return len(self.down) > 2


@final
class LoraFile:
    """An open LoRA file: its metadata, its layers, and what else lies in it."""

    def __init__(self, path: Path, handle: Any) -> None:
        """Look at the header; `open_lora` is the way to get one."""
        self._handle = handle
        self.path: Path = path
        self.metadata: dict[str, str] = dict(handle.metadata() or {})
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in sorted(handle.keys())}
        problems = _refusals(shapes, where=str(path))
        if problems:
            raise ConfigError(*problems)
        self.modules: dict[str, ModuleShape] = _modules(shapes)
        own = {key for name in self.modules for key in _keys(name)}
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
        up, down = (_widened(self.tensor(name + suffix)) for suffix in (_UP, _DOWN))
        alpha = float(self.tensor(name + _ALPHA)) if module.has_alpha else float(module.dim)
        return Factors(up=up, down=down, alpha=alpha)

    def check_finite(self) -> None:
        """Read every tensor once.

        Raises:
            DamagedFileError: If any holds NaN or infinity; names them.
        """
        keys = [*self.others, *(key for module in self.modules.values() for key in _stored(module))]
        broken = [key for key in keys if not _is_finite(self.tensor(key))]
        if broken:
            raise DamagedFileError(
                Problem(
                    found=f"NaN or infinity in {_named(broken, len(keys))}",
                    expected="finite numbers only",
                    where=str(self.path),
                    fix="use an earlier epoch's file; this one was saved after its training "
                    "diverged",
                )
            )


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
        raise _unreadable(path, error) from error
    with handle as opened:
        yield LoraFile(path, opened)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _is_finite(tensor: torch.Tensor) -> bool:
    # torch looks for NaN in 16 bits as they are; 8 bits it cannot read at all.
    return bool((_widened(tensor) if tensor.itemsize == 1 else tensor).isfinite().all())


def _keys(name: str) -> tuple[str, str, str]:
    return name + _ALPHA, name + _DOWN, name + _UP


def _stored(module: ModuleShape) -> tuple[str, ...]:
    return _keys(module.name)[0 if module.has_alpha else 1 :]


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, ModuleShape]:
    names = [key.removesuffix(_DOWN) for key in shapes if key.endswith(_DOWN)]
    return {
        name: ModuleShape(
            name=name,
            up=shapes[name + _UP],
            down=shapes[name + _DOWN],
            has_alpha=name + _ALPHA in shapes,
        )
        for name in names
    }


def _refusals(shapes: Mapping[str, tuple[int, ...]], *, where: str) -> list[Problem]:
    """Return everything that keeps a file from being read as plain LoRA layers."""
    found: list[tuple[str, list[str]]] = [
        (f"{form}, a form of adapter that is not one product up @ down,", keys)
        for mark, form in _OTHER_FORMS.items()
        if (keys := [key for key in shapes if mark in key])
    ]
    if found:
        return [_refusal(what, keys, len(shapes), where) for what, keys in found]
    downs = {key.removesuffix(_DOWN) for key in shapes if key.endswith(_DOWN)}
    ups = {key.removesuffix(_UP) for key in shapes if key.endswith(_UP)}
    alphas = {key.removesuffix(_ALPHA) for key in shapes if key.endswith(_ALPHA)}
    if not downs | ups:
        return [_refusal("no LoRA layer at all", sorted(shapes), len(shapes), where)]
    whole = downs & ups
    unlike = [
        f"{name} {shapes[name + _DOWN]} and {shapes[name + _UP]}"
        for name in sorted(whole)
        if not _fit(shapes[name + _DOWN], shapes[name + _UP])
    ]
    complaints = {
        "a lora_down without its lora_up": sorted(downs - ups),
        "a lora_up without its lora_down": sorted(ups - downs),
        "an alpha without its layer": sorted(alphas - whole - (downs ^ ups)),
        "down and up weights that do not fit together": unlike,
        "an alpha of more than one number": sorted(
            name for name in alphas if math.prod(shapes[name + _ALPHA]) != 1
        ),
    }
    return [_refusal(what, keys, len(shapes), where) for what, keys in complaints.items() if keys]


def _fit(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Return whether two shapes are those of a linear layer or of a convolution, and not empty."""
    if len(down) not in (2, 4) or len(up) != len(down) or 0 in (*down, *up):
        return False
    return up[1] == down[0] and all(size == 1 for size in up[2:])


def _refusal(what: str, keys: Sequence[str], num_all: int, where: str) -> Problem:
    return Problem(
        found=f"{what} in {_named(keys, num_all)}",
        expected="LoRA layers as kohya's trainer writes them: NAME.lora_down.weight with "
        "NAME.lora_up.weight, and NAME.alpha or none",
        where=where,
        fix="give a LoRA or LoCon file; other forms of adapter cannot be resized this way",
    )


def _unreadable(path: Path, error: Exception) -> DamagedFileError:
    """Return the refusal of a file that cannot be opened; names the tensor in which it ends."""
    found = f"{type(error).__name__}: {error}"
    if path.is_file() and (cut := _cut_tensor(path)):
        found = f"a file that ends inside {cut}"
    return DamagedFileError(
        Problem(
            found=found,
            expected="a whole safetensors file",
            where=str(path),
            fix="check the path, or copy the file again; one that was cut short cannot be repaired",
        )
    )


def _cut_tensor(path: Path) -> str:
    """Return what a file that was cut short ends in, or nothing if that is not what is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_NUM_LENGTH_BYTES), "little")
        start = _NUM_LENGTH_BYTES + length
        if size < start:
            return "its header" if size <= _NUM_LENGTH_BYTES or file.read(1) == b"{" else ""
        try:
            header = json.loads(file.read(length))
            ends = {
                str(name): start + int(entry["data_offsets"][1])
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return ""
    cut = sorted((end, name) for name, end in ends.items() if end > size)
    return f"{cut[0][1]} ({size:,} of {cut[-1][0]:,} bytes are there)" if cut else ""


def _named(names: Sequence[str], num_all: int) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{len(names)} of {num_all} tensors: {', '.join(names[:_MAX_NAMED])}{more}"
