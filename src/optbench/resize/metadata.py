"""What a resized file says about itself: its source's words, the new sizes, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optbench.lora_layout import ModuleShape
from optbench.resize.reading import LoraFile

if TYPE_CHECKING:
    from optbench.resize.shrinking import ModuleRecord, Result

DYNAMIC = "Dynamic"  # kohya's word where layers differ
_OUTDATED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail")
# Width of the text states that cross-attention reads -> what metadata calls the family.
_FAMILIES = {
    768: {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    1024: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    2048: {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
}


def carried_over(files: Sequence[LoraFile]) -> dict[str, str]:
    """Return what all sources say alike, without what is only true of a file's own bytes."""
    first, *others = (file.metadata for file in files)
    return {
        key: value
        for key, value in first.items()
        if key not in _OUTDATED and all(other.get(key) == value for other in others)
    }


def rewritten(
    metadata: Mapping[str, str],
    records: Sequence[ModuleRecord],
    modules: Mapping[str, ModuleShape],
    wanted: Result,
) -> dict[str, str]:
    """Return the new file's metadata.

    Dim, alpha and training comment are rewritten as kohya's tool does. Beyond it, conv_dim and
    conv_alpha follow too, `ss_output_name` is the new name (A1111 takes two files of one name for
    one), and `optbench.resize` holds every setting.
    """
    is_dynamic = wanted.rule.method != "none"
    linear = [one for one in records if not one.is_conv] or records
    old = metadata.get("ss_training_comment", "")
    said = {
        **_family(metadata, modules.values()),
        **metadata,
        "ss_output_name": wanted.name,
        "ss_network_dim": DYNAMIC if is_dynamic else str(wanted.rule.dim),
        "ss_network_alpha": DYNAMIC if is_dynamic else _one_of(_alphas(linear)),
        "ss_training_comment": "; ".join(filter(None, (_comment(records, wanted), old))),
        "optbench.resize": json.dumps(settings_said(wanted)),
    }
    if arguments := _network_arguments(metadata, records, modules, is_dynamic=is_dynamic):
        said["ss_network_args"] = json.dumps(arguments)
    return said


def settings_said(wanted: Result) -> dict[str, Any]:
    """Return the settings that decide the new weights, without places on disk."""
    return {
        "weights": wanted.weights,
        "method": wanted.rule.method,
        "param": wanted.rule.param,
        "new_dim": wanted.rule.dim,
        "new_conv_dim": wanted.rule.conv_dim,
        "save_precision": wanted.precision,
        "compat": wanted.rule.compat,
    }


def _comment(records: Sequence[ModuleRecord], wanted: Result) -> str:
    old_dim = max(one.old_dim for one in records)
    merged = "" if wanted.weights is None else f"merged from {len(wanted.weights)} LoRAs; "
    if wanted.rule.method != "none":
        resized = f"Dynamic resize with {wanted.rule.method}: {wanted.rule.param:g} from {old_dim}"
        return merged + resized
    conv = f" (conv: {wanted.rule.conv_dim})" if wanted.rule.conv_dim is not None else ""
    return f"{merged}dimension is resized from {old_dim} to {wanted.rule.dim}{conv}"


def _network_arguments(
    metadata: Mapping[str, str],
    records: Sequence[ModuleRecord],
    modules: Mapping[str, ModuleShape],
    *,
    is_dynamic: bool,
) -> dict[str, Any]:
    """Return the source's network arguments with the new sizes of its wider kernels."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        arguments = {}
    known = arguments if isinstance(arguments, dict) else {}
    wide = [one for one in records if modules[one.module].down[2:] not in ((), (1, 1))]
    if wide:
        dims = [str(one.new_dim) for one in wide]
        known["conv_dim"] = DYNAMIC if is_dynamic else _one_of(dims)
        known["conv_alpha"] = DYNAMIC if is_dynamic else _one_of(_alphas(wide))
    return known


def _alphas(records: Iterable[ModuleRecord]) -> list[str]:
    return [f"{one.alpha:g}" for one in records]


def _one_of(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else DYNAMIC


def _family(metadata: Mapping[str, str], modules: Iterable[ModuleShape]) -> dict[str, str]:
    """Return the family where the source does not say it.

    A1111 takes a file with metadata for SD1.x unless it says otherwise, and a file without any as
    it comes; so a resized file, which has some, must say it.
    """
    if "ss_base_model_version" in metadata or "ss_v2" in metadata:
        return {}
    widths = {one.down[1] for one in modules if one.name.endswith("attn2_to_k")}
    return _FAMILIES.get(widths.pop(), {}) if len(widths) == 1 else {}
