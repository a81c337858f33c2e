"""Which layers a base offers to a LoRA, under kohya's names, from its files' headers alone.

For bases in diffusers layout whose unet keeps diffusers' names in a LoRA: SD1.x and SD2. So a LoRA
of another base is refused before anything is loaded; other bases tell it once they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from optbench.continuing import StartingLora, part_of
from optbench.errors import Problem
from optbench.lora_layout import NUM_LENGTH_BYTES, ModuleShape, named
from optbench.options import BaseOptions, NetworkOptions

_MAX_HEADER_BYTES = 100_000_000
_WEIGHT = ".weight"
_TEXT_MODEL = "text_model."  # transformers 5 may leave it out of a file
_TEXT_LAYER = re.compile(r"\.(self_attn|mlp)\.")
_UNET_LAYER = re.compile(r"\.attentions\.")
_UNET_CONV = re.compile(r"\.(resnets|downsamplers|upsamplers)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLayer:
    """One layer of a base that may carry a LoRA."""

    shape: tuple[int, ...]  # of its weight: (O, I) or (O, I, kernel, kernel)
    needs_conv_dim: bool


def offered_layers(options: BaseOptions) -> dict[str, OfferedLayer]:
    """Return every layer by kohya's name; nothing where the headers do not tell."""
    folder = Path(options.path)
    found: dict[str, OfferedLayer] = {}
    for key, shape in _weights(folder / "text_encoder"):
        name = _TEXT_MODEL + key.removeprefix(_TEXT_MODEL)
        if _TEXT_LAYER.search(name):
            found[_spelled("lora_te", name)] = OfferedLayer(shape=shape, needs_conv_dim=False)
    for key, shape in _weights(folder / "unet"):
        if _UNET_LAYER.search(key):
            found[_spelled("lora_unet", key)] = OfferedLayer(shape=shape, needs_conv_dim=False)
        elif _UNET_CONV.search(key):
            found[_spelled("lora_unet", key)] = OfferedLayer(shape=shape, needs_conv_dim=True)
    has_both = {part_of(name) for name in found} == {"unet", "text_encoder"}
    return found if has_both and not (folder / "text_encoder_2").exists() else {}


def check_layers(base: BaseOptions, options: NetworkOptions, start: StartingLora) -> list[Problem]:
    """Return a problem for the file's layers that the base has not, or has in another shape."""
    offered = offered_layers(base)
    if not offered:
        return []
    wanted = {name: start.shapes[name] for name in start.of_parts(options)}
    unknown = [name for name in wanted if name not in offered]
    unlike = [
        f"{name} for {_of_weight(shape)} where {base.name} has {offered[name].shape}"
        for name, shape in wanted.items()
        if name in offered and _of_weight(shape) != offered[name].shape
    ]
    complaints = {
        "layers that the base has not": unknown,
        "layers of other shapes than the base's": unlike,
    }
    return [
        Problem(
            found=f"{what} in {start.path.name}: {named(names, len(wanted), 'layers')}",
            expected=f"a LoRA for {base.name}",
            where="network.weights",
            fix="choose the base this LoRA was trained on, or a LoRA of this base's family",
        )
        for what, names in complaints.items()
        if names
    ]


def _of_weight(module: ModuleShape) -> tuple[int, ...]:
    """Return the shape of the weight that a layer of the file changes."""
    return (module.up[0], *module.down[1:])


def _spelled(prefix: str, name: str) -> str:
    return f"{prefix}_{name.removesuffix(_WEIGHT)}".replace(".", "_")


def _weights(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every weight that a linear layer or a convolution can have."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(file).items():
            shape = entry.get("shape", ()) if isinstance(entry, Mapping) else ()
            if name.endswith(_WEIGHT) and len(shape) in (2, 4):
                yield name, tuple(shape)


def _header(file: Path) -> Mapping[str, object]:
    """Return a file's header, or nothing: the base's own reader says what is wrong with it."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(NUM_LENGTH_BYTES), "little")
            header = json.loads(stream.read(length)) if length <= _MAX_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, Mapping) else {}
