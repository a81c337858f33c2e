"""Strengths from votes between two things: Bradley-Terry with ties (Davidson 1970).

P(i over j) = p_i / D, P(tie) = v sqrt(p_i p_j) / D, D = p_i + p_j + v sqrt(p_i p_j), with where
s_i = log p_i is a strength. A normal prior of deviation 3 on every s_i, and on log v, keeps finite
the strength of what never lost, and leaves things equal that no vote tells apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optbench.analysis.stats.intervals import CONFIDENCE, Floats, generator

_PRECISION = 1 / 3**2
_NUM_RESAMPLES = 300
_MAX_STEPS = 60
_CLOSE = 1e-8
# Of (s_i, s_j, log v), what the logarithms of "first", "second" and "tie" are made of.
_TERMS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 1.0]])

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One vote; `winner` None is a tie."""

    first: Hashable
    second: Hashable
    winner: Literal["first", "second"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """One thing's strength on the log scale, 0 being the mean of all."""

    name: Hashable
    strength: float
    low: float
    high: float
    num_votes: int

    @property
    def win_share(self) -> float:
        """How often it would win against a thing of mean strength, ties left out."""
        return float(1 / (1 + np.exp(-self.strength)))


def bradley_terry(votes: Sequence[Comparison]) -> list[Strength]:
    """Return the strengths, highest first, with intervals.

    Percentiles over resampled votes, or the normal approximation of the posterior where that is
    wider: of what never lost every resample says the same, and knows no better than its six votes.
    """
    names = list(dict.fromkeys(name for vote in votes for name in (vote.first, vote.second)))
    place = {name: index for index, name in enumerate(names)}
    if not names:
        return []
    votes_by_kind = Counter(_oriented(place[v.first], place[v.second], v.winner) for v in votes)
    kinds = np.asarray(list(votes_by_kind), dtype=np.int64)
    counts = np.asarray(list(votes_by_kind.values()), dtype=np.float64)
    fitted = fit_strengths(kinds, counts, len(names))
    stream = generator("bradley-terry", len(votes), len(names))
    resampled = stream.multinomial(len(votes), counts / counts.sum(), size=_NUM_RESAMPLES)
    refits = [
        fit_strengths(kinds, resample.astype(float), len(names), fitted) for resample in resampled
    ]
    low, high = np.quantile(np.stack(refits), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    # About the mean of all: votes say nothing of a strength that all have in common.
    centring = np.eye(len(fitted))
    centring[:-1, :-1] -= 1 / len(names)
    covariance = centring @ np.linalg.inv(_derivatives(fitted, kinds, counts)[1]) @ centring.T
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.sqrt(np.diag(covariance))
    low, high = np.minimum(low, fitted - half), np.maximum(high, fitted + half)
    num_votes = Counter(name for vote in votes for name in (vote.first, vote.second))
    strengths = [
        Strength(
            name=name,
            strength=float(fitted[index]),
            low=float(low[index]),
            high=float(high[index]),
            num_votes=num_votes[name],
        )
        for name, index in place.items()
    ]
    return sorted(strengths, key=lambda strength: -strength.strength)


def fit_strengths(
    kinds: Indices, counts: Floats, num_things: int, start: Floats | None = None
) -> Floats:
    """Return the strengths that fit best, and log v as the last, (num_things + 1,).

    Newton's method on the penalized log-likelihood, which is concave; a step that would lower it
    is halved.

    Args:
        kinds: Of each kind of vote the two things and the outcome: 0 the first won, 1 the second
            did, 2 a tie; (n, 3).
        counts: How many votes of each kind there are, (n,).
        num_things: How many things there are.
        start: Where to begin, for instance a fit of nearly the same votes.
    """
    theta = np.zeros(num_things + 1) if start is None else start.copy()
    value = _log_posterior(theta, kinds, counts)
    for _ in range(_MAX_STEPS):
        gradient, curvature = _derivatives(theta, kinds, counts)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while (new := _log_posterior(theta + scale * step, kinds, counts)) < value:
            scale /= 2
            if scale < _CLOSE:
                return theta
        theta, value = theta + scale * step, new
        if float(np.abs(scale * step).max()) < _CLOSE:
            break
    return theta


def _oriented(first: int, second: int, winner: str | None) -> tuple[int, int, int]:
    """Return a vote so that the same two things are always in one order."""
    outcome = {"first": 0, "second": 1, None: 2}[winner]
    return (first, second, outcome) if first < second else (second, first, (1, 0, 2)[outcome])


# theta: the strengths, and log v as the last, (num_things + 1,).


def _log_posterior(theta: Floats, kinds: Indices, counts: Floats) -> float:
    logits = theta[_places(kinds, theta)] @ _TERMS.T
    chosen = logits[np.arange(len(kinds)), kinds[:, 2]]
    total = np.logaddexp.reduce(logits, axis=1)
    return float((counts * (chosen - total)).sum() - _PRECISION / 2 * (theta**2).sum())


def _derivatives(theta: Floats, kinds: Indices, counts: Floats) -> tuple[Floats, Floats]:
    """Return gradient and negated second derivatives of the log-posterior."""
    places = _places(kinds, theta)
    logits = theta[places] @ _TERMS.T
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    rest = counts[:, None] * (np.eye(3)[kinds[:, 2]] - shares)
    gradient = -_PRECISION * theta
    np.add.at(gradient, places, rest @ _TERMS)
    spread = np.eye(3) * shares[:, :, None] - shares[:, :, None] * shares[:, None, :]
    local = counts[:, None, None] * (_TERMS.T @ spread @ _TERMS)
    curvature = _PRECISION * np.eye(len(theta))
    np.add.at(curvature, (places[:, :, None], places[:, None, :]), local)
    return gradient, curvature


def _places(kinds: Indices, theta: Floats) -> Indices:
    return np.stack([kinds[:, 0], kinds[:, 1], np.full(len(kinds), len(theta) - 1)], axis=1)
