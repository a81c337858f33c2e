"""Effect of one change of one setting, over all pairs of runs that differ in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from optbench.analysis import stats
from optbench.analysis.outcomes import SPEED, SPLITS, Outcome, last_validation, outcomes, varied

_COLUMNS = (
    "sweep",
    "setting",
    "from_value",
    "to_value",
    "measure",
    "num_pairs",
    "num_blocks",
    "blocks",
    "mean",
    "median",
    "low",
    "high",
    "method",
    "num_lower",
    "probability_lower",
    "sign_test_p",
    "sign_flip_p",
    "holm_p",
    "in_seed_deviations",
    "verdict",
    "depends_on",
)
_NOISE_COLUMNS = ("sweep", "measure", "deviation", "degrees", "num_settings", "num_runs")


def with_intervals(
    pairs: pd.DataFrame, runs: pd.DataFrame, validation: pd.DataFrame
) -> pd.DataFrame:
    """Return the pairs with the difference in validation loss and its interval over images.

    For each split `validation_<split>_difference`, `_low` and `_high`: how unlike two files are on
    such images, whatever another seed would have made of them. Only of runs that are done, and
    measured on the same images and noise levels.
    """
    rows = last_validation(runs, validation)
    is_done = runs.set_index(["sweep", "run"])["status"] == "done"
    frame = pairs.copy()
    for split in SPLITS:
        of_split = rows[rows["split"] == split]
        means = of_split.groupby(["sweep", "run", "image"])["difference"].agg(["mean", "size"])
        by_run: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
        for (sweep, run, image), mean, size in zip(
            means.index, means["mean"], means["size"], strict=True
        ):
            if is_done.get((sweep, run), False):
                by_run.setdefault((sweep, run), {})[image] = (float(mean), int(size))
        intervals = [
            _over_images(by_run.get((sweep, before)), by_run.get((sweep, after)))
            for sweep, before, after in zip(
                pairs["sweep"], pairs["from_run"], pairs["to_run"], strict=True
            )
        ]
        for index, end in enumerate(("difference", "low", "high")):
            values = [interval[index] for interval in intervals]
            frame[f"validation_{split}_{end}"] = pd.Series(values, index=frame.index, dtype=float)
    return frame


def _over_images(
    before: Mapping[str, tuple[float, int]] | None, after: Mapping[str, tuple[float, int]] | None
) -> tuple[float | None, float | None, float | None]:
    """Return the mean difference and its interval; each run has (mean, number of rows) by image."""
    if not before or not after or before.keys() != after.keys():
        return None, None, None
    if any(before[image][1] != after[image][1] for image in before):
        return None, None, None
    interval = stats.mean_interval([after[image][0] - before[image][0] for image in sorted(before)])
    return interval.mean, interval.low, interval.high


def noise_floor(runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return for each measure how far the seed alone moves it: the deviation inside settings.

    One row per sweep and measure that has settings run with two seeds or more; `degrees` is how
    many runs speak beyond the first of each setting. `final_loss` of runs that count errors alike.
    """
    rows = []
    for sweep, part in runs.groupby("sweep", sort=False):
        for measure, run_outcomes in outcomes(part, validation).items():
            groups = _by_setting(run_outcomes)
            noise = stats.pooled_deviation(groups)
            if noise is not None:
                repeated = [group for group in groups if len(group) > 1]
                rows.append((sweep, measure, *noise, len(repeated), sum(map(len, repeated))))
    return pd.DataFrame(rows, columns=list(_NOISE_COLUMNS))


def _by_setting(run_outcomes: Sequence[Outcome]) -> list[list[float]]:
    """Return the values of each setting's seeds."""
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for outcome in run_outcomes:
        key = outcome.settings, outcome.comparable
        groups.setdefault(key, {})[outcome.seed] = outcome.value
    return [list(group.values()) for group in groups.values()]


def effects(pairs: pd.DataFrame, runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return one row per change of a setting and measure: the difference and how sure it is.

    Differences are `to` minus `from`; of `seconds_per_step` the logarithm of the ratio. Pairs of
    one change share no run; where they hold several seeds, those of one seed share its draws and
    are one block, and the interval is over seeds. Else each pair is a block, and the interval is
    over the other settings at that one seed. Changes of the seed are the noise floor, not here.
    """
    rows: list[dict[str, Any]] = []
    for sweep, part in runs.groupby("sweep", sort=False):
        changes = pairs[(pairs["sweep"] == sweep) & (pairs["setting"] != "seed")]
        names = varied(part)
        for measure, run_outcomes in outcomes(part, validation).items():
            of_run = {outcome.run: outcome for outcome in run_outcomes}
            noise = stats.pooled_deviation(_by_setting(run_outcomes))
            deviation = noise[0] if noise else None
            columns = ("setting", "from_value", "to_value", "from_run", "to_run")
            groups: dict[tuple[str, str, str], list[tuple[Outcome, Outcome]]] = {}
            for setting, from_value, to_value, from_run, to_run in zip(
                *(changes[name] for name in columns), strict=True
            ):
                key = str(setting), str(from_value), str(to_value)
                ends = of_run.get(from_run), of_run.get(to_run)
                if ends[0] and ends[1] and ends[0].comparable == ends[1].comparable:
                    groups.setdefault(key, []).append((ends[0], ends[1]))
            of_changes = [
                {"sweep": sweep}
                | _effect(_Change(key=key, measure=measure, ends=ends), names, deviation)
                for key, ends in groups.items()
            ]
            for row, p in zip(
                of_changes, stats.holm([row["sign_flip_p"] for row in of_changes]), strict=True
            ):
                row["holm_p"] = p
            rows += of_changes
    return pd.DataFrame(rows, columns=list(_COLUMNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """The pairs of runs that show one change, and their differences in one measure."""

    key: tuple[str, str, str]
    measure: str
    ends: Sequence[tuple[Outcome, Outcome]]

    @property
    def differences(self) -> list[float]:
        if self.measure == SPEED:
            return [math.log(after.value / before.value) for before, after in self.ends]
        return [after.value - before.value for before, after in self.ends]

    @property
    def seeds(self) -> list[str] | None:
        """Return each pair's seed, None where all have one."""
        seeds = [before.seed for before, _ in self.ends]
        return seeds if len(set(seeds)) > 1 else None


def _effect(change: _Change, names: Sequence[str], deviation: float | None) -> dict[str, Any]:
    values = change.differences
    interval = stats.mean_interval(values, change.seeds)
    blocks: dict[Any, list[float]] = {}
    for block, value in zip(change.seeds or range(len(values)), values, strict=True):
        blocks.setdefault(block, []).append(value)
    means = [statistics.fmean(block) for block in blocks.values()]
    verdict = "unknown" if interval.low is None else "tied"
    if interval.excludes_zero:
        verdict = "lower" if interval.mean < 0 else "higher"
    num_lower, num_equal = sum(value < 0 for value in values), values.count(0.0)
    return {
        **dict(zip(("setting", "from_value", "to_value"), change.key, strict=True)),
        "measure": change.measure,
        "num_pairs": len(values),
        "num_blocks": interval.num_blocks,
        "blocks": "seeds" if change.seeds else "other settings",
        "mean": interval.mean,
        "median": statistics.median(values),
        "low": interval.low,
        "high": interval.high,
        "method": interval.method,
        "num_lower": num_lower,
        "probability_lower": (num_lower + num_equal / 2) / len(values),
        "sign_test_p": stats.sign_test_p(means),
        "sign_flip_p": stats.sign_flip_p(means),
        "in_seed_deviations": interval.mean / deviation if deviation else None,
        "verdict": verdict,
        "depends_on": "; ".join(_interactions(change, names)),
    }


def _interactions(change: _Change, names: Sequence[str]) -> Iterator[str]:
    """Yield what of the other settings the difference depends on, beyond luck.

    The two values of a setting furthest apart are compared by Student's t with the deviation
    inside values, at 5 % over all pairs of values. Without two pairs at one value none can be told.
    """
    for index, name in enumerate(names):
        if name == change.key[0]:
            continue
        levels: dict[str, list[float]] = {}
        for (before, _), value in zip(change.ends, change.differences, strict=True):
            levels.setdefault(before.settings[index], []).append(value)
        noise = stats.pooled_deviation(list(levels.values()))
        if len(levels) < 2 or noise is None:
            continue
        means = {level: statistics.fmean(values) for level, values in levels.items()}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        num_comparisons = math.comb(len(levels), 2)
        t = stats.student_quantile(1 - (1 - stats.CONFIDENCE) / 2 / num_comparisons, noise[1])
        size = t * noise[0] * math.sqrt(1 / len(levels[low]) + 1 / len(levels[high]))
        if means[high] - means[low] > size:
            at_levels = ", ".join(f"{mean:+.3g} at {level}" for level, mean in means.items())
            yield f"{name}: {at_levels}"
