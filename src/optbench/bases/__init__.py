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
    _quiet_libraries()
    module = importlib.import_module(f"optbench.bases.{options.family}")
    base: Base = module.load(options, device=device, dtype=dtype)
    return base


def _quiet_libraries() -> None:
    """Keep both libraries from drawing bars and naming packages that nobody needs here.

    Before a family is imported: transformers speaks of torchvision as soon as diffusers' pipelines
    are.
    """
    import diffusers
    import transformers

    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
