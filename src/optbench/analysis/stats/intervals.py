"""Confidence intervals of a mean over few blocks, and of a proportion."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and where it may be; `low` and `high` are None where nothing is known of luck."""

    mean: float
    low: float | None
    high: float | None
    num_values: int
    num_blocks: int  # values of one block are not independent of one another

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is known."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(
    values: Sequence[float],
    blocks: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the mean of block means and its interval: mean +- t(n - 1) s / sqrt(n).

    Args:
        values: Finite numbers, at least one.
        blocks: What each value belongs to; None: each is a block of its own.
        confidence: The wanted coverage.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    if not len(values) or not all(math.isfinite(value) for value in values):
        raise ValueError("an interval needs finite values, at least one")
    members: dict[Hashable, list[float]] = {}
    for index, value in enumerate(values):
        members.setdefault(blocks[index] if blocks is not None else index, []).append(value)
    means = np.asarray([sum(block) / len(block) for block in members.values()], dtype=float)
    n = len(means)
    mean = float(means.mean())
    low = high = None
    if n > 1:
        half = student_quantile((1 + confidence) / 2, n - 1) * float(means.std(ddof=1))
        low, high = mean - half / math.sqrt(n), mean + half / math.sqrt(n)
    return Interval(mean=mean, low=low, high=high, num_values=len(values), num_blocks=n)


@functools.cache
def student_quantile(probability: float, degrees: float) -> float:
    """Return t with P(T <= t) = probability."""
    return float(special.stdtrit(degrees, probability))


def proportion_interval(
    num_hits: float, num_tries: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return where a proportion may be (Wilson 1927, JASA 22, 209)."""
    if num_tries < 1:
        raise ValueError("a proportion needs at least one try")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_hits / num_tries
    middle = share + z * z / (2 * num_tries)
    half = z * math.sqrt(share * (1 - share) / num_tries + z * z / (4 * num_tries**2))
    scale = 1 + z * z / num_tries
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
