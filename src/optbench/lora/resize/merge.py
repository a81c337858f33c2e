"""Merge several LoRAs into their exact weighted sum: their factors side by side.

sum_i w_i scale_i up_i @ down_i is one product: [w_1 scale_1 up_1, w_2 scale_2 up_2, ...] times the
downs below each other, whose dim is the sum of the dims. No cross terms, nothing rounded away;
cutting it to a smaller dim is then the same step as for a single LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from optbench.errors import ConfigError, OptbenchError, Problem, shorten
from optbench.lora.file import LoraFile
from optbench.lora.keys import DOWN, UP, ModuleShape, plain
from optbench.lora.svd import Factors


def check_sources(groups: Sequence[Sequence[Path]]) -> None:
    """Read every file once, and see that files of one group can be merged.

    Raises:
        ConfigError: With everything that is wrong with any of them, together.
    """
    problems: list[Problem] = []
    bad: set[Path] = set()
    for path in dict.fromkeys(path for group in groups for path in group):
        try:
            LoraFile(path).check_finite()
        except OptbenchError as error:
            problems += error.problems
            bad.add(path)
    for group in dict.fromkeys(map(tuple, groups)):
        if len(group) > 1 and bad.isdisjoint(group):
            try:
                merged_modules([LoraFile(path) for path in group])
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*problems)


def merged_modules(files: Sequence[LoraFile]) -> dict[str, ModuleShape]:
    """Return every layer that any of the files has, sorted, with the sum of its dims.

    Raises:
        ConfigError: If a layer's inputs, outputs or kernel differ between files; names them.
    """
    modules: dict[str, ModuleShape] = {}
    unlike: list[str] = []
    for name in sorted({name for file in files for name in file.modules}):
        shapes = [file.modules[name] for file in files if name in file.modules]
        first, dim = shapes[0], sum(shape.dim for shape in shapes)
        if any(
            (shape.up[0], plain(shape.down)[1:]) != (first.up[0], plain(first.down)[1:])
            for shape in shapes[1:]
        ):
            unlike.append(f"{name} {', '.join(f'{shape.up} {shape.down}' for shape in shapes)}")
        modules[name] = ModuleShape(
            name=name,
            up=(first.up[0], dim, *first.up[2:]),
            down=(dim, *first.down[1:]),
            has_alpha=True,
        )
    if unlike:
        raise ConfigError(
            Problem(
                " and ".join(str(file.path) for file in files),
                f"layers of different sizes: {shorten(unlike, most=3)}",
                "LoRAs of one family: all SD1.x, all SD2 or all SDXL",
                "merge LoRAs that were trained on the same kind of base",
            )
        )
    return modules


def layer_factors(file: LoraFile, name: str) -> Factors:
    """Return one layer of a file; 16-bit and 8-bit weights become float32, exactly."""
    weights = (file.tensor(name + suffix) for suffix in (UP, DOWN))
    up, down = (weight if weight.dtype == torch.float64 else weight.float() for weight in weights)
    return Factors(up=up, down=down, alpha=file.alpha(name))


def merged_factors(name: str, files: Sequence[LoraFile], weights: Sequence[float]) -> Factors:
    """Return one layer of the weighted sum; its scale is 1, so alpha is its dim."""
    ups: list[torch.Tensor] = []
    downs: list[torch.Tensor] = []
    for file, weight in zip(files, weights, strict=True):
        if name in file.modules:
            factors = layer_factors(file, name)
            up, down = factors.up * (weight * factors.scale), factors.down
            # A 1x1 convolution in one file may be a linear layer in another: as in the first.
            ups.append(up.view(up.shape[:2] + ups[0].shape[2:]) if ups else up)
            downs.append(down.view(down.shape[:2] + downs[0].shape[2:]) if downs else down)
    down = torch.cat(downs)
    return Factors(up=torch.cat(ups, dim=1), down=down, alpha=float(len(down)))
