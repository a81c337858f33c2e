"""Correction of p values for how many there are, and the deviation inside groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for how many there are (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Return the standard deviation inside groups and its degrees of freedom; None: no group of 2.

    sqrt(sum of squares about each group's own mean / sum of (n - 1)).
    """
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    if not degrees:
        return None
    squares = sum(
        float(((np.asarray(group) - np.mean(group)) ** 2).sum()) for group in groups if len(group)
    )
    return math.sqrt(squares / degrees), degrees
