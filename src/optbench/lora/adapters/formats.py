"""Recognise the layers of an adapter file and their forms, from its header alone.

Read are LoRA, LoCon with a core (LyCORIS's use_tucker), LoHa and LoKr, each with or without DoRA's
lengths, under the keys of kohya's trainer and LyCORIS, and LoRA and DoRA under those of PEFT and
diffusers. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from optbench.errors import Problem
from optbench.lora.keys import EMBEDDING, OTHER_FORMS, count_and_names

# What every part is called here, and how files of each form call it.
_PARTS: Final = {
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "core",
    **{f"hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": part for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "alpha": "alpha",
    "dora_scale": "lengths",
}
_PEFT_PARTS: Final = (
    (re.compile(r"\.lora_A(\.default)?\.weight"), "down"),
    (re.compile(r"\.lora_B(\.default)?\.weight"), "up"),
    (re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?"), "lengths"),
    (re.compile(r"\.lora(_linear_layer)?\.down\.weight"), "down"),
    (re.compile(r"\.lora(_linear_layer)?\.up\.weight"), "up"),
)
# Before PEFT, diffusers kept the pairs of an attention beside it, under names of their own.
_BESIDE_ATTENTION: Final = re.compile(r"\.processor\.(to_[a-z]+)_lora\.(down|up)\.weight")
_READ: Final = ("DoRA", "LoHa", "LoKr", "Tucker", "PEFT", "diffusers")
_DIFFUSERS_METADATA: Final = "lora_adapter_metadata"
_MOST: Final = 1e6
_MAX_PATTERN, _MAX_REPETITIONS = 200, 3
_REPEATED_GROUP: Final = re.compile(r"\)[*+?{]")
# PEFT's own files name layers from the part they are in, behind this.
_PEFT_ROOT: Final = "base_model.model."
_UNET_ROOTS: Final = ("down_blocks.", "mid_block.", "up_blocks.")
_TEXT_ROOTS: Final = ("text_model.", "encoder.layers.")
_PAIRS: Final = {"w1_a", "w1_b", "w2_a", "w2_b"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayer:
    """One layer's tensors in a file."""

    name: str  # kohya's, or in a file of PEFT or diffusers the layer's path in the pipeline
    form: str
    keys: Mapping[str, str]  # part -> key in the file
    is_peft: bool = False
    scale: float | None = None  # where the file's metadata says it; else alpha / dim


def layers_of(
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    *,
    where: str,
    allow_others: bool = False,
) -> tuple[dict[str, AdapterLayer], list[Problem]]:
    """Return a file's layers by name, and everything that keeps it from being read.

    Args:
        shapes: Every key of the file and the shape of its tensor.
        metadata: What the file says about itself.
        where: The file, for the reader.
        allow_others: Whether tensors that belong to no layer are passed over.
    """
    foreign = [
        (f"{form}, a form of adapter that is not read,", keys)
        for mark, form in OTHER_FORMS.items()
        if not any(word in form for word in _READ)
        if (keys := [key for key in shapes if mark in key])
    ]
    if foreign:
        return {}, [_refusal(what, keys, len(shapes), where) for what, keys in foreign]
    parts: dict[str, dict[str, str]] = {}
    peft: set[str] = set()
    unknown = []
    twice = []
    for key in shapes:
        if key.startswith(EMBEDDING):
            continue
        name, part, is_peft = _read_key(key)
        if not part:
            unknown.append(key)
            continue
        if part in parts.get(name, {}):
            twice.append(f"{parts[name][part]} and {key}")
            continue
        parts.setdefault(name, {})[part] = key
        if is_peft:
            peft.add(name)
    forms = {name: _form_of(keys) for name, keys in parts.items()}
    dims = {
        name: shapes[parts[name]["down"]][0]
        for name in parts
        if name in peft and forms[name] == "LoRA" and "alpha" not in parts[name]
        if shapes[parts[name]["down"]]
    }
    scales, scale_problems = _scales_in(metadata, dims, where)
    layers = {
        name: AdapterLayer(
            name=name, form=form, keys=parts[name], is_peft=name in peft, scale=scales.get(name)
        )
        for name, form in forms.items()
        if form
    }
    complaints = {
        "a layer that is named in two ways": twice,
        "tensors of no known form": [] if allow_others else unknown,
        "layers of which a part is missing or too many": [
            name for name, form in forms.items() if not form
        ],
    }
    problems = [
        _refusal(what, keys, len(shapes), where) for what, keys in complaints.items() if keys
    ]
    problems += scale_problems
    if not shapes:
        problems = [_refusal("no tensor at all", [], 0, where)]
    return layers, problems


def has_axes(part: str, shape: Sequence[int]) -> bool:
    """Return whether a part's tensor has as many axes as one of it may have."""
    if part == "alpha":
        return math.prod(shape) == 1
    num_axes = {
        "lengths": (1, 2, 4),
        "up": (2, 4),
        "down": (2, 4),
        "w2": (2, 4),
        **dict.fromkeys(("core", "t1", "t2"), (4,)),
    }
    return len(shape) in num_axes.get(part, (2,)) and 0 not in shape


def _read_key(key: str) -> tuple[str, str, bool]:
    """Return the layer and the part of a key, "" if it has none, and whether they are PEFT's."""
    for pattern, part in _PEFT_PARTS:
        if match := pattern.search(key):
            name = _in_pipeline(key[: match.start()])
            return name, part if match.end() == len(key) else "", True
    if match := _BESIDE_ATTENTION.search(key):
        layer = "to_out.0" if match[1] == "to_out" else match[1]
        return f"{_in_pipeline(key[: match.start()])}.{layer}", match[2], True
    name, _, rest = key.partition(".")
    if rest in _PARTS:
        return name, _PARTS[rest], False
    path, _, last = key.rpartition(".")  # diffusers' older files have alphas too
    return (_in_pipeline(path), "alpha", True) if last == "alpha" else (key, "", False)


def _in_pipeline(path: str) -> str:
    """Return a layer's path in the pipeline, from one that may begin inside of a part."""
    path = path.removeprefix(_PEFT_ROOT)
    if path.startswith(_UNET_ROOTS):
        return f"unet.{path}"
    return f"text_encoder.{path}" if path.startswith(_TEXT_ROOTS) else path


def _form_of(keys: Mapping[str, str]) -> str:
    """Return the form of a layer that has these parts, "" if one is missing or too many."""
    parts = set(keys) - {"alpha", "lengths"}
    if any(".lokr_" in key for key in keys.values()):
        is_whole = _has(parts, "w1") and _has(parts, "w2") and parts <= _PAIRS | {"w1", "w2", "t2"}
        return "LoKr" if is_whole and ("t2" not in parts or "w2_a" in parts) else ""
    if parts in ({"up", "down"}, {"up", "down", "core"}):
        return "LoRA"
    return "LoHa" if parts in (_PAIRS, _PAIRS | {"t1", "t2"}) else ""


def _has(parts: set[str], which: str) -> bool:
    """Return whether one of LoKr's two factors is there, whole or as a pair, not both."""
    return (which in parts) != ({f"{which}_a", f"{which}_b"} <= parts)


def _scales_in(
    metadata: Mapping[str, str], dims: Mapping[str, int], where: str
) -> tuple[dict[str, float], list[Problem]]:
    """Return the scale of every layer of which diffusers wrote it down; PEFT's files have no alpha.

    The scale is lora_alpha / r, or with use_rslora lora_alpha / sqrt(r), by pattern of the name.

    Args:
        metadata: The file's.
        dims: The layers without an alpha, and the dim of each.
        where: The file, for the reader.
    """
    stored_text = metadata.get(_DIFFUSERS_METADATA)
    if stored_text is None or not dims:
        return {}, []
    try:
        stored = json.loads(stored_text)
    except (ValueError, RecursionError) as error:
        return {}, [_no_scale(where, f"no JSON ({error})")]
    if not isinstance(stored, dict):
        return {}, [_no_scale(where, "no JSON object")]
    scales: dict[str, float] = {}
    wrong: dict[str, list[str]] = {}
    for name, dim in dims.items():
        component, _, path = name.partition(".")
        settings = {
            key.removeprefix(f"{component}."): value
            for key, value in stored.items()
            if key.startswith(f"{component}.")
        }
        if not settings:
            continue  # of another part of the model, as diffusers writes them: no scale is given
        try:
            alpha = _by_pattern(settings, "alpha_pattern", path, "lora_alpha")
            rank = _by_pattern(settings, "rank_pattern", path, "r")
        except ValueError as error:
            wrong.setdefault(f"{component}: {error}", []).append(name)
            continue
        if rank != dim:
            wrong.setdefault(f"{component}: r is {rank:g}, not the layer's dim", []).append(name)
            continue
        scales[name] = alpha / (dim**0.5 if settings.get("use_rslora") else dim)
    return scales, [
        _no_scale(where, f"{what}, for {count_and_names(names, len(dims), 'layers')}")
        for what, names in wrong.items()
    ]


def _no_scale(where: str, found: str) -> Problem:
    return Problem(
        where,
        f"metadata {_DIFFUSERS_METADATA} with {found}",
        "r and lora_alpha of every part, as diffusers writes them: the scale of the layers",
        "save the file again with diffusers or PEFT, or use its original",
    )


def _by_pattern(settings: Mapping[str, Any], patterns: str, path: str, otherwise: str) -> float:
    """Return the number of the first pattern that ends the path, as PEFT's get_pattern_key.

    Raises:
        ValueError: If there is none, or a pattern is none that is tried on a stranger's word.
    """
    value: Any = settings.get(otherwise)
    given = settings.get(patterns)
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"{patterns} is no object")
    for pattern, number in (given or {}).items():
        # A stranger's expression must not take for ever: repetitions are few, and of letters.
        is_tame = len(pattern) <= _MAX_PATTERN and not _REPEATED_GROUP.search(pattern)
        if not is_tame or sum(map(pattern.count, "*+?{")) > _MAX_REPETITIONS:
            raise ValueError(
                f"{patterns} has a pattern that is not tried: {pattern[:_MAX_PATTERN]}"
            )
        try:
            is_fitting = re.match(rf"(.*\.)?({pattern})$", path)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{patterns} has {pattern!r}, no expression: {error}") from None
        if is_fitting:
            value = number
            break
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first: an integer of JSON may be too long to be a float at all.
    if not is_number or not abs(value) < _MOST or (otherwise == "r" and value <= 0):
        raise ValueError(
            f"no number {otherwise}" if value is None else f"{otherwise} {value!r:.40}"
        )
    return float(value)


def _refusal(what: str, keys: Sequence[str], num_all: int, where: str) -> Problem:
    return Problem(
        where,
        f"{what}: {count_and_names(keys, num_all)}",
        (
            "LoRA, LoCon, DoRA, LoHa or LoKr as kohya's trainer, LyCORIS, PEFT or diffusers "
            "write them"
        ),
        "give such a file; other forms of adapter cannot be read",
    )
