"""Simulated votes whose images and trainings have effects of their own, and their coverage."""

from __future__ import annotations

import math

import numpy as np

from optbench.analysis import stats
from optbench.analysis.stats import Comparison, Strength


def simulate_votes(
    drawn: np.random.Generator,
    num_votes: int,
    *,
    num_settings: int = 4,
    num_runs: int = 1,
    num_cells: int = 8,
    of_cells: float = 0.0,
    of_runs: float = 0.0,
) -> list[Strength]:
    """Return the strengths of settings that are all equal.

    Args:
        drawn: Where luck comes from.
        num_votes: How many votes there are.
        num_settings: How many settings.
        num_runs: Trainings of each.
        num_cells: Prompts and seeds.
        of_cells: Deviation of a setting's image in one cell, on the scale of strengths.
        of_runs: Deviation of a training.
    """
    cells = of_cells * drawn.standard_normal((num_settings, num_cells))
    runs = of_runs * drawn.standard_normal((num_settings, num_runs))
    votes = []
    for _ in range(num_votes):
        i, j = drawn.choice(num_settings, size=2, replace=False).tolist()
        a, b = drawn.integers(0, num_runs, size=2).tolist()
        cell = int(drawn.integers(0, num_cells))
        better = cells[i, cell] + runs[i, a] - cells[j, cell] - runs[j, b]
        won = "first" if drawn.random() < 1 / (1 + math.exp(-better)) else "second"
        votes.append(
            Comparison(
                first=i,
                second=j,
                winner=won,  # type: ignore[arg-type]
                cell=cell,
                runs=((i, a), (j, b)),
            )
        )
    return stats.bradley_terry(votes)


def vote_coverage(num: int, num_votes: int, **effects: float) -> float:
    """Return in how many percent the intervals of equal settings hold 0."""
    drawn = np.random.default_rng(7)
    strengths = [
        strength
        for _ in range(num)
        for strength in simulate_votes(drawn, num_votes, **effects)  # type: ignore[arg-type]
    ]
    return 100 * sum(s.low <= 0 <= s.high for s in strengths) / len(strengths)


def false_agreements(num: int, num_settings: int, num_measures: int) -> float:
    """Return in how many percent any of so many unrelated measures seems to agree with people."""
    from optbench.analysis.ratings import agreements

    drawn = np.random.default_rng(8)
    hits = 0
    for _ in range(num):
        names = list(map(str, range(num_settings)))
        people = dict(zip(names, drawn.normal(size=num_settings).tolist(), strict=True))
        measures = {
            str(m): dict(zip(names, drawn.normal(size=num_settings).tolist(), strict=True))
            for m in range(num_measures)
        }
        hits += any(
            a.low is not None and a.high is not None and not a.low <= 0 <= a.high
            for a in agreements(people, measures).values()
        )
    return 100 * hits / num
