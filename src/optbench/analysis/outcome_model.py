"""Fit one model to a sweep's outcomes: which settings are compared, and by what blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from optbench.analysis import stats
from optbench.analysis.comparisons import shown
from optbench.analysis.outcomes import SPEED, Outcome, Unlike, is_forgetful, unlike
from optbench.analysis.stats import Images, TwoWay

DONE = "done"
BROKEN = ("diverged", "failed", "out_of_memory")

Settings = tuple[str, ...]


def failed_settings(runs: pd.DataFrame, names: Sequence[str]) -> set[Settings]:
    """Return the values of the settings with a run that diverged, failed or ran out of memory."""
    return {
        tuple(shown(row.get(name)) for name in names)
        for row in runs[runs["status"].isin(BROKEN)].to_dict("records")
    }


def forgetful_settings(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> set[Settings]:
    """Return the values of the settings with a LoRA that is broken by what it forgets.

    Their noise is another one: on the embedded base model three times that of the noisiest sound
    one.
    """
    return {tuple(shown(row.get(name)) for name in names) for row in rows if is_forgetful(row)}


def fit_outcomes(
    run_outcomes: Sequence[Outcome],
    failed: Collection[Settings],
    measure: str,
    *,
    forgetful: Collection[Settings] = (),
    confidence: float = stats.CONFIDENCE,
) -> TwoWay | None:
    """Return the model of all settings that are compared, by their values; None without any.

    These are the settings measured alike, if they are more than half. One that failed for one seed
    is left out, unless all did: what breaks for one seed of three is no winner, however low the
    other two are. Runs share a block that have one seed and may be compared; two of one setting
    and block, as of a folder that was copied, count once. Of times the logarithms are compared.
    What luck does to `forgetful` settings says nothing of the others. All intervals together hold
    with this `confidence`.
    """
    alike, _ = _measured_alike(run_outcomes)
    all_failed = alike <= {*failed}
    values: dict[Hashable, dict[Hashable, float]] = {}
    images: dict[Hashable, dict[Hashable, Images]] = {}
    for outcome in run_outcomes:
        key = outcome.settings
        if key in alike and (all_failed or key not in failed):
            block = outcome.seed, outcome.comparable
            value = outcome.value
            if measure == SPEED:
                value = math.log(value) if value > 0 else math.nan
            if math.isfinite(value):
                values.setdefault(key, {})[block] = value
                images.setdefault(key, {})[block] = outcome.images
    return (
        stats.fit_two_way(values, images, apart=forgetful, confidence=confidence)
        if values
        else None
    )


def unlike_others(run_outcomes: Sequence[Outcome]) -> tuple[Unlike, ...]:
    """Return in what the settings that are not compared were measured unlike those that are."""
    return _measured_alike(run_outcomes)[1]


def _measured_alike(
    run_outcomes: Sequence[Outcome],
) -> tuple[set[Settings], tuple[Unlike, ...]]:
    """Return the settings measured alike that are more than half, and in what others are unlike.

    Settings are alike that have an outcome comparable with one of the other's, or of one that is
    alike to both.
    """
    kinds_of: dict[Settings, set[tuple[tuple[Unlike, str], ...]]] = {}
    for outcome in run_outcomes:
        kinds_of.setdefault(outcome.settings, set()).add(outcome.comparable)
    groups: list[tuple[set[Settings], set[tuple[tuple[Unlike, str], ...]]]] = []
    for key, kinds in kinds_of.items():
        joined = [group for group in groups if group[1] & kinds]
        groups = [group for group in groups if not group[1] & kinds]
        groups.append(
            (
                {key}.union(*(settings for settings, _ in joined)),
                kinds.union(*(of_group for _, of_group in joined)),
            )
        )
    if not groups:
        return set(), ()
    settings, kinds = max(groups, key=lambda group: len(group[0]))
    like = [outcome for outcome in run_outcomes if outcome.comparable in kinds]
    others = [outcome for outcome in run_outcomes if outcome.comparable not in kinds]
    is_most = 2 * len(settings) > len(kinds_of)
    return settings if is_most else set(), unlike([like[0], *others]) if others else ()
