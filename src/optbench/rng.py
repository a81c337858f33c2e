"""Key every random draw by its address: the seed, its purpose and its place.

No product code reads or seeds a global generator for its own draws. A generator is named by
(seed, purpose, place), so the optimizer, the dim, the batch split, the device or rendering never
change another draw, and two runs of a sweep differ only in what the sweep varies.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Purpose = Literal[
    "network-init",
    "order",
    "flip",
    "caption",
    "crop",
    "color",
    "vae",
    "noise",
    "noise-offset",
    "multires",
    "input-perturbation",
    "timesteps",
    "dropout",
    "render",
    "bootstrap",
    "validation",
    "third-party",
    "tiny",
]

_MAX_SEED = 2**63 - 1


def key(seed: int, purpose: Purpose, *where: int | str) -> int:
    """Return a 63-bit seed for one draw, the same in every process and on every machine.

    Args:
        seed: The run's seed; 0 is as good as any.
        purpose: What the draw is for, one of the closed list `Purpose`.
        where: The draw's place, for instance epoch, image and occurrence.

    Raises:
        ValueError: If `purpose` is not in the list.
    """
    if purpose not in get_args(Purpose):
        raise ValueError(f"unknown purpose {purpose!r}; expected one of {get_args(Purpose)}")
    # repr keeps 1 and "1" apart, and the separator keeps ("ab", "c") and ("a", "bc") apart.
    address = "\x1f".join(repr(part) for part in (seed, purpose, *where))
    digest = hashlib.blake2b(address.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _MAX_SEED


def generator(seed: int, purpose: Purpose, *where: int | str) -> torch.Generator:
    """Return a fresh CPU generator for one address; equal addresses give equal streams."""
    import torch

    return torch.Generator(device="cpu").manual_seed(key(seed, purpose, *where))


def shuffler(seed: int, purpose: Purpose, *where: int | str) -> random.Random:
    """Return a fresh Python generator for one address, for orders and captions."""
    return random.Random(key(seed, purpose, *where))
