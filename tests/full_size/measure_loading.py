"""Load a base in this process and print its size and the memory that loading took, as JSON.

python tests/full_size/measure_loading.py sd15 /tmp/sd15.safetensors fp16
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from optbench.models import load_base
from optbench.schema import BaseOptions
from optbench.training import memory

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def status_bytes(key: str) -> int:
    """Return a line of this process's status: VmRSS now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measured(options: BaseOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Return bytes of the weights as loaded, of the process before and at its peak, and seconds."""
    memory.keep_freed_memory()
    import diffusers
    import transformers

    # Imported now, so that libraries are not counted as weights.
    assert diffusers.UNet2DConditionModel
    assert transformers.CLIPTextModel
    before = status_bytes("VmRSS")
    started = time.perf_counter()
    base: Any = load_base(options, device=torch.device("cpu"), dtype=dtype)
    seconds = time.perf_counter() - started
    encoders = getattr(base, "text_encoders", None) or (base.text_encoder,)
    weights = sum(
        weight.numel() * weight.element_size()
        for part in (base.unet, base.vae, *encoders)
        for weight in part.parameters()
    )
    peak = status_bytes("VmHWM")
    return {
        "weights_bytes": weights,
        "before_bytes": before,
        "peak_bytes": peak,
        "ratio": round(peak / weights, 3),
        "ratio_without_libraries": round((peak - before) / weights, 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure what the command line names."""
    family, path, dtype = sys.argv[1:4]
    options = BaseOptions(
        name=family,
        family=family,
        path=path,
        vae=None,
        v_parameterization=False if family == "sd2" else None,
        lr_scale=1.0,
        lr_scales={},
    )
    sys.stdout.write(json.dumps(measured(options, _DTYPES[dtype])) + "\n")


if __name__ == "__main__":
    main()
