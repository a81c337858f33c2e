"""The statistics say what is known of data whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from optbench.analysis import stats
from optbench.analysis.stats import Comparison

# Student's t for 0.975, as every table has it.
T_975 = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 9: 2.26216, 30: 2.04227}


def coverage(num_values: int, num_trials: int, *, skewed: bool = False) -> float:
    drawn = np.random.default_rng(7)
    hits = 0
    for _ in range(num_trials):
        values = (
            drawn.exponential(1.0, num_values) if skewed else drawn.normal(1.0, 2.0, num_values)
        )
        found = stats.mean_interval(values.tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    return hits / num_trials


def votes_between(*counts: tuple[str, str, int, int, int]) -> list[Comparison]:
    found = []
    for first, second, wins, losses, ties in counts:
        found += [Comparison(first=first, second=second, winner="first")] * wins
        found += [Comparison(first=first, second=second, winner="second")] * losses
        found += [Comparison(first=first, second=second, winner=None)] * ties
    return found


@pytest.mark.parametrize("degrees", T_975)
def test_students_quantiles_are_those_of_the_tables(degrees: int) -> None:
    assert stats.student_quantile(0.975, degrees) == pytest.approx(T_975[degrees], rel=2e-5)
    assert stats.student_quantile(0.025, degrees) == pytest.approx(-T_975[degrees], rel=2e-5)


def test_an_interval_of_three_is_students() -> None:
    found = stats.mean_interval([1.0, 2.0, 6.0])
    half = T_975[2] * math.sqrt(7.0) / math.sqrt(3)
    assert found.mean == 3.0
    assert found.low == pytest.approx(3 - half, rel=1e-5)
    assert found.high == pytest.approx(3 + half, rel=1e-5)
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("num_values", "skewed"), [(3, False), (5, False), (12, False), (20, True)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(num_values: int, skewed: bool) -> None:
    lowest = 0.88 if skewed else 0.93  # no interval of a mean keeps its word for skewed values
    assert lowest - 0.01 <= coverage(num_values, 800, skewed=skewed) <= 0.98


def test_one_block_has_a_mean_and_no_interval() -> None:
    found = stats.mean_interval([1.0, 3.0], ["seed 1", "seed 1"])
    assert (found.mean, found.low, found.num_blocks, found.num_values) == (2.0, None, 1, 2)
    assert not found.excludes_zero


def test_values_of_one_block_count_once() -> None:
    values, blocks = [1.0, 1.1, 2.0, 2.1, 3.0, 3.1], [1, 1, 2, 2, 3, 3]
    by_block = stats.mean_interval(values, blocks)
    alone = stats.mean_interval([1.05, 2.05, 3.05])
    assert (by_block.low, by_block.high) == (alone.low, alone.high)
    every = stats.mean_interval(values)
    assert every.high is not None
    assert by_block.high is not None
    assert every.high < by_block.high


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        stats.mean_interval(values)


def test_wilsons_interval() -> None:
    low, high = stats.proportion_interval(7, 8)
    # The roots of (p - 7/8)^2 = z^2 p (1 - p) / 8.
    for root in (low, high):
        assert (root - 7 / 8) ** 2 == pytest.approx(1.959964**2 * root * (1 - root) / 8, rel=1e-5)
    assert stats.proportion_interval(0, 5)[0] == pytest.approx(0.0)
    assert stats.proportion_interval(5, 5)[1] == pytest.approx(1.0)


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_noise_inside_groups() -> None:
    found = stats.pooled_deviation([[1.0, 3.0], [10.0, 10.0, 13.0], [99.0]])
    assert found is not None
    assert found[0] == pytest.approx(math.sqrt((2.0 + 6.0) / 3))
    assert found[1] == 3
    assert stats.pooled_deviation([[1.0], [2.0]]) is None


def test_strengths_of_many_votes_are_those_that_made_them() -> None:
    truth = {"a": 1.0, "b": 0.0, "c": -1.0}
    ties, counts = 0.5, []
    for one, other in itertools.combinations(truth, 2):
        p, q = math.exp(truth[one]), math.exp(truth[other])
        total = p + q + ties * math.sqrt(p * q)
        parts: tuple[float, ...] = (p / total, q / total, ties * math.sqrt(p * q) / total)
        counts.append((one, other, *(round(30_000 * part) for part in parts)))
    place = {"a": 0, "b": 1, "c": 2}
    kinds = [
        (place[one], place[other], outcome) for one, other, *_ in counts for outcome in range(3)
    ]
    made = [float(count) for _, _, *three in counts for count in three]
    fit = stats.fit_strengths(np.array(kinds), np.array(made), 3)
    assert fit == pytest.approx([1.0, 0.0, -1.0, math.log(ties)], abs=0.01)


def test_two_things_have_the_strength_of_their_odds() -> None:
    """With a prior of precision 1/9 the score equation is wins - total * share = s / 9."""
    fit = stats.fit_strengths(np.array([[0, 1, 0], [0, 1, 1]]), np.array([7.0, 3.0]), 2)
    log_v = fit[2]
    total = math.exp(fit[0]) + math.exp(fit[1]) + math.exp(log_v + (fit[0] + fit[1]) / 2)
    share, tied = math.exp(fit[0]) / total, math.exp(log_v + (fit[0] + fit[1]) / 2) / total
    assert 7 - 10 * (share + tied / 2) == pytest.approx(fit[0] / 9, abs=1e-6)
    assert -10 * tied == pytest.approx(log_v / 9, abs=1e-6)


def test_what_never_lost_has_a_finite_strength_and_an_interval() -> None:
    best, worst = stats.bradley_terry(votes_between(("a", "b", 6, 0, 0)))
    assert (best.name, worst.name, best.num_votes) == ("a", "b", 6)
    assert 0 < best.strength < 10
    assert best.low < best.strength - 0.5  # six votes are six votes, though all agree
    assert best.win_share > 0.5
    assert stats.bradley_terry([]) == []


def test_many_votes_leave_little_doubt() -> None:
    counts = [(a, b, 300, 100, 0) for a, b in itertools.combinations("abcd", 2)]
    found = stats.bradley_terry(votes_between(*counts))
    assert [one.name for one in found] == list("abcd")
    assert all(one.high - one.low < 0.5 for one in found)
    assert sum(one.strength for one in found) == pytest.approx(0, abs=1e-6)


def test_intervals_of_strengths_hold_the_truth() -> None:
    drawn, truth, hits, told = np.random.default_rng(5), [0.6, 0.0, -0.6], 0, 0
    for _ in range(10):
        votes = []
        for _ in range(120):
            i, j = drawn.choice(3, size=2, replace=False)
            wins = drawn.random() < 1 / (1 + math.exp(truth[j] - truth[i]))
            votes.append(
                Comparison(first=int(i), second=int(j), winner="first" if wins else "second")
            )
        for one in stats.bradley_terry(votes):
            hits += one.low <= truth[int(str(one.name))] <= one.high
            told += 1
    assert hits / told > 0.8


def test_ranks_and_their_correlation() -> None:
    assert stats.ranks([10.0, 30.0, 20.0, 20.0]).tolist() == [1.0, 4.0, 2.5, 2.5]
    # 1 - 6 sum(d^2) / (n (n^2 - 1)) with d = (0, 1, -1, 0)
    assert stats.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert stats.spearman([1, 2], [5, 5]) is None


def test_agreement_has_an_interval_where_things_are_enough() -> None:
    found = stats.rank_agreement(range(10), [value**3 for value in range(10)])
    assert found is not None
    assert found.correlation == pytest.approx(1.0)
    assert found.low is not None
    assert 0.8 < found.low < 1  # ten in order are strong evidence, and no certainty
    few = stats.rank_agreement([1, 2, 3], [3, 2, 1])
    assert few is not None
    assert (few.correlation, few.low) == (pytest.approx(-1.0), None)
    assert stats.rank_agreement([1], [1]) is None
    unlike = stats.rank_agreement([1, 2, 3, 4, 5, 6], [2, 5, 1, 6, 3, 4])
    assert unlike is not None
    assert unlike.low is not None
    assert unlike.high is not None
    assert unlike.low < 0 < unlike.high


def test_what_stands_apart_says_nothing_of_the_others_luck() -> None:
    draw = np.random.default_rng(4)
    seeds = range(3)
    values = {
        name: {seed: 0.1 * seed + float(draw.normal()) * 1e-4 for seed in seeds} for name in "abcd"
    }
    noisy = {seed: 0.5 + 0.1 * seed + 1e-3 * (-1) ** seed for seed in seeds}
    alone = stats.fit_two_way(values)
    told = stats.fit_two_way({**values, "broken": noisy}, apart={"broken"})
    untold = stats.fit_two_way({**values, "broken": noisy})
    assert told.deviation == pytest.approx(alone.deviation, rel=1e-3)
    assert untold.deviation is not None
    assert told.deviation is not None
    assert untold.deviation > 2 * told.deviation
    assert told.is_wild == (False, False, False, False, True)
    # Where all stand apart there is no other luck to go by.
    assert stats.fit_two_way(values, apart=set(values)).deviation == alone.deviation
