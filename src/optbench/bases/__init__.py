"""Model families behind one contract: `load_base` finds the module a config names.

Each module of this package is one family. It defines `load(options, *, device, dtype)`, which
returns a `contracts.Base`, and `tiny(seed)`, the same from small random weights for tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from optbench.contracts import Base
from optbench.options import BaseOptions

if TYPE_CHECKING:
    import torch


def load_base(options: BaseOptions, *, device: torch.device, dtype: torch.dtype) -> Base:
    """Return the frozen base of `options` on `device`, its unet and text encoder in `dtype`.

    Raises:
        BaseError: If weights are missing, damaged, or of another family.
    """
    module = importlib.import_module(f"optbench.bases.{options.family}")
    base: Base = module.load(options, device=device, dtype=dtype)
    return base
