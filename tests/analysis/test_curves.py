"""Curves: smoothing, thinning, mean and range over seeds, steps as epochs and time."""

from __future__ import annotations

import math

import pytest

from optbench.analysis.curves import band, epoch_ends, interpolated, smooth, thinned


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smooth([2.0, 2.0, 2.0], num_steps=9) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([4.0, 0.0], num_steps=3) == pytest.approx([4.0, 4.0 / 3])


def test_long_curves_are_thinned_evenly_and_keep_their_ends() -> None:
    chosen = thinned(range(100_001), max_points=11)
    assert chosen == list(range(0, 100_001, 10_000))
    assert thinned([1, 2], max_points=11) == [1, 2]


def test_a_band_is_the_mean_and_range_of_the_seeds_at_the_steps_they_share() -> None:
    found = band({"a": [(1, 1.0), (2, 2.0), (4, 9.0)], "b": [(1, 3.0), (3, 5.0), (4, 1.0)]})
    assert found is not None
    assert found.x == (1, 4)
    assert found.mean == (2.0, 5.0)
    assert found.low == (1.0, 1.0)
    assert found.high == (3.0, 9.0)


def test_a_seed_that_ended_early_is_in_no_mean_which_would_jump_where_it_ends() -> None:
    whole = [(step, 1.0) for step in range(1, 5)]
    stopped = [(1, 100.0), (2, 100.0)]
    found = band({"a": whole, "b": whole, "stopped": stopped, "empty": []})
    assert found is not None
    assert found.runs == ("a", "b")
    assert found.mean == (1.0,) * 4
    assert band({"a": whole, "stopped": stopped}) is None
    assert band({}) is None


def test_steps_become_epochs_and_seconds_along_the_ends_of_epochs() -> None:
    steps = [
        {"step": step, "epoch": 1 + (step - 1) // 10, "seconds_forward": 0.25, "seconds_data": 0.25}
        for step in range(1, 26)
    ]
    ends = epoch_ends(steps, [{"epoch": 1}, {"epoch": 2}])
    assert ends == [(0, 0, 0), (10, 1, 5.0), (20, 2, 10.0), (25, 2.5, 12.5)]
    xs, epochs = [end[0] for end in ends], [end[1] for end in ends]
    assert interpolated(15, xs, epochs) == 1.5
    assert interpolated(99, xs, epochs) == 2.5


def test_without_steps_the_epochs_say_where_they_end_and_unknown_time_is_unknown() -> None:
    epochs = [{"epoch": 1, "step": 8, "seconds_train": 4.0}, {"epoch": 2, "step": 16}]
    assert epoch_ends([], epochs) == [(0, 0, 0), (8, 1, 4.0), (16, 2, 4.0)]
    assert math.isnan(epoch_ends([{"step": 3, "epoch": 1}], [{"epoch": 1}])[-1][2])
    assert epoch_ends([], [{"epoch": "x", "step": None}]) == [(0, 0, 0)]
