"""Read a checkpoint's tensors one at a time, so that loading needs no second copy of it."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from optbench.storage.disk import check_regular, open_regular
from optbench.storage.safetensors_header import TensorEntry, read_header

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorSource(Protocol):
    """Named tensors that are read when they are asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every tensor's shape by its name."""

    def read(self, name: str) -> Tensor:
        """Return one tensor, good until the next is read; it may lie in shared memory."""


class SafetensorsFiles:
    """The tensors of one or several safetensors files (the shards of one model).

    Read through one buffer and not through a memory map: mapped pages stay with the process, and
    would count twice beside weights of another dtype.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers.

        Raises:
            OSError, ValueError: If a file is missing or no whole safetensors file.
        """
        self._places: dict[str, tuple[Path, TensorEntry]] = {}
        for file in files:
            tensors = read_header(file).tensors
            self._places.update((name, (file, entry)) for name, entry in tensors.items())
        self.shapes = {name: entry.shape for name, (_, entry) in self._places.items()}
        largest = max((entry.num_bytes for _, entry in self._places.values()), default=0)
        self._buffer = torch.empty(largest, dtype=torch.uint8)

    def read(self, name: str) -> Tensor:
        """Return one tensor of the buffer that the next one will overwrite."""
        file, entry = self._places[name]
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{name} is in {entry.dtype}, not in floating point")
        view = self._buffer.numpy().data[: entry.num_bytes]
        with open_regular(file) as stream:
            stream.seek(entry.start)
            while view:
                num_read = stream.readinto(view)
                if not num_read:
                    raise ValueError(f"{file} was cut short while it was read")
                view = view[num_read:]
        raw = self._buffer[: entry.num_bytes].view(_DTYPES[entry.dtype])
        return raw.view(entry.shape)


class PickledFile:
    """The tensors of a .ckpt, read without executing anything that is in it."""

    def __init__(self, file: Path) -> None:
        """Map the file into memory.

        Raises:
            ValueError: If it holds more than tensors, or no tensors.
        """
        try:
            content = _load(file)
        except pickle.UnpicklingError as error:
            raise ValueError(
                "a pickle that holds more than tensors; such a file can run programs when it is "
                "opened, so it is not"
            ) from error
        inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        self._tensors = {
            str(name): value for name, value in inner.items() if isinstance(value, Tensor)
        }
        if not self._tensors:
            raise ValueError("a pickle without tensors in it")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor, mapped from the file."""
        return self._tensors[name]


def _load(file: Path) -> Any:
    check_regular(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True)


def model_files(folder: Path) -> list[Path]:
    """Return the weight files of one part of a diffusers folder: one, or the shards of one.

    A folder whose only copy is in half precision gives that one.

    Raises:
        FileNotFoundError: If there is none.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        if (whole := folder / f"{stem}.safetensors").is_file():
            return [whole]
        if shards := sorted(folder.glob(f"{stem}-[0-9]*-of-[0-9]*.safetensors")):
            return shards
        if (half := folder / f"{stem}.fp16.safetensors").is_file():
            return [half]
    raise FileNotFoundError(
        f"no folder {folder}" if not folder.is_dir() else f"no weights in {folder}"
    )
