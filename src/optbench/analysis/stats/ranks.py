"""Rank correlation: how alike two measures order the same things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optbench.analysis.stats.intervals import CONFIDENCE, Floats, generator

_MIN_THINGS = 4  # three things agree by luck in one case of six
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Spearman's rank correlation of two measures of the same things, with its interval."""

    correlation: float
    low: float | None  # None: too few things
    high: float | None
    num_things: int


def ranks(values: Sequence[float]) -> Floats:
    """Return the ranks from 1, equal values sharing the mean of theirs, (n,)."""
    array = np.asarray(values, dtype=float)
    ordered = np.sort(array)
    first = np.searchsorted(ordered, array, side="left")
    last = np.searchsorted(ordered, array, side="right")
    result: Floats = (first + last + 1) / 2
    return result


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation of the ranks; None where a measure has one value only."""
    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else None


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> Agreement | None:
    """Return how alike two measures order the same things; None where nothing can be ordered.

    The interval resamples things; samples in which a measure has one value only are left out.
    """
    correlation = spearman(first, second) if len(first) > 1 else None
    if correlation is None:
        return None
    low = high = None
    n = len(first)
    if n >= _MIN_THINGS:
        x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
        samples = generator("ranks", n).integers(0, n, size=(_NUM_RESAMPLES, n))
        resampled = [spearman(x[sample].tolist(), y[sample].tolist()) for sample in samples]
        correlations = [value for value in resampled if value is not None]
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(np.quantile(correlations, part)) for part in (tail, 1 - tail))
    return Agreement(correlation=correlation, low=low, high=high, num_things=n)
