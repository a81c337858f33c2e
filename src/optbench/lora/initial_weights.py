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

import yaml

from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.lora import keys as lora_keys
from optbench.lora.file import LoraFile
from optbench.lora.keys import ALPHA, ModuleShape, keys_of
from optbench.records import LoraSite, Part
from optbench.schema import NetworkOptions
from optbench.storage import resources

METADATA_KEY = "optbench.continued_from"
_FINGERPRINT_LENGTH = 16
_PREFIXES: Mapping[str, Part] = {"lora_unet_": "unet", "lora_te": "text_encoder"}
PART_WORDS: Mapping[Part, str] = {"unet": "unet", "text_encoder": "text encoder"}
_DTYPES = ("F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")


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
    file = LoraFile(path)
    if problems := _unknown(file):
        raise ConfigError(*problems)
    file.check_finite()
    model_hash = hashlib.sha256(file.data()).hexdigest()
    entries = [
        (key, {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.offsets})
        for key, entry in file.entries.items()
    ]
    described = json.dumps([model_hash, entries])
    return StartingLora(
        path=path,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:_FINGERPRINT_LENGTH],
        model_hash=model_hash,
        name=file.metadata.get("ss_output_name") or path.stem,
        layers={
            name: LayerSize(
                dim=module.dim,
                alpha=file.alpha(name),
                is_window=math.prod(module.down[2:]) > 1,
                rounding=file.entries[name + ALPHA].dtype if module.has_alpha else "",
            )
            for name, module in file.modules.items()
        },
        shapes=file.modules,
    )


def _unknown(file: LoraFile) -> list[Problem]:
    """Return what a network of ours has no place for: other keys, other dtypes."""
    of_parts = {key for name in file.modules if part_of(name) for key in keys_of(name)}
    complaints = {
        "keys of neither unet nor text encoder": [
            key for key in file.entries if key not in of_parts
        ],
        f"another dtype than {', '.join(_DTYPES)}": [
            key for key, entry in file.entries.items() if entry.dtype not in _DTYPES
        ],
    }
    return [
        Problem(
            str(file.path),
            f"{what} in {lora_keys.named(keys, len(file.entries))}",
            "lora_unet_* and lora_te_* layers in 32, 16 or 8-bit floats",
            "give a LoRA that kohya's trainer or optbench made for the family of this base",
        )
        for what, keys in complaints.items()
        if keys
    ]


def trained_parts(options: NetworkOptions) -> list[Part]:
    """Return the parts of the base that these settings train."""
    is_on = {"unet": options.train_unet, "text_encoder": options.train_text_encoder}
    return [part for part in _PREFIXES.values() if is_on[part]]


def _largest(sizes: Sequence[LayerSize]) -> LayerSize | None:
    return max(sizes, key=lambda size: (size.dim, size.alpha), default=None)


def _is_folder(path: Path) -> Problem:
    files = sorted((path / "lora").glob("*.safetensors"), key=lambda one: (len(one.name), one.name))
    return Problem(
        "network.weights",
        f"{path}, a folder",
        "one LoRA file",
        f"write network.weights={files[0] if files else path / 'FILE.safetensors'}",
    )


def _no_file(path: Path) -> Problem:
    return Problem(
        "network.weights",
        f"{path}, where there is none",
        "a LoRA file to continue from",
        f"write network.weights=FILE.safetensors, relative to {Path.cwd()} or absolute",
    )


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
    file = resources.conf_dir() / "network" / f"{options.name}.yaml"
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
            f"network.{key}",
            (
                f"{getattr(options, key)} while network.dim_from_weights takes every size from "
                f"{Path(options.weights or '').name}"
            ),
            "no size of its own",
            f"leave network.{key} out, or write network.dim_from_weights=false",
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
        f"network.{keys[0]}",
        f"{asked}, and in {start.path.name} {shown}",
        "the sizes of the LoRA that is continued",
        fix,
    )


def _named_by(weights: str, problem: Problem) -> Problem:
    """Return a file's problem under the setting that names the file, so that it is found."""
    if problem.where == "network.weights":
        return problem
    return dataclasses.replace(problem, where=f"network.weights ({weights})")


def _part_missing(part: Part, start: StartingLora) -> Problem:
    return Problem(
        f"network.train_{part}",
        f"no layer of the {PART_WORDS[part]} in {start.path.name}",
        "every part that is trained, because a part cannot continue from nothing",
        f"write network.train_{part}=false to continue what is there",
    )


def _no_dora() -> Problem:
    return Problem(
        "network.dora",
        "true with network.weights",
        (
            "a plain LoRA to be continued as one: the lengths that DoRA learns are in no such "
            "file, and would begin where the weights do not stand"
        ),
        "write network.dora=false, or leave network.weights out",
    )


def _no_weights() -> Problem:
    return Problem(
        "network.dim_from_weights",
        "true without network.weights",
        "a LoRA file with it, because alone it has no effect",
        "add network.weights=FILE.safetensors",
    )


def check_layers(
    sites: Mapping[str, LoraSite], base: str, options: NetworkOptions, start: StartingLora
) -> list[Problem]:
    """Return a problem if the base has no place for a layer of the file, or one of another size.

    Args:
        sites: The layers of the base by kohya's name; empty where its headers do not tell.
        base: The base's name.
        options: Which parts are trained.
        start: What is continued.
    """
    shapes = {name: _of_weight(start.shapes[name]) for name in start.of_parts(options)}
    if not sites:
        return []
    return lora_keys.misfits(
        [name for name in shapes if name not in sites],
        [
            f"{name} for {shape} in a layer of {sites[name].shape}"
            for name, shape in shapes.items()
            if name in sites and shape != sites[name].shape
        ],
        len(shapes),
        base=base,
        where="network.weights",
        fix="choose the base this LoRA was trained on, or a LoRA of this base's family",
    )


def _of_weight(module: ModuleShape) -> tuple[int, ...]:
    """Return the shape of the weight that a layer of the file changes."""
    return (module.up[0], *module.down[1:])
