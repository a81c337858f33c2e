"""Strengths from votes between two things: Bradley-Terry with ties (Davidson 1970).

P(i over j) = p_i / D, P(tie) = v sqrt(p_i p_j) / D, D = p_i + p_j + v sqrt(p_i p_j), with where
s_i = log p_i is a strength. A normal prior of deviation 3 on every s_i, and on log v, keeps finite
the strength of what never lost, and leaves things equal that no vote tells apart.

Votes of the same images, or of LoRAs of the same training, are not independent: intervals are over
trainings and over cells (a prompt and its seed), as the crossed error of losses is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optbench.analysis.stats.intervals import CONFIDENCE, Floats, student_quantile

# So many half intervals above 0 the strongest of four equal things comes at any time of a session
# in about one of ten (simulated; docs/evidence.md). viewer_preference.js has it too.
WIDENED = 1.3
_PRECISION = 1 / 3**2
_MOST_CELLS = 60  # refits; of more cells several are left out together
_MANY = 1e6  # degrees of the votes' own variance, which the model gives
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
    cell: Hashable = None  # what both images share: prompt and seed
    runs: tuple[Hashable, Hashable] = (None, None)  # the trainings that made them


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """One thing's strength on the log scale, 0 being the mean of all."""

    name: Hashable
    strength: float
    low: float
    high: float
    num_votes: int
    num_runs: int  # trainings; of one alone the interval knows nothing of another

    @property
    def win_share(self) -> float:
        """How often it would win against a thing of mean strength, ties left out."""
        return float(1 / (1 + np.exp(-self.strength)))

    @property
    def is_preferred(self) -> bool:
        """Whether it is shown to win against the average thing, however long one went on voting.

        People stop when they like the answer, and the strongest of several is picked afterwards: of
        four equal things one is above 0 by its plain interval at some time in half of all sessions.
        """
        return self.strength > WIDENED * (self.strength - self.low)


def bradley_terry(votes: Sequence[Comparison]) -> list[Strength]:
    """Return the strengths, highest first, with intervals.

    Their variance is V_cells + V_runs - V_votes, with Student's quantile for its degrees
    (Satterthwaite): V_cells from fits without one cell at a time (jackknife; Efron and Stein 1981),
    V_runs from how trainings of one thing differ, pooled over things, V_votes from the posterior,
    which both others have in them. Where no thing has two trainings, V_cells or V_votes alone.
    """
    names = list(dict.fromkeys(name for vote in votes for name in (vote.first, vote.second)))
    if not names:
        return []
    fitted, own = _fit_votes(votes, names)
    cells = list(dict.fromkeys(vote.cell for vote in votes))
    groups = min(len(cells), _MOST_CELLS)
    variance, degrees = own, np.full(len(names), _MANY)
    if groups > 1:
        place = {cell: index % groups for index, cell in enumerate(cells)}
        without = np.stack(
            [
                _fit_votes([vote for vote in votes if place[vote.cell] != group], names)[0]
                for group in range(groups)
            ]
        )
        spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
        of_cells = (groups - 1) / groups * spread
        degrees = np.where(of_cells > own, groups - 1.0, _MANY)
        variance = np.maximum(own, of_cells)
    runs_of: dict[Hashable, dict[tuple[Hashable, Hashable], None]] = {name: {} for name in names}
    for vote in votes:
        for name, run in zip((vote.first, vote.second), vote.runs, strict=True):
            runs_of[name][name, run] = None
    num_runs = np.asarray([len(runs_of[name]) for name in names], dtype=float)
    run_degrees = float((num_runs - 1).sum())
    if run_degrees:
        by_run = [
            Comparison(first=(v.first, v.runs[0]), second=(v.second, v.runs[1]), winner=v.winner)
            for v in votes
        ]
        runs = [run for name in names for run in runs_of[name]]
        alone, _ = _fit_votes(by_run, runs)
        strengths = dict(zip(runs, alone, strict=True))
        squares = 0.0
        for name in names:
            values = np.asarray([strengths[run] for run in runs_of[name]])
            squares += float(((values - values.mean()) ** 2).sum())
        of_runs = squares / run_degrees / num_runs
        whole = np.maximum(variance, variance + of_runs - own)
        f = whole**2 / (variance**2 / degrees + of_runs**2 / run_degrees)
        degrees = np.where(of_runs > own, f, degrees)
        variance = whole
    num_votes = Counter(name for vote in votes for name in (vote.first, vote.second))
    result = []
    for index, name in enumerate(names):
        half = student_quantile((1 + CONFIDENCE) / 2, float(degrees[index]))
        half *= float(np.sqrt(variance[index]))
        result.append(
            Strength(
                name=name,
                strength=float(fitted[index]),
                low=float(fitted[index]) - half,
                high=float(fitted[index]) + half,
                num_votes=num_votes[name],
                num_runs=int(num_runs[index]),
            )
        )
    return sorted(result, key=lambda strength: -strength.strength)


def _fit_votes(votes: Sequence[Comparison], names: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Return the strengths and their posterior variances about the mean of all, (n,) each."""
    place = {name: index for index, name in enumerate(names)}
    by_kind = Counter(_oriented(place[v.first], place[v.second], v.winner) for v in votes)
    kinds = np.asarray(list(by_kind), dtype=np.int64).reshape(-1, 3)
    counts = np.asarray(list(by_kind.values()), dtype=np.float64)
    fitted = fit_strengths(kinds, counts, len(names))
    # Votes say nothing of a strength that all have in common.
    centring = np.eye(len(fitted))
    centring[:-1, :-1] -= 1 / len(names)
    covariance = centring @ np.linalg.inv(_derivatives(fitted, kinds, counts)[1]) @ centring.T
    return fitted[:-1], np.diag(covariance)[:-1]


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
