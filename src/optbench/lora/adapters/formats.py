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
from optbench.lora.keys import OTHER_FORMS, count_and_names

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
    for key in shapes:
        name, part, is_peft = _read_key(key)
        if not part:
            unknown.append(key)
            continue
        parts.setdefault(name, {})[part] = key
        if is_peft:
            peft.add(name)
    forms = {name: _form_of(keys) for name, keys in parts.items()}
    scales = _scales_in(metadata, [name for name in peft if forms[name]])
    layers = {
        name: AdapterLayer(
            name=name, form=form, keys=parts[name], is_peft=name in peft, scale=scales.get(name)
        )
        for name, form in forms.items()
        if form
    }
    complaints = {
        "tensors of no known form": [] if allow_others else unknown,
        "layers of which a part is missing or too many": [
            name for name, form in forms.items() if not form
        ],
    }
    problems = [
        _refusal(what, keys, len(shapes), where) for what, keys in complaints.items() if keys
    ]
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
            return key[: match.start()], part if match.end() == len(key) else "", True
    if match := _BESIDE_ATTENTION.search(key):
        layer = "to_out.0" if match[1] == "to_out" else match[1]
        return f"{key[: match.start()]}.{layer}", match[2], True
    name, _, rest = key.partition(".")
    if rest in _PARTS:
        return name, _PARTS[rest], False
    path, _, last = key.rpartition(".")  # diffusers' older files have alphas too
    return (path, "alpha", True) if last == "alpha" else (key, "", False)


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


def _scales_in(metadata: Mapping[str, str], names: Sequence[str]) -> dict[str, float]:
    """Return the scale of every layer of which diffusers wrote it down; PEFT's files have no alpha.

    The scale is lora_alpha / r, or with use_rslora lora_alpha / sqrt(r), by pattern of the name.
    """
    try:
        stored = json.loads(metadata.get(_DIFFUSERS_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(stored, dict):
        return {}
    scales = {}
    for name in names:
        component, _, path = name.partition(".")
        settings = {
            key.removeprefix(f"{component}."): value
            for key, value in stored.items()
            if key.startswith(f"{component}.")
        }
        alpha = _by_pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha"))
        dim = _by_pattern(settings.get("rank_pattern"), path, settings.get("r"))
        if alpha is not None and dim is not None and dim > 0:
            scales[name] = alpha / (dim**0.5 if settings.get("use_rslora") else dim)
    return scales


def _by_pattern(patterns: Any, path: str, otherwise: Any) -> float | None:
    """Return the number of the first pattern that ends the path, as PEFT matches them."""
    value = otherwise
    if isinstance(patterns, dict):
        fitting = [key for key in patterns if path == key or path.endswith(f".{key}")]
        value = patterns[fitting[0]] if fitting else otherwise
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared first: an integer of JSON may be too long to be a float at all.
    return float(value) if is_number and abs(value) < _MOST else None


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
