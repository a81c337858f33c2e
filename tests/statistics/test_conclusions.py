"""The report's conclusions are as often wrong as they say, and see what they say they see.

Small numbers of repeats; `python -m tests.statistics.simulate` makes the whole table.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from optbench.analysis import rank_settings, stats
from tests.statistics.simulate import collapse, is_named, ladder, leader
from tests.statistics.sweeps import (
    Images,
    Sweep,
    covers,
    equal,
    false_claims,
    repeats,
    wrong_effects,
)


def wrong_share(
    sweep: Sweep, num: int, noise: str = "normal", images: Images | None = None
) -> float:
    results = repeats(sweep, num, 1, noise=noise, images=images)
    return sum(bool(false_claims(sweep, standings)) for standings in results) / num


def most(num: int, rate: float = 0.06) -> float:
    """Return the share that a true rate exceeds once in a thousand tests."""
    return float(scipy_stats.binom.ppf(0.999, num, rate)) / num


@pytest.mark.parametrize("noise", ["normal", "t3"])
@pytest.mark.parametrize(("num_settings", "num_seeds"), [(3, 2), (5, 3), (12, 3), (12, 8)])
def test_equal_settings_are_called_equal(num_settings: int, num_seeds: int, noise: str) -> None:
    assert wrong_share(equal(num_settings, num_seeds), 120, noise) <= most(120)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "t3"])
@pytest.mark.parametrize("num_seeds", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("num_settings", [3, 5, 12, 35])
def test_equal_settings_are_called_equal_of_many(
    num_settings: int, num_seeds: int, noise: str
) -> None:
    num = 150 if num_settings == 35 else 500
    assert wrong_share(equal(num_settings, num_seeds), num, noise) <= most(num)


def test_a_true_leader_is_named() -> None:
    for sigmas, least in ((8, 0.95), (5, 0.7)):
        named = sum(map(is_named, repeats(leader(12, 3, sigmas), 150, 2)))
        assert named / 150 >= least - 0.04


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_a_broken_rate_or_dim_takes_nothing_from_its_optimizer(num_seeds: int) -> None:
    for sweep in (ladder(num_seeds), collapse(num_seeds)):
        assert wrong_share(sweep, 100) <= most(100)


def test_a_collapsed_setting_takes_no_power_from_the_others() -> None:
    sweep = collapse(3)
    best = ("c", 16)
    named = Sweep(
        factors=sweep.factors,
        # Three runs of their own noise must show the collapsed one to be worse, too.
        means={**sweep.means, best: -8.0, ("a", 128): 1000.0},
        noises=sweep.noises,
        num_seeds=3,
    )
    results = [s for s in repeats(named, 60, 4) if s.conclusion == "clear"]
    assert len(results) >= 54
    assert all(s.lead is not None and s.lead.values == ("c", "16") for s in results)


@pytest.mark.parametrize(
    "images",
    [
        Images(num=24, of_settings=2.1, of_rest=0.5),
        Images(num=8, of_settings=2.1, of_rest=0.5),
        Images(num=8, of_settings=0.0, of_rest=1.0),
    ],
)
def test_intervals_hold_for_images_that_were_not_seen(images: Images) -> None:
    for num_settings, num_seeds in ((2, 3), (12, 5)):
        sweep = equal(num_settings, num_seeds)
        held = sum(covers(sweep, s) for s in repeats(sweep, 100, 3, images=images))
        assert 1 - held / 100 <= most(100, 0.07)


def test_what_could_have_been_seen_is_seen() -> None:
    sizes = [s.smallest_difference() or 0.0 for s in repeats(equal(5, 3), 40, 5)]
    sweep = leader(5, 3, float(np.median(sizes)) / 1e-4)
    seen = 0
    for standings in repeats(sweep, 150, 6):
        first, last = (
            next(s for s in standings.settings if run in s.runs) for run in ("0-0", "4-0")
        )
        interval = standings.difference(first, last)
        seen += interval is not None and interval.excludes_zero
    assert 0.68 <= seen / 150 <= 0.92
    standings = next(repeats(equal(5, 3), 1, 5))
    more, now = standings.smallest_difference(8), standings.smallest_difference()
    assert more is not None
    assert now is not None
    assert more < now
    assert standings.smallest_difference(3) == pytest.approx(now, rel=1e-6)


def test_the_table_of_changes_and_the_settings_agree() -> None:
    drawn = np.random.default_rng(11)
    sweep = equal(12, 3, means={("c", 128): -20.0})
    realization = sweep.draw(drawn)
    frames = realization.frames
    standings = rank_settings(frames)
    # What the frames say is what the outcomes say.
    assert [s.label for s in standings.settings] == [
        s.label for s in realization.standings.settings
    ]
    assert standings.smallest_difference() == pytest.approx(
        realization.standings.smallest_difference()
    )
    assert wrong_effects(sweep, frames)  # rightly: 128 differs
    assert not wrong_effects(equal(12, 3), equal(12, 3).draw(drawn).frames)


def test_the_model_is_the_textbooks_where_nothing_is_missing() -> None:
    drawn = np.random.default_rng(1)
    Y = drawn.normal(size=(4, 3)) + drawn.normal(size=(1, 3)) * 50
    model = stats.fit_two_way({i: dict(enumerate(row)) for i, row in enumerate(Y)})
    rest = Y - Y.mean(axis=1, keepdims=True) - Y.mean(axis=0) + Y.mean()
    deviation = math.sqrt((rest**2).sum() / 6)
    assert model.deviation == pytest.approx(deviation)
    assert model.residual_degrees == pytest.approx(6)
    interval = model.difference(0, 1)
    q = scipy_stats.studentized_range.ppf(0.95, 4, 6)
    assert interval.mean == pytest.approx(Y[1].mean() - Y[0].mean())
    assert interval.high is not None
    if not model.is_wild[0] and model.degrees[0, 1] == pytest.approx(6):
        half = q * deviation / math.sqrt(3)
        assert interval.high - interval.mean == pytest.approx(half, rel=2e-3)


def test_runs_may_be_missing_and_one_run_borrows_the_others_noise() -> None:
    drawn = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        seeds = 30 * drawn.normal(size=4)
        Y = drawn.normal(size=(5, 4)) + seeds
        values = {i: dict(enumerate(row)) for i, row in enumerate(Y.tolist())}
        values[1] = {0: Y[1, 0]}  # one run
        values[2] = {j: Y[2, j] for j in (1, 3)}
        model = stats.fit_two_way(values)
        assert model.residual_degrees == pytest.approx(15 - 8)
        covered += bool(((model.lows <= 0) & (model.highs >= 0)).all())
    assert covered / 200 >= 0.9


def test_settings_without_a_common_seed_are_compared_as_strangers() -> None:
    drawn = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        seeds = 30 * drawn.normal(size=6)
        Y = 0.5 * drawn.normal(size=(3, 6)) + seeds
        values = {i: {j: Y[i, j] for j in range(3)} for i in (0, 1)}
        values[2] = {j: Y[2, j] for j in (3, 4, 5)}
        model = stats.fit_two_way(values)
        paired, strange = model.errors[0, 1], model.errors[0, 2]
        assert strange > 5 * paired
        covered += bool(((model.lows <= 0) & (model.highs >= 0)).all())
    assert covered / 200 >= 0.9
    # With one run each, nothing is known of luck.
    alone = stats.fit_two_way({i: {0: float(i)} for i in range(3)})
    assert alone.deviation is None
    assert alone.difference(0, 1).low is None


def test_the_studentized_range_is_scipys() -> None:
    for num_means, degrees in ((2, 1.0), (3, 4.0), (12, 22.0), (35, 68.0), (12, 10.3)):
        expected = scipy_stats.studentized_range.ppf(0.95, num_means, degrees)
        assert stats.range_quantile(0.95, num_means, degrees) == pytest.approx(expected, rel=2e-4)
        table = stats.range_quantiles(0.95, num_means, np.asarray([degrees]))
        assert table[0] == pytest.approx(expected, rel=2e-3)


def test_the_best_of_a_group_is_held_between_its_members_intervals() -> None:
    drawn = np.random.default_rng(4)
    model = stats.fit_two_way(
        {i: dict(enumerate(drawn.normal(size=3) + 0.3 * i)) for i in range(6)}
    )
    first, second = (0, 1, 2), (3, 4, 5)
    best = model.difference_of_bests(first, second)
    pairs = {(i, j): model.difference(i, j) for i in first for j in second}
    lows = {place: pair.low or 0.0 for place, pair in pairs.items()}
    highs = {place: pair.high or 0.0 for place, pair in pairs.items()}
    assert best.low == pytest.approx(max(min(lows[i, j] for j in second) for i in first))
    assert best.high == pytest.approx(min(max(highs[i, j] for i in first) for j in second))
    assert best.low != pytest.approx(min(lows.values()))


def test_where_images_alone_differ_the_error_is_that_of_a_mean_over_them() -> None:
    drawn = np.random.default_rng(5)
    parts = drawn.normal(size=(2, 1, 20)) + 1e-4 * drawn.normal(size=(2, 4, 20))
    values = {i: dict(enumerate(parts[i].mean(axis=1).tolist())) for i in range(2)}
    images = {
        i: {j: {"all": {str(p): parts[i, j, p] for p in range(20)}} for j in range(4)}
        for i in range(2)
    }
    model = stats.fit_two_way(values, images)
    gaps = parts[1].mean(axis=0) - parts[0].mean(axis=0)
    assert model.errors[0, 1] == pytest.approx(gaps.std(ddof=1) / math.sqrt(20), rel=1e-2)
