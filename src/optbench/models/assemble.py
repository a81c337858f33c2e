"""Build a model from its config and fill it from a file, tensor by tensor, in its final dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from optbench.models.tensors import SafetensorsFiles, TensorSource, model_files
from optbench.storage.disk import read_text

_FIRST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """Where one weight of a model comes from: a tensor of the file, or a piece of it."""

    name: str
    third: int | None = None  # of a tensor that holds query, key and value behind one another
    is_transposed: bool = False


# A weight's name -> where it may be in a file; the first place that the file has counts.
Sources = Callable[[str], Sequence[TensorPart]]


def same_name(name: str) -> Sequence[TensorPart]:
    """Return the place of a weight in a file that uses the model's own names."""
    return (TensorPart(name=name),)


def assemble(
    build: Callable[[], nn.Module],
    source: TensorSource,
    sources: Sources,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """Return the model with every weight from `source`, on `device` in `dtype`, channels last.

    Nothing is allocated twice: the model is built without memory, and each weight is put in place
    as it is read.

    Raises:
        ValueError: If a weight is missing or has another shape; names the first ones.
    """
    # Buffers are small, computed, and in no file.
    with init_empty_weights(include_buffers=False):
        model = build()
    missing: list[str] = []
    misshapen: list[str] = []
    for name, weight in list(model.named_parameters()):
        part = next((part for part in sources(name) if part.name in source.shapes), None)
        if part is None:
            missing.append(name)
            continue
        value = _piece(source.read(part.name), part, weight.shape)
        if value is None:
            shape = "x".join(map(str, source.shapes[part.name]))
            expected = "x".join(map(str, weight.shape))
            misshapen.append(f"{part.name} of {shape} where {expected} is expected")
            continue
        layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        copy = torch.empty(value.shape, dtype=dtype, device=device, memory_format=layout)
        _put(model, name, copy.copy_(value))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, for instance {missing[0]}")
    if misshapen:
        raise ValueError("; ".join(misshapen[:_FIRST_NAMED]))
    for name, buffer in list(model.named_buffers()):
        _put(model, name, buffer.to(device), is_buffer=True)
    return model.eval().requires_grad_(False)


def assemble_folder(
    kind: Any,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    sources: Sources = same_name,
) -> Any:
    """Return the diffusers or transformers model that save_pretrained wrote into a folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: If config or weights are missing or damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    config = read_config(folder / "config.json")
    source = SafetensorsFiles(model_files(folder))
    return assemble(lambda: built(kind, config), source, sources, device=device, dtype=dtype)


def built(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a diffusers or transformers model of a config, its weights drawn or empty."""
    if hasattr(kind, "config_class") and kind.config_class is not None:
        return kind(kind.config_class.from_dict(dict(config)))
    return kind.from_config(dict(config))


def read_config(file: Path) -> dict[str, Any]:
    """Return a model's config.

    Raises:
        OSError, ValueError: If it is missing or no JSON object.
    """
    config = json.loads(read_text(file))
    if not isinstance(config, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return config


def _piece(value: Tensor, part: TensorPart, shape: torch.Size) -> Tensor | None:
    """Return the piece of a tensor that a weight is made of, or None if it does not fit."""
    if part.third is not None:
        if value.shape[0] % 3:
            return None
        value = value.chunk(3)[part.third]
    if part.is_transposed:
        value = value.T
    # A 1x1 convolution and a linear layer are one thing under two names.
    is_pointwise = {value.dim(), len(shape)} == {2, 4} and value.numel() == shape.numel()
    if is_pointwise and tuple(value.shape[:2]) == tuple(shape[:2]):
        value = value.reshape(shape)
    return value if value.shape == shape else None


def _put(model: nn.Module, name: str, value: Tensor, *, is_buffer: bool = False) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if is_buffer:
        module._buffers[last] = value
    else:
        module._parameters[last] = nn.Parameter(value, requires_grad=False)
