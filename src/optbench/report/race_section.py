"""The report of a race: who leads at its own best rate, how every rate was tried, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.race import (
    ArmTuning,
    ArmVerdict,
    RaceDesign,
    RaceRecord,
    RaceVerdict,
    expected_best,
    optimism,
    read_results,
    tuning_of,
    verdicts,
    what_more_buys,
)
from optbench.report.charts.styles import COLOURS, Styles
from optbench.report.race_drawing import Entrant, curves, draw_expected, forest, tournament
from optbench.report.rates import tuning_badge
from optbench.report.wording import NONE, decimal_text, listed, seconds_text, times

_FATES = {
    "pending": "running",
    "stopped": "stopped",
    "broken": "broken",
    "failed": "failed",
    "finished": "whole",
    "finalist": "finalist",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedRow:
    """One rate of the tuning seed, as the table shows it."""

    arm: str
    label: str
    rate: float
    scores: tuple[str, ...]  # by rung
    fate: str  # as a class of the page
    words: str  # stopped at epoch 2 of 6
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPanel:
    """One arm: its ladder as a picture, and what tuning it was worth."""

    arm: str
    colour: str
    best: str
    badge: str
    tournament: Markup
    curves: Markup
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """What tuning an arm cost, and what its rate was worth."""

    arm: str
    standing: str
    best: str
    tuned: str  # its best score with the tuning seed
    untuned: str  # that of its own rate, after as many epochs
    worth: str
    at_epoch: str
    rates: int
    tuning: str
    confirming: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceSection:
    """All that the page shows of a race."""

    ending: str
    sentences: tuple[str, ...]  # the lead against every other arm
    more: str  # what more of the budget would buy; nothing where nobody wants more
    forest: Markup
    panels: tuple[ArmPanel, ...]
    rungs_titles: list[str]
    tried: tuple[TriedRow, ...]
    costs: tuple[CostRow, ...]
    looks: tuple[str, ...]
    expected: Markup
    spent: str
    optimism: str
    is_widened: bool
    confidence: str


def race_section(sweep: SweepEvidence, styles: Styles) -> RaceSection | None:
    """Return what the page shows of a race; None where the sweep is none."""
    record = sweep.race
    if record is None:
        return None
    verdict = verdicts(record.design, read_results(sweep.frames, record))
    colours = dict.fromkeys(record.design.arms, COLOURS[0])
    for name, place in record.runs.items():
        if name in styles:
            colours[place.arm] = styles[name].colour
    return _section(sweep, record, verdict, colours)


def _section(
    sweep: SweepEvidence, record: RaceRecord, verdict: RaceVerdict, colours: Mapping[str, str]
) -> RaceSection:
    design = record.design
    seconds = _seconds(sweep, record)
    by_arm = {arm.arm: arm for arm in verdict.arms}
    entrants = [
        Entrant(arm=arm, tuning=tuning, design=design, colour=colours[arm], best=by_arm[arm].point)
        for arm, tuning in verdict.tunings.items()
    ]
    expected = {arm: expected_best(tuning) for arm, tuning in verdict.tunings.items()}
    is_compared = any(arm.against_lead is not None for arm in verdict.arms)
    num_images = verdict.looks[-1].model.num_images if verdict.looks else 0
    return RaceSection(
        ending=_ending(design, verdict),
        sentences=tuple(_sentences(design, verdict, num_images)),
        more=_more(design, verdict, seconds),
        forest=forest(verdict.arms, colours, design) if is_compared else Markup(""),
        panels=tuple(
            ArmPanel(
                arm=entrant.arm,
                colour=entrant.colour,
                best=design.label(entrant.best) if entrant.best else "",
                badge=badge_of(design, entrant.tuning),
                tournament=tournament(entrant),
                curves=curves(entrant),
                epochs=entrant.tuning.epochs,
            )
            for entrant in entrants
        ),
        rungs_titles=[f"epoch {rung}" for rung in design.rungs],
        tried=tuple(row for entrant in entrants for row in _tried(design, entrant)),
        costs=tuple(
            _cost_row(design, by_arm[arm], tuning, seconds)
            for arm, tuning in verdict.tunings.items()
        ),
        looks=tuple(_looks(design, verdict)),
        expected=draw_expected({e.arm: (e.colour, expected[e.arm]) for e in entrants}),
        spent=_spent(design, verdict, seconds),
        optimism=decimal_text(
            optimism(max((t.num_rates for t in verdict.tunings.values()), default=1)), 2
        ),
        confidence=f"{100 * (1 - design.alpha):g} %",
        is_widened=any(tuning.num_widenings for tuning in verdict.tunings.values()),
    )


def badge_of(design: RaceDesign, tuning: ArmTuning) -> str:
    """Return how far an arm's rate was tuned, as the settings' table says it."""
    if not tuning.is_complete:
        return f"{times(tuning.num_rates, 'rate')} so far"
    return tuning_badge(tuning_of(design, tuning))


def _name(design: RaceDesign, arm: ArmVerdict) -> str:
    return f"{arm.arm} {design.label(arm.point)}" if arm.point else arm.arm


def _sentences(design: RaceDesign, verdict: RaceVerdict, num_images: int) -> list[str]:
    lead = verdict.lead
    if lead is None:
        return []
    first = (
        f"{_name(design, lead)} ({_tuned(verdict.tunings[lead.arm])} of tuning)"
        if len(design.points_of(lead.arm)) > 1
        else _name(design, lead)
    )
    sentences = []
    for arm in verdict.arms:
        if arm is lead:
            continue
        tuning = verdict.tunings[arm.arm]
        against = arm.against_lead
        if against is None or against.low is None or against.high is None:
            words = {"failed": "failed", "broken": "has broken images"}.get(arm.standing, "")
            sentences.append(
                f"{arm.arm} is out: {arm.reason or words or 'not run with fresh seeds'}."
            )
            continue
        places = _places(against.high - against.low)
        size, low, high = (
            f"{value:.{places}f}" for value in (against.mean, against.low, against.high)
        )
        is_worse = arm.standing == "worse"
        images = f"; {times(num_images, 'image')}" if num_images else ""
        said = f"{size} lower" if is_worse else f"tied, {size} lower"
        sentences.append(
            f"{first} against {_name(design, arm)} ({_tuned(tuning)}): {said} "
            f"({low} to {high}; {times(arm.num_seeds, 'fresh seed')}{images})."
        )
    return sentences


def _tuned(tuning: ArmTuning) -> str:
    return f"best of {times(tuning.num_rates, 'rate')}, {times(round(tuning.epochs), 'epoch')}"


def _places(width: float) -> int:
    """Return how many decimals an interval of this width deserves."""
    return min(7, max(2, math.ceil(-math.log10(max(width, 1e-7) / 2))))


def _ending(design: RaceDesign, verdict: RaceVerdict) -> str:
    lead, tied = verdict.lead, [arm.arm for arm in verdict.tied]
    if verdict.ending == "one_left" and lead is not None:
        if len(design.arms) == 1:
            return f"{lead.arm} has run at its best rate with fresh seeds; nothing raced it."
        if not any(arm.standing == "worse" for arm in verdict.arms):
            return f"{lead.arm} is the only one left: the others failed or are broken."
        return f"{lead.arm} wins: every optimizer at its own best rate, with fresh seeds."
    if verdict.ending == "tied" and lead is not None:
        return (
            f"{listed([lead.arm, *tied])} are tied after "
            f"{times(design.confirm[1], 'fresh seed')}.{_smallest(verdict)}"
        )
    if verdict.ending == "none_left":
        return "No optimizer has a rate that could be recommended: every one failed or is broken."
    if verdict.ending == "budget":
        budget = _amount(design.budget or 0.0, design.unit)
        if lead is None:
            return (
                f"The budget of {budget} ended before any optimizer had run with fresh seeds: "
                "the rates below are chosen, and nothing is known of which optimizer is better."
            )
        left = listed([lead.arm, *tied])
        return f"The budget of {budget} is spent: {left} are tied.{_smallest(verdict)}"
    num_tuned = sum(tuning.is_complete for tuning in verdict.tunings.values())
    due = times(len(verdict.steps), "run")
    if num_tuned < len(design.arms):
        is_one = num_tuned == 1
        return (
            f"The race is on: {num_tuned} of {len(design.arms)} optimizers "
            f"{'has its' if is_one else 'have their'} best rate, {due} due now."
        )
    return f"The race is on: every optimizer has its best rate, {due} with fresh seeds due now."


def _smallest(verdict: RaceVerdict) -> str:
    last = verdict.looks[-1]
    size = last.model.detectable(confidence=last.confidence)
    if size is None:
        return ""
    return f" Most races like this one would have shown a difference of {decimal_text(size, 2)}."


def _more(design: RaceDesign, verdict: RaceVerdict, seconds: Mapping[str, float]) -> str:
    if verdict.ending not in ("budget", "tied"):
        return ""
    look = verdict.looks[-1] if verdict.looks else None
    if look is None:
        missing = what_more_buys(design, verdict, 0.0).next_look
        return (
            f"{_amount(missing, design.unit)} more would reach the first look at fresh seeds. "
            "Raise race.budget and repeat the command: it continues."
        )
    arms = list(dict.fromkeys(arm for arm, _ in look.left))
    per_seed = sum(design.cost(arm, design.length, finishes=True) for arm, _ in look.left)
    hour = 1.0 if design.unit == "hours" else _epochs_per_hour(arms, seconds)
    amount = hour if hour and hour >= per_seed else per_seed
    more = what_more_buys(design, verdict, amount)
    if not more.num_seeds or more.smallest_now is None or more.smallest_then is None:
        return ""
    words = "One more hour" if amount == hour else f"{_amount(amount, design.unit)} more"
    key = "race.budget" if verdict.ending == "budget" else "race.confirm"
    return (
        f"{words} would buy {times(more.num_seeds, 'fresh seed')} more of {listed(arms)}: then a "
        f"difference of {decimal_text(more.smallest_then, 2)} would show instead of "
        f"{decimal_text(more.smallest_now, 2)}. Raise {key} and repeat the command: it continues."
    )


def _epochs_per_hour(arms: Sequence[str], seconds: Mapping[str, float]) -> float | None:
    known = [seconds[arm] for arm in arms if seconds.get(arm)]
    return 3600 / (sum(known) / len(known)) if known else None


def _amount(amount: float, unit: str) -> str:
    return seconds_text(3600 * amount) if unit == "hours" else times(round(amount), "epoch")


def _looks(design: RaceDesign, verdict: RaceVerdict) -> list[str]:
    sentences = []
    for look in verdict.looks:
        dropped = [
            f"{arm} {design.label(point)} ({drop.why})"
            for drop in look.dropped
            for arm, point in [drop.finalist]
        ]
        left = listed([f"{arm} {design.label(point)}" for arm, point in look.left])
        sent = f"sent home {listed(dropped)}" if dropped else "sent nobody home"
        sentences.append(
            f"Look {look.number}, after {times(len(look.seeds), 'fresh seed')} "
            f"({look.confidence:.1%} intervals): {sent}; left: {left or 'nobody'}."
        )
    return sentences


def _tried(design: RaceDesign, entrant: Entrant) -> list[TriedRow]:
    rows = []
    for tried in sorted(entrant.tuning.tried, key=lambda tried: tried.point):
        if tried.fate in ("finished", "finalist"):
            words = f"all {design.length} epochs"
        elif tried.fate == "pending":
            reached = max((e for e, s in tried.scores.items() if math.isfinite(s)), default=0)
            words = f"at epoch {reached} of {design.length}"
        else:
            words = f"{_FATES[tried.fate]} at epoch {tried.stopped_at} of {design.length}"
        rows.append(
            TriedRow(
                arm=entrant.arm,
                label=design.label(tried.point),
                rate=tried.point.rate,
                scores=tuple(_score(tried.scores.get(rung)) for rung in design.rungs),
                fate=tried.fate,
                words=words,
                why="best of its rates" if tried.point == entrant.best else tried.reason,
            )
        )
    return rows


def _score(score: float | None) -> str:
    return NONE if score is None or not math.isfinite(score) else f"{score:.5f}"


def _cost_row(
    design: RaceDesign, arm: ArmVerdict, tuning: ArmTuning, seconds: Mapping[str, float]
) -> CostRow:
    tuned = untuned = worth = at_epoch = NONE
    # The recipe's own rate, or the one tried that is nearest to it.
    nearest = min((abs(math.log(t.point.rate)) for t in tuning.tried), default=math.inf)
    own = [t for t in tuning.tried if math.isclose(abs(math.log(t.point.rate)), nearest)]
    own = own if nearest < math.log(design.ratio) else []
    best = next((t for t in tuning.tried if t.point == arm.point), None)
    if best is not None:
        tuned = _score(best.scores.get(design.length))
        # Both after as many epochs: where the ladder stopped the own rate, or at the end.
        same = [t for t in own if t.point.values == best.point.values] or own
        common = {e for t in same for e in t.scores} & {*best.scores}
        if same and common:
            epoch = max(common)
            before, after = same[0].scores[epoch], best.scores[epoch]
            at_epoch = str(epoch)
            untuned = f"{_score(before)} (x{same[0].point.rate:g})"
            tuned = _score(after)
            is_own = best is same[0]
            worth = "0, it is the best" if is_own else decimal_text(after - before, 2)
    each = seconds.get(tuning.arm)
    confirming = round(arm.epochs)

    def time_of(num_epochs: float) -> str:
        return f", {seconds_text(each * num_epochs)}" if each else ""

    return CostRow(
        arm=tuning.arm,
        standing=arm.standing,
        best=design.label(arm.point) if arm.point else NONE,
        tuned=tuned,
        untuned=untuned,
        worth=worth,
        at_epoch=at_epoch,
        rates=tuning.num_rates,
        tuning=f"{times(round(tuning.epochs), 'epoch')}{time_of(tuning.epochs)}",
        confirming=f"{times(arm.num_seeds, 'seed')}, {times(confirming, 'epoch')}"
        f"{time_of(confirming)}"
        if arm.num_seeds
        else NONE,
    )


def _seconds(sweep: SweepEvidence, record: RaceRecord) -> dict[str, float]:
    """Return the seconds that an epoch of each arm took, training and validation, on average."""
    sums: dict[str, list[float]] = {}
    for run in sweep.runs:
        place = record.place_of(run.name)
        if place is None:
            continue
        for epoch in run.epochs:
            known = [epoch.get(name) for name in ("seconds_train", "seconds_validate")]
            whole = sum(float(value) for value in known if isinstance(value, (int, float)))
            if whole > 0:
                sums.setdefault(place.arm, []).append(whole)
    return {arm: sum(values) / len(values) for arm, values in sums.items()}


def _spent(design: RaceDesign, verdict: RaceVerdict, seconds: Mapping[str, float]) -> str:
    epochs = verdict.epochs_tuning + verdict.epochs_confirming
    num_points = sum(len(design.points_of(arm)) for arm in design.arms)
    plain = design.length * (num_points + len(design.arms) * design.confirm[1])
    hours = sum(
        seconds.get(arm, 0.0) * tuning.epochs for arm, tuning in verdict.tunings.items()
    ) + sum(seconds.get(arm.arm, 0.0) * arm.epochs for arm in verdict.arms)
    time = f", {seconds_text(hours)} of one run at a time" if hours else ""
    saved = f", {1 - epochs / plain:.0%} less" if epochs < plain else ""
    if not verdict.is_over:
        return f"{times(round(epochs), 'epoch')} so far{time}."
    return (
        f"{times(round(epochs), 'epoch')} in all ({round(verdict.epochs_tuning)} of tuning, "
        f"{round(verdict.epochs_confirming)} with fresh seeds{time}). Whole runs of every first "
        f"rate and of {times(design.confirm[1], 'seed')} would have been {plain} epochs{saved}."
    )
