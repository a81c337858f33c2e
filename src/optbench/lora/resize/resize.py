"""LoRA files -> one smaller file, layer by layer, and a record of what every layer lost.

In memory are the result in its own dtype and a layer per thread; sources are only ever read.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optbench.errors import ConfigError, Problem
from optbench.lora.file import LoraFile
from optbench.lora.keys import ModuleShape
from optbench.lora.resize.merge import layer_factors, merged_factors, merged_modules
from optbench.lora.resize.rules import SizeRule, kept_dim
from optbench.lora.resize.svd_cache import Workshop
from optbench.lora.save import DTYPES, is_finite, save_lora
from optbench.lora.svd import Decomposition, Factors, shorten
from optbench.schema import SavePrecision


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord:
    """What became of one layer; shares are of the weights before they are rounded to the file."""

    module: str
    is_conv: bool
    old_dim: int
    new_dim: int
    alpha: float  # the new one; the scale alpha / dim is the old one
    retained_sum: float  # sum of kept singular values / sum of all
    retained_fro: float  # ||kept||_F / ||whole||_F; its square is the retained energy
    singular_values: tuple[float, ...]  # of the whole layer without its scale, falling


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a new file is made to be."""

    name: str  # that A1111 shows
    rule: SizeRule
    precision: SavePrecision
    weights: tuple[float, ...] | None  # of a merge, one per source


_NOTHING_KEPT = Workshop()


def write_resized(
    sources: Sequence[Path], target: Path, wanted: Result, *, workshop: Workshop = _NOTHING_KEPT
) -> tuple[ModuleRecord, ...]:
    """Write one resized (or merged and resized) LoRA file; return a record per layer.

    Tensors that belong to no LoRA layer are carried over from a single source, unchanged but for
    their dtype; of a merge they are left out. Layers are spread over torch's number of threads,
    each layer on one of them, so the number changes no bit of the file.

    Raises:
        DamagedFileError: If a source is cut short or holds NaN or infinity; names the tensors.
        ConfigError: If a source is no plain LoRA, if sources do not fit together, or if a number
            is too large for the dtype asked for.
    """
    dtype = DTYPES[wanted.precision]
    tensors: dict[str, Tensor] = {}
    records: list[ModuleRecord] = []
    files = [LoraFile(path) for path in sources]
    modules = merged_modules(files)
    for file in files:
        file.check_finite()

    def resize_one(module: ModuleShape) -> tuple[dict[str, Tensor], ModuleRecord]:
        factors = _factors(module.name, files, wanted)
        kept, record = _resize(module, factors, wanted.rule, workshop)
        # Rounded at once: in float32 the result of a large file would take twice the room.
        return _cast(_tensors(module.name, kept), dtype, where=str(target)), record

    with _threads() as pool:
        for made, record in pool.map(resize_one, modules.values()):
            tensors |= made
            records.append(record)
    if wanted.weights is None:
        others = {key: files[0].tensor(key) for key in files[0].others}
        tensors |= _cast(others, dtype, where=str(target))
    metadata = carried_over(files)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = rewritten(metadata, records, modules, wanted)
    save_lora(target, tensors, precision=wanted.precision, metadata=metadata)
    return tuple(records)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return as many workers as torch has threads; each of them computes with one of its own.

    LAPACK shares one small matrix badly: two threads on it took 0.73 of the time of one.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)  # one layer failed: the others need not try
    finally:
        torch.set_num_threads(num_threads)


def _factors(name: str, files: Sequence[LoraFile], wanted: Result) -> Factors:
    if wanted.weights is None:
        return layer_factors(files[0], name)
    return merged_factors(name, files, wanted.weights)


def _resize(
    module: ModuleShape, factors: Factors, rule: SizeRule, workshop: Workshop
) -> tuple[Factors, ModuleRecord]:
    with torch.inference_mode():
        whole = workshop.take_apart(module.name, factors)
        dim = kept_dim(
            whole.singular_values, rule, largest_rank=factors.largest_rank, is_conv=module.is_conv
        )
        kept = shorten(whole, dim)
    return kept, _record(module.name, whole, kept, is_conv=module.is_conv)


def _record(name: str, whole: Decomposition, kept: Factors, *, is_conv: bool) -> ModuleRecord:
    values = whole.singular_values
    squares = [value**2 for value in values]
    return ModuleRecord(
        module=name,
        is_conv=is_conv,
        old_dim=whole.factors.dim,
        new_dim=kept.dim,
        alpha=kept.alpha,
        retained_sum=_share(values[: kept.dim], values),
        retained_fro=math.sqrt(_share(squares[: kept.dim], squares)),
        singular_values=values,
    )


def _share(kept: Sequence[float], whole: Sequence[float]) -> float:
    """Return the kept share of a sum; all of it where there was nothing to lose."""
    total = math.fsum(whole)
    return math.fsum(kept) / total if total > 0 else 1.0


def _tensors(name: str, factors: Factors) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": factors.down,
        f"{name}.lora_up.weight": factors.up,
        f"{name}.alpha": torch.tensor(factors.alpha),
    }


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype, *, where: str) -> dict[str, Tensor]:
    cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    overflown = [key for key, tensor in cast.items() if not is_finite(tensor)]
    if overflown:
        raise ConfigError(
            Problem(
                where,
                f"values too large for {dtype} in {', '.join(overflown)}",
                f"at most {torch.finfo(dtype).max:g}",
                "set save_precision=bf16 or save_precision=float",
            )
        )
    return cast


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
