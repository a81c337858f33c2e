"""Read and judge the LoRA file that a training continues (`network.weights`), torch-free.

Everything that can be wrong with the file, between it and the settings of the network, and between
it and the headers of the base model's files is reported before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.lora import keys as lora_keys
from optbench.lora.blocks import sized_sites
from optbench.lora.file import LoraFile, SafetensorsFile
from optbench.lora.keys import ALPHA, ModuleShape, keys_of
from optbench.records import LoraSite, Part
from optbench.schema import NetworkOptions
from optbench.storage import resources

METADATA_KEY = "optbench.continued_from"
PART_WORDS: Mapping[Part, str] = {"unet": "unet", "text_encoder": "text encoder"}
_FINGERPRINT_LENGTH = 16
_PREFIXES: Mapping[str, Part] = {"lora_unet_": "unet", "lora_te": "text_encoder"}
_DTYPES = ("F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")  # in which some tools write an alpha
_MAX_SIZES = 3
_SIZES = ("dim", "alpha", "conv_dim", "conv_alpha")
_BLOCK_SIZES = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """The dim and alpha that a layer has in the file."""

    dim: int
    alpha: float
    is_window: bool  # a convolution over more than one pixel: sized by conv_dim
    rounding: str  # the file's dtype of alpha; "" where the file has none and alpha is dim


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """A LoRA file that a training continues; its numbers are read when the network is built."""

    path: Path
    fingerprint: str  # hex; changes with any tensor's name, shape, dtype or bytes
    model_hash: str  # kohya's sshs_model_hash of the file as it is
    name: str  # that its own metadata gives it, else the file's
    layers: Mapping[str, LayerSize]
    shapes: Mapping[str, ModuleShape]
    notices: tuple[str, ...] = ()  # sentences on what of it is left out

    def of_parts(self, options: NetworkOptions) -> dict[str, LayerSize]:
        """Return the layers of those parts that are trained; only they are continued."""
        trained = trained_parts(options)
        return {name: size for name, size in self.layers.items() if part_of(name) in trained}


ReadWeights = dict[str, InitialWeights]  # by `network.weights`: each file of a command is read once


def part_of(name: str) -> Part | None:
    """Return the part of a base that a layer of kohya's name belongs to."""
    return next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), None)


def trained_parts(options: NetworkOptions) -> list[Part]:
    """Return the parts of the base that these settings train."""
    is_trained = {"unet": options.train_unet, "text_encoder": options.train_text_encoder}
    return [part for part in _PREFIXES.values() if is_trained[part]]


def initial_weights_of(
    options: NetworkOptions, read: ReadWeights | None = None
) -> InitialWeights | None:
    """Return what the settings continue, None for a fresh LoRA; reads every tensor once.

    Args:
        options: The settings of the network.
        read: Files that were read for other runs of the command; this one joins them.

    Raises:
        DamagedFileError: If the file is cut short, or holds NaN or infinity.
        ConfigError: If there is no file, or it is another kind of adapter than kohya's LoRA.
    """
    if options.weights is None:
        return None
    read = {} if read is None else read
    if options.weights not in read:
        read[options.weights] = _read(Path(options.weights))
    return read[options.weights]


def _read(path: Path) -> InitialWeights:
    if path.is_dir():
        files = (path / "lora").glob("*.safetensors")
        last = min(files, key=lambda file: (len(file.name), file.name), default=None)
        raise ConfigError(
            Problem(
                "network.weights",
                f"{path}, a folder",
                "one LoRA file",
                f"write network.weights={last or path / 'FILE.safetensors'}",
            )
        )
    if not path.exists():
        raise ConfigError(
            Problem(
                "network.weights",
                f"{path}, where there is none",
                "a LoRA file to continue from",
                f"write network.weights=FILE.safetensors, relative to {Path.cwd()} or absolute",
            )
        )
    file = LoraFile(path)
    of_parts = {key for name in file.modules if part_of(name) for key in keys_of(name)}
    complaints = {
        "keys of neither unet nor text encoder": [
            key
            for key in file.entries
            if key not in of_parts and not key.startswith(lora_keys.EMBEDDING)
        ],
        f"another dtype than {', '.join(_DTYPES)}": [
            key
            for key, entry in file.entries.items()
            if entry.dtype not in _DTYPES
            and not (key.endswith(ALPHA) and entry.dtype in _INTEGERS)
            and not key.startswith(lora_keys.EMBEDDING)
        ],
    }
    problems = [
        Problem(
            str(path),
            f"{what} in {lora_keys.count_and_names(keys, len(file.entries))}",
            "lora_unet_* and lora_te_* layers in 32, 16 or 8-bit floats",
            "give a LoRA that kohya's trainer or optbench made for the family of this base",
        )
        for what, keys in complaints.items()
        if keys
    ]
    if problems:
        raise ConfigError(*problems)
    file.check_finite()
    model_hash, fingerprint = fingerprints(file)
    return InitialWeights(
        path=path,
        fingerprint=fingerprint,
        model_hash=model_hash,
        name=file.metadata.get("ss_output_name") or path.stem,
        layers={
            name: LayerSize(
                dim=module.dim,
                alpha=file.alpha(name),
                is_window=math.prod(module.down[2:]) > 1,
                rounding=_rounding(file, name) if module.has_alpha else "",
            )
            for name, module in file.modules.items()
        },
        shapes=file.modules,
        notices=lora_keys.embedding_notices(file.entries, where=path.name),
    )


def _rounding(file: LoraFile, name: str) -> str:
    dtype = file.entries[name + ALPHA].dtype
    return "F32" if dtype in _INTEGERS else dtype  # an integer is exact


def fingerprints(file: SafetensorsFile) -> tuple[str, str]:
    """Return kohya's hash of a file's tensors, and one that changes with names and shapes too."""
    model_hash = hashlib.sha256(file.data()).hexdigest()
    entries = [
        (key, {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.offsets})
        for key, entry in file.entries.items()
    ]
    text = json.dumps([model_hash, entries])
    return model_hash, hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


def sized_by_file(options: NetworkOptions, initial: InitialWeights | None) -> NetworkOptions:
    """Return the settings with the file's dims and alphas, where `dim_from_weights` asks for that.

    Of a file whose layers differ, those of its largest layer; every layer keeps its own.
    """
    if initial is None or not options.dim_from_weights:
        return options
    sizes = sorted(
        initial.of_parts(options).values(), key=lambda size: (size.dim, size.alpha), reverse=True
    )
    window = next((size for size in sizes if size.is_window), None)
    plain = next((size for size in sizes if not size.is_window), sizes[0])
    return dataclasses.replace(
        options,
        dim=plain.dim,
        alpha=plain.alpha,
        conv_dim=None if window is None else window.dim,
        conv_alpha=None if window is None else window.alpha,
    )


def initial_weights_notices(
    options: NetworkOptions, initial: InitialWeights | None
) -> tuple[str, ...]:
    """Return in sentences which LoRA is continued, and what of it is left out."""
    if initial is None:
        return ()
    num_continued = len(initial.of_parts(options))
    notices = [f"continues {initial.name}: {num_continued} layers of {initial.path.name}"]
    notices += initial.notices
    if num_left_out := len(initial.layers) - num_continued:
        trained = trained_parts(options)
        parts = [PART_WORDS[part] for part in _PREFIXES.values() if part not in trained]
        notices.append(
            f"{num_left_out} layers of the {' and '.join(parts)} in {initial.path.name} are not "
            "continued and not in the new LoRA, because that part is not trained"
        )
    return tuple(notices)


def initial_weights_metadata(initial: InitialWeights | None) -> dict[str, str]:
    """Return what a file says about the one it continues; kohya's trainer has no key for it."""
    if initial is None:
        return {}
    return {METADATA_KEY: json.dumps({"name": initial.name, "sshs_model_hash": initial.model_hash})}


def judge_initial_weights(
    options: NetworkOptions, read: ReadWeights | None = None
) -> tuple[InitialWeights | None, list[Problem]]:
    """Return the file that the settings continue, and everything that keeps them from it.

    Args:
        options: The settings of the network.
        read: As `initial_weights_of`.
    """
    if options.weights is None:
        alone = Problem(
            "network.dim_from_weights",
            "true without network.weights",
            "a LoRA file with it, because alone it has no effect",
            "add network.weights=FILE.safetensors",
        )
        return None, [alone] if options.dim_from_weights else []
    if options.dora:
        return None, [
            Problem(
                "network.dora",
                "true with network.weights",
                (
                    "a plain LoRA to be continued as one: the lengths that DoRA learns are in no "
                    "such file, and would begin where the weights do not stand"
                ),
                "write network.dora=false, or leave network.weights out",
            )
        ]
    try:
        initial = initial_weights_of(options, read)
    except OptbenchError as error:
        where = f"network.weights ({options.weights})"
        return None, [
            # Under the setting that names the file, so that it is found.
            problem
            if problem.where == "network.weights"
            else dataclasses.replace(problem, where=where)
            for problem in error.problems
        ]
    assert initial is not None
    problems = [
        Problem(
            f"network.train_{part}",
            f"no layer of the {PART_WORDS[part]} in {initial.path.name}",
            "every part that is trained, because a part cannot continue from nothing",
            f"write network.train_{part}=false to continue what is there",
        )
        for part in trained_parts(options)
        if not any(part_of(name) == part for name in initial.layers)
    ]
    if not problems:
        check = _check_no_sizes if options.dim_from_weights else _check_sizes
        problems = check(options, initial)
    return initial, problems


def check_layers(
    sites: Mapping[str, LoraSite], base: str, options: NetworkOptions, initial: InitialWeights
) -> list[Problem]:
    """Return everything that keeps the network, as the base's headers tell it, from the file.

    Args:
        sites: The layers of the base by kohya's name; empty where its headers do not tell.
        base: The base's name.
        options: Which parts are trained.
        initial: What is continued.
    """
    if not sites:
        return []
    modules = {name: initial.shapes[name] for name in initial.of_parts(options)}
    shapes = {name: (module.up[0], *module.down[1:]) for name, module in modules.items()}
    problems = lora_keys.misfits(
        [name for name in shapes if name not in sites],
        [
            f"{name} for {shape} in a layer of {sites[name].shape}"
            for name, shape in shapes.items()
            if name in sites and lora_keys.plain(shape) != lora_keys.plain(sites[name].shape)
        ],
        len(shapes),
        base=base,
        where="network.weights",
        fix="choose the base this LoRA was trained on, or a LoRA of this base's family",
    )
    if problems or options.dim_from_weights:
        return problems
    sized = sized_sites(sites.values(), options)
    sizes = {layer.site.name: (layer.dim, layer.alpha) for layer in sized if layer.lr_weight > 0}
    return check_sizes_of_layers(sizes, options, initial)


def check_sizes_of_layers(
    sizes: Mapping[str, tuple[int, float]], options: NetworkOptions, initial: InitialWeights
) -> list[Problem]:
    """Return a problem for each way in which a network has other layers than the file.

    Args:
        sizes: Dim and alpha of every layer of the network.
        options: Which parts are trained.
        initial: What is continued.
    """
    layers, file = initial.of_parts(options), initial.path.name
    absent = sorted(name for name in sizes if name not in layers)
    strange = sorted(name for name in layers if name not in sizes)
    shared = [name for name in sizes if name in layers]
    problems = []
    if strange:
        without = f", and none for {lora_keys.count_and_names(absent, len(sizes), 'layers')}"
        problems.append(
            Problem(
                "network.weights",
                (
                    f"layers in {file} that the network has not: "
                    f"{lora_keys.count_and_names(strange, len(initial.layers), 'layers')}"
                    f"{without if absent else ''}"
                ),
                "a place for every layer of the file; what has none would be lost",
                "use the network.* settings and a base of the family it was trained with",
            )
        )
    elif absent:
        problems.append(
            Problem(
                "network.weights",
                f"no weights in {file} for "
                f"{lora_keys.count_and_names(absent, len(sizes), 'layers')}",
                "weights for every layer of the network",
                "write network.dim_from_weights=true to train exactly the file's layers",
            )
        )
    unlike = {
        "dims": [
            f"{name} {layers[name].dim} for {sizes[name][0]}"
            for name in shared
            if layers[name].dim != sizes[name][0]
        ],
        "alphas": [
            f"{name} {layers[name].alpha:g} for {sizes[name][1]:g}"
            for name in shared
            if not is_rounded(sizes[name][1], layers[name])
        ],
    }
    problems += [
        Problem(
            "network.weights",
            f"other {what} in {file}: {lora_keys.count_and_names(names, len(sizes), 'layers')}",
            "the sizes at which the weights were trained",
            "give the sizes they were trained with, or write network.dim_from_weights=true",
        )
        for what, names in unlike.items()
        if names and not problems
    ]
    return problems


def is_rounded(alpha: float, size: LayerSize) -> bool:
    """Return whether an alpha, written in the file's precision, is what the file holds."""
    if not size.rounding or size.alpha == alpha:
        return size.alpha == alpha
    # Half a unit in the last place of 24, 11, 8, 4 and 3 bits.
    spread = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4}
    return abs(size.alpha - alpha) <= spread.get(size.rounding, 2.0**-3) * abs(alpha)


def _check_sizes(options: NetworkOptions, initial: InitialWeights) -> list[Problem]:
    """Return a problem for each kind of layer whose size the settings do not share."""
    if any(getattr(options, key) for key in _BLOCK_SIZES):
        return []  # `check_layers` knows which layer is in which block

    def has_size(size: LayerSize, dim: int, alpha: float) -> bool:
        # A file says rsLoRA's scale in its alpha, as every reader computes it.
        file_alpha = alpha * math.sqrt(dim) if options.rslora else alpha
        return size.dim == dim and is_rounded(file_alpha, size)

    sizes = initial.of_parts(options).values()
    plain = [size for size in sizes if not size.is_window]
    window = [size for size in sizes if size.is_window]
    problems = []
    settings = f"network.dim={options.dim} network.alpha={options.alpha:g}"
    settings += " network.rslora=true" if options.rslora else ""
    if not all(has_size(size, options.dim, options.alpha) for size in plain):
        problems.append(_other_size(settings, plain, initial, "", rslora=options.rslora))
    if options.conv_dim is None or options.conv_alpha is None:
        settings, fits = "no network.conv_dim", not window
    else:
        conv_dim, conv_alpha = options.conv_dim, options.conv_alpha
        settings = f"network.conv_dim={conv_dim} network.conv_alpha={conv_alpha:g}"
        fits = bool(window) and all(has_size(size, conv_dim, conv_alpha) for size in window)
    if not fits:
        problems.append(_other_size(settings, window, initial, "conv_", rslora=options.rslora))
    return problems


def _other_size(
    settings: str,
    sizes: Sequence[LayerSize],
    initial: InitialWeights,
    prefix: str,
    *,
    rslora: bool,
) -> Problem:
    distinct = sorted({(size.dim, size.alpha) for size in sizes}, reverse=True)
    shown = ", ".join(f"dim {dim} alpha {alpha:g}" for dim, alpha in distinct[:_MAX_SIZES])
    shown += f" and {len(distinct) - _MAX_SIZES} other sizes" if len(distinct) > _MAX_SIZES else ""
    if any(not size.rounding for size in sizes):
        shown += " (without alphas in the file, which means alpha = dim)"
    dim_key, alpha_key = f"network.{prefix}dim", f"network.{prefix}alpha"
    fix = "write network.dim_from_weights=true"
    fix += " network.rslora=false" if rslora else ""
    if not distinct:
        shown = "no 3x3 layer"
        fix = f"write {dim_key}=null {alpha_key}=null"
    elif len(distinct) == 1 and not rslora:
        dim, alpha = distinct[0]
        fix = f"write {dim_key}={dim} {alpha_key}={alpha:g}, or network.dim_from_weights=true"
    return Problem(
        dim_key,
        f"{settings}, and in {initial.path.name} {shown}",
        "the sizes of the LoRA that is continued",
        fix,
    )


def _check_no_sizes(options: NetworkOptions, initial: InitialWeights) -> list[Problem]:
    """Return a problem for every size that is given and that the file's would replace."""
    keys = [key for key in (*_BLOCK_SIZES, "rslora") if getattr(options, key)]
    conf_file = resources.conf_dir() / "network" / f"{options.name}.yaml"
    if conf_file.is_file():  # else an option of one's own: what it says is not known to be typed
        shipped = yaml.safe_load(conf_file.read_text(encoding="utf-8"))
        shipped["alpha"] = options.dim / 2  # computed there
        sized = sized_by_file(options, initial)
        keys += [
            key
            for key in _SIZES
            if getattr(options, key) not in (shipped[key], getattr(sized, key))
        ]
    return [
        Problem(
            f"network.{key}",
            (
                f"{getattr(options, key)} while network.dim_from_weights takes every size from "
                f"{initial.path.name}"
            ),
            "no size of its own",
            f"leave network.{key} out, or write network.dim_from_weights=false",
        )
        for key in keys
    ]
