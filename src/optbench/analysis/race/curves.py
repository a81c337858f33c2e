"""What tuning buys: the best rate that is to be expected of so many tries.

Dodge et al. 2019 (EMNLP, 1909.03004), with the tries drawn without replacement, so that the curve
is unbiased and ends at the best one (Tang et al. 2020, ACL, 2004.14861).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import integrate, special

from optbench.analysis.race.verdict import ArmTuning

_BAND = 0.8  # of the best of so many tries, in how many orders of trying them


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBest:
    """The best score after so many tries, over all orders of trying."""

    num_tries: int
    epochs: float  # that so many tries cost on average
    mean: float
    low: float  # of the band that holds 80 % of the orders
    high: float


def expected_best(tuning: ArmTuning) -> tuple[ExpectedBest, ...]:
    """Return the curve of an arm's tuning, a point for each number of rates tried.

    A rate counts with what it had reached where the ladder stopped it: the LoRA that is there. One
    that failed, or is worse than the base model, counts as the base model, 0.
    """
    scores = [max(0.0, tried.scores[max(tried.scores)]) for tried in tuning.tried if tried.scores]
    num = len(scores)
    each = tuning.epochs / num if num else 0.0
    return tuple(
        ExpectedBest(num_tries=tries, epochs=tries * each, mean=mean, low=low, high=high)
        for tries, (mean, low, high) in enumerate(best_of(scores), start=1)
    )


def best_of(values: Sequence[float]) -> list[tuple[float, float, float]]:
    """Return mean, low and high of the best of b of the values, for b from 1 to all."""
    ordered = sorted(values)
    num = len(ordered)
    curve = []
    for tries in range(1, num + 1):
        # P(best <= the i-th lowest) = C(i, b) / C(n, b)
        below = [math.comb(i, tries) / math.comb(num, tries) for i in range(num + 1)]
        mean = sum(
            value * (at - before)
            for value, at, before in zip(ordered, below[1:], below[:-1], strict=True)
        )
        low, high = (
            next(value for value, at in zip(ordered, below[1:], strict=True) if at >= share - 1e-12)
            for share in ((1 - _BAND) / 2, (1 + _BAND) / 2)
        )
        curve.append((mean, low, high))
    return curve


@functools.cache
def optimism(num_tries: int) -> float:
    """Return by how many deviations the best of equal tries flatters itself: E max of n normals."""
    if num_tries < 2:
        return 0.0

    def density(x: float) -> float:
        normal = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return x * num_tries * normal * float(special.ndtr(x)) ** (num_tries - 1)

    return float(integrate.quad(density, -9, 9)[0])
