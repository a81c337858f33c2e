"""Merge adapter files of anyone's into a base for a while, and check that their layers fit it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from optbench.errors import ConfigError, OptbenchError, Problem, shorten
from optbench.lora import keys as lora_keys
from optbench.lora.adapters.formats import AdapterLayer, has_axes, layers_of
from optbench.lora.adapters.formulas import change, lengths_by, product
from optbench.lora.file import SafetensorsFile
from optbench.lora.layer import supported
from optbench.records import LoraTarget


@final
class AdapterFile(SafetensorsFile):
    """An open adapter file: its metadata and its layers, read one at a time."""

    def __init__(self, path: Path, *, allow_others: bool = False) -> None:
        """Read the header.

        Args:
            path: The file.
            allow_others: Pass over tensors that belong to no layer, instead of refusing the file.

        Raises:
            DamagedFileError: If the file is absent, cut short or no safetensors file.
            ConfigError: If it holds a form that is not read, or layers that do not fit together.
        """
        super().__init__(path)
        self.layers, problems = layers_of(
            self.shapes, self.metadata, where=str(path), allow_others=allow_others
        )
        problems += self._unfitting()
        if problems:
            raise ConfigError(*problems)
        self.notices: tuple[str, ...] = (
            *lora_keys.embedding_notices(self.shapes, where=path.name),
            *self._without_scale(),
        )

    def size(self, layer: AdapterLayer, kernel: Sequence[int] = ()) -> tuple[int, int] | None:
        """Return outputs O and inputs K of the weight that a layer changes; None if of none."""
        parts = {
            part: torch.empty(self.shapes[key], device="meta") for part, key in layer.keys.items()
        }
        try:
            outputs, inputs = product(layer.form, parts, kernel).shape
        except (IndexError, RuntimeError, ValueError):
            return None
        return outputs, inputs

    def fits(self, layer: AdapterLayer, weight: Tensor) -> bool:
        """Return whether a layer is one of this weight's."""
        if self.size(layer, weight.shape[2:]) != (len(weight), weight[0].numel()):
            return False
        if "lengths" not in layer.keys:
            return True
        shape = self.shapes[layer.keys["lengths"]]
        num_lengths: int = weight.shape[0 if lengths_by(layer, shape) == "output" else 1]
        return bool(math.prod(shape) == num_lengths)

    def change(self, layer: AdapterLayer, weight: Tensor) -> Tensor:
        """Return what a layer's float32 weight changes by; read now, in float32."""
        parts = {
            part: self.tensor(key).to(weight.device, torch.float32)
            for part, key in layer.keys.items()
        }
        return change(layer, parts, weight)

    def _without_scale(self) -> tuple[str, ...]:
        """Return a sentence on layers of PEFT whose scale the file does not say."""
        silent = [
            layer.name
            for layer in self.layers.values()
            if layer.is_peft and layer.scale is None and "alpha" not in layer.keys
            if any(".lora_A." in key for key in layer.keys.values())
        ]
        if not silent:
            return ()
        return (
            f"{self.path.name}: no scale for "
            f"{lora_keys.count_and_names(silent, len(self.layers), 'layers')}; it is taken as 1, "
            "as diffusers does (PEFT keeps lora_alpha / r beside the file, in adapter_config.json)",
        )

    def _unfitting(self) -> list[Problem]:
        """Return a problem if parts of a layer do not fit together."""
        unlike = [
            f"{layer.name} {', '.join(str(self.shapes[key]) for key in layer.keys.values())}"
            for layer in self.layers.values()
            if not all(has_axes(part, self.shapes[key]) for part, key in layer.keys.items())
            or self.size(layer) is None
        ]
        if not unlike:
            return []
        return [
            Problem(
                str(self.path),
                (
                    f"parts that do not fit together in "
                    f"{lora_keys.count_and_names(unlike, len(self.layers), 'layers')}"
                ),
                "down and up weights, or factors, of one dim",
                "copy the file again, or use another one",
            )
        ]


def check_adapters(paths: Sequence[Path]) -> None:
    """Read every file once.

    Raises:
        ConfigError: With everything that is wrong with any of them, together.
    """
    problems: list[Problem] = []
    for path in dict.fromkeys(paths):
        try:
            AdapterFile(path).check_finite()
        except OptbenchError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def read_clip_skip(path: Path) -> int:
    """Return the clip skip that a file says it was trained with; 1 where it says nothing."""
    return lora_keys.clip_skip_of(AdapterFile(path).metadata)


def misfits(
    targets: Sequence[LoraTarget],
    file: AdapterFile,
    *,
    base: str,
    fix: str = "give the base it was trained on, for instance base=sd15 base.path=FOLDER",
) -> list[Problem]:
    """Return a problem if a layer of a file has no place in the base, or one of another size."""
    places = _places(targets)
    strange, unlike = [], []
    names_of: dict[str, list[str]] = {}
    for name, layer in file.layers.items():
        if name in places:
            names_of.setdefault(places[name].name, []).append(name)
        if name not in places:
            strange.append(name)
            continue
        weight = supported(places[name].module).weight
        if not file.fits(layer, weight):
            unlike.append(f"{name} for {file.size(layer)} in a layer of {tuple(weight.shape)}")
    twice = [" and ".join(names) for names in names_of.values() if len(names) > 1]
    if twice:
        found = f"a layer named in two ways: {shorten(twice)}"
        which = "use a file that has each layer once; which of the two is meant, nobody can tell"
        return [Problem(str(file.path), found, "every layer under one name", which)]
    return lora_keys.misfits(
        strange,
        unlike,
        len(file.layers),
        base=base,
        where=str(file.path),
        fix=fix,
    )


@contextlib.contextmanager
def applied(
    targets: Sequence[LoraTarget], adapters: Sequence[tuple[AdapterFile, float]]
) -> Iterator[None]:
    """Context manager: the base's weights hold W + sum_i strength_i change_i(W).

    Every change is that of the base's own weight, whatever stands beside it, as in A1111. Sums are
    formed in float32 and rounded to the base's dtype; the weights come back bit for bit. Call
    `misfits` first.
    """
    places, originals = _places(targets), list[tuple[Tensor, Tensor]]()
    by_target: dict[str, list[tuple[AdapterFile, AdapterLayer, float]]] = {}
    try:
        with torch.no_grad():
            for file, strength in adapters:
                for name, layer in file.layers.items():
                    by_target.setdefault(places[name].name, []).append((file, layer, strength))
            for target in targets:
                if target.name in by_target:
                    weight = supported(target.module).weight
                    summed = _summed(weight, by_target[target.name])
                    originals.append((weight, weight.data))
                    weight.data = torch.empty_like(weight).copy_(summed)
        yield
    finally:
        for weight, original in reversed(originals):
            weight.data = original


def _summed(weight: Tensor, added: Sequence[tuple[AdapterFile, AdapterLayer, float]]) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):
        original = weight.float()
        changes = [file.change(layer, original) * strength for file, layer, strength in added]
        return original + sum(changes[1:], changes[0])


def _places(targets: Sequence[LoraTarget]) -> Mapping[str, LoraTarget]:
    """Return the base's layers by every name that files have for them."""
    by_name: dict[str, LoraTarget] = {}
    for target in targets:
        if path := target.diffusers_path:
            underscored = path.replace(".", "_")
            by_name[path] = by_name[f"lora_{underscored}"] = target
            # transformers 5 writes a text encoder's paths without the level that others have.
            by_name[path.replace(".text_model.", ".")] = target
        by_name[target.name] = target
    return by_name
