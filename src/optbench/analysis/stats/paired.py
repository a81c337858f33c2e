"""Tests of paired differences, and which of several things are tied with the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optbench.analysis.stats.intervals import CONFIDENCE, Interval, generator, mean_interval

_MAX_EXACT_FLIPS = 12
_NUM_FLIPS = 10_000
_ROUNDING = 1e-12  # sums of equal terms in another order are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one of several things compares with the best of them; lower is better."""

    name: Hashable
    mean: float
    num_values: int
    is_best: bool
    against_best: Interval | None  # None: the best itself, or nothing in common with it

    @property
    def is_worse(self) -> bool:
        """Whether the interval of the difference to the best excludes 0."""
        return self.against_best is not None and self.against_best.excludes_zero

    @property
    def is_tied(self) -> bool:
        """Whether there is an interval, and it includes 0."""
        has_interval = self.against_best is not None and self.against_best.low is not None
        return has_interval and not self.is_worse


def standings(
    values: Mapping[Hashable, Mapping[Hashable, float]],
    clusters: Mapping[Hashable, Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> list[Standing]:
    """Return the things from best to worst, each compared with the best block by block.

    The best has the lowest mean deviation from its blocks' means. Of k things each interval has
    1 - (1 - confidence) / (k - 1), so that all of them hold together (Bonferroni), and those not
    worse than the best hold the true best with at least that confidence (Gupta 1965, Technometrics
    7, 225).

    Args:
        values: Of each thing its value in every block that it has one in.
        clusters: Which blocks are not independent of one another (all blocks of one seed); None:
            all are.
        confidence: Of all intervals together.
    """
    by_name = {name: dict(by_block) for name, by_block in values.items() if by_block}
    if not by_name:
        return []
    everything: dict[Hashable, list[float]] = {}
    for by_block in by_name.values():
        for block, value in by_block.items():
            everything.setdefault(block, []).append(value)
    centre = {block: sum(of_block) / len(of_block) for block, of_block in everything.items()}
    deviations = {
        name: sum(value - centre[block] for block, value in by_block.items()) / len(by_block)
        for name, by_block in by_name.items()
    }
    ordered = sorted(by_name, key=lambda name: deviations[name])
    best = by_name[ordered[0]]
    of_each = 1 - (1 - confidence) / max(1, len(ordered) - 1)
    result = []
    for name in ordered:
        shared = (
            [block for block in by_name[name] if block in best] if by_name[name] is not best else []
        )
        groups = [clusters[block] if clusters else block for block in shared]
        result.append(
            Standing(
                name=name,
                mean=sum(by_name[name].values()) / len(by_name[name]),
                num_values=len(by_name[name]),
                is_best=by_name[name] is best,
                against_best=mean_interval(
                    [by_name[name][block] - best[block] for block in shared],
                    groups,
                    confidence=of_each,
                )
                if shared
                else None,
            )
        )
    return result


def sign_test_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of the sign test; zeros are left out, and no sign at all gives 1."""
    num_up = sum(value > 0 for value in differences)
    num_down = sum(value < 0 for value in differences)
    n = num_up + num_down
    tail = sum(math.comb(n, k) for k in range(min(num_up, num_down) + 1))
    return min(1.0, 2 * tail / (1 << n))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of the mean under all 2^n changes of sign.

    Of more than twelve differences 10 000 changes are drawn, and the one observed counts as one of
    them (Phipson and Smyth 2010). The smallest p that n differences can have is 2 / 2^n.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return 1.0
    observed = abs(float(values.sum()))
    slack = _ROUNDING * float(np.abs(values).sum())
    if len(values) <= _MAX_EXACT_FLIPS:
        signs = np.asarray(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float(np.mean(np.abs(signs @ values) >= observed - slack))
    flips = generator("sign-flip", len(values)).integers(0, 2, size=(_NUM_FLIPS, len(values)))
    num_extreme = int((np.abs((2.0 * flips - 1.0) @ values) >= observed - slack).sum())
    return (num_extreme + 1) / (_NUM_FLIPS + 1)


def probability_lower(first: Sequence[float], second: Sequence[float]) -> float:
    """Return how often a value of `second` is under one of `first`; equal ones count half.

    The probability of improvement of Agarwal et al. 2021 (2108.13264), for a measure that falls.
    """
    signs = np.sign(np.subtract.outer(np.asarray(first), np.asarray(second)))
    return float((signs + 1).mean() / 2)


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
