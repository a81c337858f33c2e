"""Rank correlation: how alike two measures order the same things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optbench.analysis.stats.intervals import CONFIDENCE, Floats, student_quantile

_MIN_THINGS = 4  # three things agree by luck in one case of six


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


def rank_agreement(
    first: Sequence[float], second: Sequence[float], *, confidence: float = CONFIDENCE
) -> Agreement | None:
    """Return how alike two measures order the same things; None where nothing can be ordered.

    The interval is atanh(rho) +- t(n - 2) 1.03 / sqrt(n - 3) (Fieller, Hartley and Pearson 1957,
    Biometrika 44, 470; t for z because things are few). A perfect order of few things counts as
    half a step less: it is one of few.
    """
    correlation = spearman(first, second) if len(first) > 1 else None
    if correlation is None:
        return None
    low = high = None
    n = len(first)
    if n >= _MIN_THINGS:
        most = 1 - 6 / (n * (n * n - 1))
        middle = math.atanh(min(most, max(-most, correlation)))
        half = student_quantile((1 + confidence) / 2, n - 2) * 1.03 / math.sqrt(n - 3)
        low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Agreement(correlation=correlation, low=low, high=high, num_things=n)
