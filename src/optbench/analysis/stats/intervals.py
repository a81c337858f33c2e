"""Confidence intervals of a mean, of few or many blocks, and of a proportion."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optbench import rng

CONFIDENCE = 0.95
# Of fewer blocks a bootstrap is too sure, because it never leaves the range of what it was given:
# that of three values holds the truth in 3 cases of 4 at best, whatever is asked for.
_MIN_BOOTSTRAP_BLOCKS = 12
_NUM_RESAMPLES = 2000
_SEED = 0  # of resampling: a report built twice says the same
_NEARLY_NORMAL = 300  # degrees of freedom

Floats = NDArray[np.float64]
Method = Literal["student", "bootstrap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and where it may be; `low` and `high` are None where one block is all there is."""

    mean: float
    low: float | None
    high: float | None
    num_values: int
    num_blocks: int  # values of one block are not independent of one another
    method: Method | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is known."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(
    values: Sequence[float],
    blocks: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
    where: str = "",
) -> Interval:
    """Return the mean of block means and its confidence interval.

    Under twelve blocks it is Student's, mean +- t(n - 1) s / sqrt(n) over block means: exact where
    these are normal. From twelve on whole blocks are resampled with replacement, and percentiles
    taken that are widened to the same t (Hesterberg 2015, The American Statistician 69(4), 371).

    Args:
        values: Finite numbers, at least one.
        blocks: What each value belongs to; None: each is a block of its own.
        confidence: The wanted coverage.
        where: The draw's address beside the values' number, so that equal questions draw equally.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    if not len(values) or not all(math.isfinite(value) for value in values):
        raise ValueError("an interval needs finite values, at least one")
    means = _block_means(values, blocks)
    n = len(means)
    mean = float(means.mean())
    low = high = None
    method: Method | None = None
    if n >= _MIN_BOOTSTRAP_BLOCKS:
        # The plain percentile interval is short by this much where blocks are few.
        t = student_quantile((1 + confidence) / 2, n - 1) * math.sqrt(n / (n - 1))
        tail = NormalDist().cdf(-t)
        resampled = bootstrap_means(means, where=where)
        low, high = (float(np.quantile(resampled, part)) for part in (tail, 1 - tail))
        method = "bootstrap"
    elif n > 1:
        t = student_quantile((1 + confidence) / 2, n - 1)
        half = t * float(means.std(ddof=1)) / math.sqrt(n)
        low, high, method = mean - half, mean + half, "student"
    return Interval(
        mean=mean, low=low, high=high, num_values=len(values), num_blocks=n, method=method
    )


def bootstrap_means(
    values: Floats, *, num_resamples: int = _NUM_RESAMPLES, where: str = ""
) -> Floats:
    """Return the means of so many samples of the values with replacement, (num_resamples,)."""
    n = len(values)
    resampled: Floats = values[generator(where, n).integers(0, n, size=(num_resamples, n))].mean(
        axis=1
    )
    return resampled


def generator(*where: int | str) -> np.random.Generator:
    """Return the stream of one resampling; equal addresses give equal streams."""
    return np.random.default_rng(rng.key(_SEED, "bootstrap", *where))


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return t with P(T <= t) = probability, for a whole number of degrees of freedom."""
    if degrees > _NEARLY_NORMAL:
        return NormalDist().inv_cdf(probability)
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_probability(high, degrees) < probability:
        low, high = high, 2 * high
        if high > 1e12:
            raise ValueError(f"no quantile of {probability}")
    for _ in range(80):
        middle = (low + high) / 2
        if student_probability(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def student_probability(t: float, degrees: int) -> float:
    """Return P(T <= t) of Student's distribution (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if degrees < 1:
        raise ValueError("Student's distribution needs at least one degree of freedom")
    if degrees > _NEARLY_NORMAL:
        return NormalDist().cdf(t)
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = cosine if is_odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(2 + is_odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 0.5 + math.copysign(inside / 2, t)


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


def _block_means(values: Sequence[float], blocks: Sequence[Hashable] | None) -> Floats:
    if blocks is None:
        return np.asarray(values, dtype=float)
    members: dict[Hashable, list[float]] = {}
    for value, block in zip(values, blocks, strict=True):
        members.setdefault(block, []).append(value)
    return np.asarray([sum(block) / len(block) for block in members.values()], dtype=float)
