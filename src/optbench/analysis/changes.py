"""Changes of one setting, each over all pairs of trainings that differ in nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optbench.analysis.comparisons import TRAINING, factors, known_records
from optbench.analysis.frames import Frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting from one value to another, with its pairs of runs; differences are to - from."""

    setting: str
    from_value: str
    to_value: str
    pairs: tuple[Mapping[str, Any], ...]  # of the pairs frame; unknown values are None
    num_losses: int  # pairs whose training losses can be compared
    num_lower_loss: int
    loss_difference: float | None  # median
    time_ratio: float | None  # median, of the times per step


def changes(frames: Frames) -> list[Change]:
    """Return a sweep's changes in the order of its factors and their values.

    A pair's difference of training losses is None where these are losses of something else
    (`loss_conditions`), that of times where the numbers of steps differ.
    """
    trainings = frames.runs[frames.runs["kind"] == TRAINING]
    num_steps = {str(row["run"]): row.get("num_steps") for row in known_records(trainings)}
    pairs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for pair in known_records(frames.pairs):
        if not {pair["from_run"], pair["to_run"]} <= num_steps.keys():
            continue  # of resized files
        if num_steps[pair["from_run"]] != num_steps[pair["to_run"]]:
            pair["seconds_total_difference"] = None
        pairs.setdefault((pair["setting"], pair["from_value"], pair["to_value"]), []).append(pair)
    order = {
        (name, value): (number, index)
        for number, (name, values) in enumerate(factors(frames.runs).items())
        for index, value in enumerate(values)
    }
    last = (len(order), 0)
    ordered = sorted(pairs, key=lambda key: [order.get((key[0], value), last) for value in key[1:]])
    return [_change(*key, pairs[key]) for key in ordered]


def _change(setting: str, from_value: str, to_value: str, pairs: list[dict[str, Any]]) -> Change:
    losses = [loss for pair in pairs if (loss := pair["loss_difference"]) is not None]
    ratios = [
        after / before
        for pair in pairs
        if (after := pair["to_seconds_per_step"]) is not None
        and (before := pair["from_seconds_per_step"])
    ]
    return Change(
        setting=setting,
        from_value=from_value,
        to_value=to_value,
        pairs=tuple(pairs),
        num_losses=len(losses),
        num_lower_loss=sum(loss < 0 for loss in losses),
        loss_difference=statistics.median(losses) if losses else None,
        time_ratio=statistics.median(ratios) if ratios else None,
    )
