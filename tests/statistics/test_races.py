"""Races choose near the best rates and call nobody worse who is not.

Small numbers of repeats; `python -m tests.statistics.simulate_races` makes the whole tables.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistics.races import DESIGN, SIGMA, Judged, judge, race_of


def judged(gaps: list[float], num: int, **options: object) -> list[Judged]:
    drawn = np.random.default_rng(1)
    races = (race_of(gaps, drawn, DESIGN, **options) for _ in range(num))  # type: ignore[arg-type]
    return [judge(race, race.run()) for race in races]


def test_a_clear_leader_wins_for_a_third_of_the_epochs() -> None:
    results = judged([0.0, 11.0, 13.0], 25)
    assert sum(result.right_winner for result in results) >= 24
    assert not any(result.false_worse for result in results)
    # Nine whole runs of each arm, and six fresh seeds of each.
    assert np.mean([result.tuning_epochs for result in results]) < 54 * 0.45
    assert np.mean([result.confirming_runs for result in results]) < 18 * 0.5


def test_the_chosen_rate_is_near_the_best() -> None:
    regrets = np.concatenate([result.regrets for result in judged([0.0, 30.0], 30)]) / SIGMA
    # The optimizers of the embedded base differ by 11.
    assert np.median(regrets) < 1
    assert np.quantile(regrets, 0.9) < 3


@pytest.mark.parametrize("num_images", [0, 24])
def test_equal_arms_are_called_equal(num_images: int) -> None:
    results = judged([0.0, 0.0, 0.0], 40, num_images=num_images, has_equal_curves=True)
    # Neither at the rates that were chosen, nor at the best there are.
    assert sum(result.false_worse for result in results) <= 5
    assert sum(result.unfair_worse for result in results) <= 5
    assert np.mean([result.num_seeds for result in results]) > 5


def test_runs_that_diverge_at_random_end_no_race() -> None:
    results = judged([0.0, 15.0, 20.0], 15, failing=0.1)
    assert not any(result.false_worse for result in results)
