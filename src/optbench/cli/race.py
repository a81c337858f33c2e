"""What the terminal says of a race: its plan beforehand, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from optbench.analysis.race import (
    ArmVerdict,
    Point,
    RaceDesign,
    RaceVerdict,
    fit_budget,
    plan_race,
    what_more_buys,
)
from optbench.config.compose import SweepPlan
from optbench.config.race import RacePlan
from optbench.launch.race import RaceOnDisk, announcement
from optbench.report.wording import decimal_text, seconds_text
from optbench.terminal import Terminal

_SECONDS_PER_HOUR = 3600
_NUM_EPOCHS_MORE = 60  # what is said to be bought with more, where the budget is in epochs


def open_race(plan: RacePlan, sweep_dir: Path, *, workers: int) -> RaceOnDisk:
    """Return the race of a command line as its folder has it; what failed has failed."""
    race = RaceOnDisk.open(plan, sweep_dir, workers=workers)
    race.has_run(race.runs)
    return race


def print_race(console: Terminal, plan: SweepPlan, *, workers: int) -> None:
    """Print what a race would run, what it costs at least and at most, and what it could show."""
    assert plan.race is not None
    race = open_race(plan.race, plan.sweep_dir, workers=workers)
    design = plan.race.design
    fitted = race.design if race.unpriced else fit_budget(race.design)
    hours = race.hours(workers=workers)
    priced = dataclasses.replace(fitted, epoch_cost=hours or {}, budget=None)
    expected = plan_race(priced)
    console.print(_head(fitted))
    table = Table(title=str(plan.sweep_dir), title_justify="left", box=None)
    for title in ("stage", "runs", "until epoch", "epochs", "time", "shows a difference of"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for row in expected.rows:
        shown = row.smallest_difference
        table.add_row(
            row.stage if row.is_certain else f"perhaps: {row.stage}",
            str(row.num_runs),
            str(row.until_epoch),
            str(row.num_epochs),
            _time(row.cost) if hours else "-",
            "" if shown is None else f"{shown:.1f} deviations of a run",
        )
    console.print(table)
    in_epochs = plan_race(dataclasses.replace(fitted, epoch_cost={}, budget=None, finish_cost=0.0))
    for what, name in (
        ("at least, to the first look at fresh seeds", "first_look"),
        ("at most, where all are tied (a widened bracket adds to it)", "whole"),
        ("whole runs of every rate and seed would take", "plain"),
    ):
        time = f", {_time(getattr(expected, name))}" if hours else ""
        console.print(f"{what}: about {getattr(in_epochs, name):.0f} epochs{time}")
    if not hours:
        console.print("time: unknown, as no run in this runs folder has trained this data set yet")
    for sentence in _budget_sentences(design, fitted, is_priced=not race.unpriced):
        console.print(sentence)
    verdict = race.verdict()
    begun = {(result.arm, result.point, result.seed) for result in race.results()}
    if begun:
        console.print(
            f"so far: {len(begun)} runs, {verdict.epochs_tuning:.0f} epochs of tuning and "
            f"{verdict.epochs_confirming:.0f} of fresh seeds"
        )
        for line in announcement(fitted, verdict.steps):
            console.print(f"next: {line.removeprefix('race: ')}")
        for line in ending_lines(race):
            console.print(line)


def ending_lines(race: RaceOnDisk) -> list[str]:
    """Return what is known when a race is over, or its budget is spent; nothing before that."""
    design, verdict = race.design, race.verdict()
    if not verdict.is_over:
        return []
    lines = [_ENDINGS[verdict.ending]]
    lines += [f"  {_standing(arm)}" for arm in verdict.arms]
    epochs = f"{verdict.epochs_tuning:.0f} epochs of tuning"
    plain = plan_race(dataclasses.replace(design, epoch_cost={}, budget=None, finish_cost=0.0))
    lines.append(
        f"It took {epochs} and {verdict.epochs_confirming:.0f} of fresh seeds; whole runs of every "
        f"rate and seed are {plain.plain:.0f}."
    )
    if verdict.ending == "budget":
        lines += _more(design, verdict)
    return lines


_ENDINGS = {
    "one_left": "The race is over:",
    "tied": "The race is over; its fresh seeds do not tell these apart:",
    "budget": "The budget is spent. What is known by now:",
    "none_left": "The race is over, and no rate of any of these is usable:",
}


def _head(design: RaceDesign) -> str:
    rates = f"{len(design.rates)} rates from x{design.rates[0]:g} to x{design.rates[-1]:g}"
    if len(design.rates) == 1:
        rates = f"one rate, x{design.rates[0]:g}"
    least, most = design.confirm
    return (
        f"A race of {', '.join(design.arms)}: each at {rates} of its own (seed "
        f"{design.tuning_seed}), then the best of each with {least} to {most} fresh seeds, "
        f"from {design.fresh_seeds[0]} on."
    )


def _budget_sentences(design: RaceDesign, fitted: RaceDesign, *, is_priced: bool) -> Iterator[str]:
    if design.budget is None:
        return
    budget = _amount(design, design.budget)
    if not is_priced:
        yield f"budget {budget}: the race first measures what an epoch of each takes"
        return
    expected = plan_race(fitted)
    if not expected.fits:
        yield (
            f"budget {budget}: too little for the first look at fresh seeds, which takes about "
            f"{_amount(design, expected.first_look)}; then nothing is known of luck"
        )
        return
    yield f"budget {budget}: enough for the first look at fresh seeds"
    if fitted.rates != design.rates:
        yield (
            f"it fits {len(fitted.rates)} rates instead of {len(design.rates)}: "
            f"{', '.join(f'x{rate:g}' for rate in fitted.rates)}"
        )


def _standing(arm: ArmVerdict) -> str:
    name = arm.arm if arm.point is None else f"{arm.arm} {_spelled(arm.point)}"
    seeds = f"{arm.num_seeds} fresh seed{'' if arm.num_seeds == 1 else 's'}"
    difference = ""
    if (interval := arm.against_lead) is not None:
        difference = f" by {decimal_text(interval.mean, 2)}"
        if interval.low is not None and interval.high is not None:
            low, high = (decimal_text(end, 2) for end in (interval.low, interval.high))
            difference += f" ({low} to {high})"
    match arm.standing:
        case "lead":
            return f"{name}: the lowest loss, {seeds}"
        case "tied":
            return f"{name}: tied with it, higher{difference or ' or lower'}, {seeds}"
        case "worse":
            return f"{name}: worse{difference}, {seeds}"
        case "untested":
            return f"{name}: its best rate by one seed; no fresh seed yet"
        case "untuned":
            return f"{name}: not tuned to the end"
        case "broken":
            return f"{name}: its LoRAs are broken"
        case "failed":
            return f"{name}: came to no result"


def _more(design: RaceDesign, verdict: RaceVerdict) -> Iterator[str]:
    amount = 1.0 if design.unit == "hours" else float(_NUM_EPOCHS_MORE)
    more = what_more_buys(design, verdict, amount)
    words = f"{_amount(design, amount)} more"
    if not more.num_seeds:
        needed = _amount(design, more.next_look)
        yield f"{words} would not reach the next look, which takes {needed}."
        return
    line = f"{words} would buy {more.num_seeds} fresh seeds more of {', '.join(more.arms)}"
    if more.smallest_then is not None and more.smallest_now is not None:
        line += (
            f": a difference of {decimal_text(more.smallest_then, 2)} would show, "
            f"now one of {decimal_text(more.smallest_now, 2)}"
        )
    yield f"{line}. Write a larger race.budget; what is done stays."


def _spelled(point: Point) -> str:
    return " ".join((f"x{point.rate:g}", *point.values))


def _amount(design: RaceDesign, amount: float) -> str:
    if design.unit == "hours":
        return _time(amount)
    return f"{amount:.0f} epochs"


def _time(hours: float) -> str:
    return seconds_text(hours * _SECONDS_PER_HOUR)
