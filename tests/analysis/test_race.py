"""A race decides: who goes on from a rung, when brackets widen, who is dropped, and the cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optbench.analysis.race import (
    Axis,
    Point,
    RaceDesign,
    RaceRecord,
    RaceVerdict,
    Result,
    RunPlace,
    Step,
    next_steps,
    rate_ladder,
    read_race,
    rung_epochs,
    verdicts,
    write_race,
)
from optbench.errors import DamagedFileError

RATES = rate_ladder(0.2, 5, 9)
Train = Callable[[Step], Result | list[Result]]


def design(*arms: str, **changes: object) -> RaceDesign:
    return RaceDesign(arms=arms or ("a", "b"), rates=RATES, **changes)  # type: ignore[arg-type]


def score(step: Step, best: float, top: float = 0.03) -> float:
    """Return a gain that is highest at one rate, at every epoch, and a little luck of its seed."""
    luck = 1e-5 * math.sin(977 * step.seed + 31 * step.point.rate + len(step.arm))
    return top * (1 - 0.2 * abs(math.log(step.point.rate / best))) * step.until_epoch**0.1 + luck


def reached(step: Step, gain: float, **changes: object) -> Result:
    return Result(
        arm=step.arm,
        point=step.point,
        seed=step.seed,
        epoch=step.until_epoch,
        gain=gain,
        **changes,  # type: ignore[arg-type]
    )


def race(
    of: RaceDesign, train: Train, results: list[Result] | None = None
) -> tuple[RaceVerdict, list[list[Step]]]:
    """Return the verdict at the end, and the steps that were due at a time."""
    results = [] if results is None else results
    batches: list[list[Step]] = []
    while steps := next_steps(of, results):
        batches.append(list(steps))
        for step in steps:
            made = train(step)
            results += made if isinstance(made, list) else [made]
        assert len(batches) < 50
    return verdicts(of, results), batches


BEST = {"a": 1.0, "b": 2.24}
TOP = {"a": 0.03, "b": 0.028}


def plain(step: Step) -> Result:
    return reached(step, score(step, BEST[step.arm], TOP[step.arm]))


def test_a_ladder_keeps_a_third_and_ends_at_the_best_rate() -> None:
    verdict, batches = race(design(near=0.0, near_later=0.0), plain)
    sizes = [(len(batch), {step.until_epoch for step in batch}) for batch in batches]
    assert sizes[:3] == [(18, {1}), (6, {2}), (2, {6})]
    assert [tuning.best for tuning in verdict.tunings.values()] == [Point(1.0), Point(2.24)]
    assert {tuning.epochs for tuning in verdict.tunings.values()} == {16}
    assert verdict.epochs_tuning == 32
    stopped = {t.point.rate: t for t in verdict.tunings["a"].tried if t.fate == "stopped"}
    assert len(stopped) == 8
    assert stopped[5.0].stopped_at == 1
    assert stopped[1.5].stopped_at == 2
    assert "of 9 at epoch 1" in stopped[5.0].reason


def test_nothing_near_the_leader_stops_on_the_first_rung() -> None:
    _, strict = race(design(near=0.0, near_later=0.0), plain)
    _, lenient = race(design(near=0.1), plain)
    assert len(strict[1]) == 6
    near = {step.point.rate for step in lenient[1] if step.arm == "a"}
    # 0.2 for every factor e of the rate: within a tenth lie the rates up to e ** 0.5 away.
    assert near == {rate for rate in RATES if abs(math.log(rate)) <= 0.5}
    tied = [rate for rate in RATES if abs(math.log(rate)) < 2.1]

    def flat(step: Step) -> Result:
        return reached(step, 0.03 + 1e-6 * step.point.rate)

    _, batches = race(design("a", most_widenings=0), flat)
    assert len(batches[1]) == len(tied) == 9


def test_arms_never_race_one_another_while_they_are_tuned() -> None:
    alone, _ = race(design("b"), plain)
    beside, _ = race(design("a", "b"), plain)
    assert alone.tunings["b"] == beside.tunings["b"]


def test_the_tuning_seed_is_no_evidence() -> None:
    verdict, batches = race(design(), plain)
    confirming = [step for batch in batches for step in batch if step.phase == "confirm"]
    assert {step.seed for step in confirming} == {1, 2}
    assert all(0 not in look.seeds for look in verdict.looks)
    # With other luck for the tuning seed, all that the looks say stays.
    results: list[Result] = []

    def lucky(step: Step) -> Result:
        return reached(step, score(step, BEST[step.arm]) + (0.002 if step.seed == 0 else 0.0))

    race(design(), lucky, results)
    shifted, _ = race(design(), lucky)
    unlucky, _ = race(design(), lambda step: reached(step, score(step, BEST[step.arm])))
    assert [look.model.means.tolist() for look in shifted.looks] == [
        look.model.means.tolist() for look in unlucky.looks
    ]
    with pytest.raises(ValueError, match="tuning seed"):
        design(tuning_seed=3)


def test_a_best_rate_at_an_end_widens_every_bracket_by_as_many() -> None:
    best = {"a": 1.0, "b": 9.0}
    verdict, batches = race(design(), lambda s: reached(s, score(s, best[s.arm])))
    assert {tuning.num_rates for tuning in verdict.tunings.values()} == {11}
    wider = {
        arm: [t.point.rate for t in tuning.tried if t.batch == 1]
        for arm, tuning in verdict.tunings.items()
    }
    assert wider == {"a": [1.22, 0.818], "b": [7.48, 11.2]}
    assert verdict.tunings["b"].best == Point(7.48)
    assert verdict.tunings["b"].position == "inside"
    # Whose best rate lies beyond any bracket is widened as often as allowed, and said to be so.
    far, _ = race(design(), lambda s: reached(s, score(s, {"a": 1.0, "b": 0.001}[s.arm])))
    assert far.tunings["b"].position == "lowest"
    assert {tuning.num_rates for tuning in far.tunings.values()} == {13}


def test_a_rate_that_ties_is_confirmed_too() -> None:
    def tie(step: Step) -> Result:
        gain = 0.03 if step.point.rate in (1.0, 1.5) else 0.02
        return reached(step, gain + 1e-6 * step.point.rate + 1e-6 * step.seed)

    verdict, _ = race(design("a"), tie)
    assert verdict.tunings["a"].finalists == (Point(1.5), Point(1.0))
    assert {name for look in verdict.looks for name in look.model.names} == {
        ("a", Point(1.0)),
        ("a", Point(1.5)),
    }


def test_broken_images_lose_a_rung_against_any_sound_ones() -> None:
    def forgets(step: Step) -> Result:
        forgetting = 0.05 if step.point.rate > 1.2 else 0.001
        return reached(step, 0.01 * step.point.rate**0.3 + 0.02, forgetting=forgetting)

    verdict, _ = race(design("a"), forgets)
    assert verdict.tunings["a"].best == Point(1.0)
    fates = {tried.point.rate: tried for tried in verdict.tunings["a"].tried}
    assert fates[5.0].fate == "broken"
    assert fates[5.0].reason == "forgets other subjects at epoch 1"


def test_the_next_best_goes_on_where_the_best_breaks_at_the_end() -> None:
    def late(step: Step) -> Result:
        is_broken = step.until_epoch == 6 and step.point.rate > 0.8
        return reached(step, score(step, 1.0), forgetting=0.03 if is_broken else 0.0)

    verdict, batches = race(design("a", near=0.0, near_later=0.0), late)
    assert verdict.tunings["a"].best == Point(0.669)
    reasons = {step.reason for batch in batches for step in batch}
    assert "what was better is broken or failed at the end" in reasons


@pytest.mark.parametrize("failure", ["diverged", "out_of_memory", "failed"])
def test_runs_that_fail_are_results_too(failure: str) -> None:
    def fails(step: Step) -> Result:
        if step.point.rate > 1.2:
            return Result(
                arm=step.arm,
                point=step.point,
                seed=step.seed,
                epoch=1,
                failure=failure,  # type: ignore[arg-type]
            )
        return plain(step)

    verdict, _ = race(design(), fails)
    assert verdict.ending == "one_left"
    assert verdict.tunings["b"].best == Point(1.0)
    fates = {tried.point.rate: tried.fate for tried in verdict.tunings["b"].tried}
    assert fates[5.0] == "failed"


def test_an_arm_without_a_usable_rate_is_out_and_ends_nothing() -> None:
    def only_a(step: Step) -> Result:
        if step.arm == "b":
            return Result(
                arm="b", point=step.point, seed=step.seed, epoch=1, failure="out_of_memory"
            )
        return plain(step)

    verdict, _ = race(design(), only_a)
    assert [(arm.arm, arm.standing) for arm in verdict.arms] == [("a", "lead"), ("b", "failed")]
    # Where every rate diverges, lower ones are tried.
    diverging, _ = race(
        design("b"),
        lambda s: Result(arm="b", point=s.point, seed=s.seed, epoch=1, failure="diverged"),
    )
    assert min(t.point.rate for t in diverging.tunings["b"].tried) < 0.1
    assert diverging.ending == "none_left"


def test_a_finalist_that_breaks_for_one_seed_is_no_winner() -> None:
    def sometimes(step: Step) -> Result:
        is_bad = step.arm == "a" and step.seed == 2
        return reached(step, score(step, BEST[step.arm], TOP[step.arm]), flaw="noise" * is_bad)

    verdict, _ = race(design(), sometimes)
    assert [(arm.arm, arm.standing) for arm in verdict.arms] == [("b", "lead"), ("a", "broken")]
    assert verdict.arms[1].reason == "noise with seed 2"


def test_losers_are_dropped_at_the_look_that_shows_it_and_ties_get_every_seed() -> None:
    arms = ("a", "b", "c")
    drawn = np.random.default_rng(3)
    luck = {(arm, seed): 1e-4 * drawn.standard_normal() for arm in arms for seed in range(7)}
    top = {"a": 0.03, "b": 0.03, "c": 0.02}

    def train(step: Step) -> Result:
        return reached(step, score(step, 1.0, top[step.arm]) + luck[step.arm, step.seed])

    verdict, batches = race(design(*arms, most_finalists=1), train)
    assert verdict.ending == "tied"
    by_arm = {arm.arm: arm for arm in verdict.arms}
    assert by_arm["c"].standing == "worse"
    assert by_arm["c"].num_seeds < 6
    assert {by_arm["a"].num_seeds, by_arm["b"].num_seeds} == {6}
    assert {by_arm["a"].standing, by_arm["b"].standing} == {"lead", "tied"}
    interval = by_arm["c"].against_lead
    assert interval is not None
    assert interval.low is not None
    assert interval.low > 0
    confirming = [[s for s in batch if s.phase == "confirm"] for batch in batches]
    assert [len(batch) for batch in confirming if batch][0] == 6


def test_alpha_is_split_over_the_looks() -> None:
    assert design().num_looks == 5
    assert design().look_confidence == pytest.approx(0.99)
    assert design(confirm=(2, 2)).look_confidence == pytest.approx(0.95)
    verdict, _ = race(design(), plain)
    assert {look.confidence for look in verdict.looks} == {design().look_confidence}


def test_a_race_goes_on_from_any_part_of_its_results() -> None:
    """Whatever a kill left, in whatever order files are read, the same runs follow."""
    results: list[Result] = []
    whole, batches = race(design(), plain, results)
    drawn = np.random.default_rng(0)
    asked = {(s.arm, s.point, s.seed, s.until_epoch) for batch in batches for s in batch}
    for cut in range(0, len(results), 7):
        part = [results[i] for i in drawn.permutation(cut)]
        again, more = race(design(), plain, part)
        assert again.tunings == whole.tunings
        assert [arm.standing for arm in again.arms] == [arm.standing for arm in whole.arms]
        new = {(s.arm, s.point, s.seed, s.until_epoch) for batch in more for s in batch}
        assert new <= asked


def test_nuisance_axes_are_tuned_with_the_rate() -> None:
    axis = Axis("network.dim", ("16", "32"))

    def train(step: Step) -> Result:
        worth = 0.9 if step.point.values == ("16",) else 1.0
        return reached(step, worth * score(step, BEST[step.arm], TOP[step.arm]))

    verdict, batches = race(design(nuisance=(axis,), near=0.0, near_later=0.0), train)
    assert len(batches[0]) == 36
    assert verdict.tunings["a"].best == Point(1.0, ("32",))
    assert [arm.arm for arm in verdict.arms] == ["a", "b"]
    assert verdict.arms[0].point == Point(1.0, ("32",))


def test_arms_without_a_rate_are_tuned_by_nothing() -> None:
    verdict, batches = race(design(rateless=("b",)), plain)
    assert [step.point for step in batches[0] if step.arm == "b"] == [Point(1.0)]
    assert verdict.tunings["b"].position is None
    assert verdict.tunings["b"].num_rates == 1


@pytest.mark.parametrize("budget", [5, 20, 40, 60, 75, 100, 400])
def test_a_race_never_costs_more_than_its_budget(budget: float) -> None:
    same = {"a": 0.03, "b": 0.03}

    def train(step: Step) -> Result:
        return reached(step, score(step, BEST[step.arm], same[step.arm]))

    verdict, _ = race(design(budget=budget, most_finalists=1), train)
    assert verdict.spent <= budget
    if budget < 32:
        assert verdict.ending == "budget"
        assert not verdict.looks
    if budget == 400:
        assert verdict.ending in ("tied", "one_left")


def test_a_budget_counts_hours_by_arm_and_spares_widening_for_the_first_look() -> None:
    best = {"a": 1.0, "b": 9.0}
    hours = {"a": 0.1, "b": 0.2}
    of = design(
        budget=9.0,
        unit="hours",
        epoch_cost=hours,
        near=0.0,
        near_later=0.0,
        tie=0.0,
        finish_cost=0.05,
    )
    verdict, _ = race(of, lambda s: reached(s, score(s, best[s.arm], TOP[s.arm])))
    assert verdict.tunings["b"].position == "highest"  # widening would cost more than is left
    assert verdict.looks
    num_runs = sum(arm.num_seeds for arm in verdict.arms)
    expected = (
        16 * 0.3 + 0.05 * num_runs + sum(6 * hours[a.arm] * a.num_seeds for a in verdict.arms)
    )
    assert verdict.spent == pytest.approx(expected)
    richer, _ = race(
        dataclasses.replace(of, budget=30.0),
        lambda s: reached(s, score(s, best[s.arm], TOP[s.arm])),
    )
    assert richer.tunings["b"].position == "inside"


def test_rungs_and_rates_of_other_lengths() -> None:
    assert rung_epochs(6) == (1, 2, 6)
    assert rung_epochs(30) == (5, 10, 30)
    assert rung_epochs(1) == (1,)
    assert RATES == (0.2, 0.299, 0.447, 0.669, 1.0, 1.5, 2.24, 3.34, 5.0)
    assert rate_ladder(0.5, 2, 1) == (1.0,)


def test_a_races_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = RaceRecord(
        design=design(
            nuisance=(Axis("network.dim", ("16", "32")),),
            budget=8.0,
            unit="hours",
            epoch_cost={"a": 0.1},
            rateless=("b",),
        ),
        runs={"run-1": RunPlace(arm="a", point=Point(1.5, ("16",)), seed=0, rung=2)},
        overrides={"a": ("optimizer=adamw",)},
    )
    assert read_race(tmp_path) is None
    write_race(tmp_path, record)
    assert read_race(tmp_path) == record
    (tmp_path / "race.json").write_text("{}")
    with pytest.raises(DamagedFileError):
        read_race(tmp_path)
