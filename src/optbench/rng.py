"""Key every random draw by its address: the seed, its purpose and its place.

No product code reads or seeds a global generator for its own draws. A generator is named by
(seed, purpose, place), so the optimizer, the dim, the batch split, the device or rendering never
change another draw, and two runs of a sweep differ only in what the sweep varies.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

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
    "validation",
    "third-party",
    "tiny",
]

_MAX_SEED = 2**63 - 1
_MAX_SHUFFLED = 100_000  # numbers; a tenth of a second
_NUM_ROUNDS = 6


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


def order(count: int, seed: int, purpose: Purpose, *where: int | str) -> Sequence[int]:
    """Return the numbers from 0 to `count` - 1 in a drawn order, at no cost for a large count.

    Up to 100,000 numbers are shuffled. Of more, each place's number is worked out when it is asked
    for: a Feistel network of six rounds permutes the numbers of an even count of bits, and one that
    lands at `count` or above goes through it again (Black and Rogaway, Ciphers with Arbitrary
    Finite Domains, CT-RSA 2002).
    """
    if count > _MAX_SHUFFLED:
        return _Permutation(count, key(seed, purpose, *where))
    numbers = list(range(count))
    shuffler(seed, purpose, *where).shuffle(numbers)
    return numbers


class _Permutation(Sequence[int]):
    """The numbers below a count in an order that a key decides, one at a time."""

    def __init__(self, count: int, secret: int) -> None:
        self._count = count
        self._secret = secret.to_bytes(8, "big")
        self._half = math.ceil((count - 1).bit_length() / 2)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(self._count))]
        number = range(self._count)[place]
        while (number := self._permuted(number)) >= self._count:
            pass
        return number

    def _permuted(self, number: int) -> int:
        mask = (1 << self._half) - 1
        left, right = number >> self._half, number & mask
        for round_index in range(_NUM_ROUNDS):
            content = bytes([round_index]) + right.to_bytes(8, "big")
            digest = hashlib.blake2b(content, digest_size=8, key=self._secret).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        return left << self._half | right
