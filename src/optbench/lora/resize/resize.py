"""Write LoRA files of smaller dims, layer by layer, and record what every layer lost.

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
from optbench.lora.keys import ALPHA, DOWN, UP, ModuleShape
from optbench.lora.resize.merge import layer_factors, merged_factors, merged_modules
from optbench.lora.resize.rules import SizeRule, kept_dim
from optbench.lora.resize.svd_cache import SvdCache
from optbench.lora.save import DTYPES, is_finite, save_lora
from optbench.lora.svd import Decomposition, Factors, truncate
from optbench.schema import SavePrecision
from optbench.storage.disk import make_folder

DYNAMIC = "Dynamic"  # kohya's word where layers differ
_OUTDATED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail")
# Width of the text states that cross-attention reads -> what metadata calls the family.
_FAMILIES = {
    768: {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    1024: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    2048: {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
}
_NO_CACHE = SvdCache()


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
class ResizeSpec:
    """The name, sizes and precision of a new file."""

    name: str  # that A1111 shows
    rule: SizeRule
    precision: SavePrecision
    weights: tuple[float, ...] | None  # of a merge, one per source


def write_resized(
    sources: Sequence[Path], target: Path, spec: ResizeSpec, *, svd_cache: SvdCache = _NO_CACHE
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
    dtype = DTYPES[spec.precision]
    files = [LoraFile(path) for path in sources]
    modules = merged_modules(files)
    for file in files:
        file.check_finite()

    def resize_layer(module: ModuleShape) -> tuple[dict[str, Tensor], ModuleRecord]:
        if spec.weights is None:
            factors = layer_factors(files[0], module.name)
        else:
            factors = merged_factors(module.name, files, spec.weights)
        with torch.inference_mode():
            svd = svd_cache.decompose(module.name, factors)
            dim = kept_dim(
                svd.singular_values,
                spec.rule,
                largest_rank=factors.largest_rank,
                is_conv=module.is_conv,
            )
            small = truncate(svd, dim)
        layer = {DOWN: small.down, UP: small.up, ALPHA: torch.tensor(small.alpha)}
        keyed = {module.name + suffix: tensor for suffix, tensor in layer.items()}
        # Rounded at once: in float32 the result of a large file would take twice the room.
        return _cast(keyed, dtype, where=str(target)), _record(module, svd, small)

    tensors: dict[str, Tensor] = {}
    records: list[ModuleRecord] = []
    with _threads() as pool:
        for layer_tensors, record in pool.map(resize_layer, modules.values()):
            tensors |= layer_tensors
            records.append(record)
    if spec.weights is None:
        others = {key: files[0].tensor(key) for key in files[0].others}
        tensors |= _cast(others, dtype, where=str(target))
    metadata = resized_metadata(common_metadata(files), records, modules, spec)
    make_folder(target.parent)
    save_lora(target, tensors, precision=spec.precision, metadata=metadata)
    return tuple(records)


def retained_energy(records: Sequence[ModuleRecord]) -> tuple[float, float]:
    """Return the retained share of the network's energy, and the smallest of any layer.

    The energy of a network is sum_layers ||scale * up @ down||_F^2.
    """
    retained = total = 0.0
    for record in records:
        scale = record.alpha / record.new_dim
        energy = scale**2 * math.fsum(value**2 for value in record.singular_values)
        total += energy
        retained += energy * record.retained_fro**2
    smallest = min(record.retained_fro**2 for record in records)
    return retained / total if total > 0 else 1.0, smallest


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


def _record(module: ModuleShape, svd: Decomposition, small: Factors) -> ModuleRecord:
    values = svd.singular_values
    squares = [value**2 for value in values]
    return ModuleRecord(
        module=module.name,
        is_conv=module.is_conv,
        old_dim=svd.factors.dim,
        new_dim=small.dim,
        alpha=small.alpha,
        retained_sum=_share(values[: small.dim], values),
        retained_fro=math.sqrt(_share(squares[: small.dim], squares)),
        singular_values=values,
    )


def _share(part: Sequence[float], whole: Sequence[float]) -> float:
    """Return a part's share of a sum; all of it where there was nothing to lose."""
    total = math.fsum(whole)
    return math.fsum(part) / total if total > 0 else 1.0


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


def common_metadata(files: Sequence[LoraFile]) -> dict[str, str]:
    """Return what all sources say alike, without what is only true of a file's own bytes."""
    first, *others = (file.metadata for file in files)
    return {
        key: value
        for key, value in first.items()
        if key not in _OUTDATED and all(other.get(key) == value for other in others)
    }


def resized_metadata(
    metadata: Mapping[str, str],
    records: Sequence[ModuleRecord],
    modules: Mapping[str, ModuleShape],
    spec: ResizeSpec,
) -> dict[str, str]:
    """Return the new file's metadata.

    Dim, alpha and training comment are rewritten as kohya's tool does. Beyond it, conv_dim and
    conv_alpha follow too, `ss_output_name` is the new name (A1111 takes two files of one name for
    one), and `optbench.resize` holds every setting.
    """
    rule = spec.rule
    is_dynamic = rule.method != "none"
    old_dim = max(record.old_dim for record in records)
    comment = "" if spec.weights is None else f"merged from {len(spec.weights)} LoRAs; "
    if is_dynamic:
        comment += f"Dynamic resize with {rule.method}: {rule.param:g} from {old_dim}"
    else:
        conv = f" (conv: {rule.conv_dim})" if rule.conv_dim is not None else ""
        comment += f"dimension is resized from {old_dim} to {rule.dim}{conv}"
    old_comment = metadata.get("ss_training_comment", "")
    linear = [record for record in records if not record.is_conv] or records
    settings = {
        "weights": spec.weights,
        "method": rule.method,
        "param": rule.param,
        "new_dim": rule.dim,
        "new_conv_dim": rule.conv_dim,
        "save_precision": spec.precision,
        "compat": rule.compat,
    }
    resized = {
        **_family(metadata, modules.values()),
        **metadata,
        "ss_output_name": spec.name,
        "ss_network_dim": DYNAMIC if is_dynamic else str(rule.dim),
        "ss_network_alpha": DYNAMIC if is_dynamic else _common(_alphas(linear)),
        "ss_training_comment": "; ".join(filter(None, (comment, old_comment))),
        "optbench.resize": json.dumps(settings),
    }
    if arguments := _network_arguments(metadata, records, modules, is_dynamic=is_dynamic):
        resized["ss_network_args"] = json.dumps(arguments)
    return resized


def _network_arguments(
    metadata: Mapping[str, str],
    records: Sequence[ModuleRecord],
    modules: Mapping[str, ModuleShape],
    *,
    is_dynamic: bool,
) -> dict[str, Any]:
    """Return the source's network arguments with the new sizes of its wider kernels."""
    try:
        stored = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        stored = {}
    arguments = stored if isinstance(stored, dict) else {}
    wide = [record for record in records if modules[record.module].down[2:] not in ((), (1, 1))]
    if wide:
        dims = [str(record.new_dim) for record in wide]
        arguments["conv_dim"] = DYNAMIC if is_dynamic else _common(dims)
        arguments["conv_alpha"] = DYNAMIC if is_dynamic else _common(_alphas(wide))
    return arguments


def _alphas(records: Iterable[ModuleRecord]) -> list[str]:
    return [f"{record.alpha:g}" for record in records]


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else DYNAMIC


def _family(metadata: Mapping[str, str], modules: Iterable[ModuleShape]) -> dict[str, str]:
    """Return the family where the source does not say it.

    A1111 takes a file with metadata for SD1.x unless it says otherwise, and a file without any as
    it comes; so a resized file, which has some, must say it.
    """
    if "ss_base_model_version" in metadata or "ss_v2" in metadata:
        return {}
    widths = {module.down[1] for module in modules if module.name.endswith("attn2_to_k")}
    return _FAMILIES.get(widths.pop(), {}) if len(widths) == 1 else {}
