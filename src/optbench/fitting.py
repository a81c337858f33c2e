"""Whether a network's settings can continue a LoRA file: everything that keeps them from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from optbench import paths
from optbench.continuing import (
    PART_WORDS,
    LayerSize,
    StartingLora,
    part_of,
    sized_by_file,
    starting_lora,
    trained_parts,
)
from optbench.errors import OptbenchError, Problem
from optbench.options import NetworkOptions
from optbench.records import Part

_MAX_SIZES = 3
_SIZES = ("dim", "alpha", "conv_dim", "conv_alpha")
_BLOCK_SIZES = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


def check_start(options: NetworkOptions) -> list[Problem]:
    """Return everything that keeps the network of these settings from continuing its file."""
    if options.weights is None:
        return [_no_weights()] if options.dim_from_weights else []
    if options.dora:
        return [_no_dora()]
    try:
        start = starting_lora(options)
    except OptbenchError as error:
        return [_named_by(options.weights, problem) for problem in error.problems]
    assert start is not None
    problems = [
        _part_missing(part, start)
        for part in trained_parts(options)
        if not any(part_of(name) == part for name in start.layers)
    ]
    if problems:
        return problems
    return _sizes_given(options) if options.dim_from_weights else _misfits(options, start)


def is_rounded(alpha: float, size: LayerSize) -> bool:
    """Return whether an alpha, written in the file's precision, is what the file holds."""
    if not size.rounding or size.alpha == alpha:
        return size.alpha == alpha
    # Half a unit in the last place of 24, 11, 8, 4 and 3 bits.
    spread = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4}
    return abs(size.alpha - alpha) <= spread.get(size.rounding, 2.0**-3) * abs(alpha)


def _misfits(options: NetworkOptions, start: StartingLora) -> list[Problem]:
    """Return a problem for each kind of layer whose size the settings do not share."""
    if any(getattr(options, key) for key in _BLOCK_SIZES):
        return []  # which layer is in which block, the loaded base tells
    sizes = list(start.of_parts(options).values())
    plain = [size for size in sizes if not size.is_window]
    window = [size for size in sizes if size.is_window]
    problems = []
    asked = f"network.dim={options.dim} network.alpha={options.alpha:g}"
    asked += " network.rslora=true" if options.rslora else ""
    if not all(_has_size(size, options.dim, options.alpha, options) for size in plain):
        keys = ("dim", "alpha")
        problems.append(_other_size(asked, plain, start, keys, rslora=options.rslora))
    if options.conv_dim is None or options.conv_alpha is None:
        asked, is_fit = "no network.conv_dim", not window
    else:
        asked = f"network.conv_dim={options.conv_dim} network.conv_alpha={options.conv_alpha:g}"
        fits = [_has_size(size, options.conv_dim, options.conv_alpha, options) for size in window]
        is_fit = bool(window) and all(fits)
    if not is_fit:
        keys = ("conv_dim", "conv_alpha")
        problems.append(_other_size(asked, window, start, keys, rslora=options.rslora))
    return problems


def _has_size(size: LayerSize, dim: int, alpha: float, options: NetworkOptions) -> bool:
    # A file says rsLoRA's scale in its alpha, as every reader computes it.
    said = alpha * math.sqrt(dim) if options.rslora else alpha
    return size.dim == dim and is_rounded(said, size)


def _sizes_given(options: NetworkOptions) -> list[Problem]:
    """Return a problem for every size that was asked for and that the file's would replace."""
    keys = [key for key in (*_BLOCK_SIZES, "rslora") if getattr(options, key)]
    file = paths.conf_dir() / "network" / f"{options.name}.yaml"
    if file.is_file():  # else an option of one's own: what it says is not known to be typed
        shipped = yaml.safe_load(file.read_text(encoding="utf-8"))
        shipped["alpha"] = options.dim / 2  # computed there
        taken = sized_by_file(options)
        keys += [
            key
            for key in _SIZES
            if getattr(options, key) not in (shipped[key], getattr(taken, key))
        ]
    return [
        Problem(
            found=f"{getattr(options, key)} while network.dim_from_weights takes every size from "
            f"{Path(options.weights or '').name}",
            expected="no size of its own",
            where=f"network.{key}",
            fix=f"leave network.{key} out, or write network.dim_from_weights=false",
        )
        for key in keys
    ]


def _other_size(
    asked: str,
    sizes: Sequence[LayerSize],
    start: StartingLora,
    keys: tuple[str, str],
    *,
    rslora: bool,
) -> Problem:
    found = sorted({(size.dim, size.alpha) for size in sizes}, reverse=True)
    shown = ", ".join(f"dim {dim} alpha {alpha:g}" for dim, alpha in found[:_MAX_SIZES])
    shown += f" and {len(found) - _MAX_SIZES} other sizes" if len(found) > _MAX_SIZES else ""
    if any(not size.rounding for size in sizes):
        shown += " (without alphas in the file, which means alpha = dim)"
    fix = "write network.dim_from_weights=true"
    fix += " network.rslora=false" if rslora else ""
    if not found:
        shown = "no 3x3 layer"
        fix = f"write network.{keys[0]}=null network.{keys[1]}=null"
    elif len(found) == 1 and not rslora:
        fix = f"write network.{keys[0]}={found[0][0]} network.{keys[1]}={found[0][1]:g}, or "
        fix += "network.dim_from_weights=true"
    return Problem(
        found=f"{asked}, and in {start.path.name} {shown}",
        expected="the sizes of the LoRA that is continued",
        where=f"network.{keys[0]}",
        fix=fix,
    )


def _named_by(weights: str, problem: Problem) -> Problem:
    """Return a file's problem under the setting that names the file, so that it is found."""
    if problem.where == "network.weights":
        return problem
    return dataclasses.replace(problem, where=f"network.weights ({weights})")


def _part_missing(part: Part, start: StartingLora) -> Problem:
    return Problem(
        found=f"no layer of the {PART_WORDS[part]} in {start.path.name}",
        expected="every part that is trained, because a part cannot continue from nothing",
        where=f"network.train_{part}",
        fix=f"write network.train_{part}=false to continue what is there",
    )


def _no_dora() -> Problem:
    return Problem(
        found="true with network.weights",
        expected="a plain LoRA to be continued as one: the lengths that DoRA learns are in no such "
        "file, and would begin where the weights do not stand",
        where="network.dora",
        fix="write network.dora=false, or leave network.weights out",
    )


def _no_weights() -> Problem:
    return Problem(
        found="true without network.weights",
        expected="a LoRA file with it, because alone it has no effect",
        where="network.dim_from_weights",
        fix="add network.weights=FILE.safetensors",
    )
