"""Find the device and the precision to compute with; torch is loaded when it is needed."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from optbench.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch


def find_device(name: str, *, precision: str = "no", group: str = "") -> torch.device:
    """Return the device of a setting: `auto` is a GPU where there is one, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        precision: What is computed in on it.
        group: The group of the settings, for the message: `train`, or "" where they have none.

    Raises:
        ConfigError: If this machine has no such device, or the device no such precision.
    """
    import torch

    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next((kind for kind, number in counts.items() if number), "cpu")
    kind, _, index = name.partition(":")
    prefix = f"{group}." if group else ""
    problem: Problem | None = None
    if not (index or "0").isdigit() or int(index or 0) >= {**counts, "cpu": 1}.get(kind, 0):
        expected = "a device this machine has"
        problem = Problem(f"{prefix}device", name, expected, f"leave {prefix}device=auto")
    elif kind == "cpu" and precision == "fp16":
        expected, fix = "no or bf16; fp16 needs a GPU", f"leave {prefix}mixed_precision=no"
        problem = Problem(f"{prefix}mixed_precision", "fp16 on a CPU", expected, fix)
    if problem is not None:
        raise ConfigError(problem)
    return torch.device(name)


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a frozen model's weights under a mixed precision."""
    import torch

    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def set_num_threads(num_threads: int | None) -> None:
    """Let torch compute with so many CPU threads; None leaves it its own choice."""
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)


def free_memory() -> None:
    """Give back what nothing refers to any more, the GPU's memory included."""
    gc.collect()
    torch = sys.modules.get("torch")  # not loaded for this: a finished sweep must not wait for it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
