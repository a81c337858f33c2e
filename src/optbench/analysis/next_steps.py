"""Gaps of a sweep's evidence and the runs that would close them: data without words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from optbench.analysis.comparisons import TRAINING, differing, known_records
from optbench.analysis.frames import Frames
from optbench.analysis.standings import BROKEN, DONE, Standings

ENOUGH_SEEDS = 3
MANY_SEEDS = 6  # fewer pairs than six can never have a sign test below 5 %
_EMBEDDED_DATASET = "mirelle"  # has held-out images of its own

Reason = Literal[
    "unfinished",
    "diverged",
    "out_of_memory",
    "nothing_to_compare",
    "no_held_out_validation",
    "no_validation",
    "few_seeds",
    "rates_untuned",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """One way to a surer answer: why, and what to add to the sweep's command."""

    reason: Reason
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Untested:
    """Settings that a sweep did not vary, with the values they had."""

    rates: bool
    fixed: dict[str, tuple[str, ...]]  # "base" and "dataset", those of them that were not varied
    num_steps: int | None  # where all finished runs trained as long
    ratings: bool  # nobody has scored its images


def next_steps(frames: Frames, standings: Standings) -> Iterator[NextStep]:
    """Yield the runs to make next, the most useful first."""
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    rows = known_records(runs)
    statuses = {str(row["status"]) for row in rows}
    # A class that finds its own rate ignores lr_mult.
    takes_rates = "automatic" not in {row.get("optimizer.traits.lr_role") for row in rows}
    if statuses - {DONE, *BROKEN}:
        yield NextStep(reason="unfinished")
    if "diverged" in statuses and takes_rates:
        yield NextStep(reason="diverged", overrides=("lr_mult=0.1,0.3,1",))
    if "out_of_memory" in statuses:
        yield NextStep(reason="out_of_memory", overrides=("train.gradient_checkpointing=true",))
    if len(standings.settings) == 1:
        yield NextStep(reason="nothing_to_compare")
    if standings.finished:
        if {row.get("dataset") for row in rows} == {_EMBEDDED_DATASET}:
            if standings.measure != "validation_held_out":
                yield NextStep(reason="no_held_out_validation", overrides=("validate=held_out",))
        elif standings.measure == "final_loss":
            yield NextStep(reason="no_validation", overrides=("validate=default",))
    is_settled = standings.is_ranked and len(standings.best) == 1
    if len(standings.finished) > 1 and not (is_settled and standings.num_seeds >= ENOUGH_SEEDS):
        # Those there are come first, so that their runs are not lost.
        seeds = sorted({seed for row in rows if isinstance(seed := row.get("seed"), int)})
        fresh = (seed for seed in range(1, 100) if seed not in {*seeds})
        aim = ENOUGH_SEEDS if standings.num_seeds < ENOUGH_SEEDS else MANY_SEEDS
        while len(seeds) < aim:
            seeds.append(next(fresh))
        if len(seeds) > standings.num_seeds:
            values = ",".join(map(str, seeds))
            yield NextStep(reason="few_seeds", overrides=(f"seed={values}",))
    if standings.finished and takes_rates and not standings.is_rate_tuned:
        yield NextStep(reason="rates_untuned", overrides=("lr_mult=0.3,1,3",))


def untested(frames: Frames, standings: Standings) -> Untested:
    """Return the settings and judgements that a sweep's answer cannot speak of."""
    runs = frames.runs[frames.runs["kind"] == TRAINING]
    factors = differing(runs) if len(runs) else []
    rows = known_records(runs)
    steps = {row.get("num_steps") for row in rows if row["status"] == DONE}
    is_length_varied = "train.epochs" in factors or "train.max_steps" in factors
    return Untested(
        rates=not standings.is_rate_tuned,
        fixed={
            name: tuple(sorted({str(row[name]) for row in rows if row.get(name)}))
            for name in ("base", "dataset")
            if name not in factors
        },
        num_steps=int(next(iter(steps)) or 0) if len(steps) == 1 and not is_length_varied else None,
        ratings=not len(frames.scores) and not len(frames.votes),
    )
