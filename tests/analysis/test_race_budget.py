"""What a race costs, what fits, what one more hour buys, and what tuning is worth by its length."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from optbench.analysis.race import (
    RaceDesign,
    best_of,
    expected_best,
    fit_budget,
    optimism,
    plan_race,
    rate_ladder,
    smallest_difference,
    verdicts,
    what_more_buys,
)
from tests.statistics.races import race_of

DESIGN = RaceDesign(arms=("a", "b", "c"), rates=rate_ladder(0.2, 5, 9))


def test_the_plan_has_the_epochs_of_halving_and_of_every_seed() -> None:
    plan = plan_race(DESIGN)
    tuning = [row for row in plan.rows if row.is_certain and row.smallest_difference is None]
    assert [(row.num_runs, row.num_epochs) for row in tuning] == [(27, 27), (9, 9), (3, 12)]
    confirming = [row for row in plan.rows if row.smallest_difference is not None]
    assert [row.num_epochs for row in confirming] == [36, 18, 18, 18, 18]
    sizes = [row.smallest_difference or 0.0 for row in confirming]
    assert sizes == sorted(sizes, reverse=True)
    assert plan.plain == 3 * (54 + 36)
    assert 48 + 36 <= plan.first_look < 48 * 1.5 + 36


def test_a_real_race_costs_what_its_plan_says() -> None:
    drawn = np.random.default_rng(4)
    plan = plan_race(dataclasses.replace(DESIGN, most_widenings=0))
    spent = [race_of([0.0, 30.0, 60.0], drawn, plan.design).run().epochs_tuning for _ in range(15)]
    tuning = plan.first_look - 36
    assert np.mean(spent) == pytest.approx(tuning, rel=0.1)


def test_fewer_rates_fit_a_smaller_budget_and_the_own_rate_stays() -> None:
    assert fit_budget(DESIGN) == DESIGN
    for budget, num in ((101, 9), (93, 7), (81, 5), (69, 3)):
        fitted = fit_budget(dataclasses.replace(DESIGN, budget=float(budget)))
        assert len(fitted.rates) == num
        assert 1.0 in fitted.rates
        assert plan_race(fitted).fits
        ratios = [after / before for before, after in itertools.pairwise(fitted.rates)]
        assert max(ratios) < 2.3
    too_little = fit_budget(dataclasses.replace(DESIGN, budget=20.0))
    assert not plan_race(too_little).fits


def test_hours_are_counted_by_the_arms_own_speed() -> None:
    hours = dataclasses.replace(
        DESIGN, unit="hours", epoch_cost={"a": 0.1, "b": 0.1, "c": 0.4}, finish_cost=0.05
    )
    plan = plan_race(hours)
    assert plan.rows[0].cost == pytest.approx(9 * 0.6)
    assert plan.rows[-1].cost == pytest.approx(6 * 0.6 + 3 * 0.05)


def test_the_smallest_difference_is_what_simulated_looks_see() -> None:
    size = smallest_difference(3, 3, 0.99)
    assert size is not None
    drawn = np.random.default_rng(6)
    design = dataclasses.replace(DESIGN, confirm=(3, 3), alpha=0.01, rates=(1.0,), most_widenings=0)
    seen = 0
    for _ in range(60):
        race = race_of([0.0, 0.0, size], drawn, design, has_equal_curves=True)
        verdict = race.run()
        seen += any(arm.arm == "o2" and arm.standing == "worse" for arm in verdict.arms)
    assert 0.6 < seen / 60 < 0.95
    assert smallest_difference(2, 1, 0.95) is None


def test_one_more_hour_buys_seeds_of_the_arms_that_are_left() -> None:
    drawn = np.random.default_rng(5)
    design = dataclasses.replace(DESIGN, budget=120.0)
    race = race_of([0.0, 0.3, 80.0], drawn, design)
    verdict = race.run()
    assert verdict.ending == "budget"
    more = what_more_buys(race.design, verdict, 24.0)
    assert "o2" not in more.arms
    assert more.num_seeds >= 1
    assert more.smallest_now is not None
    assert more.smallest_then is not None
    assert more.smallest_then < more.smallest_now
    # A race that saw no fresh seed says what it lacks for the first look.
    short = race_of([0.0, 1.0, 2.0], drawn, dataclasses.replace(DESIGN, budget=70.0))
    ended = short.run()
    lacking = what_more_buys(short.design, ended, 1.0)
    assert lacking.num_seeds == 0
    whole = dataclasses.replace(short.design, budget=ended.spent + lacking.next_look + 1)
    assert not ended.looks
    assert verdicts(dataclasses.replace(whole, budget=170.0), short.results).steps


def test_the_best_of_so_many_is_the_mean_over_all_choices() -> None:
    values = [0.3, 0.1, 0.5, 0.2, 0.4]
    curve = best_of(values)
    for tries, (mean, low, high) in enumerate(curve, start=1):
        bests = sorted(max(some) for some in itertools.combinations(values, tries))
        assert mean == pytest.approx(np.mean(bests))
        assert low <= mean <= high
        assert low in values
    assert curve[-1] == (0.5, 0.5, 0.5)


def test_the_curve_of_a_ladder_ends_at_its_best_score_and_its_epochs() -> None:
    race = race_of([0.0, 10.0], np.random.default_rng(1), DESIGN)
    tuning = race.run().tunings["o0"]
    curve = expected_best(tuning)
    assert len(curve) == len(tuning.tried)
    assert curve[-1].epochs == pytest.approx(tuning.epochs)
    best = max(score for tried in tuning.tried for score in tried.scores.values())
    assert curve[-1].mean <= best
    means = [point.mean for point in curve]
    assert means == sorted(means)


def test_the_best_of_equal_tries_flatters_itself() -> None:
    assert optimism(1) == 0
    assert optimism(3) == pytest.approx(0.846, abs=1e-3)
    assert optimism(9) == pytest.approx(1.485, abs=1e-3)
