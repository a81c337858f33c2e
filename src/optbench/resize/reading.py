"""A LoRA file as its layers, one at a time and never all in memory; other forms are refused.

Read are the files of kohya's trainer for SD1.x, SD2 and SDXL: linear layers and convolutions of
any kernel, any floating-point dtype, with or without alphas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open

from optbench import lora_layout
from optbench.errors import ConfigError
from optbench.lora_layout import ALPHA, DOWN, UP, ModuleShape, keys_of
from optbench.lowrank import Factors


@final
class LoraFile:
    """An open LoRA file: its metadata, its layers, and what else lies in it."""

    def __init__(self, path: Path, handle: Any) -> None:
        """Look at the header; `open_lora` is the way to get one."""
        self._handle = handle
        self.path: Path = path
        self.metadata: dict[str, str] = dict(handle.metadata() or {})
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in sorted(handle.keys())}
        problems = lora_layout.refusals_of(shapes, where=str(path))
        if problems:
            raise ConfigError(*problems)
        self.modules: dict[str, ModuleShape] = lora_layout.modules_of(shapes)
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
        broken = [key for key in keys if not _is_finite(self.tensor(key))]
        if broken:
            raise lora_layout.not_finite(broken, len(keys), where=str(self.path))


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
        raise lora_layout.unreadable(path, error) from error
    with handle as opened:
        yield LoraFile(path, opened)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def _is_finite(tensor: torch.Tensor) -> bool:
    # torch looks for NaN in 16 bits as they are; 8 bits it cannot read at all.
    return bool((_widened(tensor) if tensor.itemsize == 1 else tensor).isfinite().all())


def _stored(module: ModuleShape) -> tuple[str, ...]:
    return keys_of(module.name)[0 if module.has_alpha else 1 :]
