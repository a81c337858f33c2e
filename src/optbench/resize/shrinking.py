"""LoRA files -> one smaller file, layer by layer, and a record of what every layer lost.

In memory are the result in its own dtype and a layer per thread; sources are only ever read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from optbench.checkpoint import DTYPES, save_lora
from optbench.errors import ConfigError, Problem
from optbench.lora_layout import ModuleShape
from optbench.lowrank import Decomposition, Factors, shorten
from optbench.options import SavePrecision
from optbench.resize.decomposing import Workshop
from optbench.resize.merging import merged_factors, merged_modules
from optbench.resize.metadata import carried_over, rewritten
from optbench.resize.reading import LoraFile, open_lora
from optbench.resize.rules import SizeRule, kept_dim


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
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_lora(path)) for path in sources]
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
        return files[0].factors(name)
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
    overflown = [key for key, tensor in cast.items() if not bool(tensor.float().isfinite().all())]
    if overflown:
        raise ConfigError(
            Problem(
                found=f"values too large for {dtype} in {', '.join(overflown)}",
                expected=f"at most {torch.finfo(dtype).max:g}",
                where=where,
                fix="set save_precision=bf16 or save_precision=float",
            )
        )
    return cast
