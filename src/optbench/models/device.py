"""Find the device and the precision to compute with; torch is loaded when it is needed."""

from __future__ import annotations

import functools
import gc
import sys
from pathlib import Path
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
        problem = Problem(f"{prefix}device", name, expected, f"write {prefix}device=auto")
    elif kind == "cpu" and precision == "fp16":
        expected, fix = "no or bf16; fp16 needs a GPU", f"write {prefix}mixed_precision=no"
        problem = Problem(f"{prefix}mixed_precision", "fp16 on a CPU", expected, fix)
    if problem is not None:
        raise ConfigError(problem)
    return torch.device(name)


# Without any of these a Linux machine has no GPU that torch could use: NVIDIA's, AMD's, WSL's.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


def device_kind(name: str) -> str:
    """Return cpu, cuda or mps: what a setting of a device comes to on this machine.

    Loads torch only for `auto`, and only on a machine that may have a GPU.
    """
    if name != "auto":
        return name.partition(":")[0]
    is_linux = sys.platform == "linux"
    if is_linux and "torch" not in sys.modules and not any(map(_exists, _GPU_FILES)):
        return "cpu"
    return find_device("auto").type


def _exists(path: str) -> bool:
    return Path(path).exists()


@functools.cache
def default_num_threads() -> int:
    """Return the CPU threads that torch itself chooses on this machine; loads torch.

    Asked for the first time before any run has set a number.
    """
    import torch

    return torch.get_num_threads()


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a frozen model's weights under a mixed precision."""
    import torch

    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def set_num_threads(num_threads: int | None) -> None:
    """Let torch compute with so many CPU threads; None: as many as it chooses itself.

    Its own choice is that of a fresh process, whatever another run set before.
    """
    import torch

    default = default_num_threads()
    torch.set_num_threads(default if num_threads is None else num_threads)


def free_memory() -> None:
    """Give back what nothing refers to any more, the GPU's memory included."""
    gc.collect()
    torch = sys.modules.get("torch")  # not loaded for this: a finished sweep must not wait for it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
