"""Intervals of what people prefer hold for other images and other trainings."""

from __future__ import annotations

import pytest

from tests.statistics.votes import false_agreements, vote_coverage


@pytest.mark.parametrize(
    "effects",
    [
        {},
        {"of_cells": 1.0},
        {"of_runs": 0.7, "num_runs": 2},
        {"of_runs": 0.7, "num_runs": 3, "of_cells": 1.0},
    ],
)
def test_equal_settings_are_preferred_by_nobody(effects: dict[str, float]) -> None:
    for num_votes in (60, 250):
        assert vote_coverage(15, num_votes, **effects) >= 86


@pytest.mark.slow
@pytest.mark.parametrize("num_votes", [30, 100, 400])
def test_votes_with_effects_of_images_and_trainings(num_votes: int) -> None:
    for effects in ({"of_cells": 1.0}, {"of_runs": 0.7, "num_runs": 3, "of_cells": 1.0}):
        assert vote_coverage(100, num_votes, **effects) >= 92


@pytest.mark.parametrize("num_settings", [4, 5, 8, 12])
def test_of_fifteen_unrelated_measures_none_agrees_with_people(num_settings: int) -> None:
    assert false_agreements(150, num_settings, 15) <= 12
