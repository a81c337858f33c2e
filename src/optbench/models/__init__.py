"""Model families behind one contract: `load_base` finds the module a config names.

The modules that `models.files.families` names are one family each. Each defines `load(options, *,
device, dtype, cache_dir)`, which returns a `contracts.BaseModel`, and `tiny(seed)`, the same
from small random weights for tests. The other modules are what they share.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.contracts import BaseModel
from optbench.schema import BaseOptions
from optbench.terminal import quiet_imports

if TYPE_CHECKING:
    import torch


def load_base(
    options: BaseOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
) -> BaseModel:
    """Return the frozen base of `options` on `device`, its unet and text encoders in `dtype`.

    With `cache_dir`, files whose size and time of change are known are not hashed again.

    Raises:
        BaseError: If weights are missing, damaged, or of another family.
    """
    with quiet_imports():
        import diffusers
        import transformers

        # No bars, and no names of packages that nobody needs here. Before a family is imported:
        # transformers speaks of torchvision as soon as diffusers' pipelines are.
        for library in (transformers, diffusers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        module = importlib.import_module(f"optbench.models.{options.family}")
    base: BaseModel = module.load(options, device=device, dtype=dtype, cache_dir=cache_dir)
    return base
